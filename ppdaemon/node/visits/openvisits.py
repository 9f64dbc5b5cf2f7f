# SPDX-License-Identifier: BSD-3-Clause
"""The visit-detectors of a node that have no outcome yet. Pure code."""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import Literal

from ppdaemon.messages import DetectorsOfVisit, HeldDetectors, Raw
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.events import Finish
from ppdaemon.node.visits.model import Effects, JournalEntry, SendToSlot, VisitKey
from ppdaemon.raws.path import ExpectedRaws
from ppdaemon.reports import REQUEUED
from ppdaemon.states import Stage

__all__ = ("OpenVisits", "Permit", "Phase", "VisitDetector", "snapshot")


_VALUES = operator.attrgetter(*(each.name for each in fields(JournalEntry)))
"""`dataclasses.replace` takes three times as long, for each change of each detector."""


class Phase(Enum):
    """How far a visit-detector without an outcome has come."""

    RESERVED = auto()
    """The journal does not have it yet; it may still be refused."""
    QUEUED = auto()
    """It waits for an idle slot."""
    ASSIGNED = auto()
    """A slot has it: ``entry.slot``."""
    RECOVERING = auto()
    """Its worker has ended; its leftovers on disk are being read."""


class Permit(Enum):
    """Whether something permanent may be written for a visit-detector."""

    NONE = auto()
    ASKED = auto()
    GRANTED = auto()


@dataclass(slots=True)
class VisitDetector:
    """One visit-detector in its current attempt."""

    entry: JournalEntry
    assignment: Assignment
    phase: Phase
    raws: dict[int, Raw] = field(default_factory=dict)
    """Raws that have arrived, by exposure."""
    cancelled: str = ""
    """Why it must not be retried; blank if it may be."""
    ignored: str = ""
    """Why no pipeline is configured for it; blank if there is one."""
    finish: Finish | None = None
    """The slot's report of the end, in phase RECOVERING."""
    permit: Permit = Permit.NONE
    at_door: str | None = None
    """What its worker waits for, see `~ppdaemon.node.slots.events.AskToCross`."""
    withdrawn: bool = False
    """Whether the relay has ended it, or given it to another node."""

    @property
    def key(self) -> Key:
        """The key of the current attempt."""
        return self.entry.key

    @property
    def requeued(self) -> bool:
        """Whether an operator has requested this attempt: the relay has an outcome already."""
        return REQUEUED in self.entry.figures

    @property
    def state(self) -> Literal["held", "permitted", "crossed"]:
        """What the relay must know: what may have been written."""
        if self.entry.no_return:
            return "crossed"
        return "permitted" if self.permit is Permit.GRANTED else "held"

    @property
    def of_relay(self) -> DetectorsOfVisit:
        """Its name in messages to and from the relay."""
        instrument, group, detector, _ = self.key
        return DetectorsOfVisit(
            instrument=instrument, group=group, attempt=self.entry.asked, detectors=(detector,)
        )

    def send(self, event: object, effects: Effects) -> None:
        """Send an event to the slot that has it, if one has it."""
        if self.phase is Phase.ASSIGNED:
            assert self.entry.slot is not None, self.key
            effects.actions.append(SendToSlot(self.entry.slot, self.key, event))


class OpenVisits:
    """Open visit-detectors by detector and by visit, and their changed rows."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, int], VisitDetector] = {}
        self._groups: dict[VisitKey, set[int]] = defaultdict(set)
        self._changed: dict[Key, JournalEntry] = {}
        self.on_change: Callable[[JournalEntry], None] | None = None
        """Gets each entry that has changed, before it is written."""

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

    def get(self, key: Key) -> VisitDetector | None:
        """Return a visit-detector if this is its current attempt."""
        visit = self._open.get(key[:3])
        return visit if visit is not None and visit.key == key else None

    def in_group(self, instrument: str, group: str) -> list[VisitDetector]:
        """Return the open detectors of a visit, sorted."""
        detectors = self._groups.get((instrument, group), ())
        return [self._open[instrument, group, detector] for detector in sorted(detectors)]

    def held(self) -> tuple[HeldDetectors, ...]:
        """Return what the journal has, for the relay."""
        found: dict[tuple[str, str, int, str], list[int]] = defaultdict(list)
        for visit in self._open.values():
            # Of what an operator requests again, the relay has the outcome: it would withdraw it.
            if visit.phase is not Phase.RESERVED and not visit.requeued:
                instrument, group, detector, _ = visit.key
                found[instrument, group, visit.entry.asked, visit.state].append(detector)
        return tuple(
            HeldDetectors(
                instrument=instrument, group=group, attempt=asked, detectors=tuple(detectors), state=state
            )
            for (instrument, group, asked, state), detectors in found.items()
        )

    def oldest_tai(self) -> float | None:
        """Return when the oldest visit was announced; `None` if there is none."""
        return min((visit.entry.received_tai for visit in self._open.values()), default=None)

    def late(self, tai: float, after_s: float) -> list[ExpectedRaws]:
        """Return one item for each visit with detectors that wait for raws, and were announced so long before
        `tai` that its duration has passed more than `after_s` seconds ago.
        """
        return self.expected(
            lambda each: each.entry.received_tai + each.assignment.visit.duration_s + after_s < tai
        )

    def expected(self, wanted: Callable[[VisitDetector], bool] = lambda each: True) -> list[ExpectedRaws]:
        """Return one item for each visit with detectors that wait for raws, of those wanted."""
        found = []
        for (instrument, group), detectors in self._groups.items():
            missing = frozenset(
                detector
                for detector in detectors
                if Stage.INGESTED not in (visit := self._open[instrument, group, detector]).entry.stages
                and wanted(visit)
            )
            if missing:
                found.append(ExpectedRaws(instrument, missing, group))
        return found

    # --- changed rows ------------------------------------------------------

    def reached(self, visit: VisitDetector, stage: Stage, tai: float) -> None:
        """Record when a stage was reached first."""
        visit.entry.stages.setdefault(stage, tai)
        self.mark_changed(visit.entry)

    def mark_changed(self, entry: JournalEntry) -> None:
        """Include an entry in the next batch of writes."""
        self._changed[entry.key] = entry
        if self.on_change is not None:
            self.on_change(entry)

    def take_changes(self) -> tuple[JournalEntry, ...]:
        """Remove and return copies of all changed entries.

        Copies, because the journal's thread reads them while they change here.
        """
        entries = tuple(snapshot(entry) for entry in self._changed.values())
        self._changed.clear()
        return entries

    def take_change(self, entry: JournalEntry) -> JournalEntry:
        """Remove one entry from the changed ones and return a copy to write now."""
        self._changed.pop(entry.key, None)
        return snapshot(entry)

    @property
    def changed(self) -> bool:
        """Whether there are changed entries."""
        return bool(self._changed)


def snapshot(entry: JournalEntry) -> JournalEntry:
    """Return a copy that later changes of the entry do not alter."""
    copy = JournalEntry(*_VALUES(entry))
    copy.stages, copy.figures = dict(entry.stages), dict(entry.figures)
    return copy
