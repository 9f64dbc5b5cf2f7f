# SPDX-License-Identifier: BSD-3-Clause
"""Files that all workers of a host share: fetched once, then hard-linked.

A file is taken by linking it, which no dropping can undo: whoever has a link
has the content. Names of files are dropped, least recently used first, when
the folder holds more than its budget. The folder is scanned only then.
"""

import errno
import fcntl
import logging
import os
import re
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
"""Few enough folders and locks to keep, enough that workers seldom meet."""
_LEDGER = ".ledger"
_LEDGER_FORMAT = re.compile(rb"(\d{20}) (\d{20})\n")
_FILL = 0.9
"""A sweep leaves so much of the budget: the next one is a while off."""
_PATIENCE = 0.05
"""Where files in use fill the budget, the next sweep is so much of it later."""


@dataclass(slots=True)
class CacheStats:
    """What was taken from the cache."""

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    """Of all."""
    fetched_bytes: int = 0
    """Of these, what was not in the cache before."""
    evicted: int = 0
    """Files that were dropped to make room."""
    evicted_bytes: int = 0

    def hit(self, size_bytes: int) -> None:
        """Count a file that was there."""
        self.hits += 1
        self.bytes += size_bytes

    def miss(self, size_bytes: int) -> None:
        """Count a file that was copied."""
        self.misses += 1
        self.bytes += size_bytes
        self.fetched_bytes += size_bytes


@dataclass(slots=True)
class _Ledger:
    """What the folder holds; wrong by what killed workers had begun, until the next sweep counts."""

    bytes: int
    sweep_above: int


@dataclass(frozen=True, slots=True)
class _Lane:
    """Where one worker at a time copies to."""

    folder: Path
    lock: int
    """Descriptor of the locked file, which says how much comes."""

    def expect(self, size_bytes: int) -> None:
        os.pwrite(self.lock, b"%020d" % size_bytes, 0)


class SharedCache:
    """Immutable files by name, in one folder of the RAM disk.

    Parameters
    ----------
    folder : `pathlib.Path`
        The folder; made if it is not there.
    budget_bytes : `int`
        How much it may hold. Files that workers use count, and are kept
        even above it.

    Notes
    -----
    Any number of processes may use one folder. All locks end with their
    holders, and what a killed one was copying is deleted by the next that
    comes along the same lane, or by a sweep.
    """

    def __init__(self, folder: Path, budget_bytes: int):
        self._folder = folder
        self._budget = budget_bytes

    def take(
        self, name: str, source: ResourcePath, target: Path, stats: CacheStats, size_bytes: int | None = None
    ) -> None:
        """Link a shared file to where it is needed; copy it first if it is not there.

        Parameters
        ----------
        name : `str`
            Stands for the content, for ever.
        source : `lsst.resources.ResourcePath`
            Where it is copied from if it is not there yet.
        target : `pathlib.Path`
            Where it is needed, in a folder that exists, on the cache's
            filesystem; read-only, not to be changed.
        stats : `CacheStats`
            Counts it.
        size_bytes : `int`, optional
            The length of the file, if it is known: one of another length is
            not used.

        Raises
        ------
        OSError
            Raised if the file cannot be read or written, or was not copied
            whole.
        """
        path = self._folder / name
        if not self._link(path, target, size_bytes):
            with self._lane(name) as lane:
                if not self._link(path, target, size_bytes):
                    self._fetch(source, path, target, lane, stats)
                    return
        stats.hit(target.stat().st_size)

    def touch(self, name: str) -> None:
        """Note that a file is used by one who has a link to it.

        Parameters
        ----------
        name : `str`
            Of the file; it need not be there any more.
        """
        with suppress(FileNotFoundError):
            os.utime(self._folder / name)

    def drop_unused(self) -> int:
        """Drop all files that nobody has a link to.

        Returns
        -------
        dropped : `int`
            How many bytes that gave back.
        """
        with self._ledger() as ledger:
            return self._sweep(ledger, 0, CacheStats())

    def _link(self, path: Path, target: Path, size_bytes: int | None) -> bool:
        """Take a file that is there."""
        try:
            link_or_copy(path, target)
        except FileNotFoundError:
            return False
        found = target.stat().st_size
        if size_bytes is not None and found != size_bytes:
            _LOG.warning("%s has %d bytes, not %d: fetched again", path, found, size_bytes)
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
            # Linked before it has its name: nobody can drop it in between.
            link_or_copy(partial, target)
            with self._ledger():  # for a sweep it is either coming or there
                partial.replace(path)
                lane.expect(0)
        stats.miss(size_bytes)

    @contextmanager
    def _lane(self, name: str) -> Iterator[_Lane]:
        """Give a folder to copy into, to one worker at a time.

        What is in it belongs to a worker that was killed.
        """
        lane = self._folder / f".lane-{zlib.crc32(name.encode()) % _LANES:02d}"
        lane.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_of(lane)) as lock:
            _empty(lane)
            try:
                yield _Lane(lane, lock)
            finally:
                _empty(lane)

    @contextmanager
    def _room(self, size_bytes: int, lane: _Lane, stats: CacheStats) -> Iterator[None]:
        """Count a file that comes; make room if that is too much."""
        with self._ledger() as ledger:
            # Nothing that could be dropped makes room for a file beyond the budget.
            if size_bytes <= self._budget and ledger.bytes + size_bytes > ledger.sweep_above:
                self._sweep(ledger, max(0, int(self._budget * _FILL) - size_bytes), stats)
            ledger.bytes += size_bytes
            lane.expect(size_bytes)
        try:
            yield
        except BaseException:
            with self._ledger() as ledger:
                ledger.bytes = max(0, ledger.bytes - size_bytes)
                lane.expect(0)
            raise

    def _sweep(self, ledger: _Ledger, keep_bytes: int, stats: CacheStats) -> int:
        """Drop files until only so much is left, or only what is used; return how much that gave back."""
        held = given_back = 0
        unused = []
        for entry in os.scandir(self._folder):
            if entry.is_dir():
                coming, left_over = _look_into(Path(entry.path))
                held += coming
                given_back += left_over
            elif not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # somebody found it damaged
                    status = entry.stat(follow_symlinks=False)
                    held += status.st_size
                    if status.st_nlink == 1:
                        fits = status.st_size <= self._budget
                        unused.append((fits, status.st_mtime_ns, status.st_size, entry.path))
        for _, _, size_bytes, path in sorted(unused):
            if held <= keep_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
                held -= size_bytes
                given_back += size_bytes
                stats.evicted += 1
                stats.evicted_bytes += size_bytes
        ledger.bytes = held
        ledger.sweep_above = max(self._budget, held + int(self._budget * _PATIENCE))
        _LOG.info("shared files: %d bytes given back, %d kept", given_back, held)
        return given_back

    @contextmanager
    def _ledger(self) -> Iterator[_Ledger]:
        """Give the account of the folder, to one worker at a time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / _LEDGER) as descriptor:
            read = _LEDGER_FORMAT.fullmatch(os.pread(descriptor, 100, 0))
            ledger = _Ledger(int(read[1]), int(read[2])) if read else _Ledger(self._count(), self._budget)
            yield ledger
            os.pwrite(descriptor, b"%020d %020d\n" % (ledger.bytes, ledger.sweep_above), 0)

    def _count(self) -> int:
        return sum(
            entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(self._folder)
            if not entry.name.startswith(".")
        )


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold a lock that ends with its holder; without waiting raise `BlockingIOError` if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_of(lane: Path) -> Path:
    return lane.with_name(f"{lane.name}.lock")


def _empty(lane: Path) -> int:
    """Delete what a killed worker was copying; return how much it was."""
    size_bytes = 0
    for entry in os.scandir(lane):
        size_bytes += entry.stat().st_size
        os.unlink(entry.path)
    return size_bytes


def _look_into(lane: Path) -> tuple[int, int]:
    """Return how many bytes come along a lane, or else how many were left in it, now deleted."""
    try:
        with _locked(_lock_of(lane), wait=False):
            return 0, _empty(lane)
    except BlockingIOError:
        return int(_lock_of(lane).read_bytes() or b"0"), 0


def _copy(source: ResourcePath, partial: Path, size_bytes: int) -> None:
    ResourcePath(partial.as_uri()).transfer_from(source, transfer="copy", overwrite=True)
    found = partial.stat().st_size
    if found != size_bytes:
        raise OSError(errno.EIO, f"copied {found} bytes of {size_bytes}", str(source))
    os.utime(partial)  # whatever its source's time is: used now
    # A task that writes into it would change what other workers read.
    partial.chmod(0o444)
