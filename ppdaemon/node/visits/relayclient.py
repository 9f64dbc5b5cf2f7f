# SPDX-License-Identifier: BSD-3-Clause
"""The node's end of the link to the relay.

Sends HELLO until WELCOME arrives, and opens a new connection when no message
has arrived for a while: a ROUTER that was restarted has no record of its peers,
and its messages to them are lost without an error.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import zmq
import zmq.asyncio

from ppdaemon import __version__, messages
from ppdaemon.backoff import Backoff
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig, RelayLink
from ppdaemon.curve import ClientKeys
from ppdaemon.errors import BadMessage
from ppdaemon.node.visits.model import FromLink, RelayLost
from ppdaemon.node.visits.source import MAX_RESULTS_PER_MESSAGE
from ppdaemon.reports import ProblemSource
from ppdaemon.sequence import SequenceCheck
from ppdaemon.throttle import Throttle
from ppdaemon.wire import decode, encode
from ppdaemon.zmqmonitor import ConnectionMonitor

__all__ = ("RelayClient",)

_LOG = logging.getLogger(__name__)

HIGH_WATER = 1000
"""Messages that may queue in either direction; messages beyond it are lost and sent again."""
LOG_EVERY_S = 60.0
"""A relay that always sends an oversized message would otherwise cause a warning per second."""
FIRST_PAUSE_S = 1.0
"""Pause after the first failed attempt to open a socket: with too many open files, others have to be
closed first."""
LONGEST_PAUSE_S = 30.0
"""Limit of the growing pauses between further attempts."""

MAX_PROBLEM = 300
"""Characters of a problem in a heartbeat."""

MAX_PERMITS_PER_MESSAGE = 2000
"""Visit-detectors in one message, whose answer is far below the size limit of a node."""


@dataclass(eq=False)
class RelayClient:
    """Keeps the connection to one relay.

    ``incarnation`` is the nonce of this run; ``on_message`` is called in the
    event loop with messages about visits, and when the relay does not answer any
    more; ``count`` counts invalid messages; ``keys`` are those of an encrypted connection.
    """

    kind: ClassVar[ProblemSource] = "relay"

    link: RelayLink
    name: str
    incarnation: str
    instruments: Mapping[str, Sequence[int]]
    capacity: int
    clock: Clock
    context: zmq.asyncio.Context
    on_message: Callable[[FromLink], None]
    count: Counter[str]
    held: Callable[[], tuple[messages.HeldDetectors, ...]] = tuple
    """Returns what the node holds."""
    ended: Callable[[], tuple[messages.EndedDetectors, ...]] = tuple
    """Returns the latest outcomes of the node."""
    spare: bool = False
    shadow: bool = False
    keys: ClientKeys | None = None
    health: Callable[[], tuple[str, str]] = lambda: ("", "")
    """Returns the state of the node and its worst problem, which operators see at the relay."""

    def __post_init__(self) -> None:
        self._instruments = {key: tuple(value) for key, value in self.instruments.items()}
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: ConnectionMonitor | None = None
        self._sequence = 0
        self._received = SequenceCheck()
        self._relay: str | None = None
        self._epoch = 0
        """The highest epoch of a relay so far."""
        self._problem = ""
        self._last_received = 0.0
        self._away_since: float | None = None
        """When the relay was lost, or first tried: the start of a node may take minutes before that."""
        self._throttle = Throttle(LOG_EVERY_S, self.clock.mono)
        self._accepting = True
        self._drained = False
        self._renew = False

    @property
    def samples(self) -> dict[str, str]:
        """By kind of `count`: the beginning of the first invalid message."""
        return self._throttle.samples

    @property
    def text(self) -> str:
        """The state of the connection, for operators."""
        if self.link.address is None:
            return "none configured"
        if self._problem:
            return self._problem
        if self._relay is None:
            return f"connecting to {self.link.address}"
        return f"connected to {self._relay} at {self.link.address}"

    @property
    def away_s(self) -> float:
        """Seconds without a relay; 0 with one, or if none is configured or was tried."""
        return 0.0 if self.connected or self._away_since is None else self.clock.mono() - self._away_since

    @property
    def problem(self) -> str:
        """Why no visits are received, or blank; a relay that was started again needs a moment."""
        if self.away_s <= self.link.silence_s:
            return ""
        reason = self._problem or f"no relay answers at {self.link.address}"
        return f"relay: no visits are received: {reason}; connecting again all the time"

    @property
    def drained(self) -> bool:
        """Whether an operator has drained this node at the relay, by its last heartbeat."""
        return self.connected and self._drained

    @property
    def connected(self) -> bool:
        """Whether a relay has welcomed this node and sends messages."""
        return self._relay is not None

    async def run(self) -> None:
        """Connect and exchange messages until canceled."""
        if self.link.address is None:
            return
        self._away_since = self.clock.mono()
        try:
            while True:
                await self._connect_with_pauses(self.link.address)
                await self._exchange()
        finally:
            self._disconnect()

    def set_accepting(self, accepting: bool) -> None:
        """Offer the node's slots to the relay, or none while it drains."""
        self._accepting = accepting
        self._hello()

    def set_capacity(self, capacity: int) -> None:
        """Offer another number of visit-detectors at once."""
        self.capacity = capacity
        self._hello()

    def report(self) -> None:
        """Return nothing: there are no streams."""

    def reconfigure(self, config: NodeConfig) -> None:
        """Use other keys, with a new connection if they differ.

        Raises `~ppdaemon.keyfiles.UnusableKey` if they cannot be used; the old ones stay.
        """
        keys = ClientKeys.read(config.security.key, config.relay.server)
        self._renew = self._renew or keys != self.keys
        self.keys = keys

    def send_accepted(self, visit: messages.ReserveVisit, detectors: Sequence[int]) -> None:
        """Send that the journal has these detectors."""
        self._send(messages.VisitAccepted, **_names(visit, detectors))

    def send_refused(
        self, visit: messages.ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool
    ) -> None:
        """Send that these detectors are not accepted; ``final`` if another try is useless."""
        self._send(messages.VisitRefused, **_names(visit, detectors), reason=reason, final=final)

    def send_results(self, entries: Sequence[messages.ResultEntry]) -> None:
        """Send outcomes that are in the journal, and what was returned."""
        if self.connected:
            for first in range(0, len(entries), MAX_RESULTS_PER_MESSAGE):
                self._send(messages.Results, entries=tuple(entries[first : first + MAX_RESULTS_PER_MESSAGE]))

    def ask_permits(self, visits: Sequence[messages.DetectorsOfVisit]) -> None:
        """Ask to write permanently for visit-detectors."""
        if not self.connected:
            return
        detectors: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for visit in visits:
            detectors[visit.instrument, visit.group, visit.attempt] += visit.detectors
        merged = [
            messages.DetectorsOfVisit(instrument=name, group=group, attempt=attempt, detectors=tuple(found))
            for (name, group, attempt), found in detectors.items()
        ]
        for first in range(0, len(merged), MAX_PERMITS_PER_MESSAGE):
            self._send(messages.PermitRequest, visits=tuple(merged[first : first + MAX_PERMITS_PER_MESSAGE]))

    async def _connect_with_pauses(self, address: str) -> None:
        """Open a new connection, with growing pauses while that is not possible."""
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            self._disconnect()
            try:
                self._connect(address)
            except zmq.ZMQError as error:
                pause_s = backoff.failed(self.clock.mono())
                self._problem = f"cannot connect to {address}: {error}"
                text = f"{self._problem}; no visits are received; next attempt in {pause_s:g} s"
                self._warn("relay_connection_failed", text)
                await asyncio.sleep(pause_s)
            else:
                if backoff.failures:
                    self._problem = ""
                return

    def _connect(self, address: str) -> None:
        link = self.context.socket(zmq.DEALER)
        self._monitor = ConnectionMonitor(link, self.clock.mono)
        for option, value in (
            # What is not sent is not acknowledged either: it is sent again after the next hello.
            (zmq.LINGER, 0),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            # Unlimited by default. A larger message ends the session for good, without an
            # error: a new socket connects after the grace of `ConnectionMonitor`.
            (zmq.MAXMSGSIZE, messages.RELAY_LIMIT),
            (zmq.HANDSHAKE_IVL, 3000),
            (zmq.IMMEDIATE, 1),  # no messages are queued for an absent relay
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2000),
        ):
            link.setsockopt(option, value)
        if self.keys is not None:
            self.keys.apply(link)
        link.connect(address)
        self._renew = False
        self._socket = link
        # A new connection has the whole `silence_s` for its first message.
        self._last_received = self.clock.mono()

    def _disconnect(self) -> None:
        self._lose_relay()
        if self._monitor is not None:
            self._monitor.close()
            self._socket = self._monitor = None

    async def _exchange(self) -> None:
        """Receive, and send heartbeats, until the relay has been silent too long, or libzmq has
        ended the connection.
        """
        assert self._socket is not None
        assert self._monitor is not None
        while self.clock.mono() - self._last_received < self.link.silence_s and not self._renew:
            ended = await self._monitor.ended()
            if self._monitor.refusal:
                self._problem = f"{self.link.address}: {self._monitor.refusal}"
                self._warn("relay_handshake_failed", f"{self._problem}; no visits are received; trying again")
            if ended:
                if not self._monitor.refusal:
                    self._warn(
                        "relay_connection_ended",
                        f"the connection to relay {self._relay or self.link.address} was ended, for example "
                        f"by a message of more than {messages.RELAY_LIMIT} bytes; connecting again",
                    )
                return
            if self.connected:
                state, problem = self.health()
                self._send(messages.Heartbeat, state=state, problem=problem[:MAX_PROBLEM])
            else:
                self._hello()
            until = self.clock.mono() + self.link.heartbeat_s
            while (remaining := until - self.clock.mono()) > 0:
                # A receive that is canceled at a time limit loses messages: first poll, then receive.
                if await self._socket.poll(remaining * 1000):
                    self._receive(await self._socket.recv_multipart())
        if self._relay is not None and not self._renew:
            text = f"no message from relay {self._relay} for {self.link.silence_s:g} s; connecting again"
            self._warn("relay_silent", text)

    def _receive(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise BadMessage(f"{len(frames)} frames instead of one", "frames")
            message = decode(frames[0], messages.FromRelay, limit=messages.RELAY_LIMIT)
        except BadMessage as error:
            if text := messages.other_protocol(frames[-1]):
                self._problem = f"refused the relay: {text}"
                self._warn("relay_protocol", f"{self._problem}; no visits are received")
                return
            text = f"invalid message from the relay, ignored: {error}"
            self._warn(f"bad_message.{error.kind}", text, frames[-1])
            return
        self._last_received = self.clock.mono()
        if self.connected and not isinstance(message, messages.Welcome):
            self._check_sequence(message.sequence)
        match message:
            case messages.Heartbeat(drained=drained):
                self._drained = drained
            case messages.SendHello():
                self._hello()
            case messages.Welcome(origin=origin, incarnation=incarnation, epoch=epoch):
                if epoch < self._epoch:
                    self._refuse_relay(message)
                    return
                self._received.restart(message.sequence)
                if self._relay is None:
                    _LOG.info("connected to relay %s, incarnation %s, epoch %d", origin, incarnation, epoch)
                self._relay, self._problem, self._epoch = origin, "", epoch
                self.on_message(message)
            case messages.HelloRefused(code="taken", reason=reason):  # perhaps before any welcome
                problem = f"refused by {message.origin}: {reason}"
                if self._problem != problem:
                    _LOG.error("relay %s refuses this node: %s; trying again", message.origin, reason)
                self._lose_relay()
                self._problem = problem
            case _ if self._relay is None:  # of a relay that is not served: its welcome comes first
                return
            case messages.Permitted(epoch=epoch, incarnation=incarnation):
                # A permit of a relay that was replaced, or for an earlier run of this node, is void.
                if epoch >= self._epoch and incarnation == self.incarnation:
                    self.on_message(message)
            case messages.HelloRefused():
                self._lose_relay()
                self._hello()
            case _:
                self.on_message(message)

    def _check_sequence(self, number: int) -> None:
        """Count lost messages of the relay; request its state, which it sends after a hello."""
        lost = self._received.lost
        if self._received.received(number, self.clock.mono()):
            self._hello()
        if lost := self._received.lost - lost:
            self.count["relay_messages_lost"] += lost

    def _refuse_relay(self, welcome: messages.Welcome) -> None:
        """Do not serve a relay that another one has replaced, or whose ledger is an old copy."""
        self._lose_relay()
        self._problem = (
            f"relay {welcome.origin} has epoch {welcome.epoch}, lower than {self._epoch} before: it was"
            " replaced or has an old ledger; stop it, or restart this node if it is the right one"
        )
        self._warn("relay_of_lower_epoch", self._problem)

    def _lose_relay(self) -> None:
        if self._relay is not None:
            self._relay = None
            self._away_since = self.clock.mono()
            self.on_message(RelayLost())

    def _warn(self, kind: str, text: str, sample: bytes | None = None) -> None:
        """Count an event; log it unless its kind was logged recently."""
        self.count[kind] += 1
        if self._throttle.passes(kind, sample):
            _LOG.warning("%s", text, extra={"kind": kind, "count": self.count[kind]})

    def _hello(self) -> None:
        self._send(
            messages.Hello,
            incarnation=self.incarnation,
            instruments=self._instruments,
            capacity=self.capacity if self._accepting else 0,
            spare=self.spare,
            holds=self.held(),
            # Not with each change of the capacity: they are many.
            ended=() if self.connected else self.ended(),
            complete=not self.connected,
            alone=self.link.alone == "cross",
            version=__version__,
            shadow=self.shadow or None,
        )

    def _send(self, kind: type[Any], **fields: Any) -> None:
        """Send one message, or drop it if the relay is absent."""
        if self._socket is None:
            return
        self._sequence += 1
        message = kind(origin=self.name, sent_tai=self.clock.tai(), sequence=self._sequence, **fields)
        # DONTWAIT: the future is done at once. Its exception, zmq.Again, means
        # that the relay is absent; important messages are sent again later.
        cast("asyncio.Future[object]", self._socket.send(encode(message), zmq.DONTWAIT)).exception()


def _names(message: messages.ReserveVisit, detectors: Sequence[int]) -> dict[str, Any]:
    visit = message.visit
    names = {"instrument": visit.instrument, "group": visit.group}
    return {**names, "detectors": tuple(detectors), "attempt": message.attempt}
