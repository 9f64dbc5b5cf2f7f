# SPDX-License-Identifier: BSD-3-Clause
"""The state of the interpreter, of the process and of logging that a task may change."""

import ctypes
import decimal
import gc
import itertools
import locale
import logging
import operator
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from _signal import getsignal  # type: ignore[import-not-found]
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ppdaemon.worker.statepart import Part

__all__ = ("INTERPRETER",)


def _umask() -> int:
    # The function returns the present value only when it sets another one.
    umask = os.umask(0)
    os.umask(umask)
    return umask


_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


# Not the function of `signal`: its conversion to an enumeration takes most of the time.
def _handlers() -> tuple[Any, ...]:
    return tuple(map(getsignal, _SIGNALS))


def _restore_handlers(before: Sequence[Any]) -> None:
    for number, handler in zip(_SIGNALS, before, strict=True):
        if getsignal(number) != handler:
            signal.signal(number, handler)


_ENVIRON = os.environ
_ENTRIES = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
"""The variable itself, which has another value when the environment has grown."""
_is_entry = partial(operator.is_not, None)


def _entries() -> frozenset[bytes]:
    """Return the environment that compiled code and child processes have: ``os.putenv`` and code in
    C change only this one.
    """
    entries: Iterator[bytes | None] = iter(_ENTRIES) if _ENTRIES else iter(())  # type: ignore[call-overload]
    return frozenset(itertools.takewhile(_is_entry, entries))  # type: ignore[arg-type]


def _environment() -> tuple[Any, ...]:
    # The dictionary behind the mapping, which decodes each name and each value.
    return os.environ is _ENVIRON, dict(vars(_ENVIRON)["_data"]), _entries()


def _restore_environment(before: tuple[Any, ...]) -> None:
    os.environ = _ENVIRON  # noqa: B003
    _, variables, entries = before
    os.environb.clear()  # has the same dictionary
    os.environb.update(variables)
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
    return (
        context.prec,
        context.rounding,
        context.Emin,
        context.Emax,
        context.capitals,
        context.clamp,
        context.traps.copy(),
    )


def _restore_decimal(before: tuple[Any, ...]) -> None:
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")
    decimal.setcontext(decimal.Context(flags=[], **dict(zip(names, before, strict=True))))


_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))


def _limits() -> tuple[tuple[int, int], ...]:
    return tuple(map(resource.getrlimit, _LIMITS))


def _restore_limits(before: Sequence[tuple[int, int]]) -> None:
    for limit, values in zip(_LIMITS, before, strict=True):
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


def _list_of_sys(name: str) -> Part:
    """Return the part of a list, of which also the elements may be changed."""

    def restore(before: list[Any]) -> None:
        getattr(sys, name)[:] = before

    return Part(f"sys.{name}", lambda: list(getattr(sys, name)), restore)


def _standard_files() -> tuple[tuple[int, int], ...]:
    return tuple((found.st_dev, found.st_ino) for found in map(os.fstat, range(3)))


def _warnings() -> tuple[Any, ...]:
    return list(warnings.filters), warnings.showwarning, warnings.formatwarning


def _restore_warnings(before: tuple[Any, ...]) -> None:
    logging.captureWarnings(False)  # it remembers by itself that it has replaced the function
    warnings.resetwarnings()  # modules remember which warnings they have shown until this is called
    warnings.filters[:], warnings.showwarning, warnings.formatwarning = before  # type: ignore[index]


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
        if logger.level
        or logger.disabled
        or not logger.propagate
        or logger.filters
        or (logger.handlers and _handlers_of(logger))  # most of some hundred loggers have none
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


def _is_ieee() -> bool:
    """Return whether the processor computes as IEEE 754 says: compiled code may flush subnormal
    numbers to zero, or round in another direction, for the whole thread.
    """
    smallest, half = sys.float_info.min, sys.float_info.epsilon / 2
    return smallest / 2 != 0.0 and 1.0 + half == 1.0 and -1.0 - half == -1.0


INTERPRETER = (
    # Before the streams of a task, which are closed without a user: that may have been made an error.
    Part("warnings", _warnings, _restore_warnings),
    Part("umask", _umask, os.umask),
    Part("signal handlers", _handlers, _restore_handlers),
    Part(
        "signal mask",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda before: signal.pthread_sigmask(signal.SIG_SETMASK, before),
    ),
    Part(
        "timers",
        lambda: [signal.getitimer(timer) != (0.0, 0.0) for timer in _TIMERS],
        lambda _: [signal.setitimer(timer, 0.0) for timer in _TIMERS],
    ),
    # The time zone first: afterwards its variable is as before.
    Part("time zone", _time_zone, _restore_time_zone),
    Part("environment", _environment, _restore_environment),
    Part("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Part("switch interval", sys.getswitchinterval, sys.setswitchinterval),
    Part("garbage collector", _gc, _restore_gc),
    Part("decimal context", _decimal, _restore_decimal),
    Part("socket time-out", socket.getdefaulttimeout, socket.setdefaulttimeout),
    Part("resource limits", _limits, _restore_limits),
    Part(
        "niceness",
        lambda: os.getpriority(os.PRIO_PROCESS, 0),
        lambda before: os.setpriority(os.PRIO_PROCESS, 0, before),
    ),
    Part(
        "scheduling",
        lambda: (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
        lambda before: os.sched_setscheduler(0, before[0], os.sched_param(before[1])),
    ),
    Part("processors", lambda: os.sched_getaffinity(0), lambda before: os.sched_setaffinity(0, before)),
    Part("floating-point mode", _is_ieee),
    Part("standard streams", _streams, _restore_streams),
    Part("standard files", _standard_files),
    Part("hooks", _hooks, _restore_hooks),
    Part("trace function", sys.gettrace, sys.settrace),
    Part("profile function", sys.getprofile, sys.setprofile),
    *map(_list_of_sys, _LISTS_OF_SYS),
    Part("flags of dlopen", sys.getdlopenflags, sys.setdlopenflags),
    Part("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    Part(
        "locale",
        lambda: locale.setlocale(locale.LC_ALL),
        lambda before: locale.setlocale(locale.LC_ALL, before),
    ),
    Part(
        "folder of temporary files",
        lambda: tempfile.tempdir,
        lambda before: setattr(tempfile, "tempdir", before),
    ),
    Part("logging", _logging, _restore_logging),
)
