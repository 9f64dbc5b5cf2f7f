# SPDX-License-Identifier: BSD-3-Clause
"""Visits from announcement to outcome: accept, select, assign, judge, report.

Covers everything that concerns a visit-detector rather than a seat. A promise
is in the journal before the relay hears of it, and so is an outcome.
"""

import asyncio
import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    CancelVisit,
    Pipelines,
    Raw,
    ReserveVisit,
    ResultEntry,
)
from ppdaemon.node.arrivals.index import ArrivalIndex
from ppdaemon.node.assignment import Assignment, Key
from ppdaemon.node.child import wipe
from ppdaemon.node.docket import OpenVisit
from ppdaemon.node.events import CancelReceived, Finish, NoteRaw, NoteStage, RawArrived, VisitAssigned
from ppdaemon.node.journal import Entry, JournalThread
from ppdaemon.node.pool import VisitAction
from ppdaemon.node.records import Records
from ppdaemon.node.scheduler import Drop, Scheduler
from ppdaemon.node.slot import Slot
from ppdaemon.selection import select
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit, parent_group

__all__ = ("Link", "Neighbours", "VisitDesk")

_LOG = logging.getLogger(__name__)

RESULTS_AT_ONCE = 500
MOST_REASON = 500
"""Characters of a reason that are kept."""
MOST_NAME = 240
"""Bytes of a file's name, with room for a dot and a suffix."""
RETRY_WAIT_S = 10.0
"""How long a second attempt waits for raws, besides a scan, at least."""


class Link(Protocol):
    """What the desk says to the relay."""

    def ack(self, visit: ReserveVisit, detectors: Sequence[int]) -> None:
        """Tell that the journal has these detectors."""

    def nak(self, visit: ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool) -> None:
        """Tell that these detectors are not taken."""

    def results(self, entries: Sequence[ResultEntry]) -> None:
        """Tell outcomes."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Whom the desk turns to."""

    link: Link
    seat: Callable[[int, object], None]
    """Gives a slot an event."""
    export: Callable[[str], None]
    """Gives the exporter a spool."""
    decide: Callable[[], None]
    """Wakes the scheduler."""


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
        self._config = config
        self._folders = NodeFolders.of(config)
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self._clock = clock
        self._journal = journal
        self._scheduler = scheduler
        self._count = count
        self._landed = ArrivalIndex(config.arrivals.remember_s, clock.mono)

    def meet(self, neighbours: Neighbours) -> None:
        """Learn whom to turn to.

        Parameters
        ----------
        neighbours : `Neighbours`
            The other parts of the node.
        """
        self._neighbours = neighbours
        self.records.meet(neighbours.link.results, neighbours.export)

    def reconfigure(self, config: NodeConfig) -> None:
        """Go by other pipelines and limits for what comes from now on.

        Parameters
        ----------
        config : `~ppdaemon.config.NodeConfig`
            The new configuration.
        """
        self._config = config

    # --- from the relay --------------------------------------------------

    async def reserve(self, order: ReserveVisit) -> None:
        """Take a visit's detectors, or say why not.

        Parameters
        ----------
        order : `~ppdaemon.messages.ReserveVisit`
            What the relay asks.
        """
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
                self._take(entry, age)
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
        for visit in self.docket.of_group(order.instrument, order.group):
            if order.detectors is not None and visit.entry.key.detector not in order.detectors:
                continue
            self._scheduler.remove(visit.entry.key)
            if visit.slot is None:
                self._end(visit, Outcome.CANCELLED, "cancelled by the telescope")
            else:
                self._neighbours.seat(visit.slot, CancelReceived())

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
            self._count["raw_without_visit"] += 1
            return
        visit.raws.setdefault(raw.exposure, raw)
        if visit.slot is not None:
            self._neighbours.seat(visit.slot, RawArrived(raw))
        else:
            self.docket.reached(visit, Stage.ARRIVED, raw.seen_tai)

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
            `Finish`, `NoteStage` or `NoteRaw` of `ppdaemon.node.events`.
        slot : `~ppdaemon.node.slot.Slot`
            Whose.
        """
        match action:
            case NoteStage(key=key, stage=stage, tai=tai):
                if visit := self.docket.of(key):
                    self.docket.reached(visit, stage, self._clock.tai() if tai is None else tai)
            case NoteRaw(key=key, exposures=exposures, shutter_close_tai=closed):
                if visit := self.docket.of(key):
                    visit.entry.exposures = exposures
                    last = visit.entry.shutter_close_tai
                    visit.entry.shutter_close_tai = max(filter(None, (closed, last)), default=None)
                    self.docket.touch(visit.entry)
            case Finish():
                self._finish(action)
        self.records.write_soon()

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
            mark = self._folders.mark(*entry.key)
            if mark.exists():
                entry.no_return = entry.no_return or mark.read_text() or "something permanent"
            folder = self._folders.spooled(*entry.key)
            if folder.is_dir():
                entry.reason = spool_failure(folder)
                entry.outcome = Outcome.FAILED if entry.reason else Outcome.SUCCEEDED
            else:
                entry.outcome, entry.reason = Outcome.INTERRUPTED, "the daemon ended before the visit did"
                entry.retriable = not entry.no_return
            entry.ended_tai = self._clock.tai()
            in_time = self._clock.tai() - entry.received_tai < self._config.node.expiry_s
            entry.final = not (in_time and self._may_go_on(entry))
            if entry.final:
                self.docket.outcomes[entry.outcome] += 1
            else:
                again.append(entry)
        if entries:
            await self._journal.call(lambda journal: journal.update(entries))
        for entry in again:
            assignment = self._assignment(entry, self._clock.tai() - entry.received_tai)
            await self._retry(entry, self._next(OpenVisit(entry, assignment)))
        for mark in self._folders.no_return.iterdir():
            mark.unlink()
        return len(entries)

    def _may_go_on(self, entry: Entry) -> bool:
        return entry.retriable and entry.key.attempt < self._config.workers.attempts

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

    def _take(self, entry: Entry, age_s: float) -> None:
        """Find out what an accepted visit-detector gets, and queue it."""
        visit = OpenVisit(entry, self._assignment(entry, age_s))
        self.docket.add(visit)
        main = select(self._config.pipelines.main, entry.visit)
        if not main:
            reason = "no rule matches" if main is None else "its rule says to ignore it"
            self._end(visit, Outcome.IGNORED, f"{reason} (survey {entry.visit.survey!r})")
            return
        dropped = self._scheduler.add(visit.assignment)
        if dropped is not None:
            self.drop(dropped)

    def _assignment(self, entry: Entry, age_s: float) -> Assignment:
        visit = entry.visit
        announced = self._clock.mono() - max(0.0, age_s)
        rules = self._config.pipelines
        return Assignment(
            key=entry.key,
            visit=visit,
            pipelines=Pipelines(
                preprocessing=select(rules.preprocessing, visit) or (), main=select(rules.main, visit) or ()
            ),
            no_image_at=announced + self._patience_s(visit),
            pointless_at=announced + self._config.node.expiry_s,
        )

    def _patience_s(self, visit: NextVisit) -> float:
        return 2 * visit.duration_s + self._config.arrivals.image_timeout_s

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
        retriable = action.retriable and not entry.no_return and outcome != Outcome.SUCCEEDED
        again = self._end(visit, outcome, reason, retriable=retriable)
        if spool is not None and again:
            # The next attempt makes the same datasets: partial ones would be
            # in its way.
            self.records.keep(asyncio.to_thread(wipe, Path(spool)))
        elif spool is not None:
            self.records.export_later(spool)

    def _end(self, visit: OpenVisit, outcome: Outcome, reason: str, *, retriable: bool = False) -> bool:
        """Write an outcome, or try once more; tell whether it is tried again."""
        entry, reason = visit.entry, reason[:MOST_REASON]
        entry.retriable = retriable
        in_time = self._clock.mono() < visit.assignment.pointless_at
        again = self.retrying and in_time and self._may_go_on(entry)
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
        entry = Entry(assignment.key, before.visit, before.received_tai, stages, asked=before.asked)
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
            return
        if self.docket.of(visit.entry.key) is not visit:
            return  # cancelled meanwhile, or the daemon stops
        dropped = self._scheduler.add(visit.assignment)
        if dropped is not None:
            self.drop(dropped)
        self._neighbours.decide()


def spool_failure(folder: Path) -> str:
    """Return why a complete spool holds partial outputs only.

    Parameters
    ----------
    folder : `pathlib.Path`
        A spool; its ``manifest.json`` says so under ``failed``.

    Returns
    -------
    reason : `str`
        Blank if the pipeline has succeeded.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return str(manifest.get("failed", ""))
    except (OSError, ValueError, AttributeError) as error:
        return f"the manifest of {folder.name} cannot be read: {error}"


def _age_s(order: ReserveVisit) -> float:
    """Return how old a visit is by the relay's own clock: the node's may be
    wrong, and no visit is lost for that.
    """
    return order.sent_tai - order.received_tai
