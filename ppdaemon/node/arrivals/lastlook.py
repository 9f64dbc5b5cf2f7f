# SPDX-License-Identifier: BSD-3-Clause
"""Listing the folders in which raws of one visit can be, whatever was seen. Blocking."""

import os
from collections.abc import Iterator

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.tree import RawRoot, RawTree, Sighting
from ppdaemon.raws.layout import SearchFolder
from ppdaemon.raws.path import Expected, Kind

__all__ = ("find_expected",)


def find_expected(tree: RawTree, root: RawRoot, expected: Expected, since_unix: float) -> list[Sighting]:
    """Find raws of a visit below a root.

    Parameters
    ----------
    tree : `~ppdaemon.node.arrivals.tree.RawTree`
        All roots.
    root : `~ppdaemon.node.arrivals.tree.RawRoot`
        Where to look.
    expected : `~ppdaemon.raws.path.Expected`
        What is waited for.
    since_unix : `float`
        Folders of exposures into which nothing was put after this are passed
        over, where paths do not tell the group. Seconds since 1970, UTC.

    Returns
    -------
    sightings : `list` [`~ppdaemon.node.arrivals.tree.Sighting`]
        Images, whatever their age; of other groups too where paths do not
        tell it.
    """
    if "group" in root.layout.fields:
        since_unix = 0.0
    sightings = []
    for search in root.layout.folders(expected):
        for path in _files(root, search, expected, since_unix):
            try:
                located = tree.locate(path)
            except BadMessage:
                continue  # not to be opened, which the scan counts
            if located is not None and located[0].kind is Kind.IMAGE and expected.wants(located[0]):
                sightings.append(Sighting(f"last look {root.path}", *located, confirmed=False))
    return sightings


def _files(root: RawRoot, search: SearchFolder, expected: Expected, since_unix: float) -> Iterator[str]:
    """List files as deep as they lie, in folders that can have them."""
    folder = f"{root.path}/{search.path}".rstrip("/")
    for entry in _entries(folder):
        is_folder = entry.is_dir(follow_symlinks=False)
        if search.below == 0:
            if not is_folder:
                yield entry.path
            continue
        below = SearchFolder(entry.path[len(root.path) + 1 :], search.below - 1)
        if is_folder and root.layout.admits(below.path, expected):
            # Only folders that get a new one for each exposure, and those new
            # ones, show by their time whether something was put into them.
            fresh = below.path.count("/") + 1 < root.layout.steady_depth or _changed(entry) >= since_unix
            if fresh:
                yield from _files(root, below, expected, since_unix)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []  # not there, or as bad as the survey says


def _changed(folder: os.DirEntry[str]) -> float:
    try:
        return folder.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0  # gone
