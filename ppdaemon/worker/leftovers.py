# SPDX-License-Identifier: BSD-3-Clause
"""The process state that visits share: what a task has changed is restored, or named.

Covers state that changes the results, the logs or the time limits of a later visit without an
error. Does not cover open descriptors and memory: the supervisor limits those.
"""

import concurrent.futures.thread
import contextlib
import decimal
import gc
import importlib
import locale
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ppdaemon.processes import children

__all__ = ("Leftovers", "ScratchFolder")

STACK = ("lsst",)
"""Packages whose module attributes are compared."""
PLAIN = (bool, int, float, complex, str, bytes, tuple, frozenset)
"""Types of module attributes that are configuration. Others are often created when they are
first needed, and restoring would undo that."""
CODE = (types.FunctionType, types.BuiltinFunctionType, type)
"""Types of module attributes that a task may replace by its own."""
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
        self.path.mkdir(exist_ok=True)
        for entry in os.scandir(self.path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        os.chdir(self.path)

    def use_for_temporary_files(self) -> None:
        """Let this process and its children create temporary files in the folder."""
        os.environ["TMPDIR"] = str(self.path)
        tempfile.tempdir = str(self.path)


class Leftovers:
    """Finds what a visit has left in this process; created before the first one.

    `preloaded` are further packages whose module attributes are compared. Threads whose names
    match a pattern in `allowed_threads` are ignored.
    """

    def __init__(self, preloaded: Iterable[str] = (), allowed_threads: Collection[str] = ()):
        packages = {name.partition(".")[0] for name in (*STACK, *preloaded)}
        self._allowed_threads = allowed_threads
        self._parts = (
            *_PYTHON,
            *(part for module, parts in _LIBRARIES.items() if module in sys.modules for part in parts()),
        )
        self._before = [_read(part) for part in self._parts]
        self._children = children()
        self._threads = {thread.ident for thread in threading.enumerate()}
        self._attributes = _attributes(packages)

    def restore(self) -> tuple[list[str], list[str]]:
        """Restore what can be restored. Return the names of what was restored, and of what only a
        new process does not have.
        """
        restored: list[str] = []
        remaining: list[str] = []
        for part, before in zip(self._parts, self._before, strict=True):
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
                restored.append(f"{module['__name__']}.{name}")
        _reseed()
        remaining += [f"process {name}" for name in self._new_children()]
        return restored, remaining + [f"thread {name}" for name in self._new_threads()]

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
        if not name.startswith("_") and isinstance(value, PLAIN + CODE)
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


def _restore_environment(before: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


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


_STREAMS = ("stdin", "stdout", "stderr")
_HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")


def _of_sys(names: Sequence[str]) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple(getattr(sys, name) for name in names)


def _to_sys(names: Sequence[str]) -> Callable[[Sequence[Any]], None]:
    def restore(before: Sequence[Any]) -> None:
        for name, value in zip(names, before, strict=True):
            setattr(sys, name, value)

    return restore


def _standard_files() -> tuple[tuple[int, int], ...]:
    return tuple((found.st_dev, found.st_ino) for found in map(os.fstat, range(3)))


def _restore_path(before: list[str]) -> None:
    sys.path[:] = before


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
                (handler, handler.level, handler.formatter, handler.filters[:])
                for handler in _handlers_of(logger)
            ],
            logger.filters[:],
        )
        for logger in _loggers()
        if logger.level or logger.disabled or not logger.propagate or _handlers_of(logger) or logger.filters
    }
    state[None] = logging.root.manager.disable, logging.getLogRecordFactory(), logging.getLoggerClass()
    return state


_NO_SETTINGS: tuple[int, bool, bool, list[Any], list[Any]] = (logging.NOTSET, False, True, [], [])


def _restore_logging(before: Mapping[Any, Any]) -> None:
    """Restore levels, handlers and filters. A logger that is new loses its settings, so that it
    logs no less than in a new worker.
    """
    disable, factory, logger_class = before[None]
    logging.disable(disable)
    logging.setLogRecordFactory(factory)
    logging.setLoggerClass(logger_class)
    for logger in _loggers():
        level, logger.disabled, logger.propagate, handlers, filters = before.get(logger.name, _NO_SETTINGS)
        logger.setLevel(level)
        logger.filters[:] = filters
        for added in _handlers_of(logger):
            logger.removeHandler(added)
        for handler, handler_level, formatter, handler_filters in handlers:
            logger.addHandler(handler)
            handler.setLevel(handler_level)
            handler.setFormatter(formatter)
            handler.filters[:] = handler_filters


# --- libraries ---------------------------------------------------------------


def _is_ieee() -> bool:
    """Return whether the processor computes as IEEE 754 says: compiled code may flush subnormal
    numbers to zero, or round in another direction, for the whole thread.
    """
    smallest, half = sys.float_info.min, sys.float_info.epsilon / 2
    return smallest / 2 != 0.0 and 1.0 + half == 1.0 and -1.0 - half == -1.0


def _numpy() -> tuple[_Part, ...]:
    numpy = sys.modules["numpy"]
    return (
        _Part("numpy error state", numpy.geterr, lambda before: numpy.seterr(**before)),
        _Part("numpy error call", numpy.geterrcall, numpy.seterrcall),
        _Part(
            "numpy print options",
            numpy.get_printoptions,
            lambda before: numpy.set_printoptions(**before),
        ),
    )


def _astropy() -> tuple[_Part, ...]:
    conf = importlib.import_module("astropy.utils.iers").conf
    names = ("auto_download", "auto_max_age", "iers_degraded_accuracy")

    def restore(before: Sequence[Any]) -> None:
        for name, value in zip(names, before, strict=True):
            setattr(conf, name, value)

    return (_Part("astropy configuration", lambda: tuple(getattr(conf, name) for name in names), restore),)


def _matplotlib() -> tuple[_Part, ...]:
    parameters = sys.modules["matplotlib"].rcParams
    # Of the base class: the class's own functions choose a backend.
    return (
        _Part(
            "matplotlib parameters",
            lambda: dict(dict.items(parameters)),
            lambda before: dict.update(parameters, before),
        ),
    )


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
    _Part("environment", lambda: dict(os.environ), _restore_environment),
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
    _Part("processors", lambda: os.sched_getaffinity(0), lambda before: os.sched_setaffinity(0, before)),
    _Part("floating-point mode", _is_ieee),
    _Part("standard streams", _of_sys(_STREAMS), _to_sys(_STREAMS)),
    _Part("standard files", _standard_files),
    _Part("hooks", _of_sys(_HOOKS), _to_sys(_HOOKS)),
    _Part("trace function", sys.gettrace, sys.settrace),
    _Part("profile function", sys.getprofile, sys.setprofile),
    _Part("sys.path", lambda: list(sys.path), _restore_path),
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
    "numpy": _numpy,
    "astropy.utils.iers": _astropy,
    "matplotlib": _matplotlib,
}
"""By module: what is compared if it was imported before the first visit."""
