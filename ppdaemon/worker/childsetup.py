# SPDX-License-Identifier: BSD-3-Clause
"""What a freshly forked child closes, resets and sets, as a list.

Each step has its reason. They run in order, before anything else does.
"""

import contextlib
import faulthandler
import fcntl
import gc
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

import setproctitle

from ppdaemon.processes import adopt_orphans

__all__ = ("Child", "arm_lifeline", "set_up_child")

F_SETSIG = 10  # linux/fcntl.h; the fcntl module names it only in newer Pythons


@dataclass(frozen=True, slots=True)
class Child:
    """What the child was given."""

    title: str
    """Name in process lists."""
    log: str
    """File that takes standard output and error."""
    lifeline: int
    """Read end of a pipe that the supervisor alone holds open."""
    keep: Collection[int]
    """Descriptors that stay open beside 0, 1, 2."""
    nice: int
    seed: int


def arm_lifeline(read_end: int) -> int:
    """Have the kernel kill this process when the supervisor is gone.

    A worker outlives its zygote, so the parent's death must not kill it; and
    it may sit in C code for minutes, so reading an end of file is too slow.
    The pipe is opened anew because the owner of a descriptor's signals is
    shared by all who inherited it.

    Parameters
    ----------
    read_end : `int`
        Descriptor of a pipe whose write end only the supervisor has.

    Returns
    -------
    armed : `int`
        A descriptor that has to stay open.
    """
    armed = os.open(f"/proc/self/fd/{read_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # The process group, so that its children go too.
    fcntl.fcntl(armed, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(armed, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(armed, fcntl.F_SETFL, fcntl.fcntl(armed, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    # The inherited descriptor: one that was opened after the last writer had
    # gone would never see a hang-up.
    poll.register(read_end, select.POLLHUP)
    if poll.poll(0):  # it died before the arming
        os._exit(0)
    return armed


def _new_session(child: Child) -> None:
    """Grandchildren are found and killed by the process group."""
    os.setsid()


def _reset_signals(child: Child) -> None:
    """The zygote's handlers and wake-up descriptor are not the child's."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect_output(child: Child) -> None:
    """Prints and C-level complaints go to a file: nobody blocks on a pipe."""
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _close_the_rest(child: Child) -> None:
    """Nothing of the zygote's, above all no other worker's channel."""
    keep = {0, 1, 2, *child.keep}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.close(int(name))


def _be_killed_with_the_supervisor(child: Child) -> None:
    """See `arm_lifeline`."""
    arm_lifeline(child.lifeline)


def _keep_grandchildren(child: Child) -> None:
    """A grandchild that detaches itself stays below its worker."""
    adopt_orphans()


def _be_nice(child: Child) -> None:
    """The supervisor is never starved by its workers."""
    os.nice(child.nice)


def _reseed(child: Child) -> None:
    """All children inherit the same random state."""
    random.seed(child.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(child.seed % 2**32)


def _name(child: Child) -> None:
    """Operators see the context in ``ps``."""
    setproctitle.setproctitle(child.title)


def _show_crashes(child: Child) -> None:
    """A segmentation fault leaves a traceback in the worker's log."""
    faulthandler.enable()


def _collect_garbage_again(child: Child) -> None:
    """The zygote froze and stopped the collector to keep pages shared."""
    gc.enable()


STEPS: tuple[Callable[[Child], None], ...] = (
    _new_session,
    _reset_signals,
    _redirect_output,
    _be_killed_with_the_supervisor,
    _keep_grandchildren,
    _be_nice,
    _reseed,
    _name,
    _show_crashes,
    _collect_garbage_again,
)


def set_up_child(child: Child) -> None:
    """Become an independent worker process.

    Parameters
    ----------
    child : `Child`
        What this child was given.
    """
    _close_the_rest(child)
    for step in STEPS:
        step(child)
