# SPDX-License-Identifier: BSD-3-Clause
"""What all sources of arrivals share: the raw roots, and what a source tells."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppdaemon import rawpath
from ppdaemon.camera import load_camera
from ppdaemon.errors import BadMessage
from ppdaemon.rawpath import Kind, RawName

__all__ = ("Place", "RawTree", "Sighting")


@dataclass(frozen=True, slots=True)
class Place:
    """A path and the raw root that it must not leave."""

    root: str
    path: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A source met the name of a raw, or of a sidecar, of this node."""

    source: str
    """Name of the source, as in `~ppdaemon.reports.ArrivalSource`."""
    name: RawName
    place: Place
    confirmed: bool
    """Whether the source knows that the file is finished."""


class RawTree:
    """The raw roots and what this node serves of them. Looks at names only.

    Parameters
    ----------
    roots : `~collections.abc.Sequence` [`pathlib.Path`]
        The raw roots.
    layout : `str`
        How paths below them are built.
    instruments : `~collections.abc.Mapping` [`str`, `~collections.abc.Collection`]
        Detectors that this node serves, by instrument.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised if the layout needs the focal-plane table of an instrument and
        there is none.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        layout: rawpath.Layout,
        instruments: Mapping[str, Collection[int]],
    ):
        self.roots = tuple(os.path.abspath(root) for root in roots)
        self.layout: rawpath.Layout = layout
        self.served = {instrument: frozenset(detectors) for instrument, detectors in instruments.items()}
        self._cameras = {name: load_camera(name) for name in instruments} if layout == "lsst" else {}

    def locate(self, path: str) -> tuple[RawName, Place] | None:
        """Read an absolute path.

        Parameters
        ----------
        path : `str`
            Absolute.

        Returns
        -------
        name, place : `~ppdaemon.rawpath.RawName`, `Place`
            `None` for what is no raw and no sidecar of a detector that this
            node serves.

        Raises
        ------
        ppdaemon.errors.BadMessage
            Raised if the path is outside of all roots, or not to be opened.
        """
        for root in self.roots:
            if path.startswith(root + "/"):
                name = rawpath.parse(path[len(root) + 1 :], self.layout, self._cameras)
                return (name, Place(root, path)) if name is not None and self._serves(name) else None
        raise BadMessage(f"{path[:200]!r} is not below a raw root", "outside")

    def spell_out(self, path: str) -> tuple[str, ...]:
        """Return the absolute paths that a path or key can mean.

        Parameters
        ----------
        path : `str`
            Absolute, or relative to one of the roots.

        Returns
        -------
        paths : `tuple` [`str`]
            One for each root if the path is relative.
        """
        return (path,) if path.startswith("/") else tuple(f"{root}/{path}" for root in self.roots)

    def _serves(self, name: RawName) -> bool:
        wanted = name.kind in (Kind.IMAGE, Kind.SIDECAR)
        return wanted and name.detector in self.served.get(name.instrument, ())
