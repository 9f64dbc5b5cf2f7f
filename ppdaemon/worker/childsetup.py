# SPDX-License-Identifier: BSD-3-Clause
"""What a freshly forked child closes, resets and sets, as a list.

Each step has its reason. They run in order, before any other code.
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
import termios
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ppdaemon.processes import STOP_SIGNAL, become_subreaper, disregard_group_signals, set_title

__all__ = ("ChildSettings", "arm_lifeline", "set_up_child")

F_SETSIG = 10  # linux/fcntl.h; the fcntl module names it only in newer Pythons


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """The settings of one child."""

    title: str
    """Name in process lists."""
    log: str
    """File for standard output and error."""
    lifeline: int
    """Read end of a pipe that only the supervisor holds open."""
    keep: Collection[int]
    """Descriptors that stay open, in addition to 0, 1, 2."""
    nice: int
    seed: int


def arm_lifeline(read_end: int) -> int:
    """Ask the kernel to kill this process when the supervisor ends; return a descriptor that has
    to stay open.

    `read_end` is of a pipe whose write end only the supervisor has. A worker outlives its
    zygote, so a signal at the parent's death is of no use; and it may run C code for minutes,
    so reading an end of file is too slow. The pipe is opened again because all processes that
    inherit a descriptor share the receiver of its signals.
    """
    armed = os.open(f"/proc/self/fd/{read_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # The process group, so that its children are killed too.
    fcntl.fcntl(armed, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(armed, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(armed, fcntl.F_SETFL, fcntl.fcntl(armed, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    # The inherited descriptor: one that was opened after the last writer had
    # closed the pipe never reports a hang-up.
    poll.register(read_end, select.POLLHUP)
    if poll.poll(0):  # the supervisor ended before the arming
        os._exit(0)
    return armed


def _new_group(child: ChildSettings) -> None:
    """Start a process group, by which grandchildren are found and killed.

    Not a session: the kernel shares cores out to sessions (autogroup), whatever the niceness within them, and
    the supervisor would get no more than one worker.
    """
    os.setpgid(0, 0)


def _leave_terminal(child: ChildSettings) -> None:
    """Leave the terminal in which the daemon was started: a library that asks there would be stopped."""
    with contextlib.suppress(OSError):  # there is none
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def _reset_signals(child: ChildSettings) -> None:
    """Remove the zygote's handlers and wake-up descriptor; end by the supervisor's signal only."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, STOP_SIGNAL):
        signal.signal(number, signal.SIG_DFL)
    disregard_group_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect_output(child: ChildSettings) -> None:
    """Write prints and messages of C libraries to a file: a pipe could block."""
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _close_other_descriptors(child: ChildSettings) -> None:
    """Close the zygote's descriptors, above all the channels of other workers."""
    keep = {0, 1, 2, *child.keep}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.close(int(name))


def _arm_lifeline(child: ChildSettings) -> None:
    """See `arm_lifeline`."""
    arm_lifeline(child.lifeline)


def _adopt_grandchildren(child: ChildSettings) -> None:
    """Keep detached grandchildren below this process."""
    become_subreaper()


def _set_nice(child: ChildSettings) -> None:
    """Lower the priority: the supervisor must always get CPU time."""
    os.nice(child.nice)


def _reseed(child: ChildSettings) -> None:
    """Seed the random generators: all children inherit the same state."""
    random.seed(child.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(child.seed % 2**32)


def _set_title(child: ChildSettings) -> None:
    """See `~ppdaemon.processes.set_title`."""
    set_title(child.title)


def _enable_faulthandler(child: ChildSettings) -> None:
    """Write a traceback into the log at a segmentation fault."""
    faulthandler.enable()


def _enable_gc(child: ChildSettings) -> None:
    """Enable the garbage collector, which the zygote froze and disabled to keep its pages shared."""
    gc.enable()


STEPS: tuple[Callable[[ChildSettings], None], ...] = (
    _new_group,  # before `_arm_lifeline`, which uses the process group
    _leave_terminal,
    _reset_signals,
    _redirect_output,
    _arm_lifeline,
    _adopt_grandchildren,
    _set_nice,
    _reseed,
    _set_title,
    _enable_faulthandler,
    _enable_gc,
)


def set_up_child(child: ChildSettings) -> None:
    """Make this process independent of its parent."""
    # First: `arm_lifeline` opens a descriptor that must stay open.
    _close_other_descriptors(child)
    for step in STEPS:
        step(child)
