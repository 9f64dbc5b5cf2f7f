# SPDX-License-Identifier: BSD-3-Clause
"""The node's supervisor: composes the parts, starts them, stops them.

Everything happens in one event loop that never blocks: callbacks turn what is
read from descriptors into events, slots and scheduler decide, the pool acts.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pydantic
import zmq.asyncio

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import ConfigError, PPDaemonError, Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    CancelVisit,
    Forked,
    ForkFailed,
    Reaped,
    ReserveVisit,
    ResultsSeen,
    Welcome,
)
from ppdaemon.node.answers import VisitAnswers
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.reader import ReaderSeat
from ppdaemon.node.claim import OWNER, Claim, claim
from ppdaemon.node.control import ControlServer
from ppdaemon.node.desk import VisitDesk
from ppdaemon.node.events import KillAsked, RestartAsked, RetireAsked, SeatChanged
from ppdaemon.node.exporter import ExporterSeat
from ppdaemon.node.forker import Lifeline
from ppdaemon.node.intake import Intake
from ppdaemon.node.journal import Journal
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.meters import Meters
from ppdaemon.node.neighbours import Neighbours
from ppdaemon.node.orphans import end_children, reap
from ppdaemon.node.pool import Pool
from ppdaemon.node.reload import Generations
from ppdaemon.node.requeue import Requeue
from ppdaemon.node.scheduler import Assign, OpenSeat, RetireSeat, Scheduler
from ppdaemon.node.slot import Slot
from ppdaemon.node.status import Status
from ppdaemon.notify import Notifier
from ppdaemon.processes import adopt_orphans, children, end_orphans
from ppdaemon.reports import (
    AskDrain,
    AskKill,
    AskLate,
    AskReload,
    AskRequeue,
    AskRestart,
    AskResume,
    AskStatus,
    AskVisit,
    AskVisits,
    AskWorkers,
    Failed,
    Ok,
)
from ppdaemon.states import BUSY_STATES, SlotState

__all__ = ("Supervisor",)

_LOG = logging.getLogger(__name__)

EXPORT_AT_STOP_S = 10.0
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
        How often the service manager wants to hear that the loop turns.
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
        self._count: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._deciding = False
        self._growing = True
        self._reload_asked = asyncio.Event()
        self._failure: BaseException | None = None

    # --- life ------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until told to stop, stop.

        Raises
        ------
        ppdaemon.errors.PPDaemonError
            Raised if the node cannot start; says what to do.
        """
        adopt_orphans()
        held = claim(self._folders, self._life)
        try:
            await self._live(held)
        finally:
            await asyncio.to_thread(held.release, self._folders)

    def stop(self) -> None:
        """Stop; at the second call, at once."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again, as soon as the node has started."""
        self._reload_asked.set()

    async def _live(self, held: Claim) -> None:
        journal = JournalThread(await asyncio.to_thread(Journal, self._folders.journal))
        context = zmq.asyncio.Context()
        self._lifeline = Lifeline()
        try:
            self._compose(held, journal, context)
            await self._control.start()
            await self._start()
            await self._stop.wait()
            await self._drain()
            if self._failure is not None:
                raise PPDaemonError(f"a part of the daemon failed: {self._failure}") from self._failure
        finally:
            await self._close()
            journal.close()
            context.term()

    def _compose(self, held: Claim, journal: JournalThread, context: zmq.asyncio.Context) -> None:
        """Make the parts and tie them together; nothing runs yet."""
        config, clock, count = self._config, self._clock, self._count
        self._generations = Generations(
            config,
            self._read_config,
            self._lifeline,
            self._environment,
            clock,
            self._forker_said,
            self._switch,
            count,
        )
        ask_fork = self._generations.ask
        self._scheduler = Scheduler(config.workers)
        self._desk = VisitDesk(config, clock, journal, self._scheduler, count)
        self._journal = journal
        self._pool = Pool(config, clock, ask_fork, self._desk.perform, self._seat_changed, count)
        self._exporter = ExporterSeat(
            config.export,
            self._folders.slots / "exporter",
            self._folders.logs / "exporter.log",
            ask_fork,
            self._desk.records.exported,
        )
        self._intake = Intake(
            config.relay,
            config.node.name,
            self._life,
            config.node.instruments,
            config.workers.max,
            clock,
            context,
            self._relay_said,
            count,
        )
        self._reader = self._make_reader()
        self._arrivals = Arrivals(
            config.arrivals,
            config.node.instruments,
            clock,
            self._desk.raw_arrived,
            self._desk.exposure_listed,
            self._desk.docket.waiting,
            self._folders.canaries,
            self._reader,
        )
        self._meters = Meters(config.workers, self._folders)
        self._desk.meet(
            Neighbours(
                link=self._intake,
                seat=self._pool.handle,
                export=self._exporter.add,
                decide=self._wake,
                look=self._arrivals.last_look,
            )
        )
        requeue = Requeue(
            folders=self._folders,
            clock=clock,
            journal=journal,
            flush=self._desk.records.flush,
            withdraw=self._exporter.withdraw,
            export=self._exporter.add,
            look=self._arrivals.last_look,
            take=self._desk.take_again,
        )
        self._visit_answers = VisitAnswers(self._desk, journal, requeue)
        self._status = Status(
            config=config,
            clock=clock,
            count=count,
            held=held,
            pool=self._pool,
            desk=self._desk,
            scheduler=self._scheduler,
            exporter=self._exporter,
            intake=self._intake,
            arrivals=self._arrivals,
            meters=self._meters,
            generations=self._generations,
        )
        self._control = ControlServer(config.node.control, self._answer, self._status.report)

    def _make_reader(self) -> ReaderSeat | None:
        config = self._config
        if not config.arrivals.remote:
            return None
        environment = {**self._environment, **config.workers.environment}
        return ReaderSeat(self._lifeline, environment, self._folders.logs / "reader.log")

    async def _start(self) -> None:
        started = self._clock.mono()
        await self._unless_stopped(self._generations.start())
        if self._stop.is_set():
            return
        # Before the exporter starts: a spool that is gone is no success any more.
        left = await self._desk.answer_for_former_life()
        if left:
            _LOG.warning("%d visit-detectors of a former life were answered for", left)
        self._exporter.start()
        for folder in sorted(self._folders.spool.iterdir()):
            if self._folders.read_spooled(folder.name):
                self._exporter.add(str(folder))
        await self._arrivals.start()
        self._desk.taking = True
        self._status.state = "running"
        for work in (
            self._desk.records.keep_written(),
            self._intake.run(),
            self._meters.run(self._pool, self._count),
            self._tick(),
            self._reload_when_asked(),
        ):
            self._run_always(work)
        self._decide()
        await self._first_workers()
        _LOG.info("ready %.1f s after the start", self._clock.mono() - started)
        self._notifier.tell(READY=1, STATUS=self._status.report().text)

    async def _first_workers(self) -> None:
        """Wait until some worker is ready, or it is clear that none will be."""
        until = self._clock.mono() + self._config.workers.times.boot_s
        rising = {SlotState.STARTING, SlotState.BACKOFF, SlotState.KILLING}
        while self._clock.mono() < until and not self._stop.is_set():
            if any(slot.state not in rising for slot in self._pool.slots.values()):
                return
            await asyncio.sleep(0.02)

    async def _drain(self) -> None:
        """End what can end in time, interrupt the rest."""
        self._notifier.tell(STOPPING=1)
        self._status.state = "stopping"
        self._growing = False
        self._take(False)
        self._desk.retrying = False
        self._desk.interrupt_queued()
        for number in list(self._pool.slots):
            self._pool.handle(number, RetireAsked())
        times = self._config.workers.times
        if not await self._until(self._all_stopped, times.stop_s):
            for number, slot in self._pool.slots.items():
                if slot.state in BUSY_STATES:
                    self._pool.handle(number, KillAsked("the daemon stopped"))
            await self._until(self._all_stopped, times.grace_s + times.kill_s, hurry=False)
        await self._desk.records.flush()
        await self._until(
            lambda: not self._exporter.waiting or bool(self._exporter.problem), EXPORT_AT_STOP_S
        )
        await self._until_reported()

    def _all_stopped(self) -> bool:
        gone = {SlotState.STOPPED, SlotState.QUARANTINED, SlotState.UNKILLABLE}
        return all(slot.state in gone for slot in self._pool.slots.values())

    async def _until_reported(self) -> None:
        """Give the relay a moment to confirm the last results."""
        until = self._clock.mono() + 1.0
        while self._intake.connected and self._clock.mono() < until and not self._kill.is_set():
            if not await self._journal.call(lambda journal: journal.unreported(1)):
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
        doing = self._loop.create_task(work)
        stopping = self._loop.create_task(self._stop.wait())
        try:
            await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
        finally:
            for task in (doing, stopping):
                task.cancel()
            await asyncio.gather(doing, stopping, return_exceptions=True)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_control"):
            await self._control.stop()
            await self._arrivals.stop()
            self._exporter.close()
            self._pool.close()
            await self._generations.close()
        self._lifeline.close()
        await end_children(self._clock.mono, CHILDREN_S)

    # --- generations -----------------------------------------------------

    def _forker_said(self, words: Forked | ForkFailed | Reaped, descriptors: list[int]) -> None:
        match words:
            case Forked(role="worker"):
                self._pool.forked(words, descriptors)
            case Forked():
                self._exporter.forked(words, descriptors)
            case ForkFailed(role="worker"):
                self._pool.not_forked(words)
            case ForkFailed(reason=reason):
                self._exporter.not_forked(reason)
            case Reaped():
                self._pool.reaped(words)

    def _switch(self, config: NodeConfig) -> None:
        """Go over to a configuration whose processes can be had."""
        self._config = config
        log.set_up(config.log.level, config.log.format, node=config.node.name)
        self._scheduler.reconfigure(config.workers)
        self._desk.reconfigure(config)
        self._meters.reconfigure(config.workers)
        self._status.config = config
        self._pool.reconfigure(config)
        self._exporter.replace(config.export)
        for spool in self._folders.moved_back():
            self._exporter.add(str(spool))
        self._intake.set_capacity(config.workers.max)
        self._wake()

    async def _reload_when_asked(self) -> None:
        """Reload after SIGHUP; several at once are one."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            self._notifier.tell(RELOADING=1, MONOTONIC_USEC=int(self._clock.mono() * 1e6))
            await self._generations.reload_unattended()
            self._notifier.tell(READY=1, STATUS=self._status.report().text)

    async def _reload_now(self) -> Ok | Failed:
        """Reload for somebody who waits for the outcome."""
        if self._status.state in ("starting", "stopping"):
            raise Refused(f"the daemon is {self._status.state}")
        try:
            await self._unless_stopped(self._generations.reload())
        except ConfigError as error:
            return Failed(code="config", text=str(error))
        if self._stop.is_set():
            raise Refused("the daemon is stopping")
        return Ok(data=f"generation {self._generations.number} serves")

    # --- seats -----------------------------------------------------------

    def _seat_changed(self, slot: Slot, change: SeatChanged) -> None:
        match change.after:
            case SlotState.IDLE:
                self._scheduler.seat_idle(slot.number, self._clock.mono())
            case SlotState.STARTING | SlotState.BACKOFF:
                self._scheduler.seat_rising(slot.number)
            case SlotState.STOPPED | SlotState.UNKILLABLE:
                self._scheduler.seat_closed(slot.number)
            case _:
                self._scheduler.seat_busy(slot.number)
        self._wake()

    def _wake(self) -> None:
        """Decide soon, once for everything that happens now."""
        if not self._deciding:
            self._deciding = True
            self._loop.call_soon(self._decide)

    def _room(self) -> int | None:
        """Return for how many more workers the host's budget has memory."""
        memory = self._config.workers.memory
        if memory.budget is None:
            return None
        return max(0, memory.budget - self._pool.used_bytes()) // max(memory.soft, 1)

    def _decide(self) -> None:
        self._deciding = False
        for decision in self._scheduler.decide(self._clock.mono(), growing=self._growing, room=self._room()):
            match decision:
                case Assign(assignment=assignment, slot=number):
                    self._desk.assign(assignment, number, self._pool.slots[number].pid)
                case OpenSeat():
                    self._scheduler.seat_opened(self._pool.open_seat().number)
                case RetireSeat(slot=number):
                    self._pool.handle(number, RetireAsked())
        self._control.changed()

    async def _tick(self) -> None:
        """Once a second: what time alone brings."""
        while True:
            for drop in self._scheduler.drop_pointless(self._clock.mono()):
                self._desk.drop(drop)
            self._decide()
            self._sweep()
            await self._desk.records.report_again()
            self._notifier.tell(STATUS=self._status.report().text, WATCHDOG=1)
            await asyncio.sleep(min(1.0, (self._watchdog_s or 2.0) / 2))

    def _sweep(self) -> None:
        """End what workers have left whose zygote is gone: it comes here."""
        if self._config.workers.start != "fork":
            return  # all workers are children of this process
        zygotes, forked = self._generations.processes()
        reader = {self._reader.pid} if self._reader is not None and self._reader.pid is not None else set()
        reap(children() - zygotes - reader)
        exporter = {self._exporter.pid} if self._exporter.pid is not None else set()
        end_orphans({*zygotes, *forked, *self._pool.pids().values(), *exporter, *reader})

    # --- words from outside ----------------------------------------------

    def _relay_said(self, words: ReserveVisit | CancelVisit | ResultsSeen | Welcome) -> None:
        match words:
            case ReserveVisit():
                self._run_once(self._desk.reserve(words))
            case CancelVisit():
                self._desk.cancel(words)
            case ResultsSeen() | Welcome():
                self._run_once(self._desk.records.relay_said(words))

    async def _answer(self, request: pydantic.BaseModel) -> Ok | Failed:
        match request:
            case AskStatus():
                return Ok(data=self._status.report().model_dump(mode="json"))
            case AskWorkers():
                return Ok(data=[row.model_dump(mode="json") for row in self._status.workers()])
            case AskVisits() | AskVisit() | AskLate() | AskRequeue():
                return await self._visit_answers.answer(request)
            case AskDrain() | AskResume():
                if self._stop.is_set():
                    return Failed(code="refused", text="the daemon is stopping")
                self._take(isinstance(request, AskResume))
                return Ok()
            case AskReload():
                return await self._reload_now()
            case AskRestart(slot=number) | AskKill(slot=number):
                if number not in self._pool.slots:
                    return Failed(code="not_found", text=f"there is no slot {number}")
                self._pool.handle(number, RestartAsked() if isinstance(request, AskRestart) else KillAsked())
                return Ok()
            case unexpected:
                raise AssertionError(unexpected)

    def _take(self, taking: bool) -> None:
        self._desk.taking = taking
        self._intake.set_taking(taking)
        if self._status.state != "stopping":
            self._status.state = "running" if taking else "draining"

    # --- tasks -----------------------------------------------------------

    def _run_always(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that must not end; its end stops the daemon."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.critical("a part of the daemon failed, it stops", exc_info=error)
            self._failure = error
            self._stop.set()

    def _run_once(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._once_ended)

    def _once_ended(self, task: asyncio.Task[None]) -> None:
        with contextlib.suppress(ValueError):
            self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._count["background_error"] += 1
            _LOG.error("a message was not handled", exc_info=error)
