# SPDX-License-Identifier: BSD-3-Clause
"""The node's supervisor: composes the parts, starts them, stops them."""

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.configfile import ConfigFile
from ppdaemon.errors import PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.node.lock import lock_node
from ppdaemon.node.parts import NodeParts, Service
from ppdaemon.node.slots.events import KillRequested, RetireRequested
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import StopStarted
from ppdaemon.notify import Notifier
from ppdaemon.problemlog import status_line
from ppdaemon.processes import become_subreaper
from ppdaemon.states import BUSY_STATES, SlotState

__all__ = ("Supervisor",)

_LOG = logging.getLogger(__name__)

EXPORT_AT_STOP_S = 10.0
"""How long a stop waits for exports. Remaining spools are exported after the next start."""
PUBLISH_AT_STOP_S = 3.0
"""How long a stop waits for metrics and telemetry that are not published; the rest is dropped."""
SAVE_S, SAVE_BYTES_PER_S = 30.0, 20e6
"""Longest time in which spools are moved from the RAM disk to the state disk: a slow disk. After
``TimeoutStopSec`` the service manager would kill the daemon, and a boot of the host delete them."""
IDLE_TIMEOUT_S = 10.0
"""How long a stop waits for a journal that cannot be written. Outcomes that are
not written are recovered at the next start."""
CONFIRM_S = 1.0
"""How long a stop waits for the relay's confirmation. Unconfirmed outcomes are
sent again after the next start."""


@dataclass(eq=False)
class Supervisor:
    """Starts the parts of a node, serves until it is stopped, stops them.

    ``read_config`` reads and checks the configuration file again;
    ``environment`` is for the zygote and its children; ``watchdog_s`` is the
    longest interval between messages that the service manager accepts; ``ends_at`` is
    when this host is given back, in monotonic seconds.
    """

    file: ConfigFile
    read_config: Callable[[], ConfigFile]
    environment: Mapping[str, str]
    clock: Clock
    notifier: Notifier
    watchdog_s: float | None
    ends_at: float = math.inf

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._reload = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Stop the daemon; a second call skips the waiting."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again, after the start if the node is starting."""
        self._reload.set()

    async def run(self) -> None:
        """Start, serve until `stop`, stop.

        Raises `~ppdaemon.errors.PPDaemonError` if the node cannot start; its
        text contains what the operator can do.
        """
        # Before any child: what a worker and its zygote leave behind becomes a child of this
        # process, which reaps it.
        become_subreaper()
        folders, incarnation = NodeFolders.of(self.file.config), secrets.token_hex(8)
        # Before the journal is opened and any folder is used: another daemon may have them.
        lock = lock_node(folders, incarnation)
        try:
            node = NodeParts(
                self.file,
                self.read_config,
                self.environment,
                incarnation,
                self.clock,
                self.notifier,
                self.watchdog_s,
                lock,
                await asyncio.to_thread(
                    partial(Journal, folders.journal, shadow=self.file.config.shadow.enabled)
                ),
                self._stop,
                self._reload,
                self.ends_at,
            )
            await self._serve(node)
        finally:
            if size := await asyncio.to_thread(lock.unsaved_bytes, folders):
                self.notifier.notify(EXTEND_TIMEOUT_USEC=round(1e6 * (SAVE_S + size / SAVE_BYTES_PER_S)))
            await asyncio.to_thread(lock.release, folders)

    async def _serve(self, node: NodeParts) -> None:
        writing = self._loop.create_task(node.journal.run())
        writing.add_done_callback(self._ended)
        try:
            # Before the start of the workers, which takes long: `ppctl status` shows its progress.
            await node.control.start()
            self._run(node.pump.run)
            self._run(node.metrics.run)
            await self._start(node)
            await self._stop.wait()
            await self._drain(node)
        finally:
            # Services before the parts that they use; the journal last, because closing a part
            # may still end visits.
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await node.close()
            node.journal.finish()
            await asyncio.gather(writing, return_exceptions=True)
            node.journal.close()
            # After the last outcome was written.
            await asyncio.to_thread(node.traces.close)
        if self._failure is not None:
            raise PPDaemonError(f"a part of the daemon failed: {self._failure}") from self._failure

    async def _start(self, node: NodeParts) -> None:
        started = self.clock.mono()
        # With a name in `engine.no_return` that does not exist, a visit would run without its mark, and
        # again after the next start.
        node.scheduler.assigning = False
        waiting = self._loop.create_task(self._report_start(node))
        try:
            await self._unless_stopped(node.generations.start())
            if not self._stop.is_set():
                node.status.stage = "recovering visits of the previous run"
                # Before the exporter starts: an attempt counts as succeeded only while
                # its spool exists.
                await self._unless_stopped(node.reprocessor.recover())
            if self._stop.is_set():
                return
            shadow = self.file.config.shadow.enabled
            if not shadow:
                node.exporter.start()
            if self.file.config.butler is not None:
                node.asker.start()
            node.publisher.start()
            await node.arrivals.start()
            drained_since = await asyncio.to_thread(NodeFolders.of(self.file.config).drained_since)
            # Only now: raws can be found and outputs exported.
            node.handler.set_accepting(drained_since is None, drained_since)
            for service in node.services:
                self._run(service)
        finally:
            # Only now: the ticker, which is a service, triggers the watchdog from here on.
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        node.scheduler.decide()
        try:
            # After visits are accepted, which must not wait for it.
            await self._unless_stopped(node.generations.wait_for_task_names())
            if shadow and not self._stop.is_set():  # its repo may be that of the present service
                node.exporter.start()
            node.scheduler.assigning = not self._stop.is_set()
            node.scheduler.decide()
            await self._wait_for_worker(node)
            # Before READY: with a name that does not exist the daemon exits.
            await self._unless_stopped(node.generations.wait_for_names())
        except PPDaemonError:
            # Some may run already. The queued ones are recovered when the file is correct.
            await self._stop_workers(node)
            raise
        if self._stop.is_set():
            return
        _LOG.info("ready %.1f s after the start", self.clock.mono() - started)
        self.notifier.notify(READY=1, STATUS=status_line(node.status.report()))

    async def _report_start(self, node: NodeParts) -> None:
        """Report the stage of the start; report READY when no worker can start, because a restart would
        not help, and trigger the watchdog, which the service manager expects from then on.
        """
        ready = False
        while True:
            self.notifier.notify(STATUS=status_line(node.status.report()))
            if node.generations.waiting and not ready:
                self.notifier.notify(READY=1)
                ready = True
            if ready:
                self.notifier.notify(WATCHDOG=1)
            await asyncio.sleep(min(1.0, (self.watchdog_s or 2.0) / 2))

    async def _wait_for_worker(self, node: NodeParts) -> None:
        """Wait until a worker is ready or all workers have failed to start."""
        starting = {SlotState.STARTING, SlotState.BACKOFF, SlotState.KILLING}

        def is_decided() -> bool:
            return self._stop.is_set() or any(s.state not in starting for s in node.pool.slots.values())

        await self._wait_until(is_decided, self.file.config.workers.times.boot_s)

    async def _drain(self, node: NodeParts) -> None:
        """Hand back visits that are not processed yet, let the others end in time or interrupt them,
        export and report.
        """
        # Before the workers are asked to end: this ends the visits that are not processed yet.
        node.inbox.post(StopStarted(hand_back=node.source.connected))
        await self._stop_workers(node)
        # After the last visit has ended: its spool is exported, too.
        exporter = node.exporter
        exporter.hurry(retry=False)
        await self._wait_until(lambda: not exporter.waiting or exporter.pausing, EXPORT_AT_STOP_S)
        await self._wait_until(lambda: not node.publisher.waiting, PUBLISH_AT_STOP_S)
        await self._wait_until_reported(node)

    async def _stop_workers(self, node: NodeParts) -> None:
        """Accept no more visits; let those that have a worker end in time, then kill the workers."""
        self.notifier.notify(STOPPING=1)
        node.status.state = "stopping"
        # Before the workers are asked to end: a stopped slot would be opened again, and the
        # relay would send more visits.
        node.scheduler.assigning = node.scheduler.resizing = False
        node.source.set_accepting(False)
        for number in list(node.pool.slots):
            node.pool.handle(number, RetireRequested())

        def all_stopped() -> bool:
            gone = {SlotState.STOPPED, SlotState.QUARANTINED, SlotState.UNKILLABLE}
            return all(slot.state in gone for slot in node.pool.slots.values())

        times = node.status.config.workers.times
        if not await self._wait_until(all_stopped, times.stop_s):
            for number, slot in node.pool.slots.items():
                if slot.state in BUSY_STATES:
                    node.pool.handle(number, KillRequested("the daemon stopped"))
            await self._wait_until(all_stopped, times.grace_s + times.kill_s, hurry=False)
        idle = self._loop.create_task(node.pump.wait_until_idle())
        await self._wait_until(idle.done, IDLE_TIMEOUT_S)
        idle.cancel()

    async def _wait_until_reported(self, node: NodeParts) -> None:
        """Wait a moment for the relay's confirmation of the last results."""
        # The journal's thread may hang on the disk.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_S):
                while node.source.connected and not self._kill.is_set():
                    if not await node.journal.call(lambda file: file.unreported(1)):
                        return
                    await asyncio.sleep(0.05)

    async def _wait_until(self, condition: Callable[[], bool], limit_s: float, *, hurry: bool = True) -> bool:
        """Return whether a condition becomes true in time.

        With ``hurry`` a second stop ends the waiting.
        """
        until = self.clock.mono() + limit_s
        while not condition():
            if self.clock.mono() >= until or (hurry and self._kill.is_set()):
                return False
            await asyncio.sleep(0.02)
        return True

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine, or cancel it when the daemon stops."""
        running, stopping = self._loop.create_task(work), self._loop.create_task(self._stop.wait())
        try:
            await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            # Both: this coroutine itself may have been canceled.
            for task in (running, stopping):
                task.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)

    def _run(self, service: Service) -> None:
        """Start a service; if it fails, the daemon stops."""
        task = self._loop.create_task(service())
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.critical(
                "a part of the daemon failed; the daemon stops, its service manager restarts it",
                exc_info=error,
            )
            self._failure = error
            self._stop.set()
