# SPDX-License-Identifier: BSD-3-Clause
"""Ties between processes that the kernel keeps: who dies with whom, who adopts whom."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection
from pathlib import Path

__all__ = ("adopt_orphans", "children", "die_with_parent", "end_orphans")

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


def children() -> set[int]:
    """Return the children of this process, of all its threads.

    Returns
    -------
    pids : `set` [`int`]
        The dead that nobody has waited for are among them.
    """
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(int(pid) for pid in listing.read_text().split())
    return found


def end_orphans(known: Collection[int]) -> int:
    """Kill the children that nobody knows: orphans of what was known.

    Parameters
    ----------
    known : `~collections.abc.Collection` [`int`]
        Children that are to live.

    Returns
    -------
    killed : `int`
        How many; they have to be waited for yet.
    """
    orphans = children() - set(known)
    for orphan in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
    return len(orphans)
