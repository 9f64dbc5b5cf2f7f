# SPDX-License-Identifier: BSD-3-Clause
"""Every decision about a visit-detector from announcement to outcome. Pure.

`Visits.handle` takes one event and the time, and returns a `Turn`: what to
commit to the journal, and what to do once that is committed. Covers
acceptance, cancellation, raws and lists of sensors on their way to a slot,
outcomes, retries, requeues, late raws, rescans, and what a previous run left.
Does not cover slots (`ppdaemon.node.slots.slot`), who gets which slot
(`ppdaemon.node.slots.scheduler`), the order of commits
(`ppdaemon.node.visits.pump`), or any I/O.

The state here runs ahead of the disk: it is as if all turns so far had been
committed. That is safe because nobody outside hears of a turn before it is,
and because turns are committed in the order in which they were decided.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import CancelVisit, Exported, Raw, ReserveVisit, ResultEntry, ResultsSeen, Welcome
from ppdaemon.node.arrivals.index import ArrivalIndex, ExpectedSensors
from ppdaemon.node.slots import events
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.scheduler import Drop
from ppdaemon.node.visits import turn as t
from ppdaemon.node.visits.openvisits import OpenVisits, Phase, VisitDetector, snapshot
from ppdaemon.node.visits.requeue import WITHDRAWN, objection, requeue_row, risk
from ppdaemon.reports import RequeueRow
from ppdaemon.selection import Chosen
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import parent_group

__all__ = ("Visits",)

_LOG = logging.getLogger(__name__)

MOST_REASON = 500
"""Characters of a reason that are kept."""
MOST_NAME = 240
"""Bytes of a file's name, with room for a dot and a suffix."""
RETRY_WAIT_S = 10.0
"""A second attempt waits at least this long for raws, besides a scan."""
UNMATCHED_AT_ONCE = 500
"""So many lookups in the journal take some 10 ms; acceptance waits for them."""
MOST_UNMATCHED = 20_000
"""Raws that wait for their lookup; above this the oldest are dropped."""


class Visits:
    """All open visit-detectors of a node.

    Parameters
    ----------
    config : `~ppdaemon.config.NodeConfig`
        The node's configuration.
    count : `collections.Counter`
        Counts what operators want to know.
    """

    def __init__(self, config: NodeConfig, count: Counter[str]):
        self.open = OpenVisits()
        self.outcomes: Counter[Outcome] = Counter()
        """Final outcomes since the start."""
        self.taking = False
        self.config = config
        self._count = count
        self._folders = NodeFolders.of(config)
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self._stopping = False
        self._now = t.Now(0.0, 0.0)
        self._landed = ArrivalIndex(config.arrivals.remember_s, lambda: self._now.mono)
        self._unmatched: deque[Raw] = deque(maxlen=MOST_UNMATCHED)
        self._noting_raws = False
        self._rescans: dict[t.VisitKey, list[Key]] = {}

    def handle(self, event: object, now: t.Now) -> t.Turn:
        """Decide what follows from an event.

        Raises
        ------
        KeyError
            Raised if the event is none of `ppdaemon.node.visits.turn`.
        """
        self._now = now
        turn = t.Turn()
        _RULES[type(event)](self, event, turn)
        turn.write_soon = self.open.changed
        return turn

    # --- reservations ----------------------------------------------------

    def _reserve(self, event: t.Reserved, turn: t.Turn) -> None:
        order, visit = event.order, event.order.visit
        age_s = _age_s(order)
        if not self.taking:
            turn.actions.append(t.Refuse(order, order.detectors, "the node takes no visits now", final=False))
            return
        if age_s > self.config.node.expiry_s:
            text = f"expired: announced {age_s:.0f} s ago"
            turn.actions.append(t.Refuse(order, order.detectors, text, final=True))
            return
        served = self._served.get(visit.instrument, frozenset())
        ours = tuple(detector for detector in order.detectors if detector in served)
        others = tuple(detector for detector in order.detectors if detector not in served)
        if others:
            text = f"{visit.instrument} {list(others)} are not served here"
            turn.actions.append(t.Refuse(order, others, text, final=True))
        if not ours:
            return
        entries = tuple(self._accepted(order, detector) for detector in ours)
        if len(os.fsencode(self._folders.spooled(*entries[-1].key).name)) > MOST_NAME:
            text = "failed: the group's name is too long for a file"
            turn.actions.append(t.Refuse(order, ours, text, final=True))
            return
        for entry in entries:
            # What is open already keeps its attempt; the journal decides.
            if self.open.find(*entry.key[:3]) is None:
                self._open_reserved(entry, age_s, event.chosen[entry.key.detector])
        turn.writes.append(t.Accept(event, entries))

    def _accepted(self, order: ReserveVisit, detector: int) -> t.Entry:
        key = Key(order.visit.instrument, order.visit.group, detector, order.attempt)
        stages = {Stage.ACCEPTED: self._now.tai}
        return t.Entry(key, order.visit, order.received_tai, stages, asked=order.attempt)

    def _open_reserved(self, entry: t.Entry, age_s: float, chosen: Chosen) -> VisitDetector:
        assignment = self._assignment(entry, age_s, chosen)
        visit = VisitDetector(entry, assignment, Phase.RESERVED, ignored=chosen.reason)
        self.open.add(visit)
        return visit

    def _assignment(self, entry: t.Entry, age_s: float, chosen: Chosen) -> Assignment:
        announced = self._now.mono - max(0.0, age_s)
        return Assignment(
            key=entry.key,
            visit=entry.visit,
            pipelines=chosen.pipelines,
            no_image_at=announced + self.config.arrivals.image_deadline_s(entry.visit),
            pointless_at=announced + self.config.node.expiry_s,
            quiet_s=self.config.arrivals.quiet_s,
        )

    def _recorded(self, event: t.Recorded, turn: t.Turn) -> None:
        match event.write, event.result:
            case t.Accept() as accept, list() as new:
                self._accept(accept, new, turn)
            case t.Requeue() as requeue, _:
                self._requeued(requeue, turn)
            case t.NoteRaws(), (int() as late, int() as unmatched):
                self._count["late_raws"] += late
                self._count["raw_without_visit"] += unmatched
                self._noting_raws = False
                self._note_raws(turn)
            case unexpected:
                raise AssertionError(unexpected)

    def _not_recorded(self, event: t.NotRecorded, turn: t.Turn) -> None:
        for entry in event.write.entries:
            visit = self.open.of(entry.key)
            if visit is not None and visit.phase is Phase.RESERVED:
                self._close_reserved(visit, turn)
        match event.write:
            case t.Accept(reserved=reserved, entries=entries):
                detectors = tuple(entry.key.detector for entry in entries)
                turn.actions.append(t.Refuse(reserved.order, detectors, event.reason, final=False))
            case t.Requeue(request=request, spools=spools):
                turn.actions += [t.Export(spool) for spool in spools]
                turn.actions.append(t.Answer(request, (), refused=event.reason))

    def _accept(self, accept: t.Accept, new: list[bool], turn: t.Turn) -> None:
        detectors = tuple(entry.key.detector for entry in accept.entries)
        order, chosen = accept.reserved.order, accept.reserved.chosen
        turn.actions.append(t.Acknowledge(order, detectors))
        ended = []
        for entry, fresh in zip(accept.entries, new, strict=True):
            visit = self.open.find(*entry.key[:3])
            if fresh:
                if visit is None or visit.entry is not entry:
                    # Another order for it was under way and has failed.
                    visit = self._open_reserved(entry, _age_s(order), chosen[entry.key.detector])
                self._admit(visit, turn)
            elif visit is None:
                ended.append(entry.key)
            elif visit.phase is Phase.RESERVED and visit.entry is entry:
                self._close_reserved(visit, turn)
                ended.append(entry.key)
            else:
                visit.entry.asked = max(visit.entry.asked, entry.key.attempt)
        if ended:  # the relay has missed their outcomes
            turn.writes.append(t.Unreport(tuple(ended)))
            turn.actions.append(t.ReportAgain())

    def _close_reserved(self, visit: VisitDetector, turn: t.Turn) -> None:
        """Forget what the journal did not take."""
        self.open.remove(visit)
        self._unmatch(visit.raws.values(), turn)

    def _admit(self, visit: VisitDetector, turn: t.Turn) -> None:
        """Queue what the journal has just taken, unless that is pointless."""
        for raw in self._landed.of(*visit.key[:3]):  # what came before the announcement
            visit.raws.setdefault(raw.exposure, raw)
        self._queue(visit, turn)

    def _queue(self, visit: VisitDetector, turn: t.Turn) -> None:
        visit.phase = Phase.QUEUED
        if visit.ignored:
            self._end(visit, Outcome.IGNORED, visit.ignored, turn)
        elif visit.cancelled:
            self._end(visit, Outcome.CANCELLED, visit.cancelled, turn)
        elif self._stopping:
            self._end(visit, Outcome.INTERRUPTED, "the daemon stopped", turn, retriable=True)
        else:
            turn.actions.append(t.Enqueue(visit.assignment))

    def _cancel(self, event: CancelVisit, turn: t.Turn) -> None:
        reason = events.CancelReceived().reason if event.detectors is None else WITHDRAWN
        for visit in self.open.of_group(event.instrument, event.group):
            if event.detectors is not None and visit.key.detector not in event.detectors:
                continue
            match visit.phase:
                case Phase.RESERVED:
                    visit.cancelled = reason
                case Phase.QUEUED:
                    turn.actions.append(t.Dequeue(visit.key))
                    self._end(visit, Outcome.CANCELLED, reason, turn)
                case Phase.ASSIGNED | Phase.LEFT:
                    # A cancelled visit whose raws came was taken all the same;
                    # one that was withdrawn may run elsewhere.
                    if event.detectors is not None or not visit.raws:
                        visit.cancelled = reason
                    self._to_slot(visit, events.CancelReceived(reason), turn)

    # --- raws ------------------------------------------------------------

    def _raw_arrived(self, event: events.RawArrived, turn: t.Turn) -> None:
        raw = event.raw
        self._landed.add(raw)
        visit = self.open.find(raw.instrument, parent_group(raw.group), raw.detector)
        if visit is None:
            self._unmatch([raw], turn)
            return
        visit.raws.setdefault(raw.exposure, raw)
        if visit.phase is Phase.ASSIGNED:
            self._to_slot(visit, event, turn)
        elif visit.phase is Phase.QUEUED:
            self._reached(visit, Stage.ARRIVED, raw.seen_tai)

    def _exposure_listed(self, event: ExpectedSensors, turn: t.Turn) -> None:
        self._landed.add_list(event)
        for visit in self.open.of_group(event.instrument, parent_group(event.group)):
            self._to_slot(visit, _listed(event, visit.key), turn)

    def _to_slot(self, visit: VisitDetector, event: object, turn: t.Turn) -> None:
        """Give an event to the slot that has a visit-detector, if one has."""
        if visit.phase is Phase.ASSIGNED:
            assert visit.entry.slot is not None, visit.key
            turn.actions.append(t.ToSlot(visit.entry.slot, visit.key, event))

    def _unmatch(self, raws: Iterable[Raw], turn: t.Turn) -> None:
        """Have raws looked up that no open visit-detector can use: those of an
        ended one are late.
        """
        self._unmatched.extend(raws)
        self._note_raws(turn)

    def _note_raws(self, turn: t.Turn) -> None:
        # One write at a time. It is committed after the outcomes that make
        # these raws late, because those were decided before.
        if self._unmatched and not self._noting_raws:
            self._noting_raws = True
            at_once = min(len(self._unmatched), UNMATCHED_AT_ONCE)
            turn.writes.append(t.NoteRaws(tuple(self._unmatched.popleft() for _ in range(at_once))))

    # --- rescans: one for all detectors of a visit ------------------------

    def _want_rescan(self, key: Key, turn: t.Turn) -> None:
        waiting = self._rescans.get(key[:2])
        if waiting is None:
            # It begins in the next turn of the loop: in this one, the
            # deadlines of the visit's other detectors pass.
            self._rescans[key[:2]] = [key]
            turn.actions.append(t.BeginRescan(key[:2]))
        else:
            waiting.append(key)

    def _rescan_wanted(self, event: events.RescanRaws, turn: t.Turn) -> None:
        if self.open.of(event.key) is not None:
            self._want_rescan(event.key, turn)

    def _rescan_due(self, event: t.RescanDue, turn: t.Turn) -> None:
        found = [self.open.of(key) for key in self._rescans[event.visit]]
        visits = [visit for visit in found if visit is not None]
        if not visits:  # all ended meanwhile
            del self._rescans[event.visit]
            return
        self._rescans[event.visit] = []
        since_tai = min(visit.entry.received_tai for visit in visits)
        keys = tuple(visit.key for visit in visits)
        turn.actions.append(t.Rescan(visits[0].entry.visit, since_tai, keys))

    def _rescan_ended(self, event: t.RescanEnded, turn: t.Turn) -> None:
        for key in event.keys:
            if (visit := self.open.of(key)) is not None:
                self._to_slot(visit, events.RescanDone(), turn)
        visit_key = event.keys[0][:2]
        if self._rescans[visit_key]:  # others wanted one meanwhile
            turn.actions.append(t.BeginRescan(visit_key))
        else:
            del self._rescans[visit_key]

    # --- slots -----------------------------------------------------------

    def _assign(self, event: events.SlotAssigned, turn: t.Turn) -> None:
        visit = self.open.of(event.assignment.key)
        if visit is None or visit.phase is not Phase.QUEUED:  # it has ended meanwhile
            turn.actions.append(t.LeaveIdle(event.slot))
            return
        visit.phase = Phase.ASSIGNED
        visit.entry.slot, visit.entry.pid = event.slot, event.pid
        self._to_slot(visit, events.VisitAssigned(visit.assignment), turn)
        for listed in self._landed.lists_of(*visit.key[:2]):
            self._to_slot(visit, _listed(listed, visit.key), turn)
        for raw in visit.raws.values():
            self._to_slot(visit, events.RawArrived(raw), turn)

    def _assignment_refused(self, event: t.AssignmentRefused, turn: t.Turn) -> None:
        visit = self.open.of(event.key)
        if visit is None or visit.phase is not Phase.ASSIGNED:
            return
        visit.entry.slot = visit.entry.pid = None
        self._queue(visit, turn)

    def _drop(self, event: Drop, turn: t.Turn) -> None:
        visit = self.open.of(event.assignment.key)
        if visit is not None and visit.phase is Phase.QUEUED:
            self._end(visit, Outcome.EXPIRED, event.reason, turn)

    def _note_stage(self, event: events.NoteStage, turn: t.Turn) -> None:
        if visit := self.open.of(event.key):
            assert event.tai is not None, event
            self._reached(visit, event.stage, event.tai)

    def _note_figures(self, event: events.NoteMeasurements, turn: t.Turn) -> None:
        if visit := self.open.of(event.key):
            visit.entry.figures |= event.figures
            self.open.touch(visit.entry)

    def _note_raw(self, event: events.NoteRaw, turn: t.Turn) -> None:
        if visit := self.open.of(event.key):
            entry = visit.entry
            entry.exposures = event.exposures
            closed = (event.shutter_close_tai, entry.shutter_close_tai)
            entry.shutter_close_tai = max(filter(None, closed), default=None)
            self.open.touch(entry)

    def _reached(self, visit: VisitDetector, stage: Stage, tai: float) -> None:
        """Note a stage; the first time counts."""
        visit.entry.stages.setdefault(stage, tai)
        self.open.touch(visit.entry)

    # --- outcomes --------------------------------------------------------

    def _finish(self, event: events.Finish, turn: t.Turn) -> None:
        visit = self.open.of(event.assignment.key)
        assert visit is not None, event.assignment.key
        assert visit.phase is Phase.ASSIGNED, event.assignment.key
        if event.may_have_left:
            # It may have renamed its spool, or set its mark, and then failed
            # or died before it could send a word of it.
            visit.phase, visit.finish = Phase.LEFT, event
            turn.actions.append(t.ReadLeftovers(visit.key))
        else:
            self._judge(visit, event, t.Leftovers(), turn)

    def _leftovers_read(self, event: t.LeftoversRead, turn: t.Turn) -> None:
        visit = self.open.of(event.key)
        assert visit is not None, event.key
        assert visit.finish is not None, event.key
        self._judge(visit, visit.finish, event.remains, turn)

    def _judge(self, visit: VisitDetector, finish: events.Finish, remains: t.Leftovers, turn: t.Turn) -> None:
        """Give an attempt its outcome by its worker's word, or by what it left."""
        entry, assignment = visit.entry, finish.assignment
        entry.pipeline, entry.engine, entry.datasets = finish.pipeline, finish.engine, finish.datasets
        entry.partial = assignment.partial and finish.outcome == Outcome.SUCCEEDED
        entry.no_return = assignment.no_return or remains.no_return
        outcome, reason, spool = finish.outcome, finish.reason, finish.spool
        if spool is None and remains.spool is not None:
            # The worker ended between the last rename and its last word.
            spool = remains.spool
            outcome = Outcome.FAILED if remains.why_partial else Outcome.SUCCEEDED
            reason = remains.why_partial or f"its outputs were complete, though {reason}"
        # What came while the pipeline ran is new to the next attempt, or late.
        missed = [raw for raw in visit.raws.values() if not assignment.has(raw.exposure)]
        retriable = finish.retriable and not entry.no_return and outcome != Outcome.SUCCEEDED
        again = self._end(visit, outcome, reason, turn, retriable=retriable, missed=missed)
        if spool is None:
            folder = self._folders.spooled(*entry.key)
            turn.actions.append(t.Discard((folder.with_name(f"{folder.name}.part"),)))
        elif again:
            # The next attempt makes the same datasets: partial ones would be
            # in its way.
            turn.actions.append(t.Discard((Path(spool),)))
        else:
            turn.actions.append(t.Export(spool))

    def _end(
        self,
        visit: VisitDetector,
        outcome: Outcome,
        reason: str,
        turn: t.Turn,
        *,
        retriable: bool = False,
        missed: Sequence[Raw] = (),
    ) -> bool:
        """Record an outcome or open the next attempt; return whether there is
        a next attempt.

        ``missed`` are raws that came too late for this attempt.
        """
        entry = visit.entry
        entry.retriable = retriable
        entry.seen = tuple(visit.raws.keys() - {raw.exposure for raw in missed})
        again = self._is_worth_another(visit) and not visit.ignored
        if again and visit.cancelled:
            outcome, reason, again = Outcome.CANCELLED, visit.cancelled, False
            entry.retriable = False
        entry.outcome, entry.reason, entry.final = outcome, reason[:MOST_REASON], not again
        entry.ended_tai = self._now.tai
        _LOG.log(
            logging.INFO if outcome in (Outcome.SUCCEEDED, Outcome.IGNORED) else logging.WARNING,
            "%s: %s%s%s",
            entry.key,
            outcome,
            f" ({entry.reason})" if reason else "",
            ", tried again" if again else "",
        )
        self.open.remove(visit)
        if again:
            self._try_again(visit, turn)
        else:
            self._close(entry, missed, turn)
        return again

    def _is_worth_another(self, visit: VisitDetector) -> bool:
        in_time = self._now.mono < visit.assignment.pointless_at
        more = visit.key.attempt < self.config.workers.attempts
        return visit.entry.retriable and in_time and more and not self._stopping

    def _close(self, entry: t.Entry, missed: Iterable[Raw], turn: t.Turn) -> None:
        """Record and report a final outcome."""
        assert entry.outcome is not None, entry.key
        self.outcomes[entry.outcome] += 1
        turn.writes.append(t.Update((self.open.take_change(entry),)))
        turn.actions.append(t.Report((_result(entry),)))
        if entry.no_return:
            turn.actions.append(t.RemoveMark(entry.key))
        self._unmatch(missed, turn)

    def _try_again(self, before: VisitDetector, turn: t.Turn) -> None:
        """End an attempt and queue the next one, in one transaction."""
        assignment = before.assignment.again(avoid=before.entry.slot)
        # It may come after the wait for an image would have ended: the raws
        # that are there have to be found first.
        soonest = self._now.mono + RETRY_WAIT_S + self.config.arrivals.scan_s
        assignment = replace(assignment, no_image_at=max(assignment.no_image_at, soonest))
        entry = self._next(before.entry)
        turn.writes.append(t.Retry(self.open.take_change(before.entry), snapshot(entry)))
        self.open.add(VisitDetector(entry, assignment, Phase.QUEUED, raws=before.raws))
        if not before.raws:  # a previous run may have seen them, long ago
            self._want_rescan(entry.key, turn)
        turn.actions.append(t.Enqueue(assignment))

    # --- a previous run --------------------------------------------------

    def _recover(self, event: t.AttemptRecovered, turn: t.Turn) -> None:
        """Judge an attempt that the previous run left.

        What was spooled has succeeded, or failed as its manifest says; what
        announced nothing permanent and is in time is tried again; all else
        was interrupted.
        """
        entry, remains = event.entry, event.remains
        assignment = self._assignment(entry, self._now.tai - entry.received_tai, event.chosen)
        visit = VisitDetector(entry, assignment, Phase.LEFT, ignored=event.chosen.reason)
        self.open.add(visit)
        entry.no_return = entry.no_return or remains.no_return
        if remains.spool is not None:
            outcome = Outcome.FAILED if remains.why_partial else Outcome.SUCCEEDED
            self._end(visit, outcome, remains.why_partial, turn)
            turn.actions.append(t.Export(remains.spool))
            return
        entry.retriable = not entry.no_return
        reason = "the daemon ended before the visit did"
        if visit.ignored and self._is_worth_another(visit):  # by a configuration that is new
            reason = f"{reason}; now {visit.ignored}"
        self._end(visit, Outcome.INTERRUPTED, reason, turn, retriable=entry.retriable)

    # --- operators -------------------------------------------------------

    def _requeue(self, event: t.RequeueAsked, turn: t.Turn) -> None:
        before: list[t.Entry] = []
        rows: list[RequeueRow] = []
        kept: list[str] = []
        for entry in event.before:
            spool = event.spools.get(entry.key)
            if text := self._objection(entry, event):
                rows.append(requeue_row(entry, text))
                kept += [spool] if spool else []
            else:
                before.append(entry)
                rows.append(requeue_row(entry, risk(entry), entry.key.attempt + 1))
        turn.actions += [t.Export(spool) for spool in kept]
        if not before:
            turn.actions.append(t.Answer(event.request, tuple(rows)))
            return
        again = tuple(self._next(entry) for entry in before)
        for entry, old in zip(again, before, strict=True):
            self._open_reserved(entry, 0.0, event.chosen[old.key])
        spools = tuple(spool for entry in before if (spool := event.spools.get(entry.key)))
        turn.writes.append(t.Requeue(event.request, tuple(before), again, spools, tuple(rows)))

    def _objection(self, entry: t.Entry, event: t.RequeueAsked) -> str:
        if not self.taking:
            return "the node takes no visits now"
        if self.open.find(*entry.key[:3]) is not None:
            return "it is under way"
        if text := objection(entry, force=event.force):
            return text
        if entry.key in event.exporting:
            return "its outputs are being exported: try again in a moment"
        if entry.key in event.spools and entry.outcome == Outcome.SUCCEEDED:
            return "its outputs wait for export: try again when they are in the central repo"
        return ""

    def _next(self, entry: t.Entry) -> t.Entry:
        key = entry.key._replace(attempt=entry.key.attempt + 1)
        stages = {Stage.ACCEPTED: self._now.tai}
        return t.Entry(key, entry.visit, entry.received_tai, stages, asked=entry.asked)

    def _requeued(self, requeue: t.Requeue, turn: t.Turn) -> None:
        # Partial outputs would be in the way of the whole ones.
        if requeue.spools:
            turn.actions.append(t.Discard(tuple(Path(spool) for spool in requeue.spools)))
        for entry in requeue.entries:
            visit = self.open.of(entry.key)
            assert visit is not None, entry.key
            self._admit(visit, turn)
        turn.actions.append(t.Answer(requeue.request, requeue.rows))

    # --- the rest --------------------------------------------------------

    def _seen(self, event: ResultsSeen, turn: t.Turn) -> None:
        turn.writes.append(t.NoteReported(event.entries))

    def _welcome(self, event: Welcome, turn: t.Turn) -> None:
        turn.actions.append(t.ReportAgain())

    def _exported(self, event: Exported, turn: t.Turn) -> None:
        names = (self._folders.read_spooled(spool.rpartition("/")[2]) for spool in event.spools)
        turn.writes.append(t.NoteExported(tuple(Key(*name) for name in names if name), event.tai))
        self._count["datasets_exported"] += event.datasets
        self._count["spools_refused"] += len(event.refused)

    def _acceptance_changed(self, event: t.AcceptanceChanged, turn: t.Turn) -> None:
        self.taking = event.taking

    def _stop(self, event: t.StopBegun, turn: t.Turn) -> None:
        self.taking, self._stopping = False, True
        for visit in self.open:
            if visit.phase is Phase.QUEUED:
                turn.actions.append(t.Dequeue(visit.key))
                self._end(visit, Outcome.INTERRUPTED, "the daemon stopped", turn, retriable=True)

    def _write(self, event: t.WriteDue | t.FlushAsked, turn: t.Turn) -> None:
        if entries := self.open.take_changes():
            turn.writes.append(t.Update(entries))
        if isinstance(event, t.FlushAsked):
            turn.actions.append(t.Answer(event.request))


def _age_s(order: ReserveVisit) -> float:
    """Return how old a visit is by the relay's own clock: the node's may be
    wrong, and no visit is lost for that.
    """
    return order.sent_tai - order.received_tai


def _listed(listed: ExpectedSensors, key: Key) -> events.ExposureListed:
    return events.ExposureListed(listed.exposure, key.detector in listed.detectors)


def _result(entry: t.Entry) -> ResultEntry:
    return ResultEntry(
        instrument=entry.key.instrument,
        group=entry.key.group,
        detector=entry.key.detector,
        attempt=max(entry.key.attempt, entry.asked),
        outcome=entry.outcome or Outcome.INTERRUPTED,
        reason=entry.reason,
    )


_RULES: dict[type, Callable[[Visits, Any, t.Turn], None]] = {
    t.AcceptanceChanged: Visits._acceptance_changed,
    t.AssignmentRefused: Visits._assignment_refused,
    t.AttemptRecovered: Visits._recover,
    CancelVisit: Visits._cancel,
    Drop: Visits._drop,
    ExpectedSensors: Visits._exposure_listed,
    Exported: Visits._exported,
    events.Finish: Visits._finish,
    t.FlushAsked: Visits._write,
    events.RescanRaws: Visits._rescan_wanted,
    events.NoteMeasurements: Visits._note_figures,
    events.NoteRaw: Visits._note_raw,
    events.NoteStage: Visits._note_stage,
    t.NotRecorded: Visits._not_recorded,
    events.RawArrived: Visits._raw_arrived,
    t.Recorded: Visits._recorded,
    t.LeftoversRead: Visits._leftovers_read,
    t.RequeueAsked: Visits._requeue,
    t.RescanDue: Visits._rescan_due,
    t.RescanEnded: Visits._rescan_ended,
    t.Reserved: Visits._reserve,
    ResultsSeen: Visits._seen,
    events.SlotAssigned: Visits._assign,
    t.StopBegun: Visits._stop,
    Welcome: Visits._welcome,
    t.WriteDue: Visits._write,
}
"""What is done with each event."""
