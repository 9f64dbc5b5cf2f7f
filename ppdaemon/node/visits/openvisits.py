# SPDX-License-Identifier: BSD-3-Clause
"""The visit-detectors of a node that have no outcome yet. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ppdaemon.messages import Raw
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.events import Finish
from ppdaemon.node.visits.turn import Entry, VisitKey
from ppdaemon.raws.path import Expected
from ppdaemon.states import Stage

__all__ = ("OpenVisits", "Phase", "VisitDetector", "snapshot")


class Phase(Enum):
    """Where a visit-detector is on its way through the node."""

    RESERVED = auto()
    """The journal does not have it yet."""
    QUEUED = auto()
    """It waits for a worker."""
    ASSIGNED = auto()
    """A slot has it: ``entry.slot``."""
    LEFT = auto()
    """Its worker died; what it left on disk is being read."""


@dataclass(slots=True)
class VisitDetector:
    """One visit-detector in its present attempt."""

    entry: Entry
    assignment: Assignment
    phase: Phase
    raws: dict[int, Raw] = field(default_factory=dict)
    """What has landed of it, by exposure."""
    cancelled: str = ""
    """Why it is not to be tried again."""
    ignored: str = ""
    """Why no pipeline takes it."""
    finish: Finish | None = None
    """What its slot made of its worker's death."""

    @property
    def key(self) -> Key:
        """Which attempt it is."""
        return self.entry.key


class OpenVisits:
    """Finds open visit-detectors by detector and by visit, and keeps which
    of their rows have changed.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, int], VisitDetector] = {}
        self._groups: dict[VisitKey, set[int]] = defaultdict(set)
        self._changed: dict[Key, Entry] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[VisitDetector]:
        return iter(list(self._open.values()))

    def add(self, visit: VisitDetector) -> None:
        """Add a visit-detector, or its next attempt."""
        instrument, group, detector, _ = visit.key
        self._open[instrument, group, detector] = visit
        self._groups[instrument, group].add(detector)

    def remove(self, visit: VisitDetector) -> None:
        """Remove a visit-detector."""
        instrument, group, detector, _ = visit.key
        del self._open[instrument, group, detector]
        members = self._groups[instrument, group]
        members.discard(detector)
        if not members:
            del self._groups[instrument, group]

    def find(self, instrument: str, group: str, detector: int) -> VisitDetector | None:
        """Return a visit-detector, whatever its attempt."""
        return self._open.get((instrument, group, detector))

    def of(self, key: Key) -> VisitDetector | None:
        """Return a visit-detector if it is in this attempt."""
        visit = self._open.get(key[:3])
        return visit if visit is not None and visit.key == key else None

    def of_group(self, instrument: str, group: str) -> list[VisitDetector]:
        """Return the open detectors of a visit, sorted."""
        detectors = self._groups.get((instrument, group), ())
        return [self._open[instrument, group, detector] for detector in sorted(detectors)]

    def expected(self) -> list[Expected]:
        """Return one item for each visit of which some detector lacks raws."""
        found = []
        for (instrument, group), detectors in self._groups.items():
            missing = frozenset(
                detector
                for detector in detectors
                if Stage.INGESTED not in self._open[instrument, group, detector].entry.stages
            )
            if missing:
                found.append(Expected(instrument, missing, group))
        return found

    # --- changed rows ------------------------------------------------------

    def touch(self, entry: Entry) -> None:
        """Have an entry written with the next batch."""
        self._changed[entry.key] = entry

    def take_changes(self) -> tuple[Entry, ...]:
        """Take out copies of what has changed, safe for another thread."""
        entries = tuple(snapshot(entry) for entry in self._changed.values())
        self._changed.clear()
        return entries

    def take_change(self, entry: Entry) -> Entry:
        """Take out a copy of one entry: it is written now."""
        self._changed.pop(entry.key, None)
        return snapshot(entry)

    @property
    def changed(self) -> bool:
        """Whether an entry waits to be written."""
        return bool(self._changed)


def snapshot(entry: Entry) -> Entry:
    """Return a copy that later changes do not reach."""
    return replace(entry, stages=dict(entry.stages), figures=dict(entry.figures))
