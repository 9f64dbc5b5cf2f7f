# SPDX-License-Identifier: BSD-3-Clause
"""A bridge: sources of notices, the ring, the nodes, control socket and metrics in one event loop."""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import zmq.asyncio

from ppdaemon import __version__, log, reports
from ppdaemon.bridge.config import BridgeConfig, needs_restart, unprotected
from ppdaemon.bridge.metrics import BRIDGE_METRICS
from ppdaemon.bridge.outlet import Outlet
from ppdaemon.bridge.ring import RING_NAME, Extent, Ring
from ppdaemon.clock import Clock
from ppdaemon.controlserver import ControlServer, Reply
from ppdaemon.curve import Gatekeeper
from ppdaemon.errors import ConfigError, NeedsRestart, PPDaemonError, Refused, StateUnusable
from ppdaemon.metricsserver import MetricsServer
from ppdaemon.notify import Notifier
from ppdaemon.problemlog import Finding, ProblemLog, status_line
from ppdaemon.reloading import Reloader
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.terminal import duration, number_of
from ppdaemon.throttle import Throttle

if TYPE_CHECKING:  # each source has a library of its own, which is not installed everywhere
    from ppdaemon.bridge.http import HttpSource
    from ppdaemon.bridge.kafka import KafkaNotices

__all__ = ("Bridge",)

_LOG = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0
"""A store that is refused tries again at once."""
TICK_S = 1.0
AT_ONCE = 200
"""Notices that are stored together; those that come meanwhile are stored next."""
HANGS_S = 10.0
"""Time without an answer of the disk that is a problem."""
PRUNE_S = 60.0
"""Interval of deleting what is too old while no notice comes."""


class Bridge:
    """Serves until `request_stop` is called; `nodes` is the bound socket of the nodes."""

    def __init__(
        self,
        config: BridgeConfig,
        ring: Ring,
        nodes: zmq.asyncio.Socket,
        gatekeeper: Gatekeeper | None,
        clock: Clock,
        notifier: Notifier,
        read_config: Callable[[], BridgeConfig],
    ):
        self._config = config
        self._gatekeeper = gatekeeper
        self._read_config = read_config
        self._reloader = Reloader(self._reload, clock)
        self._clock = clock
        self._notifier = notifier
        self._moved_aside = ring.moved_aside
        self._epoch = ring.epoch
        self.throttle = Throttle(LOG_INTERVAL_S, clock.mono)
        self._writer = BatchWriter(ring, "ring", self._log_write_error)
        self._outlet = Outlet(
            nodes, gatekeeper, self._writer, ring.epoch, ring.extent(), clock, self.throttle
        )
        self._started_tai = clock.tai()
        self._problem_log = ProblemLog()
        self._http: HttpSource | None = None
        self._listening = ""
        self._kafka = self._new_kafka()
        self._answered_at = clock.mono()
        """When the thread of the ring answered last; it is asked each second."""
        self._waiting: dict[asyncio.Future[None], bytes] = {}
        """Notices that are not stored yet, in the order of their arrival."""
        self._storing = False
        self._failure: PPDaemonError | None = None
        self._stop = asyncio.Event()
        self._metrics = MetricsServer(config.metrics.listen, BRIDGE_METRICS, self.report)
        self._control = ControlServer(
            config.control_socket,
            reports.BRIDGE_REQUESTS,
            self._handle,
            self.report,
            config.security,
            self.throttle.by_kind,
        )

    async def store(self, body: bytes) -> None:
        """Return when a notice is on the disk. Raises `~ppdaemon.errors.Refused` if it cannot be written."""
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[None] = loop.create_future()
        self._waiting[stored] = body
        if not self._storing:
            self._storing = True
            loop.call_soon(self._store_waiting)  # with those that come in this turn
        try:
            await stored
        finally:
            self._waiting.pop(stored, None)

    def _store_waiting(self) -> None:
        """Store the notices that wait, and after that those that came meanwhile."""
        batch = [*itertools.islice(self._waiting.items(), AT_ONCE)]
        self._storing = bool(batch)
        if not batch:
            return
        bodies = [body for _, body in batch]

        def committed(extent: Extent) -> None:
            for stored, _ in batch:
                self._waiting.pop(stored, None)
                if not stored.done():  # its store has given up
                    stored.set_result(None)
            self._store_waiting()
            # Last: an error here must not keep the stores waiting.
            self._outlet.committed(extent, bodies)

        def failed(error: Exception) -> None:
            # A ring that cannot be written would take the time of a failure for each batch of the others.
            for stored in [*self._waiting] if isinstance(error, Refused) else [each for each, _ in batch]:
                self._waiting.pop(stored, None)
                if not stored.done():
                    stored.set_exception(error)
            self._store_waiting()

        self._writer.put(Commit(lambda ring: ring.add(bodies, self._clock.tai()), committed, failed))

    def request_stop(self) -> None:
        """Make `run` return soon; may be called by a signal handler."""
        self._stop.set()

    def request_reload(self) -> None:
        """Read the configuration again soon; may be called by a signal handler."""
        self._reloader.request()

    async def run(self, listener: socket.socket | None, http: "HttpSource | None") -> None:
        """Serve until `request_stop` is called; `listener` is the socket of HTTP.

        Raises `~ppdaemon.errors.StateUnusable` if the ring is no longer where it was.
        """
        try:
            await self._control.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._writer.run())
                tasks = [group.create_task(part) for part in self._parts()]
                if http is not None and listener is not None:
                    self._http, self._listening = http, "{}:{}".format(*listener.getsockname()[:2])
                    await http.start(listener)
                self._notifier.notify(READY=1, STATUS=status_line(self.report()))
                await self._stop.wait()
                # Sources first: nothing new may reach the writer while it finishes.
                if http is not None:
                    await http.stop()
                await self._control.stop()
                for task in tasks:
                    task.cancel()
                self._writer.finish()
        finally:
            await self._control.stop()
            self._writer.close()
        if self._failure is not None:
            raise self._failure

    def _parts(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield self._tick()
        yield self._outlet.receive()
        yield self._outlet.answer()
        yield self._outlet.limit.run()
        yield self._metrics.run()
        yield self._watch_ring()
        yield self._reloader.run()
        if self._kafka is not None:
            yield self._kafka.run()

    def _new_kafka(self) -> "KafkaNotices | None":
        if self._config.kafka.brokers is None:
            return None
        from ppdaemon.bridge.kafka import KafkaNotices

        return KafkaNotices(self._config.kafka, self.store, self.throttle)

    async def _reload(self) -> None:
        """Read the configuration and the files of keys, token and certificate, and use them.

        Raises `~ppdaemon.errors.ConfigError` if the file has errors or changes what cannot change while the
        bridge runs, and `~ppdaemon.keyfiles.UnusableKey`.
        """
        config = await asyncio.to_thread(self._read_config)
        if keys := needs_restart(self._config, config):
            raise NeedsRestart(keys)
        # The socket may be that of systemd, at another address than that of the file.
        listening = self._listening or None
        if not config.security.insecure and (problem := unprotected(listening, config.http.token)):
            raise ConfigError([problem])
        allowed = await asyncio.to_thread(config.security.read_allow_lists)
        if self._http is not None:
            self._http.renew(config.http)
        self._control.set_access(config.security)
        if self._gatekeeper is not None:
            for domain, names in allowed.items():
                revoked = self._gatekeeper.replace(domain, names)
                _LOG.info("keys were read", extra={"socket": domain, "keys": len(names)})
                if revoked:
                    _LOG.warning("keys were revoked", extra={"socket": domain, "names": sorted(revoked)})
                    self._outlet.revoke(revoked)
        await self._writer.call(lambda ring: ring.set_limits(config.ring))
        log.set_up(
            config.log.level, config.log.format, config.log.levels, program="ppbridge", bridge=config.name
        )
        self._metrics.reconfigure(config.metrics.listen)
        self._config = config

    async def _tick(self) -> None:
        prune_at = self._clock.mono()
        while True:
            self._outlet.tick()
            self._notifier.notify(WATCHDOG=1, STATUS=status_line(self.report()))
            if self._clock.mono() >= prune_at:
                prune_at += PRUNE_S
                self._writer.put(Commit(lambda ring: ring.prune(self._clock.tai()), self._outlet.committed))
            await asyncio.sleep(TICK_S)

    async def _watch_ring(self) -> None:
        """Stop when the ring was removed or replaced: its successor is made at the next start."""
        while True:
            if not await self._writer.call(Ring.is_in_place):
                text = "was removed or replaced: notices that nodes did not have are lost"
                self._failure = StateUnusable(f"{self._config.state_dir / RING_NAME} {text}")
                self._stop.set()
                return
            self._answered_at = self._clock.mono()
            await asyncio.sleep(TICK_S)

    def _log_write_error(self, problem: str) -> None:
        if self.throttle.passes("ring error"):
            _LOG.error("%s; stores are asked to repeat their notices", problem)

    # --- status ---------------------------------------------------------------

    async def _handle(self, request: pydantic.BaseModel) -> Reply:
        if isinstance(request, reports.StatusRequest):
            return reports.Ok(data=self.report().model_dump(mode="json"))
        assert isinstance(request, reports.ReloadRequest), request
        try:
            await self._reloader.now()
        except ConfigError as error:
            return reports.RequestFailed(code="config", text=str(error))
        return reports.Ok(data="the configuration is in use")

    def report(self) -> reports.BridgeStatusReport:
        """Return the state of the bridge."""
        extent, tai, now = self._outlet.extent, self._clock.tai(), self._clock.mono()
        age_s = None if extent.newest_tai is None else max(0.0, tai - extent.newest_tai)
        nodes = tuple(
            reports.BridgeNodeRow(node=name, behind=max(0, extent.last - number), asked_s=now - at)
            for name, (number, at) in sorted(self._outlet.nodes.items())
        )
        problems = self._problem_log.update(self._problems(), tai)
        state: Literal["running", "degraded", "stopping"] = "running"
        if any(problem.degrades for problem in problems):
            state = "degraded"
        if self._stop.is_set():
            state = "stopping"
        last = "no notice yet" if age_s is None else f"the last notice {duration(age_s)} ago"
        return reports.BridgeStatusReport(
            bridge=self._config.name,
            version=__version__,
            pid=os.getpid(),
            state=state,
            text=f"{number_of(extent.count, 'notice')} in the ring, {last}, {number_of(len(nodes), 'node')}",
            started_tai=self._started_tai,
            tai=tai,
            listening=self._listening,
            connections=0 if self._http is None else self._http.connections,
            nodes=nodes,
            ring=str(self._config.state_dir / RING_NAME),
            epoch=self._epoch,
            first=extent.first,
            last=extent.last,
            ring_mb=extent.bytes / 1e6,
            backlog=len(self._waiting),
            last_notice_s=age_s,
            sent=self._outlet.sent,
            counters=dict(self.throttle.by_kind),
            reloaded_tai=self._reloader.reloaded_tai,
            reload_refused=bool(self._reloader.refused),
            problems=problems,
        )

    def _problems(self) -> Iterator[Finding]:
        if self._writer.problem:
            yield Finding("ring", self._writer.problem)
        elif (hangs_s := self._clock.mono() - self._answered_at) > HANGS_S:
            yield Finding("ring", f"the disk of the ring has not answered for {duration(hangs_s)}", "hangs")
        if self._moved_aside is not None:
            text = (
                f"the ring was corrupt and is now {self._moved_aside}: notices in it that nodes did not have"
                " are lost; move the file away when you have read this, and restart"
            )
            yield Finding("ring", text, "corrupt")
        if self._kafka is not None and (text := self._kafka.problem):
            yield Finding("kafka", text)
        if self._reloader.refused:
            yield Finding("configuration", self._reloader.refused, degrades=False)
        if self._metrics.problem:
            yield Finding("metrics", self._metrics.problem, degrades=False)
