# SPDX-License-Identifier: BSD-3-Clause
"""Walks through the folders of a raw root, to find all recent files or the raws of open visits.

`Survey` finds all recent files, slowly. Without new files it must cost almost
nothing, for any number of old ones: folders of other days and of old exposures
are not opened, a folder whose time stamp does not change is listed only twice,
and nothing is stored about old folders. Each folder is watched before it is
listed, so each file in it is either listed or reported by inotify.

`RawSearch` finds the raws of open visits, where inotify does not report them,
and those of one visit for its final rescan. It lists only folders that can
contain them, down to the level whose names are known before the exposure: the
day's folder, or the detector's and group's. Its work depends on the number of
open visits and recent exposures, not on the other files below the root.

All functions block while the filesystem hangs.
"""

import contextlib
import itertools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock, day_obs
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.roots import RawRoot, RawRoots, Sighting
from ppdaemon.node.arrivals.watch import Identity
from ppdaemon.raws.path import ExpectedRaws, RawFileKind

__all__ = ("WalkTime", "RawSearch", "Survey")

DAY_S = 86_400.0
STABLE_S = 1.5
"""A folder's time stamp may have a resolution of 1 s: a second listing after this time
finds all files that the first one could miss under the same stamp."""
CHUNK = 200
"""Files in one portion."""
MAX_REFUSALS = 100
"""Stored until they are logged."""
QUIET_S = 180.0
"""An exposure's folder without a new file for this time is no longer searched, only
surveyed: the images of one exposure arrive within seconds."""
FORGET_S = 600.0
"""Time after which a folder that no open visit needs is removed from memory."""


@dataclass(frozen=True, slots=True)
class WalkTime:
    """The time of one walk."""

    mono: float
    unix: float
    days: frozenset[int]
    """Observing days of which new files may arrive."""

    @classmethod
    def by(cls, clock: Clock) -> "WalkTime":
        """Return the current time."""
        tai = clock.tai()
        days = frozenset(day_obs(tai + offset) for offset in (-DAY_S, 0.0, 3600.0))
        return cls(clock.mono(), tai - TAI_MINUS_UTC_S, days)


@dataclass(frozen=True, slots=True)
class _Scope:
    """The parameters of one walk."""

    now: WalkTime
    admitted: tuple[ExpectedRaws, ...]
    """Folders that cannot contain any of these are not entered."""
    detectors: frozenset[int] = frozenset()
    """A search stops listing an exposure's folder after it has found all of these."""
    since_unix: float | None = None
    """At the first listing, a search skips folders of exposures that have not changed since then;
    `None` for the last `remember_s`."""


@dataclass(slots=True)
class _Folder:
    """A folder at its last listing."""

    stamp: tuple[int, int, int] = (-1, -1, -1)
    """Device, inode, and time of the last change, ns."""
    since_mono: float = 0.0
    """When this stamp was first found; for a search in an exposure's folder, when the last new file
    was found."""
    stable: bool = False
    """Whether it was listed so late that no file can be missing under the same stamp."""
    below: list[str] = field(default_factory=list)
    """Paths of its subfolders that may get new files."""
    names: frozenset[str] = frozenset()
    """Names that a search has found in it."""
    found_detectors: set[int] = field(default_factory=set)
    """Detectors that a search has found in it, if it is the folder of one exposure."""
    used_mono: float = 0.0

    def update_stable(self, now: WalkTime) -> None:
        self.stable = self.stable or now.mono - self.since_mono >= STABLE_S


class FolderWalker(ABC):
    """Walks through the folders below one root."""

    def __init__(self, roots: RawRoots, root: RawRoot, source: str, remember_s: float):
        self._roots = roots
        self._root = root.path
        self._layout = root.layout
        self._source = source
        self._remember_s = remember_s
        self._served = tuple(roots.all_of(instrument) for instrument in roots.served)
        self._folders: dict[str, _Folder] = {}
        self.refusals: deque[BadMessage] = deque(maxlen=MAX_REFUSALS)
        """Problems of invalid names; the reader removes them."""
        self.problem = ""
        """Why the last walk could not list a folder, or empty."""

    def depth(self, folder: str) -> int:
        """Return the level of a folder below the root, which has level 0."""
        return folder.count("/") - self._root.count("/")

    def _walk(self, folder: str, scope: _Scope) -> Iterator[list[Sighting]]:
        """Yield the files found in and below a folder, in short portions, which may be empty."""
        try:
            if self.depth(folder) == self._layout.depth:
                yield from self._files(folder, scope)
                return
            below = self._below(folder, scope)
        except (FileNotFoundError, NotADirectoryError):
            return  # removed meanwhile
        except OSError as error:
            self.problem = f"{folder}: {error.strerror}"
            return
        yield []
        for each in below:
            yield from self._walk(each, scope)

    @abstractmethod
    def _below(self, folder: str, scope: _Scope) -> Sequence[str]:
        """Return the subfolders that may contain new files."""

    @abstractmethod
    def _files(self, folder: str, scope: _Scope) -> Iterator[list[Sighting]]:
        """Yield the files found in a folder of the lowest level."""

    def _admits(self, folder: str, admitted: Iterable[ExpectedRaws]) -> bool:
        path = folder[len(self._root) + 1 :]
        return any(self._layout.admits(path, expected) for expected in admitted)

    def _sighting(self, path: str) -> Sighting | None:
        try:
            located = self._roots.locate(path)
        except BadMessage as error:
            self.refusals.append(error)
            return None
        return None if located is None else Sighting(self._source, *located, confirmed=False)


class Survey(FolderWalker):
    """Finds recent raws and sidecars below one root; calls `watch` with each folder and its identity
    before it is listed.
    """

    def __init__(
        self,
        roots: RawRoots,
        root: RawRoot,
        source: str,
        remember_s: float,
        watch: Callable[[str, Identity], None],
    ):
        super().__init__(roots, root, source, remember_s)
        self._watch = watch
        self._before: dict[str, _Folder] = {}
        self.live: tuple[str, ...] = ()
        """The folders of the lowest level that is not created for each exposure, if they may get new
        files."""

    def survey(self, now: WalkTime) -> Iterator[list[Sighting]]:
        """Yield recent files, also those found before; raises OSError if the root cannot be opened."""
        # Folders that this walk does not enter again, as old or removed ones, are dropped.
        self._before, self._folders = self._folders, {}
        self.problem = ""
        with _opened(self._root):
            pass
        yield from self._walk(self._root, _Scope(now, self._served))
        self._before = {}
        self.live = tuple(path for path in self._folders if self.depth(path) == self._layout.steady_depth)

    def explore(self, folders: Iterable[str], now: WalkTime) -> Iterator[list[Sighting]]:
        """Yield the files in and below new folders; folders that were removed are skipped."""
        for folder in folders:
            yield from self._walk(folder, _Scope(now, self._served))

    @property
    def folders(self) -> frozenset[str]:
        """The folders found by the last `survey` and by `explore` since then."""
        return frozenset(self._folders)

    def relist(self) -> None:
        """Make the next survey list all folders again."""
        for folder in [*self._folders.values()]:
            folder.stable = False

    def admits(self, folder: str) -> bool:
        """Return whether a folder, by its name, can contain files that this node serves."""
        return self.depth(folder) <= self._layout.depth and self._admits(folder, self._served)

    def _below(self, folder: str, scope: _Scope) -> Sequence[str]:
        known, depth = self._enter(folder, scope), self.depth(folder) + 1
        found = self._folders_in(folder, known)
        known.below = [path for path, status in found if self._may_have_new_files(path, status, depth, scope)]
        known.update_stable(scope.now)
        return known.below

    def _files(self, folder: str, scope: _Scope) -> Iterator[list[Sighting]]:
        known = self._enter(folder, scope)
        if known.stable:
            return
        with os.scandir(folder) as entries:
            recent = (each for entry in entries if (each := self._recent(entry, scope.now)) is not None)
            for portion in itertools.batched(recent, CHUNK):
                yield [*portion]
        known.update_stable(scope.now)

    def _enter(self, folder: str, scope: _Scope) -> _Folder:
        """Watch a folder, and return its record."""
        status = os.stat(folder, follow_symlinks=folder == self._root)
        self._watch(folder, (status.st_dev, status.st_ino))
        stamp = status.st_dev, status.st_ino, status.st_mtime_ns
        known = self._folders.get(folder) or self._before.get(folder)
        if known is None or known.stamp != stamp:
            known = _Folder(stamp, scope.now.mono)
        self._folders[folder] = known
        if self.depth(folder) == self._layout.steady_depth and folder not in self.live:
            self.live = (*self.live, folder)
        return known

    @staticmethod
    def _folders_in(folder: str, known: _Folder) -> Iterator[tuple[str, os.stat_result]]:
        if known.stable:
            for path in known.below:
                with contextlib.suppress(OSError):  # it may have been removed
                    yield path, os.stat(path, follow_symlinks=False)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.path, entry.stat(follow_symlinks=False)

    def _may_have_new_files(self, folder: str, status: os.stat_result, depth: int, scope: _Scope) -> bool:
        """Return whether a folder may contain or get new files."""
        age_s = scope.now.unix - status.st_mtime
        if depth > self._layout.steady_depth:
            # The cheapest test first: there can be many thousands of old folders.
            return age_s <= self._remember_s and self._admits(folder, scope.admitted)
        if not self._admits(folder, scope.admitted):
            return False
        if "day_obs" not in self._layout.levels[depth - 1] or age_s < DAY_S:
            return True
        return self._admits(folder, (replace(each, days=scope.now.days) for each in scope.admitted))

    def _recent(self, entry: os.DirEntry[str], now: WalkTime) -> Sighting | None:
        try:
            if entry.is_dir(follow_symlinks=False):
                return None
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return None  # removed meanwhile
        written_s, placed_s = now.unix - status.st_mtime, now.unix - status.st_ctime
        if min(written_s, placed_s) > self._remember_s:
            return None
        sighting = self._sighting(entry.path)
        # Files of old nights that are copied or moved keep their time of the last write.
        old = written_s > self._remember_s
        return None if sighting is not None and old and sighting.name.day_obs not in now.days else sighting


class RawSearch(FolderWalker):
    """Finds expected raws below one root, and reports each file once.

    Folders are opened, because a network filesystem returns time stamps from its
    cache for up to a minute.
    """

    def poll(
        self, expected: Sequence[ExpectedRaws], live: Collection[str], now: WalkTime
    ) -> Iterator[list[Sighting]]:
        """Yield files that the last poll did not find, including those of other detectors and visits;
        `live` folders are searched too, because the exposure may belong to another day.
        """
        self.problem = ""
        revalidated: set[str] = set()
        for folder, detectors in self._targets(expected, live, now).items():
            parent = os.path.dirname(folder)
            if parent not in revalidated:
                # A network filesystem caches missing names; opening the parent refreshes its cache.
                revalidated.add(parent)
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), _opened(parent):
                    pass
            yield from self._walk(folder, _Scope(now, self._served, frozenset(detectors)))
        for folder in [
            path for path, known in self._folders.items() if now.mono - known.used_mono > FORGET_S
        ]:
            del self._folders[folder]

    def rescan(self, expected: ExpectedRaws, since_unix: float, now: WalkTime) -> list[Sighting]:
        """Return the images of one visit that this object has not reported before.

        Where paths do not contain the group, folders of exposures that have not changed since
        `since_unix` (UTC seconds since 1970) are skipped.
        """
        by_name = "group" in self._layout.fields
        scope = _Scope(now, (expected,), since_unix=0.0 if by_name else since_unix)
        return [
            sighting
            for folder in self._layout.folders(expected)
            for portion in self._walk(f"{self._root}/{folder.path}".rstrip("/"), scope)
            for sighting in portion
            if sighting.name.kind is RawFileKind.IMAGE and expected.matches(sighting.name)
        ]

    @property
    def folders_of_files(self) -> tuple[str, ...]:
        """The folders of the lowest level that the last `rescan` has searched."""
        return tuple(folder for folder in self._folders if self.depth(folder) == self._layout.depth)

    def _targets(
        self, expected: Sequence[ExpectedRaws], live: Collection[str], now: WalkTime
    ) -> dict[str, set[int]]:
        """Return the folders to search, with the detectors to find in each."""
        targets: dict[str, set[int]] = {}
        for each in expected:
            for search in self._layout.folders(replace(each, days=now.days)):
                path = f"{self._root}/{search.path}".rstrip("/")
                targets.setdefault(path, set()).update(each.detectors)
            if "group" not in self._layout.fields:
                for path in live:
                    if self._admits(path, (each,)):
                        targets.setdefault(path, set()).update(each.detectors)
        return targets

    def _below(self, folder: str, scope: _Scope) -> Sequence[str]:
        with _opened(folder) as descriptor:
            known, new = self._new_folders(folder, descriptor, scope)
        paths = [f"{folder}/{name}" for name in sorted(new)]
        known.below += [path for path in paths if self._admits(path, scope.admitted)]
        known.update_stable(scope.now)
        known.used_mono = scope.now.mono
        if self.depth(folder) + 1 == self._layout.depth:
            known.below = [path for path in known.below if not self._is_quiet(path, scope.now)]
        return known.below

    def _new_folders(self, folder: str, descriptor: int, scope: _Scope) -> tuple[_Folder, frozenset[str]]:
        """Return the record of a folder, and the names of its new subfolders."""
        status = os.fstat(descriptor)
        stamp = status.st_dev, status.st_ino, status.st_mtime_ns
        known = self._folders.get(folder)
        if known is None or known.stamp[:2] != stamp[:2]:
            known = self._folders[folder] = _Folder(
                stamp, scope.now.mono, names=_names(descriptor, folders=True)
            )
            return known, self._recently_changed(descriptor, known.names, self.depth(folder) + 1, scope)
        if known.stable and known.stamp == stamp:
            return known, frozenset()
        if known.stamp != stamp:
            known.stamp, known.since_mono, known.stable = stamp, scope.now.mono, False
        before, known.names = known.names, _names(descriptor, folders=True)
        return known, known.names - before

    def _recently_changed(
        self, descriptor: int, names: frozenset[str], depth: int, scope: _Scope
    ) -> frozenset[str]:
        """Return the names of recently changed folders, at the first listing of their parent."""
        # Above the folders of exposures a time stamp does not show whether there are
        # new files further below.
        if depth < self._layout.steady_depth:
            return names
        changed: dict[str, float] = {}
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                changed[name] = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime
        since_unix = scope.since_unix
        if since_unix is None:
            # The clock of a file server may be slow.
            newest = min(scope.now.unix, max(changed.values(), default=scope.now.unix))
            since_unix = newest - self._remember_s
        return frozenset(name for name, at in changed.items() if at >= since_unix)

    def _is_quiet(self, folder: str, now: WalkTime) -> bool:
        known = self._folders.get(folder)
        return known is not None and now.mono - known.since_mono > QUIET_S

    def _files(self, folder: str, scope: _Scope) -> Iterator[list[Sighting]]:
        known = self._folders.setdefault(folder, _Folder(since_mono=scope.now.mono))
        known.used_mono = scope.now.mono
        if scope.detectors and scope.detectors <= known.found_detectors:
            return
        with _opened(folder) as descriptor:
            names = _names(descriptor, folders=False)
        new = names - known.names
        if new:
            known.names |= new
            known.since_mono = scope.now.mono
        sightings = [
            sighting for name in sorted(new) if (sighting := self._sighting(f"{folder}/{name}")) is not None
        ]
        # Where exposures share a folder, a detector found once may arrive again.
        if self._layout.one_exposure_per_folder:
            known.found_detectors.update(
                each.name.detector
                for each in sightings
                if each.name.kind is RawFileKind.IMAGE and each.name.detector is not None
            )
        yield sightings


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(descriptor: int, *, folders: bool) -> frozenset[str]:
    """Return the names of the folders in a folder, or of the files that are not hidden."""
    with os.scandir(descriptor) as entries:
        return frozenset(
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) is folders and (folders or not entry.name.startswith("."))
        )
