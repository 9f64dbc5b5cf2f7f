# SPDX-License-Identifier: BSD-3-Clause
"""The event pump of ``pprelay``.

Sockets and clock put events into one bounded queue; the pump handles them one by
one. `ppdaemon.relay.dispatcher` decides what follows from an event; this module
does it: it commits the writes and, when they are on disk, sends the messages.
Clients are served by `ppdaemon.relay.submitserver`, nodes by `ppdaemon.relay.nodeserver`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import zmq.asyncio

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.controlserver import ControlServer
from ppdaemon.curve import Gatekeeper
from ppdaemon.errors import BadMessage, NeedsRestart
from ppdaemon.idleconnections import ConnectionLimit
from ppdaemon.metricsserver import MetricsServer
from ppdaemon.notify import Notifier
from ppdaemon.problemlog import status_line
from ppdaemon.ratelimit import RateLimit, tokens_of
from ppdaemon.relay import link
from ppdaemon.relay.config import RelayConfig, needs_restart
from ppdaemon.relay.control import RelayControl
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger, UnfinishedVisit
from ppdaemon.relay.metrics import RELAY_METRICS
from ppdaemon.relay.nodeserver import NodeServer
from ppdaemon.relay.openvisit import make_open_visit
from ppdaemon.relay.orders import (
    CloseVisit,
    ConfirmResults,
    Effects,
    Ended,
    Permit,
    RefusePermit,
    ResultKey,
    Send,
    SendHeartbeat,
    SetOutcome,
)
from ppdaemon.relay.submitserver import SubmitServer
from ppdaemon.reloading import Reloader
from ppdaemon.reports import RELAY_REQUESTS
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import Outcome
from ppdaemon.throttle import Throttle
from ppdaemon.tracesender import TraceSender
from ppdaemon.visit import read_next_visit

if TYPE_CHECKING:
    from ppdaemon.relay.kafkasource import KafkaSource

__all__ = ("Relay",)

_LOG = logging.getLogger(__name__)

TICK_S = 0.1
"""Interval of ticks, short against the shortest resend_s in use (0.5 s)."""
EVENTS = 200
"""Events that may wait for the pump; while the queue is full, sockets are not read."""
LOG_INTERVAL_S = 10.0
"""Warnings about bad messages are logged once in this time for each kind, because a
faulty sender may send thousands of them."""
REJOIN_HEARTBEATS = 2.0
"""Heartbeat intervals after the start in which nothing is routed. Running nodes
register in this time: their first message is refused, then they send hello."""
PRUNE_S = 3600.0
"""Interval of deleting visits older than ``keep_days`` from the ledger."""
STOP_S = 0.5
"""How long a stop waits for pending writes of the ledger. What is not written was
not answered either, so that clients and nodes send it again."""


class Relay:
    """A running relay; must be created inside the event loop.

    `ledger` must be open; `run` closes it. `submit` and `nodes` are bound sockets. `read_config` reads the
    configuration file again.
    """

    def __init__(
        self,
        config: RelayConfig,
        ledger: Ledger,
        submit: zmq.asyncio.Socket,
        nodes: zmq.asyncio.Socket,
        *,
        clock: Clock,
        notifier: Notifier,
        incarnation: str,
        read_config: Callable[[], RelayConfig],
        gatekeeper: Gatekeeper | None = None,
    ):
        self._config = config
        self._gatekeeper = gatekeeper
        self._read_config = read_config
        self._submit, self._nodes = submit, nodes
        self._clock = clock
        self._notifier = notifier
        now = clock.mono()
        self._dispatcher = Dispatcher(
            resend_s=config.resend_s,
            silence_s=config.silence_s,
            rejoin_s=REJOIN_HEARTBEATS * config.heartbeat_s,
            give_up_s=config.give_up_s,
            shadow=config.shadow,
        )
        self._throttle = Throttle(LOG_INTERVAL_S, clock.mono)
        self._writer = BatchWriter(ledger, "ledger", self._log_write_error)
        self._submit_server = SubmitServer(
            config=config,
            dispatcher=self._dispatcher,
            writer=self._writer,
            throttle=self._throttle,
            clock=clock,
            answer=partial(link.answer, submit),
            apply_effects=self._apply,
        )
        self._metrics = MetricsServer(config.metrics.listen, RELAY_METRICS, lambda: self._control.report())
        self._traces = TraceSender(config.traces)
        self._control = RelayControl(
            config=config,
            dispatcher=self._dispatcher,
            writer=self._writer,
            throttle=self._throttle,
            clock=clock,
            reloader=Reloader(self._reload, clock),
            metrics=self._metrics,
            traces=self._traces,
        )
        self._node_server = NodeServer(
            config=config,
            dispatcher=self._dispatcher,
            writer=self._writer,
            throttle=self._throttle,
            clock=clock,
            control=self._control,
            send=self._send,
            apply_effects=self._apply,
            restore=partial(self._restore, serve=False),
        )
        self._control_server = ControlServer(
            config.control_socket,
            RELAY_REQUESTS,
            self._control.handle,
            self._control.report,
            config.security,
            self._throttle.by_kind,
        )
        self._rates = {
            link.SUBMIT: RateLimit(config.security.submit_per_s, clock.mono),
            link.NODES: RateLimit(config.security.nodes_per_s, clock.mono),
        }
        self._link = link.NodeLink(nodes, config.name, incarnation, ledger.epoch, clock)
        self._events: asyncio.Queue[Callable[[], None]] = asyncio.Queue(EVENTS)
        self._kafka: KafkaSource | None = None
        if config.kafka.brokers is not None:
            self._kafka = self._kafka_source(config)
        self._tick_effects_done = True
        self._beat_at = now
        self._drained = self._dispatcher.registry.drained
        """As the nodes were told."""
        self._prune_at = now
        self._stop_requested = False
        drained = ledger.drained_nodes()
        self._dispatcher.set_drained(drained, now)
        self._dispatcher.set_preferences(config.preferred_nodes, now)
        # An operator who has removed a node drains it: no start waits for it any more.
        self._dispatcher.expect(ledger.recent_nodes() - set(drained))
        if unfinished := ledger.unfinished_visits():
            _LOG.info("resuming open visits of the previous run", extra={"visits": len(unfinished)})
        self._restore(unfinished)

    def _kafka_source(self, config: RelayConfig) -> "KafkaSource":
        # The library is not installed everywhere, and takes 20 ms.
        from ppdaemon.relay.kafkasource import KafkaSource

        server, throttle = self._submit_server, self._throttle
        source = KafkaSource(config.kafka, config.kafka_group, server, throttle, self._events.put)
        self._control.kafka_problem = lambda: source.problem
        return source

    def request_stop(self) -> None:
        """Make `run` return soon; may be called by a signal handler."""
        self._stop_requested = True
        self._submit_server.closed = self._control.stopping = True

    def request_reload(self) -> None:
        """Read the configuration again soon; may be called by a signal handler."""
        self._control.reloader.request()

    async def run(self) -> None:
        """Serve until `request_stop` is called."""
        try:
            await self._control_server.start()
            await self._serve()
        finally:
            await self._control_server.stop()
            self._writer.close()
            await asyncio.to_thread(self._traces.close)

    async def _serve(self) -> None:
        self._notifier.notify(READY=1, STATUS=status_line(self._control.report()))
        sources = [
            self._tick(),
            self._control.reloader.run(),
            self._metrics.run(),
            self._control.watch_disk(),
        ]
        if self._kafka is not None:
            sources.append(self._kafka.run())
        for socket, domain, handle, excess in (
            (
                self._submit,
                link.SUBMIT,
                lambda frames, _: self._submit_server.serve(frames),
                self._submit_server.refuse_busy,
            ),
            (self._nodes, link.NODES, self._node_server.serve, lambda frames: None),
        ):
            limit = ConnectionLimit(socket, domain, self._throttle, self._clock.mono)
            sources += [limit.run(), self._read(socket, domain, limit, handle, excess)]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writer.run())
            tasks = [group.create_task(source) for source in sources]
            await self._pump()
            # Sources first: nothing new may reach the writer while it finishes.
            await self._control_server.stop()
            for task in tasks:
                task.cancel()
            self._writer.finish()

    # --- sources of events ----------------------------------------------------

    async def _read(
        self,
        socket: zmq.asyncio.Socket,
        domain: str,
        connections: ConnectionLimit,
        handle: Callable[[list[bytes], str | None], None],
        excess: Callable[[list[bytes]], None],
    ) -> None:
        """Pass on the messages of a socket with the name that belongs to the sender's key, if there are
        keys; call `excess` instead for those above the sender's rate.
        """
        while True:
            # Read only while the ledger keeps up, so that messages wait in the sockets,
            # which have limits, and not in memory.
            await self._writer.wait_for_room()
            # Only a frame has the connection, and its key.
            received = await socket.recv_multipart(copy=False)
            connections.used(received[-1])
            frames = [frame.bytes for frame in received]
            sender = None if self._gatekeeper is None else self._gatekeeper.sender(domain, received[-1])
            if sender is None and self._gatekeeper is not None:
                if self._throttle.passes(f"{domain} revoked"):
                    _LOG.warning(
                        "ignored a message: its sender's key is no longer in the folder security.%s", domain
                    )
            elif self._rates[domain].take(sender or frames[0], tokens_of(sum(map(len, frames)))):
                if self._throttle.passes(f"{domain} rate"):
                    _LOG.warning(
                        "dropped messages of a sender above its rate",
                        extra={
                            "socket": domain,
                            "sender": sender or frames[0].hex(),
                            "per_s": self._rates[domain].per_s,
                            "total": self._throttle.by_kind[f"{domain} rate"],
                        },
                    )
                excess(frames)
            else:
                await self._events.put(partial(handle, frames, sender))
                continue
            await asyncio.sleep(0)  # a flood of such messages must not stop the others

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._events.put(self._ticked)

    async def _reload(self) -> None:
        """Read the configuration file and the folders of public keys, and use them.

        Raises `~ppdaemon.errors.ConfigError` if the file has errors or changes what cannot change
        while the relay runs, and
        `~ppdaemon.keyfiles.UnusableKey`.
        """
        config = await asyncio.to_thread(self._read_config)
        if keys := needs_restart(self._config, config):
            raise NeedsRestart(keys)
        allowed = await asyncio.to_thread(config.security.read_allow_lists)
        self._control_server.set_access(config.security)
        self._rates[link.SUBMIT].per_s = config.security.submit_per_s
        self._rates[link.NODES].per_s = config.security.nodes_per_s
        await self._admit(allowed)
        log.set_up(
            config.log.level, config.log.format, config.log.levels, program="pprelay", relay=config.name
        )
        self._config = self._control.config = config
        self._submit_server.config = self._node_server.config = config
        self._dispatcher.set_preferences(config.preferred_nodes, self._clock.mono())
        self._metrics.reconfigure(config.metrics.listen)
        self._traces.reconfigure(config.traces)

    async def _admit(self, allowed: Mapping[str, Mapping[str, str]]) -> None:
        """Admit these keys from now on, by socket; disconnect the nodes of all others."""
        if self._gatekeeper is None:
            return
        for domain, names in allowed.items():
            revoked = self._gatekeeper.replace(domain, names)
            _LOG.info("keys were read", extra={"socket": domain, "keys": len(names)})
            if revoked:
                _LOG.warning("keys were revoked", extra={"socket": domain, "names": sorted(revoked)})
            if domain == link.NODES:
                # Behind what these nodes have sent before.
                await self._events.put(partial(self._node_server.disconnect, revoked))

    # --- the pump ---------------------------------------------------------------

    async def _pump(self) -> None:
        stop_by: float | None = None
        while True:
            handle = await self._events.get()
            try:
                handle()
            except Exception:  # a program error must cost this event only, not the relay
                _LOG.exception("internal error: an event was dropped; please report this")
            # Checked after each event: a tick comes every `TICK_S`.
            if self._stop_requested and stop_by is None:
                _LOG.info("stopping")
                self._notifier.notify(STOPPING=1, STATUS="stopping")
                stop_by = self._clock.mono() + STOP_S
            if stop_by is not None and (not self._writer.backlog or self._clock.mono() >= stop_by):
                return

    def _ticked(self) -> None:
        now = self._clock.mono()
        # While the ledger has not written the effects of the last tick, another tick
        # would only resend messages whose first copy still waits.
        if self._tick_effects_done:
            effects = self._dispatcher.tick(now)
            self._tick_effects_done = not effects.writes and not effects.sends
            self._apply(effects, self._tick_done)
        registry = self._dispatcher.registry
        # At once after a drain: the node says then why it gets no visits.
        if now - self._beat_at >= self._config.heartbeat_s or registry.drained != self._drained:
            self._beat_at, self._drained = now, registry.drained
            self._send([SendHeartbeat(node.peer, node.name in registry.drained) for node in registry.nodes])
            # Sent by the pump, so that systemd restarts a relay whose pump hangs.
            self._notifier.notify(WATCHDOG=1)
            self._notifier.notify(STATUS=status_line(self._control.report()))
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_S
            self._prune()

    def _tick_done(self) -> None:
        self._tick_effects_done = True

    # --- effects ------------------------------------------------------------------

    def _apply(self, effects: Effects, then: Callable[[], None] | None = None) -> None:
        """Write, and send when this and all earlier writes are on disk.

        Effects without writes wait in the same queue, so that the order of messages
        is the order of decisions.
        """
        writes = tuple(effects.writes)

        def follow_up(moved: object = None) -> None:
            try:
                self._send(
                    [
                        send.with_moved(moved)
                        if isinstance(moved, set) and isinstance(send, ConfirmResults)
                        else send
                        for send in effects.sends
                    ]
                )
                for ended in effects.ended:
                    self._trace(ended)
            finally:  # an error in one message must not end all further ticks
                if then is not None:
                    then()

        def record(ledger: Ledger) -> set[ResultKey]:
            return {key for write in writes if (key := ledger.write(write)) is not None}

        self._writer.put(Commit(record if writes else None, follow_up))

    def _trace(self, ended: Ended) -> None:
        tai, name = self._clock.tai(), self._config.name
        self._traces.put(ended.key, lambda: (ended.span(name, tai),))

    def _log_write_error(self, reason: str) -> None:
        if self._throttle.passes("ledger write"):
            _LOG.error(reason, extra={"waiting": self._writer.backlog})

    def _send(self, orders: Sequence[Send]) -> None:
        for order in orders:
            if isinstance(order, Permit | RefusePermit):
                self._control.count_permits(order)
            if not self._link.send(order):
                self._dispatcher.disconnect(order.peer, self._clock.mono())

    def _prune(self) -> None:
        before_tai = self._clock.tai() - self._config.keep_days * 86_400.0

        def again(visits: int) -> None:
            if visits:
                self._prune()

        self._writer.put(Commit(lambda ledger: ledger.prune(before_tai), again, lambda error: None))

    # --- visits ---------------------------------------------------------------------

    def _restore(self, visits: Sequence[UnfinishedVisit], *, serve: bool = True) -> None:
        """Open the visits that the previous run left without all outcomes; see `Dispatcher.add`."""
        for row in visits:
            try:
                visit = read_next_visit(row.fields)
            except BadMessage as error:
                _LOG.error(
                    "a visit in the ledger cannot be read, its detectors end as failed: %s",
                    error,
                    extra={"number": row.number},
                )
                outcomes = [
                    SetOutcome(row.number, found.detector, Outcome.FAILED, f"unreadable: {error}", None)
                    for found in row.reservations
                ]
                self._apply(Effects([*outcomes, CloseVisit(row.number)]))
                continue
            now = self._clock.mono()
            opened = make_open_visit(
                row.number,
                visit,
                row.reservations,
                received_tai=row.received_tai,
                age_s=row.age_s,
                expiry_s=self._config.expiry_s,
                now=now,
                cancelled=row.cancelled,
                adopted=row.adopted,
            )
            self._apply(self._dispatcher.add(opened, now, serve=serve))
