# SPDX-License-Identifier: BSD-3-Clause
"""Ties between processes that the kernel maintains: parents, orphans, and signals at the death of
a parent.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection
from pathlib import Path

import setproctitle

__all__ = (
    "GROUP_SIGNALS",
    "STOP_SIGNAL",
    "become_subreaper",
    "children",
    "describe_end",
    "die_with_parent",
    "disregard_group_signals",
    "has_children",
    "has_one_thread",
    "kill_orphans",
    "parent",
    "process_tree",
    "processes_with_variable",
    "set_title",
    "signal_name",
)

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WALL = 0x40000000  # linux/wait.h: also children that end with another signal than SIGCHLD
"""Both from linux/prctl.h."""
GROUP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Sent to whole groups of processes by a terminal, a batch system or ``kill``: only the supervisor acts
on them."""
STOP_SIGNAL = signal.SIGRTMIN + 7
"""The supervisor's own signal, which ends a process at once. A real-time signal: libraries handle
SIGUSR1 and SIGUSR2, and batch systems send them."""


def disregard_group_signals() -> None:
    """Continue after a signal that was sent to the whole group. By a handler that does nothing: unlike
    an ignored signal it is not inherited by the programs that a task starts and ends by SIGTERM.
    """
    for number in GROUP_SIGNALS:
        signal.signal(number, _disregard)
        # Compiled code does not expect that a signal interrupts its calls.
        signal.siginterrupt(number, False)


def set_title(title: str) -> None:
    """Set the title of this process that ``ps`` shows, and its name in ``/proc/PID/stat``, of at most 15
    bytes. The name has no blanks: Slurm reads that line word by word, and neither finds nor signals a
    process whose name has one.
    """
    setproctitle.setproctitle(title)
    setproctitle.setthreadtitle(title.replace(" ", "-"))


def _disregard(number: int, frame: object) -> None:
    """Do nothing."""


def _prctl(option: int, value: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({name})")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that created it ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")


def become_subreaper() -> None:
    """Become the parent of descendants whose own parent ends.

    Processes that a pipeline has left behind by a double fork stay below their worker; when
    the worker ends they become children of the zygote, and when that has ended too, of the
    supervisor.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def children(pid: int | None = None) -> set[int]:
    """Return the children of a process, or of this one, of all its threads. Ended children that
    nothing has waited for are included; a process that has ended has none.
    """
    found: set[int] = set()
    tasks = f"/proc/{pid or 'self'}/task"
    threads: list[str] = []
    with contextlib.suppress(OSError):  # such as a process that has ended
        threads = os.listdir(tasks)
    for thread in threads:
        # Without a buffer: the supervisor reads one for each of its threads, every second.
        path = f"{tasks}/{thread}/children"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, "rb", 0) as listing:
            found.update(map(int, listing.read().split()))
    return found


def has_children() -> bool:
    """Return whether this process has children, as `children` counts them. Takes 1 us, the list 60 us."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
    except ChildProcessError:
        return False
    return True


def has_one_thread(pid: int) -> bool:
    """Return whether a process has a single thread."""
    try:
        # A link for each thread besides the two of any folder, see proc_task_getattr() of the kernel.
        return os.stat(f"/proc/{pid}/task").st_nlink == 3
    except OSError:  # such as a process that has ended
        return False


def parent(pid: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb", 0) as stream:
        # proc(5): the name in field 2 may contain anything.
        return int(stream.read().rpartition(b")")[2].split()[1])
    return 0


def signal_name(number: int) -> str:
    """Return the name of a signal; most of the real-time signals only have a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_end(status: int | None) -> str:
    """Return how a process ended, given its exit status or minus its signal, for a text that begins with
    its name.
    """
    if status is None:
        return "ended with unknown status"
    if status >= 0:
        return f"ended with status {status}"
    name = signal_name(-status)
    return f"ended by {name}" if name.startswith("signal") else f"ended by signal {-status} ({name})"


def processes_with_variable(variable: str, value: str) -> set[int]:
    """Return the processes that were started with this value of an environment variable, and
    whose environment is readable; children inherit it.
    """
    entry_bytes = os.fsencode(f"{variable}={value}")
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended, or belongs to another user
                if entry_bytes in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def process_tree(pid: int) -> list[int]:
    """Return a process, first, and all its descendants."""
    members = [pid]
    for member in members:  # grows during the loop
        members += children(member)
    return members


def kill_orphans(keep: Collection[int | None]) -> None:
    """Kill the children of this process that are not to be kept, of which some may not run (`None`): orphans
    of its descendants. They still have to be reaped.
    """
    for orphan in children() - set(keep):
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
