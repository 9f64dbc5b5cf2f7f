# SPDX-License-Identifier: BSD-3-Clause
"""The loop that handles all events of visits, one after another.

Events wait in the `Inbox`; `Visits` decides; the writes are committed, and
only then are the actions performed, in order. Blocking work runs in the
background and posts an event when it is done.
"""

import asyncio
import itertools
import logging
import math
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from ppdaemon import log
from ppdaemon.changefeed import ChangeFeed
from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import DetectorsOfVisit, ResultEntry
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.nottaken import FileNotTaken
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.slots.events import VisitAssigned
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.schedulerloop import SchedulerLoop
from ppdaemon.node.visits import model
from ppdaemon.node.visits.changes import change_of, changes_of
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.journal import Journal, RowMissing
from ppdaemon.node.visits.outcometimes import OutcomeTimes
from ppdaemon.node.visits.recovery import discard, read_leftovers
from ppdaemon.node.visits.source import MAX_RESULTS_PER_MESSAGE, VisitSource
from ppdaemon.reports import RequeueRow
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import SlotState

__all__ = ("Inbox", "VisitPump")

_LOG = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""A permit that was not answered is asked for again."""
ASK_TOGETHER_S = 0.02
"""Between two messages that ask for permits: when the detectors of an exposure begin one after the other, the
relay would commit and answer each by itself."""
BATCH_S = 1.0
"""Changes that need no immediate commit are collected this long: a row that has reached several stages
meanwhile is written once. A query of an operator has them written first."""
MAX_EVENTS_PER_STEP = 100
"""100 events take some 10 ms; then timers and sockets are served."""


class Inbox:
    """Events that wait for the pump."""

    def __init__(self) -> None:
        self._events: deque[object] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def post(self, event: object) -> None:
        """Add an event without waiting."""
        self._events.append(event)
        self._filled.set()

    async def take(self) -> Sequence[object]:
        """Wait for events, then remove and return the oldest."""
        await self._filled.wait()
        events = tuple(self._events.popleft() for _ in range(min(len(self._events), MAX_EVENTS_PER_STEP)))
        if not self._events:
            self._filled.clear()
        return events


def _write(writes: Sequence[model.Write], journal: Journal) -> Sequence[object] | Exception:
    """Write in one transaction, or return how the journal contradicts it."""
    try:
        # One write is a transaction by itself.
        with journal.transaction() if len(writes) > 1 else nullcontext():
            return [journal.write(write) for write in writes]
    except (RowMissing, sqlite3.IntegrityError) as error:
        return error


def _ended(write: model.Write) -> Sequence[model.JournalEntry]:
    """Return the attempts that end with a write."""
    match write:
        case model.Update(entries=entries):
            return [entry for entry in entries if entry.outcome is not None]
        case model.Retry(before=before):
            return [before]
    return ()


def _about(item: object) -> AbstractContextManager[None]:
    """Add the attempt that an event or action concerns to the lines that are logged within."""
    key = getattr(getattr(item, "assignment", item), "key", None)
    return log.about(**(key._asdict() if isinstance(key, Key) else {}))


class _Together[T]:
    """Passes items on together with others of the same moment: `pause_s` seconds after those before, if that
    is later than now.
    """

    def __init__(self, use: Callable[[Sequence[T]], object], pause_s: float = 0.0):
        self._use = use
        self._pause_s = pause_s
        self._items: list[T] = []
        self._used_at = -math.inf
        self._loop = asyncio.get_running_loop()

    def add(self, items: Iterable[T]) -> None:
        if not self._items:
            pause_s = self._used_at + self._pause_s - self._loop.time()
            if pause_s > 0.0:
                self._loop.call_later(pause_s, self.pass_on)
            else:  # before what waits for the commit that has caused this
                self._loop.call_soon(self.pass_on)
        self._items += items

    def pass_on(self) -> None:
        """Pass on what there is now."""
        if self._items:
            items, self._items, self._used_at = self._items, [], self._loop.time()
            self._use(items)


@dataclass(eq=False)
class VisitPump:
    """Handles the events of the inbox and performs the effects."""

    inbox: Inbox
    visits: Visits
    journal: BatchWriter[Journal]
    source: VisitSource
    pool: Pool
    scheduler: SchedulerLoop
    exporter: ExporterProcess
    arrivals: Arrivals
    folders: NodeFolders
    clock: Clock
    count: Counter[str]
    times: OutcomeTimes = field(default_factory=OutcomeTimes)
    changes: ChangeFeed = field(default_factory=ChangeFeed)
    ended: Callable[[model.JournalEntry], None] = lambda entry: None
    """Called with each attempt that has ended, after the commit."""

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Future[tuple[RequeueRow, ...]]] = {}
        self._results = _Together[ResultEntry](self._send_results)
        self._asking = _Together[DetectorsOfVisit](
            lambda visits: self.source.ask_permits(visits), ASK_TOGETHER_S
        )
        self._discarding = _Together[Path](
            lambda paths: self.run_in_background(asyncio.to_thread(discard, paths))
        )
        self._write_timer: asyncio.TimerHandle | None = None
        self._ask_timer: asyncio.TimerHandle | None = None
        self._uncommitted_outcomes = 0
        self._all_reported: int | None = None
        """After how many transactions the relay had confirmed all outcomes."""
        # Not with the next commit: a viewer should see it within 0.3 s.
        self.visits.open.on_change = lambda entry: self.changes.record(lambda: (change_of(entry),))

    @property
    def open(self) -> int:
        """Visit-detectors whose outcome is not yet in the journal."""
        return len(self.visits.open) + self._uncommitted_outcomes

    async def run(self) -> None:
        """Handle events until canceled."""
        while True:
            for event in await self.inbox.take():
                self._handle(event)
            # Timers and sockets are served here, or while `take` waits; the inbox may never be empty.
            if self.inbox:
                await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until all previous events are in the journal.

        Raises `~ppdaemon.errors.Refused` if it cannot be written now.
        """
        await self.request(model.FlushRequested)

    async def wait_until_idle(self) -> None:
        """Wait until no event, commit or background work is pending."""
        while True:
            try:
                await self.flush()
            except Refused:
                await asyncio.sleep(BATCH_S)
                continue
            # Tasks before the inbox: they may post events.
            if self._tasks:
                await asyncio.wait(self._tasks)
            elif not self.inbox and not self.journal.backlog:
                return

    async def resend_results(self) -> None:
        """Send the relay all outcomes that it has not confirmed."""
        written = self.journal.written
        if not self.source.connected or written == self._all_reported:
            return
        try:
            unreported = await self.journal.call(lambda file: file.unreported(MAX_RESULTS_PER_MESSAGE))
            self._all_reported = None if unreported else written
            # The relay may have been lost during the query: this checks the connection again.
            self.source.send_results(unreported)
        except sqlite3.Error as error:
            _LOG.warning("cannot read unreported outcomes from the journal, trying again in 1 s: %s", error)

    async def request(self, make_event: Callable[[int], object]) -> tuple[RequeueRow, ...]:
        """Post the event that ``make_event`` returns for a request number, and
        return the rows of the `Reply`.

        Raises `~ppdaemon.errors.Refused` if the request is refused.
        """
        number = next(self._numbers)
        reply: asyncio.Future[tuple[RequeueRow, ...]] = self._loop.create_future()
        # Before the event is posted, which is answered with this number.
        self._replies[number] = reply
        self.inbox.post(make_event(number))
        try:
            return await reply
        finally:
            del self._replies[number]

    # --- events ------------------------------------------------------------

    def _handle(self, event: object) -> None:
        now = model.Now(self.clock.mono(), self.clock.tai())
        try:
            effects = self.visits.handle(event, now)
        except Exception:  # costs this event, not the daemon
            self.count["background_error"] += 1
            with _about(event):
                _LOG.exception("cannot handle event %r; it is dropped", event)
            return
        if isinstance(event, model.FlushRequested):
            self._flush(event, effects)
        elif effects.writes:
            self._commit(effects)
        else:
            # These actions need not wait for earlier commits: they concern
            # attempts that are in the journal already.
            self._perform(effects)
        if effects.write_soon and self._write_timer is None:
            self._write_timer = self._loop.call_later(BATCH_S, self._write_due)
        if effects.ask_again and self._ask_timer is None:
            self._ask_timer = self._loop.call_later(ASK_AGAIN_S, self._ask_due)

    def _ask_due(self) -> None:
        self._ask_timer = None
        self.inbox.post(model.PermitsDue())

    def _write_due(self) -> None:
        self._write_timer = None
        self.inbox.post(model.WriteDue())

    # --- commits -----------------------------------------------------------

    def _commit(self, effects: model.Effects) -> None:
        may_fail = next(
            (write for write in effects.writes if isinstance(write, model.Accept | model.Requeue)), None
        )
        ending = sum(
            len(action.entries) for action in effects.actions if isinstance(action, model.SendResults)
        )
        self._uncommitted_outcomes += ending

        def done(results: Sequence[object] | Exception) -> None:
            self._uncommitted_outcomes -= ending
            if isinstance(results, Exception):
                self._refused(effects, may_fail, results)
                return
            self._perform(effects)
            for write, result in zip(effects.writes, results, strict=True):
                if isinstance(write, model.Update):
                    self.times.record(write.entries)
                for entry in _ended(write):
                    self.ended(entry)
                self.changes.record(partial(changes_of, write, result))
                if isinstance(write, model.Accept | model.Requeue | model.RecordLateRaws):
                    self.inbox.post(model.WriteCommitted(write, result))

        def failed(error: Exception) -> None:
            self._uncommitted_outcomes -= ending
            self._refused(effects, may_fail, error)

        # A write that has not been acknowledged to the relay or an operator may
        # fail with the file; all others are repeated until they succeed.
        self.journal.put(Commit(partial(_write, effects.writes), done, failed if may_fail else None))

    def _flush(self, event: model.FlushRequested, effects: model.Effects) -> None:
        """Commit the changes and reply; the reply does not wait for a journal
        that cannot be written now.
        """
        if effects.writes:
            self._commit(model.Effects(effects.writes))

        def failed(error: Exception) -> None:
            self._reply(model.Reply(event.request, refused=str(error)))

        self.journal.put(Commit(None, lambda _: self._perform(effects), failed))

    def _refused(
        self, effects: model.Effects, may_fail: model.Accept | model.Requeue | None, error: Exception
    ) -> None:
        """Drop effects of which nothing was written."""
        if may_fail is not None:
            self.inbox.post(model.WriteFailed(may_fail, str(error)))
            return
        # The next start of the daemon recovers these visit-detectors from the
        # journal.
        self.count["journal_contradicted"] += 1
        _LOG.error(
            "the journal contradicts a decision, which is dropped; the next start recovers its visits: %r",
            effects,
            exc_info=error,
        )
        raws: list[model.Write] = [
            write for write in effects.writes if isinstance(write, model.RecordLateRaws)
        ]
        if len(raws) < len(effects.writes) and raws:  # further lookups wait for the result of this one
            self._commit(model.Effects(raws))

    # --- actions -----------------------------------------------------------

    def _perform(self, effects: model.Effects) -> None:
        for action in effects.actions:
            try:
                self._do(action)
            except Exception:  # costs this action, not the daemon
                self.count["background_error"] += 1
                with _about(action):
                    _LOG.exception("cannot perform %r; it is dropped", action)

    def _do(self, action: model.Action) -> None:
        match action:
            case model.SendToSlot():
                self._to_slot(action)
            case model.Acknowledge(message=message, detectors=detectors):
                self.source.send_accepted(message, detectors)
            case model.Refuse(message=message, detectors=detectors, reason=reason, final=final):
                self.source.send_refused(message, detectors, reason, final=final)
            case model.SendResults(entries=entries):
                self.visits.ended.add(entries, self.clock.mono())
                self._results.add(entries)
            case model.AskPermits(visits=visits):
                self._asking.add(visits)
            case model.ResendResults():
                self.run_in_background(self.resend_results())
            case model.Enqueue(assignment=assignment):
                self.scheduler.add(assignment)
            case model.Dequeue(key=key):
                self.scheduler.remove(key)
            case model.LeaveIdle(slot=slot):
                self.scheduler.mark_idle(slot)
            case model.Export(spool=spool):
                self.exporter.add(spool)
            case model.Discard(paths=paths):
                self._discarding.add(paths)
            case model.ReadLeftovers():
                self.run_in_background(self._read_leftovers(action))
            case model.BeginRescan(visit=visit):
                self._loop.call_soon(self.inbox.post, model.RescanDue(visit))
            case model.Rescan():
                self.run_in_background(self._rescan(action))
            case model.Reply():
                self._reply(action)
            case _:
                assert_never(action)

    def _to_slot(self, action: model.SendToSlot) -> None:
        if isinstance(action.event, VisitAssigned):
            # The scheduler matched an idle slot; its worker may have died since.
            if self.pool.slots[action.slot].state == SlotState.IDLE:
                self.pool.handle(action.slot, action.event)
            else:
                self.inbox.post(model.AssignmentRefused(action.key))
            return
        assignment = self.pool.slots[action.slot].assignment
        if assignment is not None and assignment.key == action.key:  # the attempt may have ended
            self.pool.handle(action.slot, action.event)

    def _reply(self, reply: model.Reply) -> None:
        pending = self._replies.get(reply.request)
        if pending is None or pending.done():  # the client has disconnected
            return
        if reply.refused:
            pending.set_exception(Refused(reply.refused))
        else:
            pending.set_result(reply.rows)

    def _send_results(self, entries: Sequence[ResultEntry]) -> None:
        # Before them the permits that wait, as they were decided: one for what is returned to the other nodes
        # of a stream would not be released any more, and no node would get it.
        self._asking.pass_on()
        self.source.send_results(entries)

    # --- in the background ---------------------------------------------------

    async def _read_leftovers(self, action: model.ReadLeftovers) -> None:
        try:
            leftovers = await asyncio.to_thread(read_leftovers, self.folders, action.key)
        except OSError as error:
            # The state disk cannot be read: assume that the worker has passed
            # the point of no return, so that the attempt is not retried.
            leftovers = model.Leftovers(no_return=f"unknown: {error}")
        self.inbox.post(model.LeftoversRead(action.key, leftovers))

    async def _rescan(self, action: model.Rescan) -> None:
        detectors = {key.detector for key in action.keys}
        not_taken: tuple[FileNotTaken, ...] = ()
        try:
            not_taken = await self.arrivals.rescan(action.visit, detectors, action.since_tai)
        finally:  # else no further rescan would begin for this visit
            self.inbox.post(model.RescanFinished(action.keys, not_taken))

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task and log its failure."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.count["background_error"] += 1
            _LOG.error("a background task failed; its work is not repeated", exc_info=error)
