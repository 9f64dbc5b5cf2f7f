# SPDX-License-Identifier: BSD-3-Clause
"""Measures what the workers use: memory, RAM-disk repos, CPU time, logs, free disk space.

All readings are taken in a separate thread; `ppdaemon.node.slots.slot` decides what follows.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ppdaemon.config import WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.events import MemorySampled
from ppdaemon.node.slots.memory import FileKey, MemoryFiles, anonymous_share, exclusive_bytes, memory_bound
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.runtimes import RunTimes
from ppdaemon.privatefiles import open_private
from ppdaemon.processes import has_one_thread, parent, process_tree

__all__ = (
    "REPO_EVERY",
    "Limited",
    "Meters",
    "cpu_seconds",
    "cut_log",
    "folder_bytes",
    "low_disk_space",
)

REPO_EVERY = 5
"""Repos and logs are measured in every fifth sample, repos also when the RAM disk fills up; so are workers
that have no visit and have not run since the last sample."""

FULL_EVERY = 300
"""Workers that have not run are measured in every three hundredth sample: what they share with others that
have ended is then theirs alone."""

WAIT_S = 0.2
"""How long at most a sample waits while raws are checked. To measure 205 workers takes more than 20 ms, and
orders to workers would be as much later: all threads share one interpreter."""
LOOK_AGAIN_S = 0.01
"""Pause before the next look whether raws are still checked."""

MIN_FREE = 0.05
"""A disk is reported when less than this fraction of it is free."""

LOG_END_BYTES = 65_536
"""Upper limit of the end of a log that is retained when it is cut."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
"""Unit of the CPU times in ``/proc``."""


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
    path, text = f"/proc/{pid}/stat", b""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, "rb", 0) as stream:
        text = stream.read()
    # proc(5): fields 14 to 17; the name in field 2 may contain anything.
    return sum(map(int, text.rpartition(b")")[2].split()[11:15])) / _TICKS_PER_S


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


class Limited(Protocol):
    """A process without a slot that has limits."""

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""

    def measured(self, used_bytes: int, config: WorkersConfig) -> None:
        """Take its memory, and the limits."""


@dataclass(slots=True)
class _Worker:
    """The last measurements of a worker."""

    pid: int
    sampled: bytes = b""
    """Its run time before the last sample; blank if that says nothing: it may have changed without it."""
    searched: bytes = b""
    """Its run time before its repo and its files were searched, likewise."""
    anonymous: int = 0
    cpu_s: float = 0.0
    repo_bytes: int | None = None
    files: dict[FileKey, int] = field(default_factory=dict)
    zygote: int = 0
    sample: MemorySampled | None = None
    """As it was returned last; `None` if it has run since."""
    rested: int | None = None
    """After how many visits it has not run between two samples; `None` if it has a visit, or has run."""


@dataclass(eq=False)
class Meters:
    """Measures all workers, and the disks and logs of the node. `statvfs` measures a disk."""

    config: WorkersConfig
    folders: NodeFolders
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    urgent: Callable[[], bool] = lambda: False
    """Whether something is under way that measuring must not delay; called in another thread."""

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
        self._workers: dict[int, _Worker] = {}  # by slot
        self._run_times = RunTimes()
        self._limits: WorkersConfig | None = None  # with which the samples were judged
        self._shared: dict[int, int] = {}
        """Bytes of files in memory that only one worker has, by pid of the worker."""
        self._ramdisk_measured = 0
        self._log_problems: tuple[str, ...] = ()

    async def run(self, pool: Pool, others: Sequence[Limited], count: Counter[str]) -> None:
        """Measure all workers and other processes periodically until canceled; each slot with a change gets a
        `MemorySampled`. Cut logs are counted as ``log_cut``.
        """
        loop = asyncio.get_running_loop()
        # Not a default thread: all of those may be waiting for a disk.
        with contextlib.closing(self), ThreadPoolExecutor(1, "meters") as thread:
            while True:
                await asyncio.sleep(self.config.memory.sample_s)
                pids, idle = pool.pids(), pool.idle_visits()
                other_pids = [other.pid for other in others]
                try:
                    # At once: each turn of a thread wakes this one.
                    samples, used = await loop.run_in_executor(thread, self._read_all, pids, idle, other_pids)
                except OSError as error:  # such as too many open files
                    self.problems = (
                        f"the use of the workers cannot be measured, limits are not enforced: {error}",
                    )
                    self.close()
                    continue
                # A process may have been replaced while the thread measured.
                for other, pid, used_bytes in zip(others, other_pids, used, strict=True):
                    if pid is not None and other.pid == pid:
                        other.measured(used_bytes, self.config)
                now = pool.pids() if samples else {}
                for number, sample in samples.items():
                    if now.get(number) == pids[number]:
                        pool.handle(number, sample)
                if self.logs_cut:
                    count["log_cut"] = self.logs_cut

    def close(self) -> None:
        """Close the files of all workers."""
        self._run_times.close()

    def read(self, pids: Mapping[int, int], idle: Mapping[int, int]) -> dict[int, MemorySampled]:
        """Measure the processes, given by slot; return the samples of those that have run, or whose
        sample has changed. `idle` has how many visits those workers have had that have none now. Blocks for
        some milliseconds, and for `WAIT_S` more at most.
        """
        number, self._samples = self._samples, self._samples + 1
        # First: `_is_filling` compares the RAM disk with its last measurement.
        disks = self._check_disks()
        if number % REPO_EVERY == 0:
            self._log_problems = tuple(self._cut_logs())
        self.problems = (*disks, *self._log_problems)
        if self._limits is not self.config:  # every sample is to be judged again
            self._limits = self.config
            self._workers.clear()
        self._workers = {slot: self._known(slot, pid) for slot, pid in pids.items()}
        self._run_times.keep(set(pids.values()))
        search = None
        if number % REPO_EVERY == 0 or self._is_filling():
            self._ramdisk_measured = self.ramdisk_bytes
            search = MemoryFiles.outside(self.folders.ramdisk)
        until = time.monotonic() + WAIT_S
        for slot, worker in self._workers.items():
            again, visits = slot % FULL_EVERY == number % FULL_EVERY, idle.get(slot)
            if search is None and not again and worker.rested is not None and worker.rested == visits:
                continue
            while self.urgent() and time.monotonic() < until:
                time.sleep(LOOK_AGAIN_S)
            worker.rested = visits if self._measure(slot, worker, search, again=again) else None
        if search is not None:
            self._shared = self._exclusive_bytes(search)
        samples = {}
        for slot, worker in self._workers.items():
            if (worker.sample is None or search is not None) and (
                sample := self._sample(worker)
            ) != worker.sample:
                samples[slot] = worker.sample = sample
        return samples

    def _known(self, slot: int, pid: int) -> _Worker:
        """Return what is known of the present worker; never that of the slot's previous one."""
        worker = self._workers.get(slot)
        return worker if worker is not None and worker.pid == pid else _Worker(pid)

    def _measure(self, slot: int, worker: _Worker, search: MemoryFiles | None, *, again: bool) -> bool:
        """Measure a worker as far as it has run since that was measured last, or all of it `again`; return
        whether it has not run.
        """
        # Before everything else: what the worker does from here on is found by the next sample.
        ran = self._run_times.read(worker.pid)
        rests = bool(ran) and ran == worker.sampled
        if again:
            worker.sampled = worker.searched = b""
        members: Collection[int] = (worker.pid,)
        if not ran or ran != worker.sampled:
            # Tasks may run in separate processes.
            members = process_tree(worker.pid)
            worker.anonymous, worker.cpu_s = self._anonymous(members), sum(map(cpu_seconds, members))
            worker.sample = None
            # The run time is that of one thread, and it would have run to have another, or a child.
            worker.sampled = ran if len(members) == 1 and has_one_thread(worker.pid) else b""
        if search is not None and (not ran or ran != worker.searched):
            worker.files, worker.zygote = search.of(members), parent(worker.pid)
            worker.repo_bytes = folder_bytes(self.folders.repo(slot))
            worker.searched = worker.sampled
        elif worker.repo_bytes is None:
            worker.repo_bytes = folder_bytes(self.folders.repo(slot))
        return rests

    def _anonymous(self, members: Collection[int]) -> int:
        """Return the anonymous memory of processes that share it; exact if it may be near a limit."""
        used = sum(memory_bound(member).anonymous for member in members)
        return used if used <= self.config.memory.soft // 2 else sum(map(anonymous_share, members))

    def _read_all(
        self, pids: Mapping[int, int], idle: Mapping[int, int], others: Iterable[int | None]
    ) -> tuple[dict[int, MemorySampled], list[int]]:
        """Return the samples of `read`, and the memory of each other process, without its descendants:
        packers have a time limit, and when memory is short the kernel kills them first.
        """
        return self.read(pids, idle), [0 if pid is None else self._anonymous([pid]) for pid in others]

    def _exclusive_bytes(self, search: MemoryFiles) -> dict[int, int]:
        files = {worker.pid: worker.files for worker in self._workers.values()}
        # What the zygote has is no worker's alone, even if there is only one worker.
        zygotes = {worker.zygote for worker in self._workers.values()} - files.keys()
        return exclusive_bytes(files | {pid: search.of([pid]) for pid in zygotes})

    def _sample(self, worker: _Worker) -> MemorySampled:
        repo_bytes = worker.repo_bytes or 0
        used = worker.anonymous + self._shared.get(worker.pid, 0) + repo_bytes
        return MemorySampled(used, repo_bytes, worker.cpu_s)

    def _is_filling(self) -> bool:
        """Return whether a repo may have exceeded its quota since the repos were measured: a
        tmpfs takes more than 1 GB/s, so five samples are too long to wait.
        """
        return self.ramdisk_bytes - self._ramdisk_measured > self.config.memory.ramdisk // 4

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
        for log in self._logs():
            try:
                if log.stat().st_size > self.config.log_max:
                    self.logs_cut += cut_log(Path(log.path), self.config.log_max)
            except FileNotFoundError:
                continue
            except OSError as error:
                found.append(f"{log.path} is too long and cannot be cut: {error.strerror}")
        return found

    def _logs(self) -> list[os.DirEntry[str]]:
        """Return all logs; none if the state disk cannot be read, which is reported by itself."""
        try:
            with os.scandir(self.folders.logs) as entries:
                return [entry for entry in entries if entry.name.endswith(".log")]
        except OSError:
            return []
