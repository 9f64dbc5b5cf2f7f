# SPDX-License-Identifier: BSD-3-Clause
"""Finds the raws of past visits below the raw roots: each root is listed once, or once for each visit where
paths contain the group.
"""

import os
from collections.abc import Collection, Iterator, Mapping

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Raw
from ppdaemon.raws import fitsblocks
from ppdaemon.raws.files import open_raw
from ppdaemon.raws.layout import Layout, make_layout
from ppdaemon.raws.path import ExpectedRaws, RawFileKind, RawName, sidecar_path
from ppdaemon.visit import parent_group
from ppdaemon.wire import parse_json

__all__ = ("RawSearch",)

SIDECAR_LIMIT = 1_048_576
"""Largest sidecar that is read, bytes; real ones have 3 to 4 kB."""


type _Index = dict[tuple[str, int | None], list[tuple[str, RawName]]]
"""Files by the group of the visit and the detector; `None` for files of all detectors."""


class RawSearch:
    """Searches local raw roots; objects in stores are not searched."""

    def __init__(self, config: ArrivalsConfig, instruments: Mapping[str, Collection[int]]):
        self._detectors = {name: frozenset(ids) for name, ids in instruments.items()}
        self._roots = [
            (str(root.path), make_layout(root.layout or config.layout, instruments)) for root in config.roots
        ]
        self._indexes: dict[tuple[str, str, frozenset[int]], _Index] = {}

    def find(self, instrument: str, group: str, detector: int, days: frozenset[int]) -> list[Raw]:
        """Return the raws of a visit-detector; ``days`` are those on which it may have been exposed."""
        found: list[tuple[str, RawName]] = []
        for root, layout in self._roots:
            if "group" in layout.fields:
                found += _files(root, layout, ExpectedRaws(instrument, frozenset({detector}), group))
            else:
                index = self._index(root, layout, instrument, days)
                found += [file for key in (detector, None) for file in index.get((group, key), ())]
        return [_raw(path, name, group, detector) for path, name in found]

    def _index(self, root: str, layout: Layout, instrument: str, days: frozenset[int]) -> _Index:
        key = root, instrument, days
        if key not in self._indexes:
            index = self._indexes[key] = {}
            groups: dict[int, str | None] = {}
            for path, name in _files(
                root, layout, ExpectedRaws(instrument, self._detectors[instrument], days=days)
            ):
                # One file of each exposure is read, or the next if that has no group.
                if groups.get(name.exposure) is None:
                    groups[name.exposure] = _read_group(path, root)
                if (group := groups[name.exposure]) is not None:
                    index.setdefault((group, name.detector), []).append((path, name))
        return self._indexes[key]


def _files(root: str, layout: Layout, expected: ExpectedRaws) -> Iterator[tuple[str, RawName]]:
    for folder in layout.folders(expected):
        for path, folders, files in os.walk(os.path.join(root, folder.path)):
            relative = os.path.relpath(path, root)
            folders[:] = sorted(
                each for each in folders if layout.admits(os.path.normpath(f"{relative}/{each}"), expected)
            )
            for file in sorted(files):
                try:
                    name = layout.parse(os.path.normpath(f"{relative}/{file}"))
                except BadMessage:
                    continue
                if name is not None and name.kind is RawFileKind.IMAGE and expected.matches(name):
                    yield os.path.join(path, file), name


def _read_group(path: str, root: str) -> str | None:
    for read in (_sidecar_header, _fits_header):
        try:
            group = read(path, root).get("GROUPID")
        except (OSError, ValueError, BadMessage):
            continue
        if group is not None and str(group).strip():
            return parent_group(str(group).strip())
    return None


def _sidecar_header(path: str, root: str) -> dict[str, object]:
    with open_raw(sidecar_path(path), root) as file:
        content = parse_json(file.read(SIDECAR_LIMIT + 1), limit=SIDECAR_LIMIT)
    return content if isinstance(content, dict) else {}


def _fits_header(path: str, root: str) -> dict[str, object]:
    with open_raw(path, root) as file:
        return dict(fitsblocks.read_header(file, until="GROUPID"))


def _raw(path: str, name: RawName, group: str, detector: int) -> Raw:
    sidecar = sidecar_path(path)
    return Raw(
        path=path,
        sidecar=sidecar if os.path.exists(sidecar) else None,
        instrument=name.instrument,
        group=group if name.group is None else name.group,
        detector=detector,
        exposure=name.exposure,
        seen_tai=0.0,
    )
