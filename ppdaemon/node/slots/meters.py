# SPDX-License-Identifier: BSD-3-Clause
"""What the workers use: memory, RAM-disk repos, CPU time, logs, free space.

Reading private bytes exactly takes 34 ms for a process of 2 GB, so a cheap
upper bound is read first (``RssAnon``, which after a fork still counts the
zygote's pages) and the exact value only where the bound is near a limit.
Everything here is read in a thread of its own; what follows from it is
decided by `ppdaemon.node.slots.slot`.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.config import WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.events import MemorySampled
from ppdaemon.node.slots.pool import Pool
from ppdaemon.processes import family

__all__ = (
    "REPO_EVERY",
    "Meters",
    "anonymous_bytes",
    "cpu_seconds",
    "cut_log",
    "folder_bytes",
    "private_bytes",
    "proportional_bytes",
    "shortage",
)

REPO_EVERY = 5
"""Repos are measured in every fifth sample, and when the RAM disk fills."""

LEAST_FREE = 0.05
"""Operators are told when less than this part of a disk is free."""

LOG_KEPT = 65_536
"""Of a log that is cut, the end that is kept, bytes at the most."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


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
    return _sum_of(pid, "status", ("RssAnon:", "VmSwap:"))


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
    return _sum_of(pid, "smaps_rollup", ("Private_Clean:", "Private_Dirty:", "Swap:"))


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, of what it shares only its part.

    Parameters
    ----------
    pid : `int`
        Process id.

    Returns
    -------
    size : `int`
        Bytes; 0 for a process that is gone.
    """
    return _sum_of(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:"))


def _sum_of(pid: int, file: str, fields: tuple[str, ...]) -> int:
    lines = _read(pid, file).splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(fields))


def _read(pid: int, file: str) -> str:
    """Return what the kernel tells of a process; blank if it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{file}").read_text()
    return ""


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


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended.

    Parameters
    ----------
    pid : `int`
        Process id.

    Returns
    -------
    used : `float`
        Seconds in user and system mode; 0 for a process that is gone.
    """
    # proc(5): fields 14 to 17; the name in field 2 may contain anything.
    return sum(map(int, _read(pid, "stat").rpartition(")")[2].split()[11:15])) / _TICKS_PER_S


def cut_log(log: Path, most: int) -> bool:
    """Cut a log that has grown too long, also while it is being written.

    Parameters
    ----------
    log : `pathlib.Path`
        A file that others have open for appending.
    most : `int`
        Bytes; a longer file keeps its end only.

    Returns
    -------
    cut : `bool`
        Whether it was too long. What is written to it in this moment may be
        lost.
    """
    try:
        if log.stat().st_size <= most:
            return False
        with log.open("r+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(-min(size, LOG_KEPT, most // 2), os.SEEK_END)
            end = stream.read()
            stream.truncate(0)
    except FileNotFoundError:
        return False
    with log.open("ab", buffering=0) as stream:
        stream.write(f"... {size - len(end)} bytes were cut here\n".encode() + end)
    return True


def shortage(folder: Path, facts: os.statvfs_result) -> str:
    """Say of what a disk has nearly nothing left.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where the disk is mounted, or below.
    facts : `os.statvfs_result`
        Of this folder.

    Returns
    -------
    text : `str`
        One line; blank if there is enough, or no limit.
    """
    kinds = (("space", facts.f_bavail, facts.f_blocks), ("inodes", facts.f_favail, facts.f_files))
    short = [
        f"{100 * free / total:.1f} % of its {kind} free"
        for kind, free, total in kinds
        if total and free / total < LEAST_FREE
    ]
    return f"{folder} has only {' and '.join(short)}" if short else ""


@dataclass(eq=False)
class Meters:
    """Reads what all workers use.

    Parameters
    ----------
    config : `~ppdaemon.config.WorkersConfig`
        Limits: what is near one is looked at closely.
    folders : `~ppdaemon.folders.NodeFolders`
        Where repos and logs are.
    statvfs : `~collections.abc.Callable`, optional
        Measures a disk.
    """

    config: WorkersConfig
    folders: NodeFolders
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs

    def __post_init__(self) -> None:
        self.troubles: tuple[str, ...] = ()
        """Such as disks that are nearly full, one line each."""
        self.ramdisk_bytes = 0
        """What is used of the whole RAM disk."""
        self.logs_cut = 0
        """How often a log was cut."""
        self._turn = 0
        self._repos: dict[tuple[int, int], int] = {}  # by slot and process
        self._ramdisk_then = 0

    async def run(self, pool: Pool, count: Counter[str]) -> None:
        """Weigh all workers again and again, for ever.

        Parameters
        ----------
        pool : `~ppdaemon.node.slots.pool.Pool`
            Gets a `~ppdaemon.node.slots.events.MemorySampled` for each slot.
        count : `collections.Counter`
            Counts logs that were cut, as ``log_cut``.
        """
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "meters") as thread:
            while True:
                await asyncio.sleep(self.config.memory.sample_s)
                pids = pool.pids()
                try:
                    samples = await loop.run_in_executor(thread, self.read, pids)
                except OSError as error:  # such as too many open files
                    self.troubles = (f"workers cannot be weighed: {error}",)
                    continue
                now = pool.pids()
                for number, sample in samples.items():
                    if now.get(number) == pids[number]:
                        pool.handle(number, sample)
                if self.logs_cut:
                    count["log_cut"] = self.logs_cut

    def read(self, pids: Mapping[int, int]) -> dict[int, MemorySampled]:
        """Measure; blocks for some milliseconds.

        Parameters
        ----------
        pids : `~collections.abc.Mapping` [`int`, `int`]
            Process id by slot.

        Returns
        -------
        samples : `dict` [`int`, `~ppdaemon.node.slots.events.MemorySampled`]
            By slot.
        """
        self.troubles = (*self._look_at_disks(), *self._cut_logs())
        if self._turn % REPO_EVERY == 0 or self._fills():
            self._repos.clear()
            self._ramdisk_then = self.ramdisk_bytes
        self._turn += 1
        self._repos = {slot: self._repo_bytes(slot) for slot in pids.items()}
        return {slot: self._read_one(pid, self._repos[slot, pid]) for slot, pid in pids.items()}

    def _repo_bytes(self, slot: tuple[int, int]) -> int:
        """Return what is known, never of the slot's worker before."""
        known = self._repos.get(slot)
        return folder_bytes(self.folders.repo(slot[0])) if known is None else known

    def _fills(self) -> bool:
        """Whether some repo may be over its quota since they were measured.

        A tmpfs takes more than a gigabyte per second: five samples are long.
        """
        return self.ramdisk_bytes - self._ramdisk_then > self.config.memory.ramdisk // 4

    def _read_one(self, pid: int, repo_bytes: int) -> MemorySampled:
        members = family(pid)  # tasks may run in a process of their own
        used = sum(map(anonymous_bytes, members))
        if used > self.config.memory.soft // 2:
            # Pages that a worker shares with its own forks would be nobody's.
            used = sum(map(private_bytes if len(members) == 1 else proportional_bytes, members))
        return MemorySampled(used + repo_bytes, repo_bytes, sum(map(cpu_seconds, members)))

    def _look_at_disks(self) -> list[str]:
        found = []
        for folder in (self.folders.ramdisk, self.folders.state):
            try:
                facts = self.statvfs(folder)
            except OSError as error:
                found.append(f"{folder}: {error.strerror}")
                continue
            if folder == self.folders.ramdisk:
                self.ramdisk_bytes = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
            if text := shortage(folder, facts):
                found.append(text)
        return found

    def _cut_logs(self) -> list[str]:
        """Keep all logs short: those of the exporter and the zygote too."""
        found = []
        for log in self.folders.logs.glob("*.log"):
            try:
                self.logs_cut += cut_log(log, self.config.log_max)
            except OSError as error:
                found.append(f"{log} has grown too long and cannot be cut: {error.strerror}")
        return found
