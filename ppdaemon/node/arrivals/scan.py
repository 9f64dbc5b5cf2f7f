# SPDX-License-Identifier: BSD-3-Clause
"""Looking through the folders of a raw root that can hold new files.

The look behind the watch. It must cost next to nothing when nothing is new,
however much is old: folders of other days are not opened, exposures of some
time ago neither, and a folder whose time stamp stays the same is listed twice
and then left alone. What is old is not remembered.

Each folder is watched before it is listed: so a file in it is either listed,
or the kernel tells of it.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock, day_obs
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.roots import RawRoot, RawRoots, Sighting
from ppdaemon.node.arrivals.watch import Identity

__all__ = ("Moment", "Scanner")

DAY_S = 86_400.0
SETTLED_S = 1.5
"""A folder's time stamp may be as coarse as 1 s: a second listing after this
while sees all that the first could miss under the same stamp."""
CHUNK = 200
"""Files told at once."""
MOST_REFUSALS = 100


@dataclass(frozen=True, slots=True)
class Moment:
    """What time it is."""

    mono: float
    unix: float
    days: frozenset[int]
    """Observing days of which files may still come, or already."""

    @classmethod
    def by(cls, clock: Clock) -> "Moment":
        """Return the present.

        Parameters
        ----------
        clock : `~ppdaemon.clock.Clock`
            The time.

        Returns
        -------
        now : `Moment`
            Now.
        """
        tai = clock.tai()
        days = frozenset(day_obs(tai + offset) for offset in (-DAY_S, 0.0, 3600.0))
        return cls(clock.mono(), tai - TAI_MINUS_UTC_S, days)


@dataclass(slots=True)
class _Listing:
    identity: Identity
    modified_ns: int
    first_mono: float
    settled: bool = False
    below: list[str] = field(default_factory=list)
    """Folders in it that can hold new files."""


class Scanner:
    """Finds raws and sidecars below one root by listing folders. Blocking.

    Parameters
    ----------
    tree : `~ppdaemon.node.arrivals.roots.RawRoots`
        What to look for.
    root : `~ppdaemon.node.arrivals.roots.RawRoot`
        One of its roots.
    source : `str`
        Name under which finds are reported.
    remember_s : `float`
        Files unchanged for longer are passed over.
    watch : `~collections.abc.Callable`
        Called with each folder, and with what it is, before it is listed.
    """

    def __init__(
        self,
        tree: RawRoots,
        root: RawRoot,
        source: str,
        remember_s: float,
        watch: Callable[[str, Identity], None],
    ):
        self._tree = tree
        self._root = root.path
        self._layout = root.layout
        self._source = source
        self._remember_s = remember_s
        self._watch = watch
        self._served = tuple(tree.all_of(instrument) for instrument in tree.served)
        self._listings: dict[str, _Listing] = {}
        self.live: tuple[str, ...] = ()
        """The lowest folders that are not made anew for each exposure, as far
        as something new can come there (`tuple` [`str`])."""
        self.problem = ""
        """Why a folder could not be listed at the last survey, or empty."""
        self._refusals: list[BadMessage] = []

    def survey(self, now: Moment) -> Iterator[list[Sighting]]:
        """Look through all folders in which something new can be.

        Parameters
        ----------
        now : `Moment`
            The time.

        Yields
        ------
        sightings : `list` [`~ppdaemon.node.arrivals.roots.Sighting`]
            Recent files, in short portions, which may be empty; those met
            before may be among them.

        Raises
        ------
        OSError
            Raised if the root cannot be listed.
        """
        before, self._listings = self._listings, {}
        self.problem = ""
        status = os.stat(self._root)
        os.close(os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        yield from self._visit(self._root, status, 0, now, before)
        self.live = tuple(path for path in self._listings if self.depth(path) == self._layout.steady_depth)

    def explore(self, folders: Iterable[str], now: Moment) -> Iterator[list[Sighting]]:
        """Look through new folders and what is below them.

        Parameters
        ----------
        folders : `~collections.abc.Iterable` [`str`]
            Absolute paths; those that are gone are passed over.
        now : `Moment`
            The time.

        Yields
        ------
        sightings : `list` [`~ppdaemon.node.arrivals.roots.Sighting`]
            As `survey`.
        """
        for folder in folders:
            try:
                status = os.stat(folder, follow_symlinks=False)
            except OSError:
                continue
            yield from self._visit(folder, status, self.depth(folder), now, self._listings)

    @property
    def folders(self) -> frozenset[str]:
        """Those that `survey` and `explore` found last (`frozenset` [`str`])."""
        return frozenset(self._listings)

    def unsettle(self) -> None:
        """Have all folders listed again at the next survey."""
        for listing in self._listings.values():
            listing.settled = False

    def admits(self, folder: str) -> bool:
        """Tell whether files that this node serves can be in or below a folder.

        Parameters
        ----------
        folder : `str`
            Absolute path. Looks at nothing but the name.

        Returns
        -------
        admitted : `bool`
            `False` also for a folder below those of files.
        """
        path = folder[len(self._root) + 1 :]
        return self.depth(folder) <= self._layout.depth and any(
            self._layout.admits(path, expected) for expected in self._served
        )

    def depth(self, folder: str) -> int:
        """Return how many folders below the root a folder is."""
        return folder.count("/") - self._root.count("/")

    def refusals(self) -> list[BadMessage]:
        """Return what is wrong with names met since the last call."""
        refusals, self._refusals = self._refusals, []
        return refusals

    # --- one folder ---

    def _visit(
        self, path: str, status: os.stat_result, depth: int, now: Moment, known: dict[str, _Listing]
    ) -> Iterator[list[Sighting]]:
        identity = status.st_dev, status.st_ino
        self._watch(path, identity)
        listing = known.get(path)
        if listing is None or (listing.identity, listing.modified_ns) != (identity, status.st_mtime_ns):
            listing = _Listing(identity, status.st_mtime_ns, now.mono)
        self._listings[path] = listing
        if depth == self._layout.steady_depth and path not in self.live:
            self.live = (*self.live, path)
        if depth == self._layout.depth:
            if not listing.settled:
                yield from self._files(path, now)
        else:
            below = self._again(listing) if listing.settled else self._listed(path)
            leading = [item for item in below if self._leads_on(*item, depth + 1, now)]
            listing.below = [folder for folder, _ in leading]
            yield []
            for folder, folder_status in leading:
                yield from self._visit(folder, folder_status, depth + 1, now, known)
        listing.settled = listing.settled or now.mono - listing.first_mono >= SETTLED_S

    def _listed(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        for entry in self._entries(path):
            with contextlib.suppress(OSError):  # it may be gone
                if entry.is_dir(follow_symlinks=False):
                    yield entry.path, entry.stat(follow_symlinks=False)

    def _again(self, listing: _Listing) -> Iterator[tuple[str, os.stat_result]]:
        for path in listing.below:
            with contextlib.suppress(OSError):
                yield path, os.stat(path, follow_symlinks=False)

    def _leads_on(self, path: str, status: os.stat_result, depth: int, now: Moment) -> bool:
        """Tell whether something new can be in a folder or come into it."""
        age_s = now.unix - status.st_mtime
        if depth > self._layout.steady_depth:
            # Cheapest first: there can be many thousands of old ones.
            return age_s <= self._remember_s and self.admits(path)
        if not self.admits(path):
            return False
        if "day_obs" not in self._layout.levels[depth - 1] or age_s < DAY_S:
            return True
        relative = path[len(self._root) + 1 :]
        return any(
            self._layout.admits(relative, replace(expected, days=now.days)) for expected in self._served
        )

    def _files(self, folder: str, now: Moment) -> Iterator[list[Sighting]]:
        sightings: list[Sighting] = []
        for entry in self._entries(folder):
            sighting = self._sighting(entry, now)
            if sighting is not None:
                sightings.append(sighting)
            if len(sightings) >= CHUNK:
                yield sightings
                sightings = []
        yield sightings

    def _sighting(self, entry: os.DirEntry[str], now: Moment) -> Sighting | None:
        try:
            if entry.is_dir(follow_symlinks=False):
                return None
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return None  # gone
        written_s, placed_s = now.unix - status.st_mtime, now.unix - status.st_ctime
        if min(written_s, placed_s) > self._remember_s:
            return None
        try:
            located = self._tree.locate(entry.path)
        except BadMessage as error:
            if len(self._refusals) < MOST_REFUSALS:
                self._refusals.append(error)
            return None
        # Old nights are copied and moved with their time stamps.
        if located is None or (written_s > self._remember_s and located[0].day_obs not in now.days):
            return None
        return Sighting(self._source, *located, confirmed=False)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """List a folder; one that is gone, or closed to us, has nothing."""
        try:
            with os.scandir(folder) as entries:
                yield from entries
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.problem = f"{folder}: {error.strerror}"
