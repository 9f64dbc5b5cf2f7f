# SPDX-License-Identifier: BSD-3-Clause
"""Visits from announcement to outcome: accept, select, assign, judge, report.

Covers everything that concerns a visit-detector rather than a seat. A promise
is in the journal before the relay hears of it, and so is an outcome.
"""

import asyncio
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    CancelVisit,
    Raw,
    ReserveVisit,
)
from ppdaemon.node.arrivals.exposures import ExpectedSensors
from ppdaemon.node.arrivals.index import ArrivalIndex
from ppdaemon.node.assignment import Assignment, Key
from ppdaemon.node.child import wipe
from ppdaemon.node.docket import OpenVisit
from ppdaemon.node.events import (
    CancelReceived,
    ExposureListed,
    Finish,
    LookEnded,
    LookForRaws,
    NoteFigures,
    NoteRaw,
    NoteStage,
    RawArrived,
    VisitAssigned,
)
from ppdaemon.node.journal import Entry
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.lastlook import LastLooks
from ppdaemon.node.neighbours import Neighbours
from ppdaemon.node.pool import VisitAction
from ppdaemon.node.records import Records
from ppdaemon.node.remains import judge_unfinished, spool_failure
from ppdaemon.node.requeue import WITHDRAWN
from ppdaemon.node.scheduler import Drop, Scheduler
from ppdaemon.node.slot import Slot
from ppdaemon.selection import Chosen, Selector
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit, parent_group

__all__ = ("VisitDesk",)

_LOG = logging.getLogger(__name__)

RESULTS_AT_ONCE = 500
MOST_REASON = 500
"""Characters of a reason that are kept."""
MOST_NAME = 240
"""Bytes of a file's name, with room for a dot and a suffix."""
RETRY_WAIT_S = 10.0
"""How long a second attempt waits for raws, besides a scan, at least."""


@dataclass(eq=False, slots=True)
class _Reserving:
    """A reservation that is being written down."""

    order: ReserveVisit
    cancelled: list[CancelVisit] = field(default_factory=list)
    """What came meanwhile: it finds the visit open when that is done."""

    def is_of(self, cancel: CancelVisit) -> bool:
        visit = self.order.visit
        return (visit.instrument, visit.group) == (cancel.instrument, cancel.group)


class VisitDesk:
    """Answers for every accepted visit-detector.

    Parameters
    ----------
    config : `~ppdaemon.config.NodeConfig`
        The node's configuration.
    clock : `~ppdaemon.clock.Clock`
        Deadlines and stamps.
    journal : `~ppdaemon.node.journal.JournalThread`
        Promises and outcomes.
    scheduler : `~ppdaemon.node.scheduler.Scheduler`
        Takes what needs a worker.
    count : `collections.Counter`
        Counts what operators want to know.
    """

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        journal: JournalThread,
        scheduler: Scheduler,
        count: Counter[str],
    ):
        self.records = Records(NodeFolders.of(config), journal, count)
        self.docket = self.records.docket
        self.taking = False
        """Whether new visits are accepted; not while starting or draining."""
        self.retrying = True
        """Whether what failed may be tried again; not while stopping."""
        self.reconfigure(config)
        self._folders = NodeFolders.of(config)
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self._clock = clock
        self._journal = journal
        self._scheduler = scheduler
        self._count = count
        self._landed = ArrivalIndex(config.arrivals.remember_s, clock.mono)
        self._reserving: list[_Reserving] = []

    def meet(self, neighbours: Neighbours) -> None:
        """Learn whom to turn to.

        Parameters
        ----------
        neighbours : `Neighbours`
            The other parts of the node.
        """
        self._neighbours = neighbours
        self.records.meet(neighbours.link.results, neighbours.export)
        self._looks = LastLooks(neighbours.look, self._looked, self.records.keep)

    def reconfigure(self, config: NodeConfig) -> None:
        """Go by other pipelines and limits for what comes from now on.

        Parameters
        ----------
        config : `~ppdaemon.config.NodeConfig`
            The new configuration.
        """
        self._config = config
        self._selector = Selector(config.pipelines.preprocessing, config.pipelines.main)

    # --- from the relay --------------------------------------------------

    async def reserve(self, order: ReserveVisit) -> None:
        """Take a visit's detectors, or say why not.

        Parameters
        ----------
        order : `~ppdaemon.messages.ReserveVisit`
            What the relay asks.
        """
        reserving = _Reserving(order)
        self._reserving.append(reserving)
        try:
            await self._reserve(order)
        finally:
            self._reserving.remove(reserving)
        for cancel in reserving.cancelled:
            self.cancel(cancel)

    async def _reserve(self, order: ReserveVisit) -> None:
        link, visit = self._neighbours.link, order.visit
        if not self.taking:
            link.nak(order, order.detectors, "the node takes no visits now", final=False)
            return
        age = _age_s(order)
        if age > self._config.node.expiry_s:
            link.nak(order, order.detectors, f"expired: announced {age:.0f} s ago", final=True)
            return
        ours = [d for d in order.detectors if d in self._served.get(visit.instrument, ())]
        others = [d for d in order.detectors if d not in ours]
        if others:
            link.nak(order, others, f"{visit.instrument} {others} are not served here", final=True)
        if not ours:
            return
        entries = [self._entry(order, detector) for detector in ours]
        if len(os.fsencode(self._folders.spooled(*entries[-1].key).name)) > MOST_NAME:
            link.nak(order, ours, "failed: the group's name is too long for a file", final=True)
            return
        chosen = await self._choose(visit, ours)
        try:
            new = await self._journal.call(lambda journal: journal.accept(entries))
        except sqlite3.Error as error:
            self.records.failed(error)
            link.nak(order, ours, f"the journal cannot be written: {error}", final=False)
            return
        self.records.problem = ""
        link.ack(order, ours)
        for entry, fresh in zip(entries, new, strict=True):
            if fresh:
                self._take(entry, age, chosen[entry.key.detector])
        self._neighbours.decide()
        known = [entry.key for entry, fresh in zip(entries, new, strict=True) if not fresh]
        if known:
            await self.records.repeat(known)

    def cancel(self, order: CancelVisit) -> None:
        """Let go of a visit that will not be taken.

        Parameters
        ----------
        order : `~ppdaemon.messages.CancelVisit`
            What the relay says.
        """
        for reserving in self._reserving:
            if reserving.is_of(order):
                reserving.cancelled.append(order)
        cancelled = CancelReceived() if order.detectors is None else CancelReceived(WITHDRAWN)
        for visit in self.docket.of_group(order.instrument, order.group):
            if order.detectors is not None and visit.entry.key.detector not in order.detectors:
                continue
            self._scheduler.remove(visit.entry.key)
            if visit.slot is None:
                self._end(visit, Outcome.CANCELLED, cancelled.reason)
            else:
                if order.detectors is not None or not visit.raws:
                    visit.cancelled = cancelled.reason
                self._neighbours.seat(visit.slot, cancelled)

    # --- from the files --------------------------------------------------

    def raw_arrived(self, raw: Raw) -> None:
        """Give a raw to the worker that waits for it, and remember it.

        Parameters
        ----------
        raw : `~ppdaemon.messages.Raw`
            A complete raw.
        """
        self._landed.add(raw)
        visit = self.docket.find(raw.instrument, parent_group(raw.group), raw.detector)
        if visit is None:
            self.records.unclaimed(raw)
            return
        visit.raws.setdefault(raw.exposure, raw)
        if visit.slot is not None:
            self._neighbours.seat(visit.slot, RawArrived(raw))
        else:
            self.docket.reached(visit, Stage.ARRIVED, raw.seen_tai)

    def exposure_listed(self, listed: ExpectedSensors) -> None:
        """Tell the workers of a visit of which detectors an exposure is, and
        remember it.

        Parameters
        ----------
        listed : `~ppdaemon.node.arrivals.exposures.ExpectedSensors`
            What the list says.
        """
        self._landed.add_list(listed)
        for visit in self.docket.of_group(listed.instrument, parent_group(listed.group)):
            if visit.slot is not None:
                self._tell_list(visit.slot, visit.entry.key.detector, listed)

    def _tell_list(self, slot: int, detector: int, listed: ExpectedSensors) -> None:
        self._neighbours.seat(slot, ExposureListed(listed.exposure, detector in listed.detectors))

    # --- from the scheduler ----------------------------------------------

    def assign(self, assignment: Assignment, slot: int, pid: int | None) -> None:
        """Give a visit-detector to an idle seat.

        Parameters
        ----------
        assignment : `~ppdaemon.node.assignment.Assignment`
            What the scheduler has matched.
        slot : `int`
            With which seat.
        pid : `int` or `None`
            Of its worker.
        """
        visit = self.docket.of(assignment.key)
        assert visit is not None, assignment.key
        visit.slot, visit.entry.slot, visit.entry.pid = slot, slot, pid
        self._neighbours.seat(slot, VisitAssigned(assignment))
        for listed in self._landed.lists_of(*assignment.key[:2]):
            self._tell_list(slot, assignment.key.detector, listed)
        for raw in self._landed.of(*assignment.key[:3]):
            visit.raws.setdefault(raw.exposure, raw)
        for raw in visit.raws.values():
            self._neighbours.seat(slot, RawArrived(raw))

    def drop(self, drop: Drop) -> None:
        """End a visit-detector that no worker will serve.

        Parameters
        ----------
        drop : `~ppdaemon.node.scheduler.Drop`
            Which, and why.
        """
        visit = self.docket.of(drop.assignment.key)
        if visit is not None:
            self._end(visit, Outcome.EXPIRED, drop.reason)

    # --- from the seats --------------------------------------------------

    def perform(self, action: VisitAction, slot: Slot) -> None:
        """Do what a slot wants done about its visit.

        Parameters
        ----------
        action : `object`
            `Finish`, `NoteStage`, `NoteFigures`, `NoteRaw` or `LookForRaws`
            of `ppdaemon.node.events`.
        slot : `~ppdaemon.node.slot.Slot`
            Whose.
        """
        match action:
            case NoteStage(key=key, stage=stage, tai=tai):
                if visit := self.docket.of(key):
                    self.docket.reached(visit, stage, self._clock.tai() if tai is None else tai)
            case NoteFigures(key=key, figures=figures):
                if visit := self.docket.of(key):
                    visit.entry.figures |= figures
                    self.docket.touch(visit.entry)
            case NoteRaw(key=key, exposures=exposures, shutter_close_tai=closed):
                if visit := self.docket.of(key):
                    visit.entry.exposures = exposures
                    last = visit.entry.shutter_close_tai
                    visit.entry.shutter_close_tai = max(filter(None, (closed, last)), default=None)
                    self.docket.touch(visit.entry)
            case LookForRaws(key=key):
                if visit := self.docket.of(key):
                    self._looks.want(visit.entry)
            case Finish():
                self._finish(action)
        self.records.write_soon()

    def _looked(self, entry: Entry) -> None:
        visit = self.docket.of(entry.key)
        if visit is not None and visit.slot is not None:
            self._neighbours.seat(visit.slot, LookEnded())

    # --- at the end of a life --------------------------------------------

    async def answer_for_former_life(self) -> int:
        """Answer for what a former life has left.

        What was spooled has succeeded; what has announced nothing permanent
        and is still worth it is tried again; the rest was interrupted.

        Returns
        -------
        count : `int`
            Attempts that had no outcome.
        """
        entries = await self._journal.call(lambda journal: journal.unfinished())
        again = []
        for entry in entries:
            entry.outcome = judge_unfinished(entry, self._folders)
            entry.ended_tai = self._clock.tai()
            chosen = await self._choose_again(entry)
            entry.final = chosen is None
            if chosen is None:
                self.docket.outcomes[entry.outcome] += 1
            else:
                again.append((entry, chosen))
        if entries:
            await self._journal.call(lambda journal: journal.update(entries))
        for entry, chosen in again:
            assignment = self._assignment(entry, self._clock.tai() - entry.received_tai, chosen)
            await self._retry(entry, self._next(OpenVisit(entry, assignment)))
        for mark in self._folders.no_return.iterdir():
            mark.unlink()
        return len(entries)

    async def _choose_again(self, entry: Entry) -> Chosen | None:
        """Return what an attempt of a former life gets now, if it is tried again."""
        in_time = self._clock.tai() - entry.received_tai < self._config.node.expiry_s
        if not (in_time and self._may_go_on(entry)):
            return None
        detector = entry.key.detector
        chosen = (await self._choose(entry.visit, [detector]))[detector]
        if chosen.reason:  # by a configuration that is new
            entry.reason = f"{entry.reason}; now {chosen.reason}"[:MOST_REASON]
            return None
        return chosen

    def _may_go_on(self, entry: Entry) -> bool:
        return entry.retriable and entry.key.attempt < self._config.workers.attempts

    async def take_again(self, entries: Sequence[Entry]) -> None:
        """Queue visit-detectors as if they had been announced just now.

        Parameters
        ----------
        entries : `~collections.abc.Sequence` [`~ppdaemon.node.journal.Entry`]
            New attempts of one visit, in the journal already.
        """
        for entry in entries:
            # One by one: visits of one group may be of several instruments.
            detector = entry.key.detector
            chosen = await self._choose(entry.visit, [detector])
            self._take(entry, 0.0, chosen[detector])
        self._neighbours.decide()

    def interrupt_queued(self) -> None:
        """End what still waits for a worker: the daemon stops."""
        for visit in self.docket:
            self._scheduler.remove(visit.entry.key)
            if visit.slot is None:
                self._end(visit, Outcome.INTERRUPTED, "the daemon stopped", retriable=True)

    # --- inside ----------------------------------------------------------

    def _entry(self, order: ReserveVisit, detector: int) -> Entry:
        key = Key(order.visit.instrument, order.visit.group, detector, order.attempt)
        stages = {Stage.ACCEPTED: self._clock.tai()}
        return Entry(key, order.visit, order.received_tai, stages, asked=order.attempt)

    async def _choose(self, visit: NextVisit, detectors: Sequence[int]) -> dict[int, Chosen]:
        if self._selector.takes_long(visit):
            return await asyncio.to_thread(self._selector.choose, visit, detectors)
        return self._selector.choose(visit, detectors)

    def _take(self, entry: Entry, age_s: float, chosen: Chosen) -> None:
        """Queue an accepted visit-detector, if it gets a pipeline."""
        visit = OpenVisit(entry, self._assignment(entry, age_s, chosen))
        self.docket.add(visit)
        if chosen.reason:
            self._end(visit, Outcome.IGNORED, chosen.reason)
            return
        dropped = self._scheduler.add(visit.assignment)
        if dropped is not None:
            self.drop(dropped)

    def _assignment(self, entry: Entry, age_s: float, chosen: Chosen) -> Assignment:
        announced = self._clock.mono() - max(0.0, age_s)
        return Assignment(
            key=entry.key,
            visit=entry.visit,
            pipelines=chosen.pipelines,
            no_image_at=announced + self._config.arrivals.patience_s(entry.visit),
            pointless_at=announced + self._config.node.expiry_s,
            quiet_s=self._config.arrivals.quiet_s,
        )

    def _finish(self, action: Finish) -> None:
        visit = self.docket.of(action.assignment.key)
        assert visit is not None, action.assignment.key
        entry = visit.entry
        entry.pipeline, entry.engine, entry.datasets = action.pipeline, action.engine, action.datasets
        entry.partial = action.assignment.partial and action.outcome == Outcome.SUCCEEDED
        entry.no_return = action.assignment.no_return
        if not entry.no_return and self._folders.mark(*entry.key).exists():
            entry.no_return = "announced to the disk only"
        outcome, reason, spool = action.outcome, action.reason, action.spool
        folder = self._folders.spooled(*entry.key)
        if spool is None and not folder.is_dir():
            self.records.keep(asyncio.to_thread(wipe, folder.with_name(f"{folder.name}.part")))
        elif spool is None:
            # Stopped between the last rename and its last word.
            spool, why_partial = str(folder), spool_failure(folder)
            outcome = Outcome.FAILED if why_partial else Outcome.SUCCEEDED
            reason = why_partial or f"its outputs were complete, though {reason}"
        # What came while the pipeline ran is new to the next attempt, or late.
        missed = [raw for raw in visit.raws.values() if not action.assignment.has(raw.exposure)]
        retriable = action.retriable and not entry.no_return and outcome != Outcome.SUCCEEDED
        again = self._end(visit, outcome, reason, retriable=retriable, missed=missed)
        if spool is not None and again:
            # The next attempt makes the same datasets: partial ones would be
            # in its way.
            self.records.keep(asyncio.to_thread(wipe, Path(spool)))
        elif spool is not None:
            self.records.export_later(spool)

    def _end(
        self,
        visit: OpenVisit,
        outcome: Outcome,
        reason: str,
        *,
        retriable: bool = False,
        missed: Sequence[Raw] = (),
    ) -> bool:
        """Write an outcome, or try once more; tell whether it is tried again."""
        entry = visit.entry
        entry.retriable = retriable
        entry.seen = tuple(visit.raws.keys() - {raw.exposure for raw in missed})
        in_time = self._clock.mono() < visit.assignment.pointless_at
        again = self.retrying and in_time and self._may_go_on(entry)
        if again and visit.cancelled:
            outcome, reason, again = Outcome.CANCELLED, visit.cancelled, False
            entry.retriable = False
        reason = reason[:MOST_REASON]
        _LOG.log(
            logging.INFO if outcome in (Outcome.SUCCEEDED, Outcome.IGNORED) else logging.WARNING,
            "%s: %s%s%s",
            entry.key,
            outcome,
            f" ({reason})" if reason else "",
            ", tried again" if again else "",
        )
        self.docket.end(visit, outcome, reason, self._clock.tai(), final=not again)
        self.records.write_soon()
        if again:
            self.records.keep(self._retry(entry, self._next(visit)))
        else:
            for raw in missed:
                self.records.unclaimed(raw)
        return again

    def _next(self, visit: OpenVisit) -> OpenVisit:
        """Open the next attempt at a visit-detector."""
        before = visit.entry
        assignment = visit.assignment.again(avoid=visit.slot)
        # It may come after the wait for an image would have ended: the raws
        # that are there have to be found first.
        soonest = self._clock.mono() + RETRY_WAIT_S + self._config.arrivals.scan_s
        assignment = replace(assignment, no_image_at=max(assignment.no_image_at, soonest))
        stages = {Stage.ACCEPTED: self._clock.tai()}
        entry = Entry(
            assignment.key, before.visit, before.received_tai, stages, asked=before.asked, promised=False
        )
        opened = OpenVisit(entry, assignment, raws=visit.raws)
        self.docket.add(opened)
        return opened

    async def _retry(self, before: Entry, visit: OpenVisit) -> None:
        """Journal the next attempt, then queue it if it is still wanted."""
        ended = replace(before, stages=dict(before.stages))
        try:
            await self._journal.call(lambda journal: journal.retry(ended, visit.entry))
        except sqlite3.Error as error:
            self.records.failed(error)
            if self.docket.of(visit.entry.key) is visit:
                self.docket.forget(visit)
            before.final = True
            self.docket.touch(before)
            self.records.write_soon()
            for raw in visit.raws.values():  # what came since is late
                self.records.unclaimed(raw)
            return
        visit.entry.promised = True
        if self.docket.of(visit.entry.key) is not visit:  # cancelled meanwhile, or the daemon stops
            self.records.write_soon()
            return
        if not visit.raws:  # a former life may have seen them, long ago
            self._looks.want(visit.entry)
        dropped = self._scheduler.add(visit.assignment)
        if dropped is not None:
            self.drop(dropped)
        self._neighbours.decide()


def _age_s(order: ReserveVisit) -> float:
    """Return how old a visit is by the relay's own clock: the node's may be
    wrong, and no visit is lost for that.
    """
    return order.sent_tai - order.received_tai
