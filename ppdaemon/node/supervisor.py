# SPDX-License-Identifier: BSD-3-Clause
"""The node's supervisor: composes the parts, starts them, stops them."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import zmq.asyncio

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Forked, ForkFailed, Reaped
from ppdaemon.node.answers import Answers
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.reader import ReaderSeat
from ppdaemon.node.control import ControlServer
from ppdaemon.node.events import KillAsked, RawArrived, RetireAsked
from ppdaemon.node.exporter import ExporterSeat
from ppdaemon.node.forker import Lifeline
from ppdaemon.node.intake import Intake
from ppdaemon.node.lock import OWNER, NodeLock, lock_node
from ppdaemon.node.meters import Meters
from ppdaemon.node.orphans import end_children
from ppdaemon.node.pool import Pool
from ppdaemon.node.reload import Generations
from ppdaemon.node.reloading import Reloader
from ppdaemon.node.schedulerloop import SchedulerLoop
from ppdaemon.node.status import Status
from ppdaemon.node.ticker import Ticker
from ppdaemon.node.visits.chooser import PipelineChooser
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.facts import VisitFacts
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.pump import Inbox, VisitPump
from ppdaemon.node.visits.turn import AcceptanceChanged, StopBegun
from ppdaemon.notify import Notifier
from ppdaemon.processes import adopt_orphans
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.states import BUSY_STATES, SlotState

__all__ = ("Supervisor",)

_LOG = logging.getLogger(__name__)

EXPORT_AT_STOP_S = 10.0
CONFIRM_S = 1.0
"""How long a stop waits for the relay's confirmation."""
SETTLE_S = 10.0
"""How long a stop waits for a journal that cannot be written."""
CHILDREN_S = 2.0
"""How long processes that were killed may take to be gone."""


class Supervisor:
    """A node.

    Parameters
    ----------
    config : `~ppdaemon.config.NodeConfig`
        The configuration.
    read_config : `~collections.abc.Callable`
        Reads and checks the configuration file again.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Handed on to the zygote and its children.
    clock : `~ppdaemon.clock.Clock`
        The two clocks.
    notifier : `~ppdaemon.notify.Notifier`
        To the service manager.
    watchdog_s : `float` or `None`
        How often the service manager wants a sign of life.
    """

    def __init__(
        self,
        config: NodeConfig,
        read_config: Callable[[], NodeConfig],
        environment: Mapping[str, str],
        clock: Clock,
        notifier: Notifier,
        watchdog_s: float | None,
    ):
        self._config = config
        self._read_config = read_config
        self._clock = clock
        self._notifier = notifier
        self._watchdog_s = watchdog_s
        self._folders = NodeFolders.of(config)
        self._environment = {**environment, OWNER: str(self._folders.state)}
        self._life = secrets.token_hex(8)
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._reload = asyncio.Event()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Stop; at the second call, at once."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again, as soon as the node has started."""
        self._reload.set()

    async def run(self) -> None:
        """Start, serve until told to stop, stop.

        Raises
        ------
        ppdaemon.errors.PPDaemonError
            Raised if the node cannot start; says what to do.
        """
        adopt_orphans()
        held = lock_node(self._folders, self._life)
        async with contextlib.AsyncExitStack() as stack:  # closes in reverse order
            stack.push_async_callback(asyncio.to_thread, held.release, self._folders)
            await self._compose(held, stack)
            await self._start(stack)
            await self._stop.wait()
            await self._drain()
        if self._failure is not None:
            raise PPDaemonError(f"a part of the daemon failed: {self._failure}") from self._failure

    async def _compose(self, held: NodeLock, stack: contextlib.AsyncExitStack) -> None:
        """Make the parts; each is closed after those that were made later."""
        config, clock, folders, count = self._config, self._clock, self._folders, Counter[str]()
        context = zmq.asyncio.Context()
        stack.callback(context.term)
        self._inbox = inbox = Inbox()
        file = await asyncio.to_thread(Journal, folders.journal)
        self._journal = BatchWriter(file, "journal", lambda reason: count.update(["journal_error"]))
        stack.push_async_callback(self._close_journal)
        self._writing = self._loop.create_task(self._journal.run())
        self._writing.add_done_callback(self._ended)
        stack.push_async_callback(end_children, clock.mono, CHILDREN_S)
        lifeline = Lifeline()
        stack.callback(lifeline.close)
        self._generations = Generations(
            config, self._read_config, lifeline, self._environment, clock, self._forked, self._switch, count
        )
        stack.push_async_callback(self._generations.close)
        self._visits = Visits(config, count)
        self._pool = Pool(config, clock, self._generations.ask, inbox.post, count)
        stack.callback(self._pool.close)
        self._exporter = ExporterSeat(
            config.export,
            folders.slots / "exporter",
            folders.logs / "exporter.log",
            self._generations.ask,
            inbox.post,
        )
        stack.callback(self._exporter.close)
        self._chooser = PipelineChooser(config, inbox.post, count)
        self._relay = Intake(
            config.relay,
            config.node.name,
            self._life,
            config.node.instruments,
            config.workers.max,
            clock,
            context,
            self._chooser.receive,
            count,
        )
        reader = None
        if config.arrivals.remote:
            environment = {**self._environment, **config.workers.environment}
            reader = ReaderSeat(lifeline, environment, folders.logs / "reader.log")
        self._arrivals = Arrivals(
            config.arrivals,
            config.node.instruments,
            clock,
            lambda raw: inbox.post(RawArrived(raw)),
            inbox.post,
            self._visits.open.expected,
            folders.canaries,
            reader,
        )
        stack.push_async_callback(self._arrivals.stop)
        self._meters = Meters(config.workers, folders)
        self._scheduler = SchedulerLoop(config.workers, clock, self._pool, inbox.post)
        self._pump = VisitPump(
            inbox,
            self._visits,
            self._journal,
            self._relay,
            self._pool,
            self._scheduler,
            self._exporter,
            self._arrivals,
            folders,
            clock,
            count,
        )
        self._facts = VisitFacts(
            folders, self._journal, self._chooser, inbox, self._pump, self._exporter, self._arrivals
        )
        self._status = Status(
            config=config,
            clock=clock,
            count=count,
            held=held,
            pool=self._pool,
            visits=self._visits,
            journal=self._journal,
            scheduler=self._scheduler,
            exporter=self._exporter,
            intake=self._relay,
            arrivals=self._arrivals,
            meters=self._meters,
            generations=self._generations,
        )
        reloader = Reloader(self._generations, self._status, self._notifier, clock, self._stop, self._reload)
        self._answers = Answers(self._status, self._pool, self._journal, self._facts, self._relay, reloader)
        control = ControlServer(config.node.control, self._answers.answer, self._status.report)
        stack.push_async_callback(control.stop)
        self._scheduler.watch(control.changed)
        await control.start()
        self._run(self._pump.run, stack)
        ticker = Ticker(
            self._scheduler,
            self._pump,
            self._status,
            self._notifier,
            self._generations,
            self._pool,
            self._exporter,
            reader,
            folders,
            self._watchdog_s,
        )
        self._services = (
            self._chooser.run,
            self._relay.run,
            partial(self._meters.run, self._pool, count),
            ticker.run,
            ticker.run_slowly,
            reloader.run,
        )

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        started = self._clock.mono()
        await self._unless_stopped(self._generations.start())
        if self._stop.is_set():
            return
        # Before the exporter starts: a spool that is gone is no success any more.
        await self._unless_stopped(self._facts.recover())
        self._exporter.start()
        await self._arrivals.start()
        self._inbox.post(AcceptanceChanged(taking=True))
        self._status.state = "running"
        for run in self._services:
            self._run(run, stack)
        self._scheduler.decide()
        await self._first_workers()
        _LOG.info("ready %.1f s after the start", self._clock.mono() - started)
        self._notifier.tell(READY=1, STATUS=self._status.report().text)

    async def _first_workers(self) -> None:
        """Wait until some worker is ready, or it is clear that none will be."""
        rising = {SlotState.STARTING, SlotState.BACKOFF, SlotState.KILLING}
        await self._until(
            lambda: (
                self._stop.is_set() or any(slot.state not in rising for slot in self._pool.slots.values())
            ),
            self._config.workers.times.boot_s,
        )

    async def _drain(self) -> None:
        """End what can end in time, interrupt the rest."""
        self._notifier.tell(STOPPING=1)
        self._status.state = "stopping"
        self._scheduler.growing = False
        self._relay.set_taking(False)
        self._inbox.post(StopBegun())
        for number in list(self._pool.slots):
            self._pool.handle(number, RetireAsked())
        times = self._config.workers.times
        if not await self._until(self._all_stopped, times.stop_s):
            for number, slot in self._pool.slots.items():
                if slot.state in BUSY_STATES:
                    self._pool.handle(number, KillAsked("the daemon stopped"))
            await self._until(self._all_stopped, times.grace_s + times.kill_s, hurry=False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pump.settle(), SETTLE_S)
        exporter = self._exporter
        await self._until(lambda: not exporter.waiting or bool(exporter.problem), EXPORT_AT_STOP_S)
        await self._until_reported()

    def _all_stopped(self) -> bool:
        gone = {SlotState.STOPPED, SlotState.QUARANTINED, SlotState.UNKILLABLE}
        return all(slot.state in gone for slot in self._pool.slots.values())

    async def _until_reported(self) -> None:
        """Give the relay a moment to confirm the last results."""
        until = self._clock.mono() + CONFIRM_S
        while self._relay.connected and self._clock.mono() < until and not self._kill.is_set():
            if not await self._journal.call(lambda file: file.unreported(1)):
                return
            await asyncio.sleep(0.05)

    async def _until(self, condition: Callable[[], bool], limit_s: float, *, hurry: bool = True) -> bool:
        """Wait for a condition; a second stop ends the waiting."""
        until = self._clock.mono() + limit_s
        while not condition():
            if self._clock.mono() >= until or (hurry and self._kill.is_set()):
                return False
            await asyncio.sleep(0.02)
        return True

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, or give it up when the daemon stops."""
        doing, stopping = self._loop.create_task(work), self._loop.create_task(self._stop.wait())
        try:
            await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
        finally:
            for task in (doing, stopping):
                task.cancel()
            await asyncio.gather(doing, stopping, return_exceptions=True)

    def _forked(self, fact: Forked | ForkFailed | Reaped, descriptors: list[int]) -> None:
        """Hand on what became of a fork."""
        match fact:
            case Forked(role="worker"):
                self._pool.forked(fact, descriptors)
            case Forked():
                self._exporter.forked(fact, descriptors)
            case ForkFailed(role="worker"):
                self._pool.not_forked(fact)
            case ForkFailed(reason=reason):
                self._exporter.not_forked(reason)
            case Reaped():
                self._pool.reaped(fact)

    def _switch(self, config: NodeConfig) -> None:
        """Go over to a configuration whose processes are ready."""
        self._config = config
        log.set_up(config.log.level, config.log.format, node=config.node.name)
        for part in (self._visits, self._chooser, self._pool):
            part.reconfigure(config)
        for limits in (self._scheduler, self._meters):
            limits.reconfigure(config.workers)
        self._status.config = config
        self._exporter.replace(config.export)
        self._relay.set_capacity(config.workers.max)
        self._loop.create_task(self._facts.find_moved_back())

    async def _close_journal(self) -> None:
        """Write what is left, unless it cannot be written."""
        self._journal.finish()
        await asyncio.gather(self._writing, return_exceptions=True)
        self._journal.close()

    # --- tasks -----------------------------------------------------------

    def _run(self, run: Callable[[], Coroutine[Any, Any, None]], stack: contextlib.AsyncExitStack) -> None:
        """Run something that must not end; its end stops the daemon."""
        task = self._loop.create_task(run())
        task.add_done_callback(self._ended)
        stack.push_async_callback(_cancel, task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.critical("a part of the daemon failed, it stops", exc_info=error)
            self._failure = error
            self._stop.set()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
