# SPDX-License-Identifier: BSD-3-Clause
"""Files that all workers of a host share: fetched once, then hard-linked.

A worker takes a file by linking it, so that it has the content even after the
cache has evicted the file. Files are evicted, least recently used first, when
the folder exceeds its budget. The folder is scanned only then.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lsst.resources import ResourcePath

from ppdaemon.middleware.butler.datafiles import link_or_copy

__all__ = ("SharedCache", "CacheStats")

_LOG = logging.getLogger(__name__)
_LANES = 64
"""Folders and locks for copying, chosen by the name's checksum: enough that
workers rarely wait for each other, few enough to leave in place."""
_LANE = ".lane-"
_USAGE_FILE = ".ledger"
"""With a dot, so that sweeps do not count or delete it."""
_USAGE_FORMAT = re.compile(rb"(\d{20}) (\d{20})\n")
"""Of fixed width: each write replaces all of the previous one."""
_FILL = 0.9
"""Fraction of the budget that a sweep leaves used, so that the next sweep is
not needed at once."""
_SWEEP_STEP = 0.05
"""Where files in use exceed the budget, the next sweep comes after this
fraction of the budget was added: each file would cause a scan otherwise."""


@dataclass(slots=True)
class CacheStats:
    """Counts of files taken from the cache."""

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    """Size of all files taken."""
    fetched_bytes: int = 0
    """Size of those that had to be copied."""
    evicted: int = 0
    """Files deleted from the cache to make room."""
    evicted_bytes: int = 0

    def hit(self, size_bytes: int) -> None:
        """Count a file that was in the cache."""
        self.hits += 1
        self.bytes += size_bytes

    def miss(self, size_bytes: int) -> None:
        """Count a file that was copied."""
        self.misses += 1
        self.bytes += size_bytes
        self.fetched_bytes += size_bytes


@dataclass(slots=True)
class _Usage:
    """Size of the folder's content, as recorded in a file.

    A killed worker leaves the size of its unfinished copy in it; the next
    sweep corrects that.
    """

    bytes: int
    sweep_above: int
    """Size above which the next sweep is made."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """A folder into which one worker at a time copies, with its lock."""

    folder: Path
    lock: int
    """Descriptor of the locked file, whose content is the size of the copy."""

    def write_size(self, size_bytes: int) -> None:
        """Publish the size of the copy for sweeps; 0 if there is none."""
        os.pwrite(self.lock, b"%020d" % size_bytes, 0)


class SharedCache:
    """Immutable files by name, in one folder of the RAM disk.

    Any number of processes may use one folder. Locks end with the process that
    has them, and the partial copy of a killed worker is deleted by the next
    worker in the same lane or by a sweep. Files that workers use count against
    the budget, and are not evicted even above it.
    """

    def __init__(self, folder: Path, budget_bytes: int):
        self._folder = folder
        self._budget = budget_bytes

    def questions(self, generation: str) -> Path:
        """Return the folder of what those users of the cache ask each other that have the same
        configuration; it does not count.
        """
        return self._folder / f".questions-{generation}"

    def take(
        self, name: str, source: ResourcePath, target: Path, stats: CacheStats, size_bytes: int | None = None
    ) -> None:
        """Link a file to `target`, which must be on the cache's filesystem; fetch it first if needed.

        A name must always mean the same content. A cached file of another size
        than `size_bytes` is fetched again. Raises `OSError` if the file cannot
        be read or written, or the copy is incomplete.
        """
        path = self._folder / name
        if not self._link(path, target, size_bytes):
            with self._lane(name) as lane:
                # Again: another worker may have fetched it while this one waited.
                if not self._link(path, target, size_bytes):
                    self._fetch(source, path, target, lane, stats)
                    return
        stats.hit(target.stat().st_size)

    def touch(self, name: str) -> None:
        """Mark a file as used now; nothing happens if it was evicted."""
        with suppress(FileNotFoundError):
            os.utime(self._folder / name)

    def drop_unused(self) -> int:
        """Delete all files to which there is no other link; return the freed bytes."""
        with self._usage() as usage:
            return self._sweep(usage, 0, CacheStats())

    def _link(self, path: Path, target: Path, size_bytes: int | None) -> bool:
        """Link a cached file; return whether there was a good one."""
        try:
            link_or_copy(path, target)
        except FileNotFoundError:
            return False
        found = target.stat().st_size
        if size_bytes is not None and found != size_bytes:
            _LOG.warning("cached file %s has %d bytes, not %d: fetched again", path, found, size_bytes)
            target.unlink()
            path.unlink(missing_ok=True)
            return False
        self.touch(path.name)
        return True

    def _fetch(self, source: ResourcePath, path: Path, target: Path, lane: _Lane, stats: CacheStats) -> None:
        partial = lane.folder / path.name
        size_bytes = source.size()
        with self._room(size_bytes, lane, stats):
            try:
                _copy(source, partial, size_bytes)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self.drop_unused():
                    raise
                _copy(source, partial, size_bytes)
            # Linked before it is renamed: no sweep can evict it in between.
            link_or_copy(partial, target)
            with self._usage():  # so that a sweep counts it once: as a copy or as a file
                partial.replace(path)
                lane.write_size(0)
        stats.miss(size_bytes)

    @contextmanager
    def _lane(self, name: str) -> Iterator[_Lane]:
        """Yield a locked, empty folder to copy into."""
        lane = self._folder / f"{_LANE}{zlib.crc32(name.encode()) % _LANES:02d}"
        lane.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_of(lane)) as lock:
            _empty(lane)  # a killed worker's copy
            try:
                yield _Lane(lane, lock)
            finally:
                _empty(lane)

    @contextmanager
    def _room(self, size_bytes: int, lane: _Lane, stats: CacheStats) -> Iterator[None]:
        """Reserve space for a copy; evict files if needed. The space is released if the block fails."""
        with self._usage() as usage:
            # For a file larger than the budget no eviction makes room.
            if size_bytes <= self._budget and usage.bytes + size_bytes > usage.sweep_above:
                self._sweep(usage, max(0, int(self._budget * _FILL) - size_bytes), stats)
            usage.bytes += size_bytes
            lane.write_size(size_bytes)
        try:
            yield
        except BaseException:
            with self._usage() as usage:
                usage.bytes = max(0, usage.bytes - size_bytes)
                lane.write_size(0)
            raise

    def _sweep(self, usage: _Usage, keep_bytes: int, stats: CacheStats) -> int:
        """Evict unused files until at most `keep_bytes` are left; return the freed bytes."""
        total = freed = 0
        unused = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith(_LANE) and entry.is_dir():
                copying, deleted = _clean(Path(entry.path))
                total += copying
                freed += deleted
            elif not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # another worker deleted it as damaged
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_size
                    if status.st_nlink == 1:
                        # Files larger than the budget go first, then the least recently used.
                        fits = status.st_size <= self._budget
                        unused.append((fits, status.st_mtime_ns, status.st_size, entry.path))
        for _, _, size_bytes, path in sorted(unused):
            if total <= keep_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
                total -= size_bytes
                freed += size_bytes
                stats.evicted += 1
                stats.evicted_bytes += size_bytes
        usage.bytes = total
        usage.sweep_above = max(self._budget, total + int(self._budget * _SWEEP_STEP))
        _LOG.info("shared files: %d bytes freed, %d left", freed, total)
        return freed

    @contextmanager
    def _usage(self) -> Iterator[_Usage]:
        """Yield the usage record under its lock; write it back if the block succeeds."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / _USAGE_FILE) as descriptor:
            read = _USAGE_FORMAT.fullmatch(os.pread(descriptor, 100, 0))
            usage = _Usage(int(read[1]), int(read[2])) if read else _Usage(self._count(), self._budget)
            yield usage
            os.pwrite(descriptor, b"%020d %020d\n" % (usage.bytes, usage.sweep_above), 0)

    def _count(self) -> int:
        return sum(
            entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(self._folder)
            if not entry.name.startswith(".")
        )


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Lock a file; without `wait` raise `BlockingIOError` if another process has the lock."""
    # flock: the kernel releases it when the process dies.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_of(lane: Path) -> Path:
    return lane.with_name(f"{lane.name}.lock")


def _empty(lane: Path) -> int:
    """Delete the files in a lane; return their bytes."""
    size_bytes = 0
    for entry in os.scandir(lane):
        size_bytes += entry.stat().st_size
        os.unlink(entry.path)
    return size_bytes


def _clean(lane: Path) -> tuple[int, int]:
    """Return the bytes that a worker is copying into a lane, and the bytes deleted if there is none."""
    try:
        # Without waiting: this process has locked the usage record, and the worker in the lane
        # may wait for that.
        with _locked(_lock_of(lane), wait=False):
            return 0, _empty(lane)
    except BlockingIOError:
        return int(_lock_of(lane).read_bytes() or b"0"), 0


def _copy(source: ResourcePath, partial: Path, size_bytes: int) -> None:
    if source.isLocal:
        # What a ResourcePath checks and makes for a copy takes a quarter of a millisecond per file.
        shutil.copyfile(source.ospath, partial)
    else:
        ResourcePath(partial.as_uri()).transfer_from(source, transfer="copy", overwrite=True)
    found = partial.stat().st_size
    if found != size_bytes:
        raise OSError(errno.EIO, f"copied {found} bytes of {size_bytes}", str(source))
    os.utime(partial)  # eviction needs the time of use; one of a store may have its source's
    # Read-only: a task that wrote to it would change the input of other workers.
    partial.chmod(0o444)
