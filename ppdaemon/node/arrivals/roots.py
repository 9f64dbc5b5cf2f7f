# SPDX-License-Identifier: BSD-3-Clause
"""The raw roots, and the sightings that all sources report."""

import functools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.raws.layout import Layout, make_layout
from ppdaemon.raws.path import ExpectedRaws, RawFileKind, RawName
from ppdaemon.raws.roots import WatchKind, without_profile

__all__ = ("RawPath", "RawRoot", "RawRoots", "Sighting")


@dataclass(frozen=True, slots=True)
class RawPath:
    """A path, and the raw root that its real path must not leave."""

    root: str
    path: str
    marker: str | None = None
    """Path of the marker without which the file is not complete; `None` if none is configured."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A source reports the name of a raw, a sidecar or a list of detectors that this node serves."""

    source: str
    """Name of the source, as in `~ppdaemon.reports.ArrivalSource`."""
    name: RawName
    file: RawPath
    confirmed: bool
    """Whether the source reports the file as finished."""
    close_expected: bool = False
    """Whether the source reported the creation of the file, so that it will report its close."""


@dataclass(frozen=True)
class RawRoot:
    """One raw root with its settings; those that it lacks come from the common ones."""

    path: str
    """Absolute; may be a symbolic link. In a store a URI, which may have a profile."""
    layout: Layout
    watch: WatchKind
    done: str | None
    """See `~ppdaemon.raws.roots.DoneMarker`."""

    @functools.cached_property
    def announced(self) -> str:
        """The path as notices have it: without the profile of a store."""
        return without_profile(self.path) if "://" in self.path else self.path

    def marker(self, name: RawName, path: str) -> str | None:
        """Return the path of the file that marks a raw as complete; `None` where none is configured."""
        if self.done is None:
            return None
        if self.done.startswith("."):
            return path + self.done
        fields = {"instrument": name.instrument, "day_obs": name.day_obs, "exposure": name.exposure}
        file = self.done.format_map(fields | {"obsid": name.obsid, "group": name.group})
        return f"{os.path.dirname(path)}/{file}"

    def raw_of_marker(self, path: str) -> str:
        """Return the path of the raw that a marker belongs to; any other path unchanged."""
        return path.removesuffix(self.done) if self.done is not None and self.done.startswith(".") else path


class RawRoots:
    """The raw roots, in folders or in object stores, and the detectors that this node serves; reads
    names only.

    Roots may overlap: a path belongs to the innermost one. Paths in stores are URIs without
    escapes; located ones have the profile of their root. Raises ConfigError if a root's layout
    cannot name an instrument's detectors.
    """

    def __init__(
        self, config: ArrivalsConfig, instruments: Mapping[str, Collection[int]], *, stores: bool = False
    ):
        self.roots = _stores(config, instruments) if stores else _folders(config, instruments)
        self.served = {instrument: frozenset(detectors) for instrument, detectors in instruments.items()}
        self._by_path = {root.path: root for root in self.roots}
        self._inner_first = sorted(self.roots, key=lambda root: -len(root.announced))

    def locate(self, path: str) -> tuple[RawName, RawPath] | None:
        """Parse an absolute path as `read` does; return `None` also for detectors that this node does not
        serve.
        """
        found = self.read(path)
        return found if found is not None and self.serves(found[0]) else None

    def read(self, path: str) -> tuple[RawName, RawPath] | None:
        """Parse an absolute path of a raw, a sidecar, a list of detectors, or a marker, which is
        replaced by its raw.

        Returns `None` for other files; raises BadMessage if the path is outside all roots, or must not be
        opened.
        """
        for root in self._inner_first:
            if path.startswith(root.announced + "/"):
                relative = root.raw_of_marker(path)[len(root.announced) + 1 :]
                file = f"{root.path}/{relative}"
                name = root.layout.parse(relative)
                if name is None:
                    return None
                image = name.kind is RawFileKind.IMAGE
                return name, RawPath(root.path, file, root.marker(name, file) if image else None)
        raise BadMessage(f"{path[:200]!r} is not below a raw root", "outside")

    def depth(self, path: str) -> int:
        """Return the number of slashes in the innermost root of an absolute path or URI; 0 without a root."""
        return max(
            (root.announced.count("/") for root in self.roots if path.startswith(root.announced + "/")),
            default=0,
        )

    def absolute_paths(self, path: str) -> tuple[str, ...]:
        """Return the absolute paths that a path, or a key relative to any root, may refer to."""
        return (path,) if path.startswith("/") else tuple(f"{root.path}/{path}" for root in self.roots)

    def all_of(self, instrument: str, days: Collection[int] = ()) -> ExpectedRaws:
        """Return all raws of an instrument that this node serves, of some observing days or of any."""
        return ExpectedRaws(instrument, self.served[instrument], days=frozenset(days))

    def detectors_named(self, instrument: str, file: RawPath, names: Collection[str]) -> frozenset[int]:
        """Return the served detectors among names such as ``R22_S11`` that were read from a file."""
        layout = self._by_path[file.root].layout
        found = (layout.detector_of(instrument, name) for name in names)
        return self.served[instrument].intersection(number for number in found if number is not None)

    def serves(self, name: RawName) -> bool:
        """Return whether a file concerns detectors of this node."""
        match name.kind:
            case RawFileKind.IMAGE | RawFileKind.SIDECAR if name.detector is not None:
                return name.detector in self.served.get(name.instrument, ())
            case RawFileKind.IMAGE | RawFileKind.SIDECAR | RawFileKind.EXPECTED:
                return name.instrument in self.served
            case _:
                return False


def _folders(config: ArrivalsConfig, instruments: Mapping[str, Collection[int]]) -> tuple[RawRoot, ...]:
    return tuple(
        RawRoot(
            str(root.path),
            make_layout(root.layout or config.layout, instruments),
            root.watch or config.watch,
            root.done or config.done,
        )
        for root in config.roots
    )


def _stores(config: ArrivalsConfig, instruments: Mapping[str, Collection[int]]) -> tuple[RawRoot, ...]:
    # An object is never visible before it is complete: it needs no marker.
    return tuple(
        RawRoot(root.uri, make_layout(root.layout or config.layout, instruments), config.watch, None)
        for root in config.remote
    )
