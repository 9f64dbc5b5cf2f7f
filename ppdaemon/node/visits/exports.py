# SPDX-License-Identifier: BSD-3-Clause
"""What the exporter's messages mean for the journal: outputs that are exported, given up, or gone. Pure."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Exported, ImagesGivenUp
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import model

__all__ = ("Exports",)

_LOG = logging.getLogger(__name__)

GONE = (
    "its outputs are gone: its spool was deleted, renamed or moved away before it was exported; moved back,"
    " it is exported by the next start"
)
"""Reason of a visit-detector whose outputs were to be exported."""


class Exports:
    """Records in the journal what has become of spools."""

    def __init__(self, folders: NodeFolders, count: Counter[str]):
        self._folders = folders
        self._count = count

    def exported(self, event: Exported, effects: model.Effects) -> None:
        """Record the spools of one export."""
        keys = self._keys(event.spools)
        skipped = {keys[spool]: text for spool, text in event.skipped.items() if spool in keys}
        effects.writes.append(model.MarkExported(tuple(keys.values()), event.tai, skipped))
        if event.given_up:
            self._mark_given_up(event.given_up, effects)
        if event.gone:
            _LOG.error("%d spools are gone and were not exported: %s", len(event.gone), ", ".join(event.gone))
            effects.writes.append(model.MarkLost(tuple(self._keys(event.gone).values()), GONE))
            self._count["spools_gone"] += len(event.gone)
        if event.refused:
            effects.writes.append(model.MarkQuarantined(tuple(self._keys(event.refused).values())))
        self._count["datasets_exported"] += event.datasets
        self._count["spools_refused"] += len(event.refused)

    def images_given_up(self, event: ImagesGivenUp, effects: model.Effects) -> None:
        """Record whose images are deleted."""
        self._mark_given_up(event.spools, effects)

    def _mark_given_up(self, types: Mapping[str, str], effects: model.Effects) -> None:
        keys = self._keys(types)
        effects.writes.append(model.MarkGivenUp({key: types[spool] for spool, key in keys.items()}))

    def _keys(self, spools: Iterable[str]) -> dict[str, Key]:
        """Return the attempts to which spools belong; others may lie in the same folder."""
        names = {spool: self._folders.parse_spool_name(spool.rpartition("/")[2]) for spool in spools}
        return {spool: Key(*name) for spool, name in names.items() if name}
