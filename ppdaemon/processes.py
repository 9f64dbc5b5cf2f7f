# SPDX-License-Identifier: BSD-3-Clause
"""Ties between processes that the kernel keeps: who dies with whom, who adopts whom."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection
from pathlib import Path

__all__ = (
    "adopt_orphans",
    "bearers",
    "children",
    "die_with_parent",
    "end_orphans",
    "process_tree",
    "signal_name",
)

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({name})")


def die_with_parent() -> None:
    """Ask the kernel for a KILL when the thread that made this process ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends.

    Whatever a pipeline has left behind by a double fork stays below its
    worker; when the worker ends it comes to the zygote, and when that has
    ended too, to the supervisor.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def children(pid: int | None = None) -> set[int]:
    """Return the children of a process, of all its threads.

    Parameters
    ----------
    pid : `int`, optional
        Process id; this process if it is not given.

    Returns
    -------
    pids : `set` [`int`]
        The dead that nobody has waited for are among them. A process that is
        gone has none.
    """
    found: set[int] = set()
    for listing in Path(f"/proc/{pid or 'self'}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(int(child) for child in listing.read_text().split())
    return found


def signal_name(number: int) -> str:
    """Return the name of a signal; most of the real-time ones have a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def bearers(variable: str, value: str) -> set[int]:
    """Return the processes with a variable in the environment they began with.

    Parameters
    ----------
    variable, value : `str`
        The variable.

    Returns
    -------
    pids : `set` [`int`]
        Of processes whose environment may be read; children inherit it.
    """
    entry_bytes = os.fsencode(f"{variable}={value}")
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # gone, or somebody else's
                if entry_bytes in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def process_tree(pid: int) -> list[int]:
    """Return a process and all that descend from it.

    Parameters
    ----------
    pid : `int`
        Process id.

    Returns
    -------
    pids : `list` [`int`]
        The process comes first.
    """
    members = [pid]
    for member in members:  # which grows meanwhile
        members += children(member)
    return members


def end_orphans(keep: Collection[int]) -> None:
    """Kill the children that nobody knows: orphans of what was known. They
    have to be waited for yet.

    Parameters
    ----------
    known : `~collections.abc.Collection` [`int`]
        Children that are to live.
    """
    for orphan in children() - set(keep):
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
