# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a worker's processes: anonymous memory, and shared memory in files.

Clean pages of files do not count: the kernel drops them when memory is short. Reading exact
shares takes 34 ms for a process of 2 GB, so that a bound is read first.
"""

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ppdaemon.mounts import RAMDISKS, read_mounts

__all__ = ("MemoryBound", "MemoryFiles", "anonymous_share", "exclusive_bytes", "memory_bound")

type FileKey = tuple[int, int]
"""Device and inode."""

MANY_BYTES = 16_000_000
"""Mapped files in memory that are not open, and are not larger than this together, are not searched for."""
KERNEL_DEVICE = os.makedev(0, 1)
"""Device of memfd files, System V segments and shared anonymous memory."""
KERNEL_FILES = ("/memfd:", "/SYSV", "/dev/zero")
"""Begins of their names."""


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """What ``/proc/<pid>/status`` has; both 0 if the process has ended."""

    anonymous: int
    """Anonymous memory and swap in bytes, pages included that are shared with the zygote."""
    shared: int
    """Mapped pages of tmpfs and memfd files in bytes."""


def memory_bound(pid: int) -> MemoryBound:
    """Return upper bounds, in some 30 us."""
    anonymous, swapped, shared = _fields(pid, "status", b"RssAnon", b"VmSwap", b"RssShmem")
    return MemoryBound(anonymous + swapped, shared)


def anonymous_share(pid: int) -> int:
    """Return the anonymous memory and swap of a process, with its share of pages that it shares
    with the zygote and with its own forks: the sum over a worker's processes has each byte once.
    """
    return sum(_fields(pid, "smaps_rollup", b"Pss_Anon", b"SwapPss"))


def exclusive_bytes(files: Mapping[int, Mapping[FileKey, int]]) -> dict[int, int]:
    """Return by worker the bytes of files that no other worker has; `files` is by worker."""
    workers: defaultdict[FileKey, int] = defaultdict(int)
    for each in files.values():
        for key in each:
            workers[key] += 1
    return {
        worker: sum(size for key, size in each.items() if workers[key] == 1) for worker, each in files.items()
    }


def _fields(pid: int, file: str, *names: bytes) -> list[int]:
    """Return fields in kB of a file in ``/proc`` in bytes; 0 if the process has ended."""
    text = b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}", "rb", 0) as stream:
        text = stream.read()
    # Some are missing of a process without memory: one that has ended and was not waited for.
    values = (text.partition(b"\n%s:" % name)[2].partition(b"kB")[0] for name in names)
    return [int(value) * 1024 if value else 0 for value in values]


def _ramdisks() -> tuple[tuple[str, ...], set[int]]:
    """Return the begins of the paths of files in memory, and the devices of such files."""
    # Folder names may contain any bytes, such as other line separators.
    text = Path("/proc/self/mountinfo").read_bytes().decode(errors="backslashreplace")
    mounts = [mount for mount in read_mounts(text).values() if mount.kind in RAMDISKS]
    points = {f"{mount.point.rstrip('/')}/" for mount in mounts}
    return (*KERNEL_FILES, *sorted(points)), {KERNEL_DEVICE, *(mount.device for mount in mounts)}


@dataclass(frozen=True, slots=True)
class MemoryFiles:
    """Finds the files in memory that are not below a folder; made for each measurement, because
    file systems may be mounted in between.
    """

    folder: str
    begins: tuple[str, ...]
    devices: Container[int]

    @classmethod
    def outside(cls, folder: Path) -> Self:
        """Return what finds the files outside of a folder."""
        return cls(f"{folder}/", *_ramdisks())

    def of(self, pids: Iterable[int]) -> dict[FileKey, int]:
        """Return the sizes of the files in memory that some processes hold open or map, such as
        memfd files and those in ``/dev/shm``. Files in the folder are left out, except open ones
        that were deleted, such as temporary files without a name.
        """
        found: dict[FileKey, int] = {}
        for pid in pids:
            found |= (held := self.held(pid))
            # A search takes some 20 ms, to list what is mapped 3: a worker has its inputs in open files.
            if memory_bound(pid).shared > MANY_BYTES and self._unheld(pid, held) > MANY_BYTES:
                found = self.mapped(pid) | found  # the size of an open file is exact
        return found

    def held(self, pid: int) -> dict[FileKey, int]:
        """Return the sizes of open files; none for a process that has ended, waited for or not."""
        found = {}
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # it was closed
                    # First, because it reads no disk: another file may be on a mount that hangs.
                    name = os.readlink(descriptor.path)
                    if not name.startswith(self.begins):
                        continue
                    facts = os.stat(descriptor.path)
                    if name.startswith(self.folder) and facts.st_nlink > 0:
                        continue
                    if facts.st_dev in self.devices and stat.S_ISREG(facts.st_mode):
                        found[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
        return found

    def _unheld(self, pid: int, held: Container[FileKey]) -> int:
        """Return the size of the mappings of files that are not open, without how much of it is present."""
        parts: defaultdict[FileKey, list[tuple[int, int]]] = defaultdict(list)
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as stream:
            for line in stream:
                addresses, _, rest = line.partition(" ")
                key = self._key(rest)
                if key is not None and key not in held:
                    parts[key].append(_part(addresses, rest))
        return sum(map(_union_bytes, parts.values()))

    def mapped(self, pid: int) -> dict[FileKey, int]:
        """Return the present pages of mapped files, see proc_pid_smaps(5). A part that is mapped
        several times counts once: no file has more pages than the parts that are mapped.
        """
        found: defaultdict[FileKey, int] = defaultdict(int)
        parts: defaultdict[FileKey, list[tuple[int, int]]] = defaultdict(list)
        key: FileKey | None = None
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps") as stream:
            for line in stream:
                name, _, rest = line.partition(" ")
                if not name.endswith(":"):  # the first line of a mapping
                    key = self._key(rest)
                    if key is not None:
                        parts[key].append(_part(name, rest))
                elif key is not None and name in ("Rss:", "Swap:"):
                    found[key] += int(rest.split()[0]) * 1024
        return {key: min(size, _union_bytes(parts[key])) for key, size in found.items()}

    def _key(self, mapping: str) -> FileKey | None:
        """Return the file of a mapping, given without its addresses."""
        _, _, device, inode, *path = mapping.split(None, 4)
        major, _, minor = device.partition(":")
        key = os.makedev(int(major, 16), int(minor, 16)), int(inode)
        return key if key[0] in self.devices and not "".join(path).startswith(self.folder) else None


def _part(addresses: str, rest: str) -> tuple[int, int]:
    """Return the begin and the end of what a mapping has of its file."""
    begin, _, end = addresses.partition("-")
    offset = int(rest.split(None, 2)[1], 16)
    return offset, offset + int(end, 16) - int(begin, 16)


def _union_bytes(parts: list[tuple[int, int]]) -> int:
    size = last = 0
    for begin, end in sorted(parts):
        size += max(0, end - max(begin, last))
        last = max(last, end)
    return size
