# SPDX-License-Identifier: BSD-3-Clause
"""What tasks leave in a worker's process: one function for each kind, and a description of the state.

A site can run its own tasks between two calls of `describe`, to see what they leave.
"""

import decimal
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ppdaemon import timescales

__all__ = ("LEAVE", "SEED", "describe", "leave_all")

SEED = 20_261_128
"""Seed that `LEAVE` sets; draws that follow from it are recognized."""


def _leave_environment() -> None:
    os.environ["OMP_NUM_THREADS"] = "64"
    os.environ["LEFT_BEHIND"] = "1"


def _leave_stream() -> None:
    for handler in logging.getLogger().handlers:
        handler.stream = open(os.devnull, "w")  # type: ignore[attr-defined]  # noqa: SIM115


def _leave_time_zone() -> None:
    os.environ["TZ"] = "America/Santiago"
    time.tzset()


def _leave_low_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))


def _leave_streams() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _leave_handler() -> None:
    logging.getLogger().addHandler(logging.StreamHandler())
    logging.getLogger().handlers[0].setLevel(logging.CRITICAL)


def _leave_signal_mask() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _leave_constant() -> None:
    timescales.TAI_MINUS_UTC_S = 38  # compared because the package is preloaded


def _leave_file() -> None:
    with open("relative.txt", "w") as stream:
        stream.write("left behind")
    with tempfile.NamedTemporaryFile(delete=False):
        pass


LEAVE: dict[str, Callable[[], object]] = {
    "directory": lambda: os.chdir("/"),
    "files": _leave_file,
    "umask": lambda: os.umask(0o77),
    "signal handlers": lambda: signal.signal(signal.SIGUSR1, lambda *_: None),
    "signal mask": _leave_signal_mask,
    "timers": lambda: signal.setitimer(signal.ITIMER_REAL, 3600.0),
    "environment": _leave_environment,
    "variables of compiled code": lambda: os.putenv("LEFT_BEHIND_IN_C", "1"),
    "replaced environment": lambda: setattr(os, "environ", dict(os.environ)),
    "time zone": _leave_time_zone,
    "recursion limit": lambda: sys.setrecursionlimit(321),
    "switch interval": lambda: sys.setswitchinterval(0.5),
    "garbage collector": lambda: gc.disable(),
    "decimal context": lambda: decimal.getcontext().__setattr__("prec", 5),
    "socket time-out": lambda: socket.setdefaulttimeout(0.001),
    "resource limits": _leave_low_limit,
    "scheduling": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "processors": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "standard streams": _leave_streams,
    "hooks": lambda: setattr(sys, "excepthook", print),
    "hooks of threads": lambda: setattr(threading, "excepthook", print),
    "trace of threads": lambda: threading.settrace(lambda *_: None),
    "start method of processes": lambda: multiprocessing.set_start_method("spawn", force=True),
    "sys.argv": lambda: sys.argv.append("--left-behind"),
    "sys.meta_path": lambda: sys.meta_path.append(sys.meta_path[0]),
    "flags of dlopen": lambda: sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL),
    "digits of integers": lambda: sys.set_int_max_str_digits(700),
    "sys.path": lambda: sys.path.insert(0, "/left/behind"),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"),
    "warnings": lambda: warnings.simplefilter("error"),
    "captured warnings": lambda: logging.captureWarnings(True),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "level of a logger": lambda: logging.getLogger("lsst.pipe.base").setLevel(logging.CRITICAL),
    "level of a new logger": lambda: logging.getLogger("lsst.left.behind").setLevel(logging.CRITICAL),
    "handlers of logging": _leave_handler,
    "stream of a handler": _leave_stream,
    "errors of handlers": lambda: setattr(logging, "raiseExceptions", False),
    "numpy error state": lambda: np.seterr(all="raise"),
    "numpy buffer size": lambda: np.setbufsize(1600),
    "numpy.median": lambda: setattr(np, "median", np.nanmedian),
    "random.random": lambda: setattr(random, "random", lambda: 0.5),
    "numpy print options": lambda: np.set_printoptions(precision=2),
    "numpy random state": lambda: np.random.seed(SEED),
    "random state": lambda: random.seed(SEED),
    "ppdaemon.timescales.TAI_MINUS_UTC_S": _leave_constant,
}
"""By name: a function that leaves something behind."""
if os.geteuid() == 0:  # other users cannot raise the priority again: it costs them the worker
    LEAVE["niceness"] = lambda: os.nice(3)


def leave_all() -> None:
    """Leave everything of `LEAVE` behind."""
    for leave in LEAVE.values():
        leave()


def describe() -> dict[str, Any]:
    """Return the state that `LEAVE` changes, by its names, as JSON values.

    Returns
    -------
    state : `dict` [`str`, `object`]
        Equal before and after a visit, except for the draws of the random generators: these are
        `None` unless they follow from `SEED`.
    """
    context, root = decimal.getcontext(), logging.getLogger()
    environ = subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout
    draw, numpy_draw = random.random(), float(np.random.random())
    umask = os.umask(0)
    os.umask(umask)
    return {
        "directory": os.getcwd(),
        "files": sorted(os.listdir()),
        "umask": umask,
        "signal handlers": str(signal.getsignal(signal.SIGUSR1)),
        "signal mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "timers": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "environment": sorted(os.environ.items()),
        "variables of compiled code": "LEFT_BEHIND_IN_C" in environ,
        "replaced environment": type(os.environ).__name__,
        "time zone": time.tzname,
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "garbage collector": gc.isenabled(),
        "decimal context": context.prec,
        "socket time-out": socket.getdefaulttimeout(),
        "resource limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduling": os.sched_getscheduler(0),
        "processors": sorted(os.sched_getaffinity(0)),
        "standard streams": [sys.stdout.name, sys.stderr.name],
        "hooks": sys.excepthook.__module__,
        "hooks of threads": threading.excepthook.__module__,
        "trace of threads": threading.gettrace() is None,
        "start method of processes": multiprocessing.get_start_method(allow_none=True),
        "sys.argv": list(sys.argv),
        "sys.meta_path": len(sys.meta_path),
        "flags of dlopen": sys.getdlopenflags(),
        "digits of integers": sys.get_int_max_str_digits(),
        "sys.path": list(sys.path),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": [str(each) for each in warnings.filters],
        "captured warnings": warnings.showwarning.__module__,
        "logging": root.manager.disable,
        "level of a logger": logging.getLogger("lsst.pipe.base").level,
        "level of a new logger": logging.getLogger("lsst.left.behind").level,
        "handlers of logging": [[type(handler).__name__, handler.level] for handler in root.handlers],
        "stream of a handler": [handler.stream.name for handler in root.handlers],  # type: ignore[attr-defined]
        "errors of handlers": logging.raiseExceptions,
        "numpy error state": np.geterr(),
        "numpy buffer size": np.getbufsize(),
        "numpy.median": np.median.__name__,
        "random.random": type(random.random).__name__,
        "numpy print options": np.get_printoptions()["precision"],
        "numpy random state": numpy_draw if numpy_draw in np.random.RandomState(SEED).random(100) else None,
        "random state": draw if draw == random.Random(SEED).random() else None,
        "ppdaemon.timescales.TAI_MINUS_UTC_S": timescales.TAI_MINUS_UTC_S,
    }
