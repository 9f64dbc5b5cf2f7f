# SPDX-License-Identifier: BSD-3-Clause
"""How much memory the workers use: private bytes plus RAM-disk repo.

Reading private bytes exactly takes 34 ms for a process of 2 GB, so a cheap
upper bound is read first (``RssAnon``, which after a fork still counts the
zygote's pages) and the exact value only where the bound is near a limit.
Everything here runs in a thread of its own.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Meters", "anonymous_bytes", "folder_bytes", "private_bytes")

REPO_EVERY = 5
"""A repo is measured in every fifth sample."""


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process, shared pages included.

    Parameters
    ----------
    pid : `int`
        Process id.

    Returns
    -------
    size : `int`
        Bytes; 0 for a process that is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(
        int(line.split()[1]) * 1024
        for line in status.splitlines()
        if line.startswith(("RssAnon:", "VmSwap:"))
    )


def private_bytes(pid: int) -> int:
    """Return the memory that only this process has.

    Parameters
    ----------
    pid : `int`
        Process id.

    Returns
    -------
    size : `int`
        Bytes; 0 for a process that is gone.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(
        int(line.split()[1]) * 1024
        for line in rollup.splitlines()
        if line.startswith(("Private_Clean:", "Private_Dirty:", "Swap:"))
    )


def folder_bytes(folder: Path) -> int:
    """Return the space that a folder takes alone.

    Parameters
    ----------
    folder : `pathlib.Path`
        A worker's repo.

    Returns
    -------
    size : `int`
        Bytes of all files with a single link: what is shared between workers
        by hard link is not one worker's.
    """
    size = 0
    pending = [str(folder)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue  # it is being wiped
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    facts = entry.stat(follow_symlinks=False)
                    size += facts.st_blocks * 512 if facts.st_nlink == 1 else 0
            except FileNotFoundError:
                continue
    return size


@dataclass(slots=True)
class Meters:
    """Reads what all workers use.

    Parameters
    ----------
    slots : `pathlib.Path`
        Where the repos are, one folder per seat.
    near : `int`
        Above this many bytes a worker is looked at closely.
    """

    slots: Path
    near: int
    _turn: int = 0
    _repos: dict[int, int] | None = None

    def read(self, pids: Mapping[int, int]) -> dict[int, int]:
        """Measure; blocks for some milliseconds.

        Parameters
        ----------
        pids : `~collections.abc.Mapping` [`int`, `int`]
            Process id by seat.

        Returns
        -------
        used : `dict` [`int`, `int`]
            Bytes by seat.
        """
        if self._turn % REPO_EVERY == 0 or self._repos is None:
            self._repos = {slot: folder_bytes(self.slots / f"{slot:04d}") for slot in pids}
        self._turn += 1
        return {slot: self._read_one(pid) + self._repos.get(slot, 0) for slot, pid in pids.items()}

    def _read_one(self, pid: int) -> int:
        bound = anonymous_bytes(pid)
        return private_bytes(pid) if bound > self.near else bound
