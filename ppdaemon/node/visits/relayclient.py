# SPDX-License-Identifier: BSD-3-Clause
"""The node's end of the link to the relay.

Sends HELLO until it is welcomed, and connects anew when nothing comes from the
relay for a while: a ROUTER that was away has
forgotten its peers, and what it sent meanwhile is lost without an error.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import zmq
import zmq.asyncio

from ppdaemon import messages
from ppdaemon.clock import Clock
from ppdaemon.config import RelayLink
from ppdaemon.errors import BadMessage
from ppdaemon.wire import decode, encode

__all__ = ("RESULTS_AT_ONCE", "RelayClient")

_LOG = logging.getLogger(__name__)

RESULTS_AT_ONCE = 500
"""Outcomes in one message, which stays far below what a relay takes."""
HIGH_WATER = 1000
"""Messages that may wait on either side of the socket."""

type OnMessage = Callable[
    [messages.ReserveVisit | messages.CancelVisit | messages.ResultsSeen | messages.Welcome], None
]


@dataclass(eq=False)
class RelayClient:
    """Holds the link to one relay.

    Parameters
    ----------
    link : `~ppdaemon.config.RelayLink`
        Where the relay is, and how long it may be silent.
    name, incarnation : `str`
        The node's name and the nonce of this run.
    instruments : `~collections.abc.Mapping`
        Detectors served, by instrument.
    capacity : `int`
        Visit-detectors that the node can hold at once.
    clock : `~ppdaemon.clock.Clock`
        For stamps and silence.
    context : `zmq.asyncio.Context`
        The process's only one.
    on_message : `~collections.abc.Callable`
        Called in the event loop with what concerns visits.
    count : `collections.Counter`
        Counts bad messages by kind.
    """

    link: RelayLink
    name: str
    incarnation: str
    instruments: Mapping[str, Sequence[int]]
    capacity: int
    clock: Clock
    context: zmq.asyncio.Context
    on_message: OnMessage
    count: Counter[str]

    def __post_init__(self) -> None:
        self._instruments = {key: tuple(value) for key, value in self.instruments.items()}
        self._socket: zmq.asyncio.Socket | None = None
        self._sequence = 0
        self._relay: str | None = None
        self._problem = ""
        self._last_received = 0.0
        self._taking = True

    @property
    def text(self) -> str:
        """The link in a few words (`str`)."""
        if self.link.address is None:
            return "none configured"
        if self._problem:
            return self._problem
        if self._relay is None:
            return f"connecting to {self.link.address}"
        return f"connected to {self._relay} at {self.link.address}"

    @property
    def connected(self) -> bool:
        """Whether a relay has welcomed this node and speaks (`bool`)."""
        return self._relay is not None

    async def run(self) -> None:
        """Keep the link until cancelled."""
        if self.link.address is None:
            return
        try:
            while True:
                self._connect(self.link.address)
                await self._converse()
        finally:
            self._disconnect()

    def set_taking(self, taking: bool) -> None:
        """Offer the node's slots, or none while it drains.

        Parameters
        ----------
        taking : `bool`
            Whether visits are taken.
        """
        self._taking = taking
        self._hello()

    def set_capacity(self, capacity: int) -> None:
        """Offer another number of slots.

        Parameters
        ----------
        capacity : `int`
            Visit-detectors that the node can hold at once.
        """
        self.capacity = capacity
        self._hello()

    def ack(self, visit: messages.ReserveVisit, detectors: Sequence[int]) -> None:
        """Report that the journal has these detectors.

        Parameters
        ----------
        visit : `~ppdaemon.messages.ReserveVisit`
            What was asked.
        detectors : `~collections.abc.Sequence` [`int`]
            Which of them.
        """
        self._send(messages.VisitAccepted, **_about(visit, detectors))

    def nak(
        self, visit: messages.ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool
    ) -> None:
        """Report that these detectors are not taken.

        Parameters
        ----------
        visit : `~ppdaemon.messages.ReserveVisit`
            What was asked.
        detectors : `~collections.abc.Sequence` [`int`]
            Which of them.
        reason : `str`
            Why.
        final : `bool`
            Whether another try is pointless.
        """
        self._send(messages.VisitRefused, **_about(visit, detectors), reason=reason, final=final)

    def results(self, entries: Sequence[messages.ResultEntry]) -> None:
        """Send outcomes.

        Parameters
        ----------
        entries : `~collections.abc.Sequence` [`~ppdaemon.messages.ResultEntry`]
            Outcomes that are in the journal.
        """
        if self.connected:
            for first in range(0, len(entries), RESULTS_AT_ONCE):
                self._send(messages.Results, entries=tuple(entries[first : first + RESULTS_AT_ONCE]))

    def _connect(self, address: str) -> None:
        self._disconnect()
        link = self.context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.MAXMSGSIZE, messages.RELAY_LIMIT),
            (zmq.HANDSHAKE_IVL, 3000),
            (zmq.IMMEDIATE, 1),  # nothing queues up for a relay that is not there
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2000),
        ):
            link.setsockopt(option, value)
        link.connect(address)
        self._socket = link
        self._last_received = self.clock.mono()

    def _disconnect(self) -> None:
        self._relay = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _converse(self) -> None:
        """Receive and send heartbeats until nothing comes from the relay any more."""
        assert self._socket is not None
        while self.clock.mono() - self._last_received < self.link.silence_s:
            if self.connected:
                self._send(messages.Heartbeat)
            else:
                self._hello()
            until = self.clock.mono() + self.link.heartbeat_s
            while (rest := until - self.clock.mono()) > 0:
                if await self._socket.poll(rest * 1000):
                    self._receive(await self._socket.recv_multipart())
        if self._relay is not None:
            _LOG.warning("relay %s is silent for %g s: connecting anew", self._relay, self.link.silence_s)

    def _receive(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise BadMessage(f"{len(frames)} frames instead of one", "frames")
            message = decode(frames[0], messages.FromRelay, limit=messages.RELAY_LIMIT)
        except BadMessage as error:
            self.count[f"bad_message.{error.kind}"] += 1
            _LOG.warning("invalid message from the relay: %s", error)
            return
        self._last_received = self.clock.mono()
        match message:
            case messages.Heartbeat():
                return
            case messages.Welcome(origin=origin, incarnation=incarnation):
                if self._relay is None:
                    _LOG.info("welcomed by relay %s, life %s", origin, incarnation)
                self._relay, self._problem = origin, ""
                self.on_message(message)
            case messages.HelloRefused(code="stranger"):
                self._relay = None
                self._hello()
            case messages.HelloRefused(reason=reason):
                if self._problem != reason:
                    _LOG.error("refused by relay %s: %s", message.origin, reason)
                self._relay, self._problem = None, f"refused by {message.origin}: {reason}"
            case _:
                self.on_message(message)

    def _hello(self) -> None:
        self._send(
            messages.Hello,
            incarnation=self.incarnation,
            instruments=self._instruments,
            capacity=self.capacity if self._taking else 0,
        )

    def _send(self, kind: type[Any], **fields: Any) -> None:
        """Send one message, or nothing if the relay is not there."""
        if self._socket is None:
            return
        self._sequence += 1
        message = kind(origin=self.name, sent_tai=self.clock.tai(), sequence=self._sequence, **fields)
        # Done at once, because it may not wait; zmq.Again means that the relay
        # is away, and what matters is repeated.
        cast("asyncio.Future[object]", self._socket.send(encode(message), zmq.DONTWAIT)).exception()


def _about(order: messages.ReserveVisit, detectors: Sequence[int]) -> dict[str, Any]:
    visit = order.visit
    names = {"instrument": visit.instrument, "group": visit.group}
    return {**names, "detectors": tuple(detectors), "attempt": order.attempt}
