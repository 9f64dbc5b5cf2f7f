# SPDX-License-Identifier: BSD-3-Clause
"""The relay's two sockets: options, addresses, messages to nodes."""

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio

from ppdaemon.clock import Clock
from ppdaemon.messages import (
    NODE_LIMIT,
    SUBMIT_LIMIT,
    Accepted,
    CancelVisit,
    Heartbeat,
    HelloRefused,
    PermitRefused,
    Permitted,
    RelayMessage,
    ReserveVisit,
    ResultsSeen,
    SendHello,
    Welcome,
)
from ppdaemon.relay.orders import (
    ConfirmResults,
    Permit,
    RefuseHello,
    RefusePermit,
    RequestHello,
    Reserve,
    Send,
    SendHeartbeat,
    SendWelcome,
    Withdraw,
)
from ppdaemon.routers import COMMON_OPTIONS, send
from ppdaemon.wire import encode

__all__ = ("NODES", "NODE_OPTIONS", "SUBMIT", "SUBMIT_OPTIONS", "NodeLink", "answer")

_LOG = logging.getLogger(__name__)

SUBMIT, NODES = "submit", "nodes"
"""The sockets, by their keys in the configuration; also the domains of their allow-lists."""

SUBMIT_OPTIONS = COMMON_OPTIONS | {
    # An oversized message up to this size is refused with a reason; a larger one
    # closes the connection before the message is in memory.
    zmq.MAXMSGSIZE: 16 * SUBMIT_LIMIT,
    # Messages per client; more wait at the sender.
    zmq.RCVHWM: 500,
    zmq.SNDHWM: 500,
    # A client that connects again with the same identity replaces its old connection.
    zmq.ROUTER_HANDOVER: 1,
    # A client that disconnects before its answer is not an error.
    zmq.ROUTER_MANDATORY: 0,
}

NODE_OPTIONS = COMMON_OPTIONS | {
    zmq.MAXMSGSIZE: NODE_LIMIT,
    zmq.RCVHWM: 1000,
    zmq.SNDHWM: 1000,
    # No node can take over the connection of another by using its identity; ours have none.
    zmq.ROUTER_HANDOVER: 0,
    # Sending to a closed connection raises an error instead of losing the message.
    zmq.ROUTER_MANDATORY: 1,
}

MAX_NUMBERED = 10_000
"""Connections whose messages are numbered. The oldest ones are of nodes that have
connected again since; without numbers a node notices no gap."""


def answer(socket: zmq.asyncio.Socket, envelope: Sequence[bytes], accepted: Accepted) -> None:
    """Send an answer to a client; ignored if the client has disconnected."""
    error = send(socket, [*envelope, encode(accepted)])
    if error is not None:
        _LOG.debug(
            "client does not receive its answer", extra={"group": accepted.group, "reason": str(error)}
        )


@dataclass(eq=False)
class NodeLink:
    """Sends messages to nodes."""

    socket: zmq.asyncio.Socket
    name: str
    incarnation: str
    epoch: int
    clock: Clock

    def __post_init__(self) -> None:
        self._sequences: dict[bytes, int] = {}

    def send(self, order: Send) -> bool:
        """Send one message without waiting; return `False` if the connection is closed.

        A connection whose queue is full counts as open: what it missed is sent again.
        """
        error = send(self.socket, [order.peer, encode(self._message(order))])
        if error is None or error.errno != errno.EHOSTUNREACH:
            return True
        self._sequences.pop(order.peer, None)
        return False

    def _number(self, order: Send) -> int:
        """Return the next number of a connection; 0 if it is not registered."""
        if isinstance(order, SendWelcome):
            if len(self._sequences) >= MAX_NUMBERED:
                del self._sequences[next(iter(self._sequences))]
            self._sequences.setdefault(order.peer, 0)
        elif order.peer not in self._sequences:
            return 0
        self._sequences[order.peer] += 1
        return self._sequences[order.peer]

    def _message(self, order: Send) -> RelayMessage:
        common: dict[str, Any] = {
            "origin": self.name,
            "sent_tai": self.clock.tai(),
            "sequence": self._number(order),
        }
        match order:
            case SendHeartbeat(drained=drained):
                return Heartbeat(**common, drained=drained)
            case SendWelcome():
                return Welcome(**common, incarnation=self.incarnation, epoch=self.epoch)
            case RefuseHello(_, code, reason):
                return HelloRefused(**common, code=code, reason=reason)
            case RequestHello():
                return SendHello(**common)
            case Reserve(_, visit, detectors, attempt, received_at):
                # Nodes count a visit's age from the difference of the two times in the message.
                received_tai = common["sent_tai"] - (self.clock.mono() - received_at)
                return ReserveVisit(
                    **common, visit=visit, detectors=detectors, attempt=attempt, received_tai=received_tai
                )
            case Withdraw(_, instrument, group, detectors, attempt):
                return CancelVisit(
                    **common, instrument=instrument, group=group, detectors=detectors, attempt=attempt
                )
            case Permit(_, incarnation, visits):
                return Permitted(**common, epoch=self.epoch, incarnation=incarnation, visits=visits)
            case RefusePermit(_, visits, reason):
                return PermitRefused(**common, visits=visits, reason=reason)
            case ConfirmResults(_, keys, moved):
                return ResultsSeen(**common, entries=keys, moved=moved)
