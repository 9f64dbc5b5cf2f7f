# SPDX-License-Identifier: BSD-3-Clause
"""Which visit-detector gets which raw: delivery to slots, rescans, and raws that come too late. Pure code.

Does not cover when a raw is complete (`ppdaemon.node.arrivals`), nor when a slot no longer waits for one
(`ppdaemon.node.slots.slot`).
"""

from collections import deque
from collections.abc import Callable, Iterable

from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.index import ArrivalIndex, ExpectedSensors, Recent
from ppdaemon.node.arrivals.nottaken import FileNotTaken, FilesNotTaken
from ppdaemon.node.slots import events
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import model
from ppdaemon.node.visits.openvisits import OpenVisits, Phase, VisitDetector
from ppdaemon.states import Stage
from ppdaemon.visit import parent_group

__all__ = ("RawDelivery",)

MAX_RAWS_PER_LOOKUP = 500
"""500 lookups in the journal take some 10 ms, during which acceptance waits."""
ANNOUNCED_S = 7200.0
"""Time for which the group of a visit is remembered: its files are not listed as not taken by others.
Exposures are searched that changed since `remember_s`, 900 s, before an announcement; a visit may end
an hour after it."""
MAX_ANNOUNCED = 5000
"""Visits whose groups are remembered; a night has some 1000."""
MAX_UNMATCHED = 20_000
"""Raws waiting for their lookup; above this the oldest are dropped. About a
hundred exposures of 205 detectors."""


class RawDelivery:
    """Raws and lists of detectors, on their way to the slots of a node. `mono` returns monotonic seconds;
    raws without a visit are remembered for `remember_s`.
    """

    def __init__(self, visits: OpenVisits, remember_s: float, mono: Callable[[], float]):
        self._open = visits
        self._mono = mono
        self._arrived = ArrivalIndex(remember_s, mono)
        self._announced: Recent[model.VisitKey] = Recent(ANNOUNCED_S, MAX_ANNOUNCED)
        self._unmatched: deque[Raw] = deque(maxlen=MAX_UNMATCHED)
        self._recording = False
        self._rescans: dict[model.VisitKey, list[Key]] = {}

    def note_announced(self, visit: model.VisitKey) -> None:
        """Remember the group of a visit that was announced."""
        self._announced.add(visit, self._mono())

    def raw_arrived(self, event: events.RawArrived, effects: model.Effects) -> None:
        """Give a raw to its visit-detector, or look it up in the journal if no open one is its own."""
        raw = event.raw
        is_new = self._arrived.add(raw)
        visit = self._open.find(raw.instrument, parent_group(raw.group), raw.detector)
        if visit is None:
            if is_new:  # a rescan for another detector delivers files again
                self.look_up([raw], effects)
            return
        # A file may be replaced, or compressed to another file: the latest is used.
        visit.raws[raw.exposure] = raw
        if visit.phase is Phase.ASSIGNED:
            visit.send(event, effects)
        elif visit.phase is Phase.QUEUED:
            self._open.reached(visit, Stage.ARRIVED, raw.seen_tai)

    def exposure_listed(self, event: ExpectedSensors, effects: model.Effects) -> None:
        """Give the list of an exposure's detectors to all slots that have one of its visit."""
        self._arrived.add_list(event)
        for visit in self._open.in_group(event.instrument, parent_group(event.group)):
            visit.send(_listed(event, visit.key), effects)

    def take_early(self, visit: VisitDetector) -> None:
        """Give a visit-detector the raws that have arrived before its announcement."""
        for raw in self._arrived.of(*visit.key[:3]):
            visit.raws.setdefault(raw.exposure, raw)

    def deliver(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Send a slot what has arrived for the visit-detector that it has been given."""
        for listed in self._arrived.lists_of(*visit.key[:2]):
            visit.send(_listed(listed, visit.key), effects)
        for raw in visit.raws.values():
            visit.send(events.RawArrived(raw), effects)

    # --- late raws -------------------------------------------------------

    def look_up(self, raws: Iterable[Raw], effects: model.Effects) -> None:
        """Queue raws that no open visit-detector can use for a lookup in the
        journal: those of an ended visit-detector are late.
        """
        self._unmatched.extend(raws)
        self._record(effects)

    def looked_up(self, effects: model.Effects) -> None:
        """Look up the next raws: the journal has recorded those before."""
        self._recording = False
        self._record(effects)

    def _record(self, effects: model.Effects) -> None:
        # One write at a time. It is committed after the outcomes that make
        # these raws late, because those were decided before.
        if self._unmatched and not self._recording:
            self._recording = True
            number = min(len(self._unmatched), MAX_RAWS_PER_LOOKUP)
            raws = tuple(self._unmatched.popleft() for _ in range(number))
            effects.writes.append(model.RecordLateRaws(raws))

    # --- rescans: one for all detectors of a visit ------------------------

    def request_rescan(self, key: Key, effects: model.Effects) -> None:
        """Search the raw roots for the raws of a visit-detector, whose events may have been lost."""
        waiting = self._rescans.get(key[:2])
        if waiting is None:
            # The rescan begins in the next step of the event loop: the
            # deadlines of the visit's other detectors pass in this one.
            self._rescans[key[:2]] = [key]
            effects.actions.append(model.BeginRescan(key[:2]))
        else:
            waiting.append(key)

    def rescan_requested(self, event: events.RescanRaws, effects: model.Effects) -> None:
        """Search for the raws of a visit-detector whose slot waits no longer."""
        if self._open.get(event.key) is not None:
            self.request_rescan(event.key, effects)

    def rescan_due(self, event: model.RescanDue, effects: model.Effects) -> None:
        """Begin the rescan for all detectors of a visit that wait for one."""
        found = [self._open.get(key) for key in self._rescans[event.visit]]
        visits = [visit for visit in found if visit is not None]
        if not visits:  # all have ended
            del self._rescans[event.visit]
            return
        self._rescans[event.visit] = []
        since_tai = min(visit.entry.received_tai for visit in visits)
        keys = tuple(visit.key for visit in visits)
        effects.actions.append(model.Rescan(visits[0].entry.visit, since_tai, keys))

    def rescan_finished(self, event: model.RescanFinished, effects: model.Effects) -> None:
        """Tell the slots that wait for the rescan; its raws have been delivered before."""
        visit_key = event.keys[0][:2]
        not_taken = FilesNotTaken(
            file for file in event.not_taken if not self._is_of_other_visit(file, visit_key[0])
        )
        for key in event.keys:
            if (visit := self._open.get(key)) is not None:
                visit.send(events.RescanDone(*not_taken.of(key.detector)), effects)
        if self._rescans[visit_key]:  # requested during this rescan, which may have missed their raws
            effects.actions.append(model.BeginRescan(visit_key))
        else:
            del self._rescans[visit_key]

    def _is_of_other_visit(self, file: FileNotTaken, instrument: str) -> bool:
        """Return whether a file has the group of another visit that was announced."""
        return file.group is not None and self._announced.contains(
            (instrument, parent_group(file.group)), self._mono()
        )


def _listed(listed: ExpectedSensors, key: Key) -> events.ExposureListed:
    return events.ExposureListed(listed.exposure, key.detector in listed.detectors)
