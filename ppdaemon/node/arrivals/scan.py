# SPDX-License-Identifier: BSD-3-Clause
"""Looking through the folders of a raw root that can hold new files.

The look behind the watch, and the only source where the kernel has no news.
It must cost next to nothing when nothing is new: folders of other days are
not opened, and a folder whose time stamp stays the same is listed twice and
then left alone.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ppdaemon import rawpath
from ppdaemon.clock import day_obs
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.tree import RawTree, Sighting

__all__ = ("Scanner",)

DAY_S = 86_400.0
SETTLED_S = 1.5
"""A folder's time stamp may be as coarse as 1 s: a second listing after this
while sees all that the first could miss under the same stamp."""
SETTLED_TREE_S = 60.0
"""The same for a tree whose top's stamp does not show changes further down."""

_LEAF_DEPTH = {"lsst": 3, "imsim": 3, "generic": 6}
"""How many folders lead from the root to a file."""
_DAY_DEPTH = 2


@dataclass(slots=True)
class _Listing:
    modified_ns: int
    first_mono: float
    settled: bool = False


class Scanner:
    """Finds raws and sidecars below one root by listing folders. Blocking.

    Parameters
    ----------
    tree : `~ppdaemon.node.arrivals.tree.RawTree`
        What to look for.
    root : `str`
        One of its roots.
    source : `str`
        Name under which finds are reported.
    remember_s : `float`
        Files unchanged for longer are passed over.
    """

    def __init__(self, tree: RawTree, root: str, source: str, remember_s: float):
        self._tree = tree
        self._root = root
        self._source = source
        self._remember_s = remember_s
        self._leaf_depth = _LEAF_DEPTH[tree.layout]
        self._listings: dict[str, _Listing] = {}
        self._live: list[str] = []
        self.refused = 0
        """Names that must not be opened, met in listings."""
        self.problem = ""
        """Why a folder could not be listed at the last survey, or empty."""

    def folders(self, now_tai: float, now_unix: float) -> dict[str, bool]:
        """Find the folders in which something new can appear.

        Parameters
        ----------
        now_tai, now_unix : `float`
            Seconds since 1970, TAI and UTC.

        Returns
        -------
        folders : `dict` [`str`, `bool`]
            Whether all below is meant, by folder.

        Raises
        ------
        OSError
            Raised if the root cannot be listed.
        """
        self.problem = ""
        names = [name for instrument in self._tree.served for name in rawpath.folder_names(instrument)]
        with os.scandir(self._root) as entries:
            found = {entry.name: entry.path for entry in entries if entry.is_dir(follow_symlinks=False)}
        instruments = [found[name] for name in names if name in found]
        if self._tree.layout == "generic":
            self._live = [detector for folder in instruments for detector in self._detector_folders(folder)]
            return {self._root: False} | dict.fromkeys(instruments, True)
        days = {str(day_obs(now_tai + offset)) for offset in (-DAY_S, 0.0, 3600.0)}
        self._live = [
            day.path
            for folder in instruments
            for day in self._subfolders(folder)
            if day.name in days
            or (rawpath.is_day_folder(day.name) and now_unix - _modified_ns(day) / 1e9 < DAY_S)
        ]
        return {self._root: False} | dict.fromkeys(instruments, False) | dict.fromkeys(self._live, True)

    def scan(self, now_unix: float, now_mono: float) -> list[Sighting]:
        """List what is new in the folders that `folders` found last.

        Parameters
        ----------
        now_unix, now_mono : `float`
            Seconds since 1970 UTC, and monotonic seconds.

        Returns
        -------
        sightings : `list` [`~ppdaemon.node.arrivals.tree.Sighting`]
            Recent files; those met before may be among them.
        """
        before, self._listings = self._listings, {}
        sightings: list[Sighting] = []
        for live in self._live:
            for folder in self._subfolders(live):
                listing = self._listing(folder, before.get(folder.path), now_unix, now_mono)
                self._listings[folder.path] = listing
                if not listing.settled:
                    sightings.extend(self.scan_folder(folder.path, now_unix))
                    listing.settled = now_mono - listing.first_mono >= self._settling_s
        return sightings

    def scan_folder(self, folder: str, now_unix: float) -> list[Sighting]:
        """List one folder below the root and all below it.

        Parameters
        ----------
        folder : `str`
            Absolute path.
        now_unix : `float`
            Seconds since 1970, UTC.

        Returns
        -------
        sightings : `list` [`~ppdaemon.node.arrivals.tree.Sighting`]
            Recent files.
        """
        sightings = []
        for entry in self._files(folder, self.depth(folder)):
            try:
                located = self._tree.locate(entry.path)
            except BadMessage:
                self.refused += 1
                continue
            if located is not None and _age_s(entry, now_unix) <= self._remember_s:
                sightings.append(Sighting(self._source, *located, confirmed=False))
        return sightings

    def depth(self, folder: str) -> int:
        """Return how many folders below the root a folder is."""
        return folder.count("/") - self._root.count("/")

    def needs_survey(self, folder: str) -> bool:
        """Tell whether a new folder may be one to be watched by itself."""
        return self.depth(folder) <= _DAY_DEPTH

    @property
    def _settling_s(self) -> float:
        return SETTLED_TREE_S if self._tree.layout == "generic" else SETTLED_S

    def _listing(
        self, folder: os.DirEntry[str], known: _Listing | None, now_unix: float, now_mono: float
    ) -> _Listing:
        modified_ns = _modified_ns(folder)
        if known is not None and known.modified_ns == modified_ns:
            return known
        # Nothing was put into an old folder lately: it is never listed.
        is_old = now_unix - modified_ns / 1e9 > self._remember_s
        return _Listing(modified_ns, now_mono, settled=is_old)

    def _detector_folders(self, instrument_folder: str) -> Iterator[str]:
        served = frozenset().union(*self._tree.served.values())
        for folder in self._subfolders(instrument_folder):
            if folder.name.isdecimal() and int(folder.name) in served:
                yield folder.path

    def _files(self, folder: str, depth: int) -> Iterator[os.DirEntry[str]]:
        if depth >= self._leaf_depth:
            yield from (entry for entry in self._entries(folder) if not entry.is_dir(follow_symlinks=False))
            return
        for below in self._subfolders(folder):
            yield from self._files(below.path, depth + 1)

    def _subfolders(self, folder: str) -> list[os.DirEntry[str]]:
        return [entry for entry in self._entries(folder) if entry.is_dir(follow_symlinks=False)]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """List a folder; one that is gone, or closed to us, has nothing."""
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.problem = f"{folder}: {error.strerror}"
            return []


def _modified_ns(folder: os.DirEntry[str]) -> int:
    """Return when something was last put into a folder or taken out."""
    try:
        return folder.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0  # gone


def _age_s(entry: os.DirEntry[str], now_unix: float) -> float:
    """Return seconds since the last change of content, name, links or mode."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return float("inf")  # gone
    return now_unix - max(status.st_mtime, status.st_ctime)
