# SPDX-License-Identifier: BSD-3-Clause
"""The event pump of ``pprelay``: takes events, asks for decisions, acts.

Sockets and clock only put events into one bounded queue; the pump takes them
out one by one. What is to be done is decided by `ppdaemon.relay.dispatcher`; here it
is carried out: first written, then, when that is on disk, sent. Clients are
served by `ppdaemon.relay.submitserver`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import zmq.asyncio

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import NODE_LIMIT, FromNode
from ppdaemon.notify import Notifier
from ppdaemon.relay import link
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger, UnendedVisit
from ppdaemon.relay.openvisit import Reservation, opened
from ppdaemon.relay.orders import Beat, CloseVisit, Send, SetOutcome, Turn
from ppdaemon.relay.submitserver import SubmitServer
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import Outcome
from ppdaemon.throttle import Throttle
from ppdaemon.visit import NextVisit, read_next_visit
from ppdaemon.wire import decode

__all__ = ("Relay", "Sockets")

_LOG = logging.getLogger(__name__)

TICK_S = 0.1
EVENTS = 200
"""Events that may wait for the pump; then their sources wait."""
LOG_INTERVAL_S = 10.0
"""What comes in floods is logged at most so often, of each kind."""
SETTLE_BEATS = 2.0
"""Heartbeat intervals in which all nodes that are up find a new relay: the
first tells them that they are strangers, then they say hello."""
PRUNE_S = 3600.0
"""Interval of the look for ledger entries older than ``keep_days``."""
STOP_S = 0.5
"""How long a stop waits for the ledger."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """The two bound sockets."""

    submit: zmq.asyncio.Socket
    nodes: zmq.asyncio.Socket


class Relay:
    """A running relay; built inside the event loop.

    Parameters
    ----------
    config : `~ppdaemon.relay.config.RelayConfig`
        The configuration.
    ledger : `~ppdaemon.relay.ledger.Ledger`
        Opened; closed by `run`.
    sockets : `Sockets`
        Bound.
    clock : `~ppdaemon.clock.Clock`
        Time.
    notifier : `~ppdaemon.notify.Notifier`
        The service manager.
    life : `str`
        Nonce of this life.
    """

    def __init__(
        self,
        config: RelayConfig,
        ledger: Ledger,
        sockets: Sockets,
        *,
        clock: Clock,
        notifier: Notifier,
        incarnation: str,
    ):
        self._config = config
        self._sockets = sockets
        self._clock = clock
        self._notifier = notifier
        now = clock.mono()
        self._dispatcher = Dispatcher(
            resend_s=config.resend_s,
            silence_s=config.silence_s,
            settle_s=SETTLE_BEATS * config.heartbeat_s,
        )
        self._throttle = Throttle(LOG_INTERVAL_S, clock.mono)
        self._writer = BatchWriter(ledger, "ledger", self._complain)
        self._submit_server = SubmitServer(
            config=config,
            dispatcher=self._dispatcher,
            writer=self._writer,
            throttle=self._throttle,
            clock=clock,
            answer=partial(link.answer, sockets.submit),
            carry_out=self._carry_out,
            open_visit=self._open,
        )
        self._link = link.NodeLink(sockets.nodes, config.name, incarnation, clock)
        self._events: asyncio.Queue[Callable[[], None]] = asyncio.Queue(EVENTS)
        self._turn_of_tick_done = True
        self._beat_at = now
        self._prune_at = now
        self._stop_asked = False
        self._restore(ledger.unended())

    def ask_stop(self) -> None:
        """Make `run` return soon; may be called by a signal handler."""
        self._stop_asked = True
        self._submit_server.closed = True

    async def run(self) -> None:
        """Serve until a stop is asked for."""
        self._notifier.tell(READY=1, STATUS=self._status())
        sources = [
            self._read(self._sockets.submit, self._submit_server.serve),
            self._read(self._sockets.nodes, self._node_spoke),
            self._tick(),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._writer.run())
                tasks = [group.create_task(source) for source in sources]
                await self._pump()
                for task in tasks:
                    task.cancel()
                self._writer.finish()
        finally:
            self._writer.close()

    # --- sources of events ----------------------------------------------------

    async def _read(self, socket: zmq.asyncio.Socket, handle: Callable[[list[bytes]], None]) -> None:
        while True:
            await self._writer.room()
            await self._events.put(partial(handle, await socket.recv_multipart()))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._events.put(self._ticked)

    # --- the pump ---------------------------------------------------------------

    async def _pump(self) -> None:
        stop_by: float | None = None
        while True:
            handle = await self._events.get()
            try:
                handle()
            except Exception:  # an error in the program costs no more than this event
                _LOG.exception("an event could not be handled")
            if self._stop_asked and stop_by is None:
                _LOG.info("stopping")
                self._notifier.tell(STOPPING=1, STATUS="stopping")
                stop_by = self._clock.mono() + STOP_S
            if stop_by is not None and (not self._writer.backlog or self._clock.mono() >= stop_by):
                return

    def _ticked(self) -> None:
        now = self._clock.mono()
        if self._turn_of_tick_done:  # else the ledger is behind, and so must resending be
            turn = self._dispatcher.tick(now)
            self._turn_of_tick_done = not turn.writes and not turn.sends
            self._carry_out(turn, self._tick_done)
        if now - self._beat_at >= self._config.heartbeat_s:
            self._beat_at = now
            self._send([Beat(peer) for peer in self._dispatcher.registry.peers])
            self._notifier.tell(WATCHDOG=1, STATUS=self._status())
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_S
            self._prune()

    def _tick_done(self) -> None:
        self._turn_of_tick_done = True

    def _status(self) -> str:
        return (
            f"{len(self._dispatcher.registry)} nodes, {len(self._dispatcher)} visits"
            f" with {self._dispatcher.reservations} detectors under way"
        )

    # --- carrying out -------------------------------------------------------------

    def _carry_out(self, turn: Turn, then: Callable[[], None] | None = None) -> None:
        """Write, and when that and all before it is on disk, send."""
        writes = tuple(turn.writes)

        def follow_up(_: object = None) -> None:
            self._send(turn.sends)
            if then is not None:
                then()

        def record(ledger: Ledger) -> None:
            for write in writes:
                ledger.write(write)

        self._writer.put(Commit(record if writes else None, follow_up))

    def _complain(self, reason: str) -> None:
        if self._throttle.passes("ledger write"):
            _LOG.error(reason, extra={"waiting": self._writer.backlog})

    def _send(self, orders: Sequence[Send]) -> None:
        for order in orders:
            if not self._link.send(order):
                self._dispatcher.lose(order.peer, self._clock.mono())

    def _prune(self) -> None:
        before_tai = self._clock.tai() - self._config.keep_days * 86_400.0

        def again(visits: int) -> None:
            if visits:
                self._prune()

        self._writer.put(Commit(lambda ledger: ledger.prune(before_tai), again, lambda error: None))

    # --- nodes ----------------------------------------------------------------------

    def _node_spoke(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2:
                raise BadMessage(f"{len(frames) - 1} frames, expected one", "frames")
            message = decode(frames[1], FromNode, limit=NODE_LIMIT)
        except BadMessage as error:
            if self._throttle.passes(f"node {error.kind}"):
                total = self._throttle.by_kind[f"node {error.kind}"]
                _LOG.warning(
                    "dropped a message of a node",
                    extra={"kind": error.kind, "reason": str(error), "total": total},
                )
            return
        self._carry_out(self._dispatcher.receive(frames[0], message, self._clock.mono()))

    # --- visits ---------------------------------------------------------------------

    def _restore(self, visits: Sequence[UnendedVisit]) -> None:
        """Go on with what a former life left open."""
        for row in visits:
            try:
                visit = read_next_visit(row.fields)
            except BadMessage as error:
                _LOG.exception("a visit in the ledger cannot be read any more", extra={"number": row.number})
                outcomes = [
                    SetOutcome(row.number, found.detector, Outcome.FAILED, f"unreadable: {error}", None)
                    for found in row.reservations
                ]
                self._carry_out(Turn([*outcomes, CloseVisit(row.number)]))
                continue
            self._open(row.number, visit, row.reservations, row.received_tai, cancelled=row.cancelled)
        if visits:
            _LOG.info("going on with unended visits", extra={"visits": len(visits)})

    def _open(
        self,
        number: int,
        visit: NextVisit,
        reservations: Sequence[Reservation],
        received_tai: float,
        *,
        cancelled: bool = False,
    ) -> None:
        now = self._clock.mono()
        open_visit = opened(
            number,
            visit,
            reservations,
            received_tai=received_tai,
            expiry_s=self._config.expiry_s,
            now=now,
            now_tai=self._clock.tai(),
            cancelled=cancelled,
        )
        self._carry_out(self._dispatcher.add(open_visit, now))
