# SPDX-License-Identifier: BSD-3-Clause
"""The process state that visits share: what a task has changed is restored, or named.

Covers state that changes the results, the logs or the time limits of a later visit without an
error. Does not cover open descriptors and memory: the supervisor limits those.
"""

import concurrent.futures.thread
import contextlib
import ctypes
import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

from ppdaemon.processes import children

__all__ = ("Leftovers", "ScratchFolder")

STACK = ("lsst", "builtins", "numpy", "random", "time")
"""Packages whose module attributes are compared."""
PLAIN = (bool, int, float, complex, str, bytes, tuple, frozenset)
"""Types of module attributes that are configuration; classes and what can be called are code.
Others are often created when they are first needed, and restoring would undo that."""
IDLE = (
    threading.Condition.wait.__code__,  # of queues and events, too
    concurrent.futures.thread._worker.__code__,  # it gets its work from a queue written in C
)
"""Functions in which threads wait for work."""
HARMLESS = frozenset({"tqdm"})
"""Packages whose threads do nothing but watch their own objects."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One kind of state. `read` returns a value that can be compared; `restore` is `None` if only
    a new process is as before.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object] | None = None


class ScratchFolder:
    """The working directory of a worker, and its folder for temporary files; empty before each visit."""

    def __init__(self, path: Path):
        self.path = path

    def enter(self) -> None:
        """Create or empty the folder, and make it the working directory."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(self.path).st_mode):
                self.path.chmod(0o755)
            else:
                self.path.unlink()  # never what a link leads to
        self.path.mkdir(exist_ok=True)
        for entry in os.scandir(self.path):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        os.chdir(self.path)

    def use_for_temporary_files(self) -> None:
        """Let this process and its children create temporary files in the folder."""
        os.environ["TMPDIR"] = str(self.path)
        tempfile.tempdir = str(self.path)


def _remove(folder: str) -> None:
    """Remove a folder, also one without permissions. What remains is a mount point, say."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # usually it is gone
        os.chmod(folder, 0o700)
        for parent, names, _ in os.walk(folder):  # a folder is listed after its permissions are set
            for name in names:
                if not os.path.islink(path := os.path.join(parent, name)):
                    os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)


class Leftovers:
    """Finds what a visit has left in this process; created before the first one.

    `preloaded` are further packages whose module attributes are compared. Threads whose names
    match a pattern in `allowed_threads` are ignored.
    """

    def __init__(self, preloaded: Iterable[str] = (), allowed_threads: Collection[str] = ()):
        packages = {name.partition(".")[0] for name in (*STACK, *preloaded)}
        self._allowed_threads = allowed_threads
        self._before = {part: _read(part) for part in _PYTHON}
        self._libraries: set[str] = set()
        self._add_libraries()
        self._children = children()
        self._threads = {thread.ident for thread in threading.enumerate()}
        self._attributes = _attributes(packages)
        self._start_method = multiprocessing.get_start_method(allow_none=True)
        self._importing = False

    @contextlib.contextmanager
    def around(self, _module: str) -> Iterator[None]:
        """Retain what an import changes, since it is not run again. Takes about 1 ms for an import
        that is not within another one.
        """
        if self._importing:
            yield
            return
        self._importing = True
        # What a task has changed before the import is restored nevertheless.
        parts = [part for part, before in self._before.items() if _is_as_before(part, before)]
        attributes = [
            number
            for number, (module, name, value) in enumerate(self._attributes)
            if module.get(name) is value
        ]
        try:
            yield
        finally:
            self._importing = False
            self._before |= {part: _read(part) for part in parts}
            for number in attributes:
                module, name, _ = self._attributes[number]
                self._attributes[number] = module, name, module.get(name)
            self._add_libraries()

    def _add_libraries(self) -> None:
        """Compare the state of libraries that have been imported, from now on."""
        for module, parts in _LIBRARIES.items():
            if module in sys.modules and module not in self._libraries:
                self._libraries.add(module)
                self._before |= {part: _read(part) for part in parts()}

    def restore(self) -> tuple[list[str], list[str]]:
        """Restore what can be restored. Return the names of what was restored, and of what only a
        new process does not have.
        """
        restored: list[str] = []
        remaining: list[str] = []
        try:
            self._restore(restored, remaining)
        except Exception as error:  # a task may have replaced a function that is used here
            remaining.append(f"what raises {type(error).__name__}")
        return restored, remaining

    def _restore(self, restored: list[str], remaining: list[str]) -> None:
        for part, before in self._before.items():
            if _is_as_before(part, before):
                continue
            if part.restore is not None:
                # A part that cannot be restored is still different, which decides.
                with contextlib.suppress(Exception):
                    part.restore(before)
            (restored if part.restore and _is_as_before(part, before) else remaining).append(part.name)
        for module, name, value in self._attributes:
            if module.get(name) is not value:
                module[name] = value
                restored.append(f"{module.get('__name__')}.{name}")
        _reseed()
        # These cannot be read, or are set at the first use.
        faulthandler.cancel_dump_traceback_later()
        signal.set_wakeup_fd(-1)  # the descriptor may be that of another file by now
        multiprocessing.set_start_method(self._start_method, force=True)
        remaining += [f"process {name}" for name in self._new_children()]
        remaining += [f"thread {name}" for name in self._new_threads()]

    def _new_children(self) -> list[str]:
        """Return the names of processes that a visit has left."""
        names = []
        for child in sorted(children() - self._children):
            with contextlib.suppress(OSError):  # it has ended and was waited for
                names.append(Path(f"/proc/{child}/comm").read_text().strip())
        return names

    def _new_threads(self) -> list[str]:
        """Return the names of threads that a visit has left and that may still do something."""
        frames = sys._current_frames()
        return sorted(
            thread.name
            for thread in threading.enumerate()
            if thread.ident not in self._threads
            and not any(fnmatch(thread.name, pattern) for pattern in self._allowed_threads)
            and not _is_idle(thread, frames.get(thread.ident or 0))
        )


def _read(part: _Part) -> Any:
    """Return a part's value; an unreadable one, such as a closed descriptor's, differs from any other."""
    try:
        return part.read()
    except Exception:
        return object()


def _is_as_before(part: _Part, before: Any) -> bool:
    """Return whether a part is as it was; not if that cannot be found out, for example because values
    are arrays.
    """
    try:
        return bool(_read(part) == before)
    except Exception:
        return False


def _is_idle(thread: threading.Thread, frame: types.FrameType | None) -> bool:
    """Return whether a thread waits for work, without end: it changes nothing by itself. One that waits
    for some time does something after it.
    """
    if type(thread).__module__.partition(".")[0] in HARMLESS:
        return True
    if frame is None or frame.f_code not in IDLE or isinstance(thread, threading.Timer):
        return False
    return frame.f_locals.get("timeout") is None


def _attributes(packages: Collection[str]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return the public attributes of all modules of some packages that are configuration or code."""
    return [
        (vars(module), name, value)
        for module in list(sys.modules.values())
        if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0] in packages
        for name, value in list(vars(module).items())
        if not name.startswith("_") and (isinstance(value, PLAIN) or callable(value))
    ]


def _reseed() -> None:
    """Seed the random generators from the operating system, as in a new worker: a task may have
    seeded them with a constant.
    """
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


# --- the interpreter ---------------------------------------------------------


def _umask() -> int:
    # The function returns the present value only when it sets another one.
    umask = os.umask(0)
    os.umask(umask)
    return umask


_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _restore_handlers(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


_ENVIRON = os.environ
_LIBC = ctypes.CDLL(None)


def _entries() -> frozenset[bytes]:
    """Return the environment that compiled code and child processes have: ``os.putenv`` and code in
    C change only this one.
    """
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(_LIBC, "environ")
    found: list[bytes] = []
    while environ and (entry := environ[len(found)]) is not None:
        found.append(entry)
    return frozenset(found)


def _environment() -> tuple[Any, ...]:
    return os.environ is _ENVIRON, dict(_ENVIRON), _entries()


def _restore_environment(before: tuple[Any, ...]) -> None:
    os.environ = _ENVIRON  # noqa: B003
    _, variables, entries = before
    os.environ.clear()
    os.environ.update(variables)
    for entry in _entries() - entries:
        os.unsetenv(entry.partition(b"=")[0])
    for entry in entries - _entries():
        name, _, value = entry.partition(b"=")
        os.putenv(name, value)


def _time_zone() -> tuple[Any, ...]:
    return os.environ.get("TZ"), time.tzname, time.timezone


def _restore_time_zone(before: tuple[Any, ...]) -> None:
    if before[0] is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = before[0]
    time.tzset()


def _gc() -> tuple[Any, ...]:
    return gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks)


def _restore_gc(before: tuple[Any, ...]) -> None:
    enabled, threshold, debug, gc.callbacks[:] = before
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*threshold)
    gc.set_debug(debug)


def _decimal() -> tuple[Any, ...]:
    context = decimal.getcontext()
    traps = [flag for flag, trapped in context.traps.items() if trapped]
    return (
        context.prec,
        context.rounding,
        context.Emin,
        context.Emax,
        context.capitals,
        context.clamp,
        traps,
    )


def _restore_decimal(before: tuple[Any, ...]) -> None:
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")
    decimal.setcontext(decimal.Context(flags=[], **dict(zip(names, before, strict=True))))


_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))


def _limits() -> dict[int, tuple[int, int]]:
    return {limit: resource.getrlimit(limit) for limit in _LIMITS}


def _restore_limits(before: Mapping[int, tuple[int, int]]) -> None:
    for limit, values in before.items():
        if resource.getrlimit(limit) != values:
            resource.setrlimit(limit, values)


def _streams() -> tuple[Any, ...]:
    # A closed one cannot be opened again, and a log to it is lost.
    return tuple((stream, stream is not None and stream.closed) for stream in _standard_streams())


def _standard_streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr


def _restore_streams(before: Sequence[tuple[Any, bool]]) -> None:
    sys.stdin, sys.stdout, sys.stderr = (stream for stream, _ in before)


def _hooks() -> tuple[Any, ...]:
    return (
        sys.excepthook,
        sys.displayhook,
        sys.unraisablehook,
        sys.breakpointhook,
        threading.excepthook,
        threading.gettrace(),
        threading.getprofile(),
    )


def _restore_hooks(before: tuple[Any, ...]) -> None:
    sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook, threading.excepthook = before[:5]
    threading.settrace(before[5])
    threading.setprofile(before[6])


_LISTS_OF_SYS = ("path", "argv", "meta_path", "path_hooks")


def _list_of_sys(name: str) -> _Part:
    """Return the part of a list, of which also the elements may be changed."""

    def restore(before: list[Any]) -> None:
        getattr(sys, name)[:] = before

    return _Part(f"sys.{name}", lambda: list(getattr(sys, name)), restore)


def _standard_files() -> tuple[tuple[int, int], ...]:
    return tuple((found.st_dev, found.st_ino) for found in map(os.fstat, range(3)))


def _warnings() -> tuple[Any, ...]:
    return list(warnings.filters), warnings.showwarning, warnings.formatwarning


def _restore_warnings(before: tuple[Any, ...]) -> None:
    logging.captureWarnings(False)  # it remembers by itself that it has replaced the function
    warnings.resetwarnings()  # modules remember which warnings they have shown until this is called
    warnings.filters[:], warnings.showwarning, warnings.formatwarning = before  # type: ignore[index]


# --- logging -----------------------------------------------------------------


def _handlers_of(logger: logging.Logger) -> list[logging.Handler]:
    """Return the handlers of a logger that do something: libraries add others when they are imported."""
    return [handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler)]


def _loggers() -> list[logging.Logger]:
    manager = logging.root.manager
    return [logging.root, *(each for each in manager.loggerDict.values() if isinstance(each, logging.Logger))]


def _logging() -> dict[Any, Any]:
    state: dict[Any, Any] = {
        logger.name: (
            logger.level,
            logger.disabled,
            logger.propagate,
            [
                (
                    handler,
                    handler.level,
                    handler.formatter,
                    handler.filters[:],
                    getattr(handler, "stream", None),
                )
                for handler in _handlers_of(logger)
            ],
            logger.filters[:],
        )
        for logger in _loggers()
        if logger.level or logger.disabled or not logger.propagate or _handlers_of(logger) or logger.filters
    }
    state[None] = (
        logging.root.manager.disable,
        logging.getLogRecordFactory(),
        logging.getLoggerClass(),
        logging.raiseExceptions,
    )
    return state


_NO_SETTINGS: tuple[int, bool, bool, list[Any], list[Any]] = (logging.NOTSET, False, True, [], [])


def _restore_logging(before: Mapping[Any, Any]) -> None:
    """Restore levels, handlers and filters. A logger that is new loses its settings, so that it
    logs no less than in a new worker.
    """
    disable, factory, logger_class, logging.raiseExceptions = before[None]
    logging.disable(disable)
    logging.setLogRecordFactory(factory)
    logging.setLoggerClass(logger_class)
    for logger in _loggers():
        level, logger.disabled, logger.propagate, handlers, filters = before.get(logger.name, _NO_SETTINGS)
        if logger.level != level:  # setting it takes time in proportion to the number of loggers
            logger.setLevel(level)
        logger.filters[:] = filters
        for added in _handlers_of(logger):
            logger.removeHandler(added)
        for handler, handler_level, formatter, handler_filters, stream in handlers:
            logger.addHandler(handler)
            handler.setLevel(handler_level)
            handler.setFormatter(formatter)
            handler.filters[:] = handler_filters
            if getattr(handler, "stream", None) is not stream:
                handler.stream = stream  # type: ignore[attr-defined]


# --- libraries ---------------------------------------------------------------


def _is_ieee() -> bool:
    """Return whether the processor computes as IEEE 754 says: compiled code may flush subnormal
    numbers to zero, or round in another direction, for the whole thread.
    """
    smallest, half = sys.float_info.min, sys.float_info.epsilon / 2
    return smallest / 2 != 0.0 and 1.0 + half == 1.0 and -1.0 - half == -1.0


def _butler_log() -> tuple[_Part, ...]:
    context = sys.modules["lsst.daf.butler.logging"].ButlerMDC

    def restore(before: Mapping[str, str]) -> None:
        context.clear_mdc()
        for key, value in before.items():
            context.MDC(key, value)

    return (_Part("context of log records", lambda: dict(_mdc()), restore),)


def _mdc() -> Mapping[str, str]:
    return getattr(logging.makeLogRecord({}), "MDC", {})


def _numpy() -> tuple[_Part, ...]:
    numpy = sys.modules["numpy"]
    libraries = ThreadpoolController().lib_controllers

    def restore_threads(before: Sequence[int]) -> None:
        for library, number in zip(libraries, before, strict=True):
            library.set_num_threads(number)

    return (
        _Part("numpy error state", numpy.geterr, lambda before: numpy.seterr(**before)),
        _Part("numpy error call", numpy.geterrcall, numpy.seterrcall),
        _Part("numpy buffer size", numpy.getbufsize, numpy.setbufsize),
        _Part(
            "numpy print options",
            numpy.get_printoptions,
            lambda before: numpy.set_printoptions(**before),
        ),
        _Part(
            "threads of BLAS and OpenMP",
            lambda: [library.get_num_threads() for library in libraries],
            restore_threads,
        ),
    )


def _pyarrow() -> tuple[_Part, ...]:
    pyarrow = sys.modules["pyarrow"]
    return (_Part("threads of pyarrow", pyarrow.cpu_count, pyarrow.set_cpu_count),)


def _pandas() -> tuple[_Part, ...]:
    pandas = sys.modules["pandas"]

    def options() -> dict[str, Any]:
        return dict(_flattened(pandas.options.d))

    def restore(before: Mapping[str, Any]) -> None:
        with warnings.catch_warnings(action="ignore"):  # some options are deprecated
            for name, value in options().items():
                if name in before and value != before[name]:
                    pandas.set_option(name, before[name])

    return (_Part("pandas options", options, restore),)


def _flattened(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _astropy_configuration() -> tuple[_Part, ...]:
    # It has only what was set; a read of all attributes takes 0.3 ms.
    config = sys.modules["astropy.config"].get_config("astropy")

    def values() -> dict[tuple[str, str], Any]:
        return {
            (section, name): value
            for section, names in config.dict().items()
            if isinstance(names, dict)
            for name, value in names.items()
            if value != _default(section, name)  # a context that sets a value sets the previous one again
        }

    def restore(before: Mapping[tuple[str, str], Any]) -> None:
        for section in config.sections:
            config[section].clear()
        for (section, name), value in before.items():
            config[section][name] = value

    return (_Part("astropy configuration", values, restore),)


def _default(section: str, name: str) -> Any:
    conf = type(getattr(sys.modules.get(f"astropy.{section}"), "conf", None))
    return getattr(getattr(conf, name, None), "defaultvalue", None)


def _astropy_states() -> tuple[_Part, ...]:
    """Return the part of what `astropy.utils.state.ScienceState` has, such as the ephemeris."""
    base = sys.modules["astropy.utils.state"].ScienceState

    def restore(before: Mapping[Any, Any]) -> None:
        for state, value in before.items():
            state._value = value

    def values() -> dict[Any, Any]:
        return {state: getattr(state, "_value", None) for state in base.__subclasses__()}

    return (_Part("astropy science states", values, restore),)


def _astropy_units() -> tuple[_Part, ...]:
    registries = sys.modules["astropy.units.core"]._unit_registries

    def restore(before: list[Any]) -> None:
        registries[:] = before

    return (_Part("astropy units", lambda: list(registries), restore),)


def _matplotlib() -> tuple[_Part, ...]:
    parameters = sys.modules["matplotlib"].rcParams

    # Of the base class: the class's own functions choose a backend, as does the first figure.
    def values() -> dict[str, Any]:
        return {name: value for name, value in dict.items(parameters) if name != "backend"}

    return (_Part("matplotlib parameters", values, lambda before: dict.update(parameters, before)),)


def _pyplot() -> tuple[_Part, ...]:
    pyplot = sys.modules["matplotlib.pyplot"]

    def restore(before: list[int]) -> None:
        for number in set(pyplot.get_fignums()) - set(before):
            pyplot.close(number)

    return (_Part("matplotlib figures", pyplot.get_fignums, restore),)


_PYTHON = (
    _Part("umask", _umask, os.umask),
    _Part("signal handlers", _handlers, _restore_handlers),
    _Part(
        "signal mask",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda before: signal.pthread_sigmask(signal.SIG_SETMASK, before),
    ),
    _Part(
        "timers",
        lambda: [signal.getitimer(timer) != (0.0, 0.0) for timer in _TIMERS],
        lambda _: [signal.setitimer(timer, 0.0) for timer in _TIMERS],
    ),
    # The time zone first: afterwards its variable is as before.
    _Part("time zone", _time_zone, _restore_time_zone),
    _Part("environment", _environment, _restore_environment),
    _Part("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Part("switch interval", sys.getswitchinterval, sys.setswitchinterval),
    _Part("garbage collector", _gc, _restore_gc),
    _Part("decimal context", _decimal, _restore_decimal),
    _Part("socket time-out", socket.getdefaulttimeout, socket.setdefaulttimeout),
    _Part("resource limits", _limits, _restore_limits),
    _Part(
        "niceness",
        lambda: os.getpriority(os.PRIO_PROCESS, 0),
        lambda before: os.setpriority(os.PRIO_PROCESS, 0, before),
    ),
    _Part(
        "scheduling",
        lambda: (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
        lambda before: os.sched_setscheduler(0, before[0], os.sched_param(before[1])),
    ),
    _Part("processors", lambda: os.sched_getaffinity(0), lambda before: os.sched_setaffinity(0, before)),
    _Part("floating-point mode", _is_ieee),
    _Part("standard streams", _streams, _restore_streams),
    _Part("standard files", _standard_files),
    _Part("hooks", _hooks, _restore_hooks),
    _Part("trace function", sys.gettrace, sys.settrace),
    _Part("profile function", sys.getprofile, sys.setprofile),
    *map(_list_of_sys, _LISTS_OF_SYS),
    _Part("flags of dlopen", sys.getdlopenflags, sys.setdlopenflags),
    _Part("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    _Part(
        "locale",
        lambda: locale.setlocale(locale.LC_ALL),
        lambda before: locale.setlocale(locale.LC_ALL, before),
    ),
    _Part(
        "folder of temporary files",
        lambda: tempfile.tempdir,
        lambda before: setattr(tempfile, "tempdir", before),
    ),
    _Part("warnings", _warnings, _restore_warnings),
    _Part("logging", _logging, _restore_logging),
)

_LIBRARIES: Mapping[str, Callable[[], tuple[_Part, ...]]] = {
    "lsst.daf.butler.logging": _butler_log,
    "numpy": _numpy,
    "pyarrow": _pyarrow,
    "pandas": _pandas,
    "astropy.config": _astropy_configuration,
    "astropy.utils.state": _astropy_states,
    "astropy.units.core": _astropy_units,
    "matplotlib": _matplotlib,
    "matplotlib.pyplot": _pyplot,
}
"""By module: what is compared from its import on."""
