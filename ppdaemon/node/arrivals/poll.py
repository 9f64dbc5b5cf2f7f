# SPDX-License-Identifier: BSD-3-Clause
"""Looking for raws of open visits where the kernel has no news of them.

Only folders in which they can be are listed, as far down as their names are
known before the exposure is taken: the day's folder, or the detector's and
group's. What is new in them is read until all detectors were seen. The work
is bounded by the open visits and the exposures of the last while, and not by
what else is in the tree.

Folders are opened, not only asked for their time stamps: a network filesystem
answers the latter from what it remembers, for up to a minute.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.scan import SETTLED_S, Moment
from ppdaemon.node.arrivals.tree import RawRoot, RawTree, Sighting
from ppdaemon.raws.path import Expected, Kind

__all__ = ("Poller",)

QUIET_S = 180.0
"""An exposure's folder into which nothing came for so long is left to the
scan: the images of one exposure land within seconds."""
FORGET_S = 600.0

type _Stamp = tuple[int, int, int]


@dataclass(slots=True)
class _Folder:
    """One in which new folders appear."""

    stamp: _Stamp
    first_mono: float
    known: frozenset[str]
    """Names of the folders in it."""
    open: list[str]
    """Paths of those in which something new may be."""
    settled: bool = False
    used_mono: float = 0.0


@dataclass(slots=True)
class _Leaf:
    """One in which files appear."""

    last_new_mono: float
    names: set[str] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    """Detectors, where it is one exposure's."""
    used_mono: float = 0.0


class Poller:
    """Finds raws of open visits below one root. Blocking.

    Parameters
    ----------
    tree : `~ppdaemon.node.arrivals.tree.RawTree`
        All roots.
    root : `~ppdaemon.node.arrivals.tree.RawRoot`
        One of them.
    source : `str`
        Name under which finds are reported.
    remember_s : `float`
        Exposures are passed over that were older when their folder was first
        looked at.
    """

    def __init__(self, tree: RawTree, root: RawRoot, source: str, remember_s: float):
        self._tree = tree
        self._root = root.path
        self._layout = root.layout
        self._source = source
        self._remember_s = remember_s
        # Where exposures share a folder, each detector comes again and again.
        in_folders = frozenset().union(*self._layout.levels[:-1])
        self._one_exposure = not in_folders.isdisjoint(("exposure", "obsid"))
        self._served = tuple(tree.all_of(instrument) for instrument in tree.served)
        self._folders: dict[str, _Folder] = {}
        self._leaves: dict[str, _Leaf] = {}

    def look(
        self, expected: Sequence[Expected], live: Collection[str], now: Moment
    ) -> Iterator[list[Sighting]]:
        """Look for raws.

        Parameters
        ----------
        expected : `~collections.abc.Sequence` [`~ppdaemon.raws.path.Expected`]
            What is waited for, of whatever day.
        live : `~collections.abc.Collection` [`str`]
            Folders in which exposures of other days come, absolute paths.
        now : `~ppdaemon.node.arrivals.scan.Moment`
            The time.

        Yields
        ------
        sightings : `list` [`~ppdaemon.node.arrivals.tree.Sighting`]
            Files that were not there at the last look, those of other
            detectors and visits too, in short portions.

        Raises
        ------
        OSError
            Raised if a folder that is there cannot be listed.
        """
        asked: set[str] = set()
        for (path, below), detectors in self._targets(expected, live, now).items():
            parent = os.path.dirname(path)
            if parent not in asked:
                asked.add(parent)
                self._revalidate(parent)
            yield from self._descend(path, below, frozenset(detectors), now)
        for states in (self._folders, self._leaves):
            for path in [path for path, state in states.items() if now.mono - state.used_mono > FORGET_S]:
                del states[path]

    def _targets(
        self, expected: Sequence[Expected], live: Collection[str], now: Moment
    ) -> dict[tuple[str, int], set[int]]:
        """Return where to look for which detectors: paths and levels below them."""
        targets: dict[tuple[str, int], set[int]] = {}
        below_live = self._layout.depth - self._layout.steady_depth
        for each in expected:
            for search in self._layout.folders(replace(each, days=now.days)):
                path = f"{self._root}/{search.path}".rstrip("/")
                targets.setdefault((path, search.below), set()).update(each.detectors)
        if "group" in self._layout.fields:
            return targets
        for path in live:
            wanting = [each for each in expected if self._layout.admits(path[len(self._root) + 1 :], each)]
            for each in wanting:
                targets.setdefault((path, below_live), set()).update(each.detectors)
        return targets

    def _descend(
        self, path: str, below: int, detectors: frozenset[int], now: Moment
    ) -> Iterator[list[Sighting]]:
        if below == 0:
            yield self._files(path, detectors, now)
            return
        for folder in self._open_folders(path, below, now):
            yield from self._descend(folder, below - 1, detectors, now)

    def _open_folders(self, path: str, below: int, now: Moment) -> list[str]:
        """Return the folders in a folder in which something new may be."""
        with _opened(path) as descriptor:
            if descriptor is None:
                return []
            status = os.fstat(descriptor)
            stamp = status.st_dev, status.st_ino, status.st_mtime_ns
            folder = self._folders.get(path)
            if folder is None or folder.stamp[:2] != stamp[:2]:
                known = _subfolders(descriptor)
                found = self._recent(descriptor, known, now)
                folder = self._folders[path] = _Folder(stamp, now.mono, known, self._paths(path, found))
            elif not (folder.settled and folder.stamp == stamp):
                known = _subfolders(descriptor)
                folder.open += self._paths(path, known - folder.known)
                if folder.stamp != stamp:
                    folder.stamp, folder.first_mono, folder.settled = stamp, now.mono, False
                folder.known = known
        folder.settled = folder.settled or now.mono - folder.first_mono >= SETTLED_S
        folder.used_mono = now.mono
        if below == 1:
            folder.open = [each for each in folder.open if not self._is_quiet(each, now)]
        return folder.open

    def _recent(self, descriptor: int, names: Collection[str], now: Moment) -> frozenset[str]:
        """Choose the folders into which something was put lately."""
        changed: dict[str, float] = {}
        for name in names:
            with contextlib.suppress(OSError):  # gone
                changed[name] = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime
        # The clock of a file server may be behind.
        newest = min(now.unix, max(changed.values(), default=now.unix))
        return frozenset(name for name, at in changed.items() if newest - at <= self._remember_s)

    def _paths(self, folder: str, names: Collection[str]) -> list[str]:
        paths = [f"{folder}/{name}" for name in sorted(names)]
        start = len(self._root) + 1
        return [
            path for path in paths if any(self._layout.admits(path[start:], each) for each in self._served)
        ]

    def _is_quiet(self, path: str, now: Moment) -> bool:
        leaf = self._leaves.get(path)
        return leaf is not None and now.mono - leaf.last_new_mono > QUIET_S

    def _files(self, path: str, detectors: frozenset[int], now: Moment) -> list[Sighting]:
        leaf = self._leaves.setdefault(path, _Leaf(now.mono))
        leaf.used_mono = now.mono
        if detectors <= leaf.seen:
            return []
        with _opened(path) as descriptor:
            names = _files(descriptor) if descriptor is not None else frozenset()
        sightings = []
        for file in names - leaf.names:
            try:
                located = self._tree.locate(f"{path}/{file}")
            except BadMessage:
                continue  # not to be opened, which the scan counts
            if located is not None:
                sightings.append(Sighting(self._source, *located, confirmed=False))
                name = located[0]
                if self._one_exposure and name.kind is Kind.IMAGE and name.detector is not None:
                    leaf.seen.add(name.detector)
        if not names <= leaf.names:
            leaf.names |= names
            leaf.last_new_mono = now.mono
        return sightings

    @staticmethod
    def _revalidate(folder: str) -> None:
        """Have a network filesystem find out what is new in a folder: else it
        may go on saying that a name is not there.
        """
        with _opened(folder):
            pass


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int | None]:
    """Open a folder; give `None` if it is not there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _subfolders(descriptor: int) -> frozenset[str]:
    with os.scandir(descriptor) as entries:
        return frozenset(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _files(descriptor: int) -> frozenset[str]:
    with os.scandir(descriptor) as entries:
        return frozenset(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and not entry.is_dir(follow_symlinks=False)
        )
