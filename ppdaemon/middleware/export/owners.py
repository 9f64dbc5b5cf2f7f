# SPDX-License-Identifier: BSD-3-Clause
"""Remembers whose dataset stays if several have the same type, run and data ID; pure.

A task without the dimension ``detector`` runs for each detector of a visit, in
its worker, and each attempt exports what it made. The first one stays.
"""

from collections.abc import Iterable
from itertools import islice

from ppdaemon.middleware.export.manifest import SpoolKey
from ppdaemon.middleware.export.newcontent import NewDataset, Place

__all__ = ("Owners",)

MAX_REMEMBERED = 20_000
"""Datasets: those of 2000 visits if each has ten, in some 10 MB."""

type _Owned = Iterable[tuple[NewDataset, SpoolKey]]
"""Datasets and the attempts that made them."""


class Owners:
    """Remembers which attempt has exported a dataset, of the last ones without a detector."""

    def __init__(self, most: int = MAX_REMEMBERED):
        self._most = most
        self._owners: dict[Place, SpoolKey] = {}  # the oldest first

    def knows(self, dataset: NewDataset) -> bool:
        """Return whether a dataset of this type, run and data ID was exported."""
        return dataset.place in self._owners

    def record(self, exported: _Owned, skipped: _Owned) -> dict[SpoolKey, str]:
        """Record an export; return for each attempt with skipped datasets whose are there instead.

        Such as ``detector 3 was first: visitSummary``.
        """
        exported, skipped = tuple(exported), tuple(skipped)
        owners = self._owners
        if skipped:
            owners = owners | {each.place: key for each, key in exported}
        types: dict[SpoolKey, dict[str, list[str]]] = {}
        for each, key in skipped:
            owner = _described(owners.get(each.place), key)
            types.setdefault(key, {}).setdefault(owner, []).append(each.dataset_type.name)
        self._remember(exported)
        return {
            key: "; ".join(f"{owner}: {', '.join(dict.fromkeys(names))}" for owner, names in by_owner.items())
            for key, by_owner in types.items()
        }

    def _remember(self, exported: _Owned) -> None:
        # Of a detector, only another attempt has the same dataset; that is rare.
        shared = {each.place: key for each, key in exported if "detector" not in each.dataset_type.dimensions}
        self._owners |= shared
        for place in list(islice(self._owners, max(0, len(self._owners) - self._most))):
            del self._owners[place]


def _described(owner: SpoolKey | None, key: SpoolKey) -> str:
    """Return who was first, as it differs from an attempt."""
    if owner is None:
        return "exported before"  # by another host, or before the exporter was started
    if owner.group != key.group:
        return f"detector {owner.detector} of {owner.group} was first"
    if owner.detector != key.detector:
        return f"detector {owner.detector} was first"
    return f"attempt {owner.attempt} was first"
