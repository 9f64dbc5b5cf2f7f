# SPDX-License-Identifier: BSD-3-Clause
"""Processes of a daemon under test, and their resource use."""

from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ("ResourceUsage", "alive", "descendants", "title", "usage_of")


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """Present resource use of one process, and its CPU time so far."""

    cpu_s: float
    rss_bytes: int
    descriptors: int
    threads: int


def usage_of(pid: int) -> ResourceUsage:
    """Return the present resource use of a process."""
    process = psutil.Process(pid)
    with process.oneshot():
        times = process.cpu_times()
        return ResourceUsage(
            cpu_s=times.user + times.system,
            rss_bytes=process.memory_info().rss,
            descriptors=process.num_fds(),
            threads=process.num_threads(),
        )


def descendants(pid: int) -> list[int]:
    """Return the process ids of all living descendants."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def title(pid: int) -> str:
    """Return what ``ps`` shows of a process; blank if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
