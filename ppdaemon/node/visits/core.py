# SPDX-License-Identifier: BSD-3-Clause
"""Every decision about a visit-detector from announcement to outcome. Pure code.

`Visits.handle` takes one event and the time and returns `Effects`: journal
writes, and actions to perform after their commit. Covers acceptance,
cancellation, outcomes, retries, requeues, and attempts of a previous run. Its
parts decide about permits (`ppdaemon.node.visits.permits`), raws
(`ppdaemon.node.visits.delivery`) and exported outputs
(`ppdaemon.node.visits.exports`). Does not cover slots
(`ppdaemon.node.slots.slot`), the choice of a slot
(`ppdaemon.node.slots.scheduler`), commits (`ppdaemon.node.visits.pump`), or
any I/O.

The state here is ahead of the disk: it assumes that all writes so far are
committed. That is safe because actions wait for the commit of their own
writes, and because writes are committed in the order of the decisions.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ppdaemon import log
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    CancelVisit,
    Exported,
    ImagesGivenUp,
    PermitRefused,
    Permitted,
    Raw,
    ReserveVisit,
    ResultEntry,
    ResultsSeen,
    Welcome,
)
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.slots import events
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.pipelinehealth import PipelineHealth
from ppdaemon.node.slots.scheduler import Drop
from ppdaemon.node.visits import model
from ppdaemon.node.visits.delivery import RawDelivery
from ppdaemon.node.visits.endedvisits import EndedVisits
from ppdaemon.node.visits.exports import Exports
from ppdaemon.node.visits.fallbacks import Fallbacks
from ppdaemon.node.visits.openvisits import OpenVisits, Permit, Phase, VisitDetector, snapshot
from ppdaemon.node.visits.permits import Permits
from ppdaemon.node.visits.requeue import (
    is_returned,
    refusal_reason,
    requeue_row,
    requeue_warning,
)
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.reports import FALLBACK, REQUEUED, RequeueRow
from ppdaemon.retries import HANDED_BACK, WAITS_FOR_EXPORT, WITHDRAWN
from ppdaemon.selection import PipelineChoice
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit

__all__ = ("Visits",)

_LOG = logging.getLogger(__name__)

MAX_REASON_CHARS = 500
"""Longer reasons are cut: an error text may be pages long, and each result
message carries it."""
MAX_NAME_BYTES = 240
"""Filesystems allow 255 bytes in a file name; the rest is for dot and suffix."""
RETRY_WAIT_S = 10.0
"""A later attempt waits for raws at least this long plus the time of a scan."""


class Visits:
    """All open visit-detectors of a node."""

    def __init__(self, config: NodeConfig, count: Counter[str], ends_at: float = math.inf):
        self.open = OpenVisits()
        self.outcomes: Counter[Outcome] = Counter()
        """Final outcomes since the start."""
        self.health = PipelineHealth()
        self.fallbacks = Fallbacks()
        self.ended = EndedVisits(2 * config.node.expiry_s)
        self.accepting = False
        self.ends_at = ends_at
        """When this host is given back, monotonic seconds."""
        self.config = config
        self._count = count
        self._folders = NodeFolders.of(config)
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self._stopping = False
        self._no_slot = ""
        """Why no slot can take a visit-detector; blank if some can."""
        self._handing_back = ""
        """Why detectors that no worker can process are handed back to the relay; blank if they are not."""
        self._now = model.Now(0.0, 0.0)
        self._permits = Permits(config, self.open)
        self._exports = Exports(self._folders, count)
        self._raws = RawDelivery(self.open, config.arrivals.remember_s, lambda: self._now.mono)
        self._rules = self._all_rules()

    def handle(self, event: object, now: model.Now) -> model.Effects:
        """Return the effects of an event."""
        self._now = now
        effects = model.Effects()
        self._rules[type(event)](event, effects)
        effects.write_soon = self.open.changed
        effects.ask_again = self._permits.unanswered
        return effects

    def _all_rules(self) -> dict[type, Callable[[Any, model.Effects], None]]:
        """Return what handles each type of event."""
        return {
            model.AcceptanceChanged: self._acceptance_changed,
            model.AssignmentRefused: self._assignment_refused,
            model.AttemptRecovered: self._recover,
            CancelVisit: self._cancel,
            events.AskToCross: self._permits.crossing_asked,
            model.PermitsDue: self._permits.due,
            Permitted: self._permits.permitted,
            PermitRefused: self._permit_refused,
            model.RelayLost: self._permits.relay_lost,
            Drop: self._drop,
            ExpectedSensors: self._raws.exposure_listed,
            Exported: self._exports.exported,
            ImagesGivenUp: self._exports.images_given_up,
            events.Finish: self._finish,
            model.FlushRequested: self._write,
            events.RescanRaws: self._raws.rescan_requested,
            events.NoteMeasurements: self._note_figures,
            events.NoteRaw: self._note_raw,
            events.NoteRecycled: self._note_recycled,
            events.NoteStage: self._note_stage,
            model.WriteFailed: self._write_failed,
            events.RawArrived: self._raws.raw_arrived,
            model.WriteCommitted: self._write_committed,
            model.LeftoversRead: self._leftovers_read,
            model.RequeueRequested: self._requeue,
            model.RescanDue: self._raws.rescan_due,
            model.RescanFinished: self._raws.rescan_finished,
            model.Reserved: self._reserve,
            ResultsSeen: self._mark_reported,
            events.SlotAssigned: self._assign,
            model.SlotsChanged: self._slots_changed,
            model.StopStarted: self._stop,
            Welcome: self._welcome,
            model.WriteDue: self._write,
        }

    @property
    def _retry_s(self) -> float:
        """The time after which a pipeline that is set aside gets a visit-detector again."""
        return self.config.workers.times.probe_s

    @property
    def takes_until(self) -> float:
        """Monotonic time after which not even the shortest visit could end before this host is given back."""
        return self.ends_at - self.config.arrivals.image_timeout_s - self.config.workers.times.after_images_s

    def _longest_s(self, visit: NextVisit) -> float:
        """Return how long after its announcement a visit may end at the latest."""
        return self.config.arrivals.image_deadline_s(visit) + self.config.workers.times.after_images_s

    # --- reservations ----------------------------------------------------

    def _reserve(self, event: model.Reserved, effects: model.Effects) -> None:
        message, visit = event.message, event.message.visit
        age_s = _age_s(message)
        left = list(message.detectors)
        present = {d: found for d in left if (found := self.open.find(visit.instrument, visit.group, d))}

        def refuse(refused: list[int], reason: str, *, final: bool = False) -> None:
            if refused:
                effects.actions.append(model.Refuse(message, tuple(refused), reason, final=final))
                left[:] = [detector for detector in left if detector not in refused]

        text, final = self._why_not_taken(visit, age_s)
        if text:  # those present have lost their acknowledgement: refused, they would run on two nodes
            refuse([detector for detector in left if detector not in present], text, final=final)
        withdrawn = [detector for detector, found in present.items() if found.withdrawn]
        refuse(withdrawn, "the previous attempt is being withdrawn")
        served = self._served.get(visit.instrument, frozenset())
        unserved = [detector for detector in left if detector not in served]
        refuse(unserved, f"{visit.instrument} {unserved} are not served here", final=True)
        if not left:
            return
        entries = tuple(self._new_entry(message, detector, age_s) for detector in left)
        if len(os.fsencode(self._folders.spooled(*entries[-1].key).name)) > MAX_NAME_BYTES:
            refuse(left, "failed: the group's name is too long for a file", final=True)
            return
        for entry in entries:
            # An open visit-detector keeps its attempt: whether this one is new
            # is decided by the journal.
            if self.open.find(*entry.key[:3]) is None:
                self._open_reserved(entry, age_s, event.chosen[entry.key.detector])
        effects.writes.append(model.Accept(event, entries))

    def _why_not_taken(self, visit: NextVisit, age_s: float) -> tuple[str, bool]:
        """Return why a visit is not taken, and whether that is final; blank if it is taken."""
        if not self.accepting:
            return "the node takes no visits now", False
        if self._no_slot:
            return self._no_slot, False
        if age_s > self.config.node.expiry_s:
            return f"expired: announced {age_s:.0f} s ago", True
        left_s = self.ends_at - self._now.mono
        if self._longest_s(visit) - max(0.0, age_s) > left_s:
            return f"this host is given back in {max(0.0, left_s):.0f} s, before the visit's deadline", False
        return "", False

    def _new_entry(self, message: ReserveVisit, detector: int, age_s: float) -> model.JournalEntry:
        key = Key(message.visit.instrument, message.visit.group, detector, message.attempt)
        stages = {Stage.ACCEPTED: self._now.tai}
        return model.JournalEntry(
            key,
            message.visit,
            message.received_tai,
            stages,
            asked=message.attempt,
            received_mono=self._now.mono - max(0.0, age_s),
        )

    def _open_reserved(
        self, entry: model.JournalEntry, age_s: float, chosen: PipelineChoice
    ) -> VisitDetector:
        assignment = self._assignment(entry, age_s, chosen)
        visit = VisitDetector(entry, assignment, Phase.RESERVED, ignored=chosen.reason)
        self.open.add(visit)
        self._raws.note_announced(entry.key[:2])
        return visit

    def _assignment(self, entry: model.JournalEntry, age_s: float, chosen: PipelineChoice) -> Assignment:
        announced = self._now.mono - max(0.0, age_s)
        return Assignment(
            key=entry.key,
            visit=entry.visit,
            pipelines=chosen.pipelines,
            image_deadline=announced + self.config.arrivals.image_deadline_s(entry.visit),
            expires_at=announced + self.config.node.expiry_s,
            quiet_s=self.config.arrivals.quiet_s,
        )

    def _write_committed(self, event: model.WriteCommitted, effects: model.Effects) -> None:
        match event.write, event.result:
            case model.Accept() as accept, list() as attempts:
                self._accept(accept, attempts, effects)
            case model.Requeue() as requeue, _:
                self._requeued(requeue, effects)
            case model.RecordLateRaws(), (int() as late, int() as unmatched):
                self._count["late_raws"] += late
                self._count["raw_without_visit"] += unmatched
                self._raws.looked_up(effects)
            case unexpected:
                raise AssertionError(unexpected)

    def _write_failed(self, event: model.WriteFailed, effects: model.Effects) -> None:
        for entry in event.write.entries:
            visit = self.open.get(entry.key)
            # Of another message or of a requeue it is still going to be written.
            if visit is not None and visit.entry is entry and visit.phase is Phase.RESERVED:
                self._close_reserved(visit, effects)
        match event.write:
            case model.Accept(reserved=reserved, entries=entries):
                detectors = tuple(entry.key.detector for entry in entries)
                effects.actions.append(model.Refuse(reserved.message, detectors, event.reason, final=False))
            case model.Requeue(request=request, spools=spools):
                effects.actions += [model.Export(spool) for spool in spools]
                effects.actions.append(model.Reply(request, (), refused=event.reason))

    def _accept(self, accept: model.Accept, attempts: list[int | None], effects: model.Effects) -> None:
        detectors = tuple(entry.key.detector for entry in accept.entries)
        message, chosen = accept.reserved.message, accept.reserved.chosen
        effects.actions.append(model.Acknowledge(message, detectors))
        ended = []
        for entry, attempt in zip(accept.entries, attempts, strict=True):
            visit = self.open.find(*entry.key[:3])
            if attempt is not None:
                if visit is None or visit.entry is not entry:
                    # It was open because of an earlier message, whose write
                    # has failed in the meantime.
                    visit = self._open_reserved(entry, _age_s(message), chosen[entry.key.detector])
                if attempt != entry.key.attempt:
                    entry.key = entry.key._replace(attempt=attempt)
                    visit.assignment = visit.assignment._replace(key=entry.key)
                self._admit(visit, effects)
            elif visit is None:
                ended.append(entry.key)
            elif visit.phase is Phase.RESERVED and visit.entry is entry:
                self._close_reserved(visit, effects)
                ended.append(entry.key)
            elif entry.key.attempt > visit.entry.asked:
                visit.entry.asked = entry.key.attempt
                self._permits.ask_anew(visit, effects)
        if ended:  # the relay has not received their outcomes
            effects.writes.append(model.MarkUnreported(tuple(ended)))
            effects.actions.append(model.ResendResults())

    def _close_reserved(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Remove a visit-detector that is not in the journal."""
        self.open.remove(visit)
        self._raws.look_up(visit.raws.values(), effects)

    def _admit(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Queue a visit-detector that the journal has just accepted."""
        self._raws.take_early(visit)
        self._queue(visit, effects)

    def _queue(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Queue a visit-detector, or end it if processing it would be useless."""
        visit.phase = Phase.QUEUED
        if visit.ignored:
            self._end(visit, Outcome.IGNORED, visit.ignored, effects)
        elif visit.cancelled:
            self._end(visit, Outcome.CANCELLED, visit.cancelled, effects)
        elif self._handing_back and not visit.requeued:
            self._end(visit, Outcome.CANCELLED, self._handing_back, effects)
        elif self._stopping:
            self._end(visit, Outcome.INTERRUPTED, "the daemon stopped", effects, retriable=True)
        else:
            effects.actions.append(model.Enqueue(visit.assignment))

    def _cancel(self, event: CancelVisit, effects: model.Effects) -> None:
        visits, reason = self.open.in_group(event.instrument, event.group), events.CancelReceived().reason
        if visits and event.detectors is None:
            with log.about(instrument=event.instrument, group=event.group):
                _LOG.info("%s %s with %d detectors: %s", event.instrument, event.group, len(visits), reason)
        for visit in visits:
            if event.attempt is not None and event.attempt < visit.entry.asked:
                continue
            if event.detectors is not None:
                # What an operator has requested again is not the relay's.
                if visit.key.detector in event.detectors and not visit.requeued:
                    self._withdraw(visit, effects)
                continue
            match visit.phase:
                case Phase.RESERVED:
                    visit.cancelled = reason
                case Phase.QUEUED:
                    effects.actions.append(model.Dequeue(visit.key))
                    self._end(visit, Outcome.CANCELLED, reason, effects)
                case Phase.ASSIGNED | Phase.RECOVERING:
                    # A canceled visit with raws was observed nevertheless and may be retried.
                    if not visit.raws:
                        visit.cancelled = reason
                    visit.send(events.CancelReceived(reason), effects)

    def _withdraw(self, visit: VisitDetector, effects: model.Effects) -> None:
        """End a visit-detector that this node may not finish, unless it has crossed."""
        self._permits.remove(visit)
        visit.withdrawn, visit.cancelled, visit.permit = True, WITHDRAWN, Permit.NONE
        match visit.phase:
            case Phase.QUEUED:
                effects.actions.append(model.Dequeue(visit.key))
                self._end(visit, Outcome.CANCELLED, WITHDRAWN, effects)
            case Phase.ASSIGNED:
                visit.send(events.Withdrawn(WITHDRAWN), effects)

    def _permit_refused(self, event: PermitRefused, effects: model.Effects) -> None:
        for visit in self._permits.named(event.visits):
            if not visit.entry.no_return:
                self._withdraw(visit, effects)

    # --- slots -----------------------------------------------------------

    def _assign(self, event: events.SlotAssigned, effects: model.Effects) -> None:
        visit = self.open.get(event.assignment.key)
        if visit is None or visit.phase is not Phase.QUEUED:  # it ended before this event
            effects.actions.append(model.LeaveIdle(event.slot))
            return
        visit.phase = Phase.ASSIGNED
        visit.entry.slot, visit.entry.pid = event.slot, event.pid
        chosen = self.health.choose(visit.assignment.pipelines, self._now.mono, self._retry_s)
        assignment = visit.assignment
        if chosen is not assignment.pipelines:  # the next attempt chooses again, from all of them
            assignment = assignment._replace(pipelines=chosen)
        visit.send(events.VisitAssigned(assignment), effects)
        self._raws.deliver(visit, effects)

    def _assignment_refused(self, event: model.AssignmentRefused, effects: model.Effects) -> None:
        visit = self.open.get(event.key)
        if visit is None or visit.phase is not Phase.ASSIGNED:
            return
        visit.entry.slot = visit.entry.pid = None
        self._queue(visit, effects)

    def _drop(self, event: Drop, effects: model.Effects) -> None:
        visit = self.open.get(event.assignment.key)
        if visit is not None and visit.phase is Phase.QUEUED:
            self._end(visit, Outcome.EXPIRED, event.reason, effects)

    def _note_stage(self, event: events.NoteStage, effects: model.Effects) -> None:
        if visit := self.open.get(event.key):
            assert event.tai is not None, event
            self.open.reached(visit, event.stage, event.tai)
            if event.stage is Stage.INGESTED:  # long before the permit is needed
                self._permits.ask(visit, effects)

    def _note_figures(self, event: events.NoteMeasurements, effects: model.Effects) -> None:
        if visit := self.open.get(event.key):
            visit.entry.figures |= event.figures
            self.open.mark_changed(visit.entry)

    def _note_raw(self, event: events.NoteRaw, effects: model.Effects) -> None:
        if visit := self.open.get(event.key):
            entry = visit.entry
            entry.exposures = event.exposures
            closed = (event.shutter_close_tai, entry.shutter_close_tai)
            entry.shutter_close_tai = max(filter(None, closed), default=None)
            self.open.mark_changed(entry)

    def _note_recycled(self, event: events.NoteRecycled, effects: model.Effects) -> None:
        effects.writes.append(model.CountRecycled(event.cause, self._now.tai))

    # --- outcomes --------------------------------------------------------

    def _finish(self, event: events.Finish, effects: model.Effects) -> None:
        visit = self.open.get(event.assignment.key)
        assert visit is not None, event.assignment.key
        assert visit.phase is Phase.ASSIGNED, event.assignment.key
        if event.worker_died is not None:
            with _about(visit.entry):
                if event.worker_died:
                    assert visit.entry.slot is not None, visit.key
                    slot = visit.entry.slot
                    self.health.died(event.assignment, slot, event.reason, self._now.mono, self._retry_s)
                else:
                    self.health.lived(event.assignment, self._now.mono)
        if event.may_have_leftovers:
            # The worker may have renamed its spool or written its mark, and
            # then failed or died before it could send a message about it.
            visit.phase, visit.finish = Phase.RECOVERING, event
            effects.actions.append(model.ReadLeftovers(visit.key))
        else:
            self._resolve(visit, event, model.Leftovers(), effects)

    def _leftovers_read(self, event: model.LeftoversRead, effects: model.Effects) -> None:
        visit = self.open.get(event.key)
        assert visit is not None, event.key
        assert visit.finish is not None, event.key
        self._resolve(visit, visit.finish, event.leftovers, effects)

    def _resolve(
        self, visit: VisitDetector, finish: events.Finish, leftovers: model.Leftovers, effects: model.Effects
    ) -> None:
        """End an attempt with the outcome that its worker sent or that follows
        from its leftovers.
        """
        entry, assignment = visit.entry, finish.assignment
        entry.pipeline, entry.engine, entry.datasets = finish.pipeline, finish.engine, finish.datasets
        self._note_fallback(visit, finish)
        entry.partial = assignment.partial and finish.outcome == Outcome.SUCCEEDED
        entry.no_return = assignment.no_return or leftovers.no_return
        outcome, reason, spool = finish.outcome, finish.reason, finish.spool
        if spool is None and leftovers.spool is not None:
            # The worker ended between the rename of its spool and its last message.
            spool = leftovers.spool
            outcome = Outcome.FAILED if leftovers.why_partial else Outcome.SUCCEEDED
            reason = leftovers.why_partial or f"its outputs were complete, though {reason}"
        # Raws that arrived while the pipeline ran are used by the next attempt,
        # or they are late.
        missed = [raw for raw in visit.raws.values() if not assignment.has(raw.exposure)]
        retriable = finish.retriable and not entry.no_return and outcome != Outcome.SUCCEEDED
        again = self._end(visit, outcome, reason, effects, retriable=retriable, missed=missed)
        if spool is None:
            if assignment.has_run:
                name = f"{self._folders.spooled(*entry.key).name}.part"
                parents = *self._folders.disk_spools, self._folders.ramdisk_spool
                effects.actions.append(model.Discard(tuple(parent / name for parent in parents)))
        elif again or is_returned(entry):
            # The next attempt, here or on another node, writes the same datasets: partial ones in the
            # central repo would collide with them.
            effects.actions.append(model.Discard((Path(spool),)))
        else:
            effects.actions.append(model.Export(spool))

    def _note_fallback(self, visit: VisitDetector, finish: events.Finish) -> None:
        """Record whether another than the first pipeline of the rule ran."""
        if not (finish.pipeline or finish.fallback):  # none has run
            return
        # All of the rule: the worker does not get those that are set aside.
        first, *others = map(pipeline_name, visit.assignment.pipelines.main or ("",))
        if finish.fallback or finish.pipeline in others:
            reason = finish.fallback[:MAX_REASON_CHARS]
            if reason:
                self.fallbacks.replaced(first, finish.pipeline, visit.key[:2], reason, self._now.mono)
            visit.entry.figures[FALLBACK] = {"first": first, "reason": reason or f"{first} is set aside"}
        elif finish.pipeline and finish.outcome == Outcome.SUCCEEDED:
            self.fallbacks.succeeded(first)

    def _end(
        self,
        visit: VisitDetector,
        outcome: Outcome,
        reason: str,
        effects: model.Effects,
        *,
        retriable: bool = False,
        missed: Sequence[Raw] = (),
    ) -> bool:
        """Record an outcome or open the next attempt; return whether there is
        a next attempt.

        ``missed`` are raws that arrived too late for this attempt.
        """
        entry = visit.entry
        entry.retriable = retriable
        entry.seen = tuple(visit.raws.keys() - {raw.exposure for raw in missed})
        again = self._may_retry(visit) and not visit.ignored
        if again and visit.cancelled:
            outcome, reason, again = Outcome.CANCELLED, visit.cancelled, False
            entry.retriable = False
        if entry.no_return and reason.startswith(HANDED_BACK):  # another node would write it again
            outcome, reason = Outcome.INTERRUPTED, "the daemon stopped"
        elif self._stopping and self._handing_back and entry.retriable and not visit.requeued:
            outcome, reason = Outcome.CANCELLED, self._handing_back
        entry.outcome, entry.reason, entry.final = outcome, reason[:MAX_REASON_CHARS], not again
        entry.ended_tai = self._now.tai
        level = _log_level(outcome, reason)
        if _LOG.isEnabledFor(level):  # the fields of a line cost more than the decision
            with _about(entry):
                _LOG.log(
                    level,
                    "%s: %s%s%s",
                    entry.key,
                    outcome,
                    f" ({entry.reason})" if reason else "",
                    ", retrying" if again else "",
                )
        self.open.remove(visit)
        self._permits.remove(visit)
        if again:
            self._retry(visit, effects)
        else:
            self._close(entry, missed, effects)
        return again

    def _may_retry(self, visit: VisitDetector) -> bool:
        in_time = self._now.mono < visit.assignment.expires_at
        # The relay's numbers are not attempts of this node.
        more = visit.key.attempt - visit.entry.asked + 1 < self.config.workers.attempts
        return visit.entry.retriable and in_time and more and not self._stopping

    def _close(self, entry: model.JournalEntry, missed: Iterable[Raw], effects: model.Effects) -> None:
        """Record and report a final outcome."""
        assert entry.outcome is not None, entry.key
        self.outcomes[entry.outcome] += 1
        effects.writes.append(model.Update((self.open.take_change(entry),)))
        effects.actions.append(model.SendResults((_result(entry),)))
        # Performed after the commit: a crash before it leaves the mark for the next start.
        if entry.no_return:
            effects.actions.append(model.Discard((self._folders.mark(*entry.key),)))
        self._raws.look_up(missed, effects)

    def _retry(self, before: VisitDetector, effects: model.Effects) -> None:
        """End an attempt and queue the next one, in one transaction."""
        assignment = before.assignment.again(avoid=before.entry.slot)
        # The image deadline may have passed already, but existing raws have to
        # be found first.
        earliest = self._now.mono + RETRY_WAIT_S + self.config.arrivals.scan_s
        assignment = assignment._replace(image_deadline=max(assignment.image_deadline, earliest))
        entry = self._next(before.entry)
        effects.writes.append(model.Retry(self.open.take_change(before.entry), snapshot(entry)))
        permit = Permit.GRANTED if before.permit is Permit.GRANTED else Permit.NONE
        visit = VisitDetector(entry, assignment, Phase.QUEUED, raws=before.raws, permit=permit)
        self.open.add(visit)
        if not before.raws:  # they may have arrived in a previous run
            self._raws.request_rescan(entry.key, effects)
        self._queue(visit, effects)

    # --- a previous run --------------------------------------------------

    def _recover(self, event: model.AttemptRecovered, effects: model.Effects) -> None:
        """End or retry an attempt of the previous run.

        With a spool, the outcome is that in the manifest. Without
        one it was interrupted, and is retried if it has written nothing
        permanent and there is time.
        """
        entry, leftovers = event.entry, event.leftovers
        assignment = self._assignment(entry, self._now.mono - entry.received_mono, event.chosen)
        visit = VisitDetector(entry, assignment, Phase.RECOVERING, ignored=event.chosen.reason)
        self.open.add(visit)
        entry.no_return = entry.no_return or leftovers.no_return
        if leftovers.spool is not None:
            outcome = Outcome.FAILED if leftovers.why_partial else Outcome.SUCCEEDED
            self._end(visit, outcome, leftovers.why_partial, effects)
            effects.actions.append(model.Export(leftovers.spool))
            return
        entry.retriable = not entry.no_return
        reason = "the daemon ended before the visit did"
        if visit.ignored and self._may_retry(visit):  # the configuration has changed
            reason = f"{reason}; now {visit.ignored}"
        self._end(visit, Outcome.INTERRUPTED, reason, effects, retriable=entry.retriable)

    # --- operators -------------------------------------------------------

    def _requeue(self, event: model.RequeueRequested, effects: model.Effects) -> None:
        before: list[model.JournalEntry] = []
        rows: list[RequeueRow] = []
        returned: list[str] = []
        for entry in event.before:
            spool = event.spools.get(entry.key)
            if text := self._refusal_reason(entry, event):
                rows.append(requeue_row(entry, text))
                returned += [spool] if spool else []
            else:
                before.append(entry)
                rows.append(requeue_row(entry, requeue_warning(entry), entry.key.attempt + 1))
        effects.actions += [model.Export(spool) for spool in returned]
        if not before:
            effects.actions.append(model.Reply(event.request, tuple(rows)))
            return
        again = tuple(self._next(entry) for entry in before)
        for entry in again:
            entry.figures[REQUEUED] = True
            entry.received_mono = self._now.mono  # its time limit counts from now, also after a restart
        for entry, old in zip(again, before, strict=True):
            self._open_reserved(entry, 0.0, event.chosen[old.key])
        spools = tuple(spool for entry in before if (spool := event.spools.get(entry.key)))
        effects.writes.append(model.Requeue(event.request, tuple(before), again, spools, tuple(rows)))

    def _refusal_reason(self, entry: model.JournalEntry, event: model.RequeueRequested) -> str:
        if not self.accepting:
            return "the node takes no visits now"
        if self.open.find(*entry.key[:3]) is not None:
            return "it is under way"
        if text := refusal_reason(entry, force=event.force, lost=entry.key in event.lost):
            return text
        # Until then the relay may give it to another node, which writes permanently, too.
        if self.config.shares_visits and not (entry.reported or event.force):
            return "the relay has not confirmed its outcome: try again when it has; --force does not wait"
        if entry.key in event.exporting:
            return "its outputs are being exported: try again in a moment"
        if entry.key in event.spools and entry.outcome == Outcome.SUCCEEDED:
            return WAITS_FOR_EXPORT
        return ""

    def _next(self, entry: model.JournalEntry) -> model.JournalEntry:
        key = entry.key._replace(attempt=entry.key.attempt + 1)
        stages = {Stage.ACCEPTED: self._now.tai}
        figures = {REQUEUED: True} if REQUEUED in entry.figures else {}
        return model.JournalEntry(
            key,
            entry.visit,
            entry.received_tai,
            stages,
            figures=figures,
            asked=entry.asked,
            received_mono=entry.received_mono,
        )

    def _requeued(self, requeue: model.Requeue, effects: model.Effects) -> None:
        # Partial outputs in the central repo would collide with the complete
        # ones of the next attempt.
        if requeue.spools:
            effects.actions.append(model.Discard(tuple(Path(spool) for spool in requeue.spools)))
        for entry in requeue.entries:
            visit = self.open.get(entry.key)
            assert visit is not None, entry.key
            self._admit(visit, effects)
        effects.actions.append(model.Reply(requeue.request, requeue.rows))

    # --- relay, daemon -----------------------------------------------------

    def _mark_reported(self, event: ResultsSeen, effects: model.Effects) -> None:
        self.ended.confirm(event.entries, event.moved)
        effects.writes.append(model.MarkReported(event.entries, event.moved))

    def _welcome(self, event: Welcome, effects: model.Effects) -> None:
        effects.actions.append(model.ResendResults())
        self._permits.relay_answers(effects)

    def _acceptance_changed(self, event: model.AcceptanceChanged, effects: model.Effects) -> None:
        self.accepting = event.accepting

    def _stop(self, event: model.StopStarted, effects: model.Effects) -> None:
        self.accepting, self._stopping = False, True
        self._handing_back = f"{HANDED_BACK}: the node stops" if event.hand_back else ""
        self._queue_again(effects)
        if self._handing_back:
            for visit in self.open:
                if not visit.requeued:  # a slot that processes the visit disregards this
                    visit.send(events.CancelReceived(self._handing_back), effects)

    def _slots_changed(self, event: model.SlotsChanged, effects: model.Effects) -> None:
        self._no_slot = event.problem
        if not self._stopping:
            self._handing_back = f"{HANDED_BACK}: {event.problem}" if event.hand_back else ""
            if self._handing_back:
                self._queue_again(effects)

    def _queue_again(self, effects: model.Effects) -> None:
        """End those queued visit-detectors that are to be queued no longer."""
        for visit in self.open:
            if visit.phase is Phase.QUEUED:
                effects.actions.append(model.Dequeue(visit.key))
                self._queue(visit, effects)

    def _write(self, event: model.WriteDue | model.FlushRequested, effects: model.Effects) -> None:
        if entries := self.open.take_changes():
            effects.writes.append(model.Update(entries))
        if isinstance(event, model.FlushRequested):
            effects.actions.append(model.Reply(event.request))


def _age_s(message: ReserveVisit) -> float:
    """Return the age of a visit by the relay's clock: a wrong clock of the
    node must not make visits expire.
    """
    return message.sent_tai - message.received_tai


def _about(entry: model.JournalEntry) -> AbstractContextManager[None]:
    """Add an attempt to the lines that are logged within."""
    return log.about(
        **entry.key._asdict(),
        slot=entry.slot,
        stage=max(entry.stages, key=list(Stage).index, default=None),
        exposure=min(entry.exposures or entry.seen, default=None),
        outcome=entry.outcome,
    )


def _log_level(outcome: Outcome, reason: str) -> int:
    """Return the level of the line about an outcome."""
    if outcome == Outcome.CANCELLED and reason == events.CancelReceived().reason:
        return logging.DEBUG  # one line for the visit: those of all detectors would delay their cancellation
    return logging.INFO if outcome in (Outcome.SUCCEEDED, Outcome.IGNORED) else logging.WARNING


def _result(entry: model.JournalEntry) -> ResultEntry:
    return ResultEntry(
        instrument=entry.key.instrument,
        group=entry.key.group,
        detector=entry.key.detector,
        attempt=max(entry.key.attempt, entry.asked),
        outcome=entry.outcome or Outcome.INTERRUPTED,
        reason=entry.reason,
        asked=entry.asked,
        returned=is_returned(entry) or None,
    )
