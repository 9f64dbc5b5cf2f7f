# SPDX-License-Identifier: BSD-3-Clause
"""The relay's two sockets: options, addresses, messages to nodes."""

import errno
import logging
import os
from asyncio import Future
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import zmq
import zmq.asyncio

from ppdaemon.clock import Clock
from ppdaemon.curve import Gatekeeper
from ppdaemon.errors import PPDaemonError
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
from ppdaemon.privatefiles import check_socket_folder
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
from ppdaemon.states import ExitCode
from ppdaemon.wire import encode

__all__ = ("NODES", "SUBMIT", "CannotBind", "NodeLink", "answer", "bind_nodes", "bind_submit")

_LOG = logging.getLogger(__name__)

SUBMIT, NODES = "submit", "nodes"
"""The sockets, by their keys in the configuration; also the domains of their allow-lists."""

COMMON_OPTIONS = {
    # Milliseconds that a closed socket may still send. Short, so that a stop takes
    # less than a second: the next run sends unacknowledged messages again.
    zmq.LINGER: 100,
    # The default is 30 s, in which each half-open connection of a port scanner
    # would use resources.
    zmq.HANDSHAKE_IVL: 3000,
    # Connections that may wait for the I/O thread, such as of all nodes after a restart; the default
    # is 100.
    zmq.BACKLOG: 1024,
    # Closes connections whose other end has disappeared (host down, cable), and
    # drops their queues.
    zmq.HEARTBEAT_IVL: 5000,
    zmq.HEARTBEAT_TIMEOUT: 15_000,
}

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


class CannotBind(PPDaemonError):
    """The relay cannot listen on a configured address."""

    def __init__(self, key: str, address: str, error: zmq.ZMQError):
        text = str(error)
        self.exit_code = ExitCode.UNAVAILABLE
        if error.errno == errno.EADDRINUSE:
            text = "the port is in use; check whether another pprelay runs on this host"
            self.exit_code = ExitCode.TRY_LATER
        elif error.errno == errno.EACCES:
            text = "this user may not listen there; choose a port above 1023"
            self.exit_code = ExitCode.PERMISSION
        elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
            text = "this host has no such address or name"
        super().__init__(f"{key}: cannot listen on {address}: {text}")


def _bind(
    context: zmq.asyncio.Context,
    key: str,
    address: str,
    options: Mapping[zmq.SocketOption, int],
    gatekeeper: Gatekeeper | None,
) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.ROUTER)
    for option, value in options.items():
        socket.setsockopt(option, value)
    if gatekeeper is not None:
        gatekeeper.apply(socket, key)
    if address.startswith("ipc:///"):
        check_socket_folder(Path(address.removeprefix("ipc://")).parent)
    # The file of an ipc socket gets its mode from here: for other users of the host there are keys.
    before = os.umask(0o177)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise CannotBind(key, address, error) from None
    finally:
        os.umask(before)
    _LOG.info("listening", extra={"socket": key, "address": socket.getsockopt_string(zmq.LAST_ENDPOINT)})
    return socket


def bind_submit(
    context: zmq.asyncio.Context, address: str, gatekeeper: Gatekeeper | None = None
) -> zmq.asyncio.Socket:
    """Open the submit socket, a ROUTER; raise `CannotBind` if the address is not free."""
    return _bind(context, SUBMIT, address, SUBMIT_OPTIONS, gatekeeper)


def bind_nodes(
    context: zmq.asyncio.Context, address: str, gatekeeper: Gatekeeper | None = None
) -> zmq.asyncio.Socket:
    """Open the node socket, a ROUTER; raise `CannotBind` if the address is not free."""
    return _bind(context, NODES, address, NODE_OPTIONS, gatekeeper)


def _send(socket: zmq.asyncio.Socket, frames: Sequence[bytes]) -> zmq.ZMQError | None:
    """Send without waiting; return the error if ZeroMQ does not accept the message.

    With NOBLOCK the socket's future is done when `send_multipart` returns.
    """
    sending = cast(Future[None], socket.send_multipart(frames, flags=zmq.NOBLOCK))
    error = sending.exception()
    if error is not None and not isinstance(error, zmq.ZMQError):
        raise error
    return error


def answer(socket: zmq.asyncio.Socket, envelope: Sequence[bytes], accepted: Accepted) -> None:
    """Send an answer to a client; ignored if the client has disconnected."""
    error = _send(socket, [*envelope, encode(accepted)])
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
        error = _send(self.socket, [order.peer, encode(self._message(order))])
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
            case SendHeartbeat():
                return Heartbeat(**common)
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
