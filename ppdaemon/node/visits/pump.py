# SPDX-License-Identifier: BSD-3-Clause
"""The one loop that everything concerning visits goes through.

Events wait in the `Inbox`, `Visits` decides, the writes of the turn are
committed, and only then is what it asks for performed, in order. What blocks
runs beside the loop and ends in an event.
"""

import asyncio
import itertools
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import ResultEntry
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.slots.events import VisitAssigned
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.schedulerloop import SchedulerLoop
from ppdaemon.node.visits import turn as t
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.journal import Journal, RowMissing
from ppdaemon.node.visits.recovery import discard, read_leftovers
from ppdaemon.node.visits.relayclient import RESULTS_AT_ONCE, RelayClient
from ppdaemon.reports import RequeueRow
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import SlotState

__all__ = ("Inbox", "VisitPump")

_LOG = logging.getLogger(__name__)

GATHER_S = 0.05
"""Stages and figures of a burst are written in one commit."""
EVENTS_AT_ONCE = 100
"""Some 10 ms; then timers and sockets have their turn."""


class Inbox:
    """Events that wait for the pump."""

    def __init__(self) -> None:
        self._events: deque[object] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def post(self, event: object) -> None:
        """Add an event; never waits."""
        self._events.append(event)
        self._filled.set()

    async def take(self) -> Sequence[object]:
        """Wait for events and take some out, the oldest first."""
        await self._filled.wait()
        events = tuple(self._events.popleft() for _ in range(min(len(self._events), EVENTS_AT_ONCE)))
        if not self._events:
            self._filled.clear()
        return events


def _write(writes: Sequence[t.Write], journal: Journal) -> Sequence[object] | Exception:
    """Write a turn, or return why the journal contradicts it."""
    try:
        with journal.transaction():
            return [journal.write(write) for write in writes]
    except (RowMissing, sqlite3.IntegrityError) as error:
        return error


@dataclass(eq=False)
class VisitPump:
    """Takes events from the inbox to their consequences."""

    inbox: Inbox
    visits: Visits
    journal: BatchWriter[Journal]
    relay: RelayClient
    pool: Pool
    scheduler: SchedulerLoop
    exporter: ExporterProcess
    arrivals: Arrivals
    folders: NodeFolders
    clock: Clock
    count: Counter[str]

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[tuple[RequeueRow, ...]]] = {}
        self._results: list[ResultEntry] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._ending = 0

    @property
    def open(self) -> int:
        """Visit-detectors without an outcome that is in the journal."""
        return len(self.visits.open) + self._ending

    async def run(self) -> None:
        """Handle events until cancelled."""
        while True:
            for event in await self.inbox.take():
                self._handle(event)
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until everything that happened so far is in the journal.

        Raises
        ------
        ppdaemon.errors.Refused
            Raised if the journal cannot be written at present.
        """
        await self.ask(t.FlushAsked)

    async def settle(self) -> None:
        """Wait until nothing is under way any more."""
        while True:
            try:
                await self.flush()
            except Refused:
                await asyncio.sleep(GATHER_S)
                continue
            if self._tasks:
                await asyncio.wait(self._tasks)
            elif not self.inbox and not self.journal.backlog:
                return

    async def report_again(self) -> None:
        """Send the relay all outcomes that it has not confirmed."""
        if not self.relay.connected:
            return
        try:
            self.relay.results(await self.journal.call(lambda file: file.unreported(RESULTS_AT_ONCE)))
        except sqlite3.Error as error:
            _LOG.warning("outcomes cannot be read from the journal: %s", error)

    async def ask(self, make_event: Callable[[int], object]) -> tuple[RequeueRow, ...]:
        """Post an event that is made with the number of a request, and return
        what its `Answer` brings.

        Raises
        ------
        ppdaemon.errors.Refused
            Raised if the answer is that the request is refused.
        """
        number = next(self._numbers)
        answer: asyncio.Future[tuple[RequeueRow, ...]] = self._loop.create_future()
        self._answers[number] = answer
        self.inbox.post(make_event(number))
        try:
            return await answer
        finally:
            del self._answers[number]

    # --- events ------------------------------------------------------------

    def _handle(self, event: object) -> None:
        now = t.Now(self.clock.mono(), self.clock.tai())
        try:
            turn = self.visits.handle(event, now)
        except Exception:  # costs this event, not the daemon
            self.count["background_error"] += 1
            _LOG.exception("event %r was not handled", event)
            return
        if isinstance(event, t.FlushAsked):
            self._flush(event, turn)
        elif turn.writes:
            self._commit(turn)
        else:
            # It need not wait for a commit: what it is about is committed.
            self._perform(turn)
        if turn.write_soon and self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_S, self._write_due)

    def _write_due(self) -> None:
        self._gathering = None
        self.inbox.post(t.WriteDue())

    # --- commits -----------------------------------------------------------

    def _commit(self, turn: t.Turn) -> None:
        may_fail = next((write for write in turn.writes if isinstance(write, t.Accept | t.Requeue)), None)
        ending = sum(len(action.entries) for action in turn.actions if isinstance(action, t.Report))
        self._ending += ending

        def done(results: Sequence[object] | Exception) -> None:
            self._ending -= ending
            if isinstance(results, Exception):
                self._refused(turn, may_fail, results)
                return
            self._perform(turn)
            for write, result in zip(turn.writes, results, strict=True):
                if isinstance(write, t.Accept | t.Requeue | t.NoteRaws):
                    self.inbox.post(t.Recorded(write, result))

        def failed(error: Exception) -> None:
            self._ending -= ending
            self._refused(turn, may_fail, error)

        # What is promised to nobody yet may fail with the file; all else is
        # tried again until it is written.
        self.journal.put(Commit(partial(_write, turn.writes), done, failed if may_fail else None))

    def _flush(self, event: t.FlushAsked, turn: t.Turn) -> None:
        """Commit what has changed; who asked for it does not wait for a
        journal that cannot be written at present.
        """
        if turn.writes:
            self._commit(t.Turn(turn.writes))

        def failed(error: Exception) -> None:
            self._answer(t.Answer(event.request, refused=str(error)))

        self.journal.put(Commit(None, lambda _: self._perform(turn), failed))

    def _refused(self, turn: t.Turn, may_fail: t.Accept | t.Requeue | None, error: Exception) -> None:
        """Drop a turn of which nothing was written."""
        if may_fail is not None:
            self.inbox.post(t.NotRecorded(may_fail, str(error)))
            return
        # The next start answers for its visit-detectors by the journal.
        self.count["journal_contradicted"] += 1
        _LOG.error("the journal contradicts this turn, which is dropped: %r", turn, exc_info=error)
        raws: list[t.Write] = [write for write in turn.writes if isinstance(write, t.NoteRaws)]
        if len(raws) < len(turn.writes) and raws:  # others wait for its result
            self._commit(t.Turn(raws))

    # --- actions -----------------------------------------------------------

    def _perform(self, turn: t.Turn) -> None:
        for action in turn.actions:
            try:
                self._do(action)
            except Exception:  # costs this action, not the daemon
                self.count["background_error"] += 1
                _LOG.exception("action %r failed", action)

    def _do(self, action: t.Action) -> None:
        match action:
            case t.ToSlot():
                self._to_slot(action)
            case t.Acknowledge(order=order, detectors=detectors):
                self.relay.ack(order, detectors)
            case t.Refuse(order=order, detectors=detectors, reason=reason, final=final):
                self.relay.nak(order, detectors, reason, final=final)
            case t.Report(entries=entries):
                self._report(entries)
            case t.ReportAgain():
                self.beside(self.report_again())
            case t.Enqueue(assignment=assignment):
                self.scheduler.add(assignment)
            case t.Dequeue(key=key):
                self.scheduler.remove(key)
            case t.LeaveIdle(slot=slot):
                self.scheduler.leave_idle(slot)
            case t.Export(spool=spool):
                self.exporter.add(spool)
            case t.Discard(folders=folders):
                self.beside(asyncio.to_thread(discard, folders))
            case t.RemoveMark(key=key):
                self.beside(asyncio.to_thread(self.folders.mark(*key).unlink, missing_ok=True))
            case t.ReadLeftovers():
                self.beside(self._read_leftovers(action))
            case t.BeginRescan(visit=visit):
                self._loop.call_soon(self.inbox.post, t.RescanDue(visit))
            case t.Rescan():
                self.beside(self._rescan(action))
            case t.Answer():
                self._answer(action)
            case _:
                assert_never(action)

    def _to_slot(self, action: t.ToSlot) -> None:
        if isinstance(action.event, VisitAssigned):
            # The scheduler matched an idle slot; its worker may have died since.
            if self.pool.slots[action.slot].state == SlotState.IDLE:
                self.pool.handle(action.slot, action.event)
            else:
                self.inbox.post(t.AssignmentRefused(action.key))
            return
        assignment = self.pool.slots[action.slot].assignment
        if assignment is not None and assignment.key == action.key:  # else it has ended meanwhile
            self.pool.handle(action.slot, action.event)

    def _report(self, entries: Sequence[ResultEntry]) -> None:
        """Send outcomes with others of the same commit in one message."""
        if not self._results:
            self._loop.call_soon(self._send_results)
        self._results += entries

    def _send_results(self) -> None:
        self.relay.results(self._results)
        self._results = []

    def _answer(self, answer: t.Answer) -> None:
        waiting = self._answers.get(answer.request)
        if waiting is None or waiting.done():  # who asked is gone
            return
        if answer.refused:
            waiting.set_exception(Refused(answer.refused))
        else:
            waiting.set_result(answer.rows)

    # --- beside the loop ---------------------------------------------------

    async def _read_leftovers(self, action: t.ReadLeftovers) -> None:
        try:
            remains = await asyncio.to_thread(read_leftovers, self.folders, action.key)
        except OSError as error:
            # The state disk cannot be read: it may have crossed, so that
            # nothing is tried again.
            remains = t.Leftovers(no_return=f"unknown: {error}")
        self.inbox.post(t.LeftoversRead(action.key, remains))

    async def _rescan(self, action: t.Rescan) -> None:
        detectors = {key.detector for key in action.keys}
        try:
            await self.arrivals.rescan(action.visit, detectors, action.since_tai)
        finally:  # else no further rescan would begin for this visit
            self.inbox.post(t.RescanEnded(action.keys))

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something to its end beside the loop, and log its failure."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.count["background_error"] += 1
            _LOG.error("background work failed", exc_info=error)
