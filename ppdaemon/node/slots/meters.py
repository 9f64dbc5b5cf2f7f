# SPDX-License-Identifier: BSD-3-Clause
"""Measures what the workers use: memory, RAM-disk repos, CPU time, logs, free disk space.

All readings are taken in a separate thread; `ppdaemon.node.slots.slot` decides what follows.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.config import WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.events import MemorySampled
from ppdaemon.node.slots.memory import MemoryFiles, anonymous_share, exclusive_bytes, memory_bound
from ppdaemon.node.slots.pool import Pool
from ppdaemon.privatefiles import open_private
from ppdaemon.processes import parent, process_tree

__all__ = (
    "REPO_EVERY",
    "Meters",
    "cpu_seconds",
    "cut_log",
    "folder_bytes",
    "low_disk_space",
)

REPO_EVERY = 5
"""Repos are measured in every fifth sample, and when the RAM disk fills up."""

MIN_FREE = 0.05
"""A disk is reported when less than this fraction of it is free."""

LOG_END_BYTES = 65_536
"""Upper limit of the end of a log that is retained when it is cut."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
"""Unit of the CPU times in ``/proc``."""


def _read(pid: int, file: str) -> str:
    """Return a file of a process in ``/proc``; blank if the process has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/{file}") as stream:
        return stream.read()
    return ""


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files with a single link below a folder: files shared between
    workers by hard link are not counted.
    """
    size = 0
    pending = [str(folder)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue  # the repo is being wiped, or a task has locked the folder
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
    """Return the CPU time of a process and of its children that have ended, user and system mode;
    0 if it has ended.
    """
    # proc(5): fields 14 to 17; the name in field 2 may contain anything.
    return sum(map(int, _read(pid, "stat").rpartition(")")[2].split()[11:15])) / _TICKS_PER_S


def cut_log(log: Path, max_bytes: int) -> bool:
    """Cut a log of more than `max_bytes` to its end, also while processes append to it; return
    whether it was cut. Lines that are written during the cut may be lost.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return False
        with log.open("r+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(-min(size, LOG_END_BYTES, max_bytes // 2), os.SEEK_END)
            end = stream.read()
            stream.truncate(0)  # writers append, so they continue at the new end
    except FileNotFoundError:
        return False
    with open(log, "ab", buffering=0, opener=open_private) as stream:
        stream.write(f"... {size - len(end)} bytes were cut here\n".encode() + end)
    return True


def low_disk_space(folder: Path, facts: os.statvfs_result) -> str:
    """Return a line that names a disk with little free space or few free inodes; blank if there
    is enough, or no limit.
    """
    kinds = (("space", facts.f_bavail, facts.f_blocks), ("inodes", facts.f_favail, facts.f_files))
    short = [
        f"{100 * free / total:.1f} % of its {kind} free"
        for kind, free, total in kinds
        if total and free / total < MIN_FREE
    ]
    return f"{folder} has only {' and '.join(short)}" if short else ""


@dataclass(eq=False)
class Meters:
    """Measures all workers, and the disks and logs of the node. `statvfs` measures a disk."""

    config: WorkersConfig
    folders: NodeFolders
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs

    def __post_init__(self) -> None:
        self.problems: tuple[str, ...] = ()
        """Problems such as nearly full disks, one line each."""
        self.ramdisk_bytes = 0
        """Used space of the whole RAM disk."""
        self.ramdisk_size_bytes = 0
        """Its size; 0 if it has no limit, or was not measured yet."""
        self.logs_cut = 0
        """How many times a log was cut."""
        self._samples = 0
        self._repos: dict[tuple[int, int], int] = {}  # by slot and process
        self._shared: dict[int, int] = {}
        """Bytes of files in memory that only one worker has, by pid of the worker."""
        self._ramdisk_measured = 0

    async def run(self, pool: Pool, count: Counter[str]) -> None:
        """Measure all workers periodically until canceled; each slot gets a `MemorySampled`. Cut
        logs are counted as ``log_cut``.
        """
        loop = asyncio.get_running_loop()
        # Not a default thread: all of those may be waiting for a disk.
        with ThreadPoolExecutor(1, "meters") as thread:
            while True:
                await asyncio.sleep(self.config.memory.sample_s)
                pids = pool.pids()
                try:
                    samples = await loop.run_in_executor(thread, self.read, pids)
                except OSError as error:  # such as too many open files
                    self.problems = (
                        f"the use of the workers cannot be measured, limits are not enforced: {error}",
                    )
                    continue
                # A worker may have been replaced while the thread measured.
                now = pool.pids()
                for number, sample in samples.items():
                    if now.get(number) == pids[number]:
                        pool.handle(number, sample)
                if self.logs_cut:
                    count["log_cut"] = self.logs_cut

    def read(self, pids: Mapping[int, int]) -> dict[int, MemorySampled]:
        """Measure the processes, given by slot. Blocks for some milliseconds."""
        # First: `_is_filling` compares the RAM disk with its last measurement.
        self.problems = (*self._check_disks(), *self._cut_logs())
        number, self._samples = self._samples, self._samples + 1
        members = {
            slot: process_tree(pid) for slot, pid in pids.items()
        }  # tasks may run in separate processes
        if number % REPO_EVERY == 0 or self._is_filling():
            self._repos.clear()
            self._ramdisk_measured = self.ramdisk_bytes
            search = MemoryFiles.outside(self.folders.ramdisk)
            files = {pids[slot]: search.of(tree) for slot, tree in members.items()}
            # What the zygote has is no worker's alone, even if there is only one worker.
            zygotes = {parent(pid) for pid in pids.values()} - files.keys()
            files |= {pid: search.of([pid]) for pid in zygotes}
            self._shared = exclusive_bytes(files)
        self._repos = {slot: self._repo_bytes(slot) for slot in pids.items()}
        return {
            slot: self._read_one(pid, members[slot], self._repos[slot, pid]) for slot, pid in pids.items()
        }

    def _repo_bytes(self, slot: tuple[int, int]) -> int:
        """Return the last measured size of the present worker's repo, or measure it; never that
        of the slot's previous worker.
        """
        known = self._repos.get(slot)
        return folder_bytes(self.folders.repo(slot[0])) if known is None else known

    def _is_filling(self) -> bool:
        """Return whether a repo may have exceeded its quota since the repos were measured: a
        tmpfs takes more than 1 GB/s, so five samples are too long to wait.
        """
        return self.ramdisk_bytes - self._ramdisk_measured > self.config.memory.ramdisk // 4

    def _read_one(self, pid: int, members: Collection[int], repo_bytes: int) -> MemorySampled:
        used = sum(memory_bound(member).anonymous for member in members)
        if used > self.config.memory.soft // 2:
            used = sum(map(anonymous_share, members))
        used += self._shared.get(pid, 0) + repo_bytes
        return MemorySampled(used, repo_bytes, sum(map(cpu_seconds, members)))

    def _check_disks(self) -> list[str]:
        found = []
        for folder in (self.folders.ramdisk, self.folders.state):
            try:
                facts = self.statvfs(folder)
            except OSError as error:
                found.append(f"{folder}: {error.strerror}")
                continue
            if folder == self.folders.ramdisk:
                self.ramdisk_bytes = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
                self.ramdisk_size_bytes = facts.f_blocks * facts.f_frsize
            if text := low_disk_space(folder, facts):
                found.append(text)
        return found

    def _cut_logs(self) -> list[str]:
        """Cut all long logs, those of the exporter and the zygote included."""
        found = []
        for log in self.folders.logs.glob("*.log"):
            try:
                self.logs_cut += cut_log(log, self.config.log_max)
            except OSError as error:
                found.append(f"{log} is too long and cannot be cut: {error.strerror}")
        return found
