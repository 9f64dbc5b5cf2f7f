# SPDX-License-Identifier: BSD-3-Clause
"""The relay's two sockets: options, addresses, words on the wire."""

import errno
import logging
from asyncio import Future
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import zmq
import zmq.asyncio

from ppdaemon.clock import Clock
from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import (
    NODE_LIMIT,
    SUBMIT_LIMIT,
    Accepted,
    CancelVisit,
    Heartbeat,
    HelloRefused,
    ReserveVisit,
    ResultsSeen,
    Welcome,
)
from ppdaemon.relay.orders import Beat, ConfirmResults, Greet, Reserve, Send, TurnAway, Withdraw
from ppdaemon.states import ExitCode
from ppdaemon.wire import encode

__all__ = ("CannotBind", "NodeLink", "answer", "bind_nodes", "bind_submit")

_LOG = logging.getLogger(__name__)

COMMON_OPTIONS = {
    # Nothing waits in a socket that is closed: what is unacknowledged is sent
    # again by the next life, and a stop takes less than a second.
    zmq.LINGER: 100,
    # Default 30 s: a port scanner would keep half a connection for that long.
    zmq.HANDSHAKE_IVL: 5000,
    # A peer that comes back under the same identity replaces its dead connection.
    zmq.ROUTER_HANDOVER: 1,
    # Drops connections whose other end is gone without a word, and their queues.
    zmq.HEARTBEAT_IVL: 5000,
    zmq.HEARTBEAT_TIMEOUT: 15_000,
}

SUBMIT_OPTIONS = COMMON_OPTIONS | {
    # Up to here an oversized message is refused with a reason; beyond, the
    # connection is dropped before the message is in memory.
    zmq.MAXMSGSIZE: 16 * SUBMIT_LIMIT,
    # Per client; a flood then waits in the senders.
    zmq.RCVHWM: 500,
    zmq.SNDHWM: 500,
    # A client that did not wait for its answer is no error.
    zmq.ROUTER_MANDATORY: 0,
}

NODE_OPTIONS = COMMON_OPTIONS | {
    zmq.MAXMSGSIZE: NODE_LIMIT,
    zmq.RCVHWM: 1000,
    zmq.SNDHWM: 1000,
    # Sending to a connection that is gone says so, instead of losing the message.
    zmq.ROUTER_MANDATORY: 1,
}


class CannotBind(PPDaemonError):
    """An address cannot be listened on.

    Parameters
    ----------
    key : `str`
        The configuration key.
    address : `str`
        Its value.
    error : `zmq.ZMQError`
        What ZeroMQ says.
    """

    def __init__(self, key: str, address: str, error: zmq.ZMQError):
        text = str(error)
        self.exit_code = ExitCode.UNAVAILABLE
        if error.errno == errno.EADDRINUSE:
            text = "the port is taken; does another pprelay run here?"
            self.exit_code = ExitCode.TRY_LATER
        elif error.errno == errno.EACCES:
            text = "not allowed to listen there"
            self.exit_code = ExitCode.PERMISSION
        elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
            text = "no such address or name on this host"
        super().__init__(f"{key}: cannot listen on {address}: {text}")


def _bind(
    context: zmq.asyncio.Context, key: str, address: str, options: Mapping[zmq.SocketOption, int]
) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.ROUTER)
    for option, value in options.items():
        socket.setsockopt(option, value)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise CannotBind(key, address, error) from None
    _LOG.info("listening", extra={"socket": key, "address": socket.getsockopt_string(zmq.LAST_ENDPOINT)})
    return socket


def bind_submit(context: zmq.asyncio.Context, address: str) -> zmq.asyncio.Socket:
    """Open the submit socket.

    Parameters
    ----------
    context : `zmq.asyncio.Context`
        Owns the socket.
    address : `str`
        Where to listen.

    Returns
    -------
    socket : `zmq.asyncio.Socket`
        A ROUTER.

    Raises
    ------
    CannotBind
        Raised if that address is taken or does not exist here.
    """
    return _bind(context, "submit", address, SUBMIT_OPTIONS)


def bind_nodes(context: zmq.asyncio.Context, address: str) -> zmq.asyncio.Socket:
    """Open the node socket; the same as `bind_submit` otherwise."""
    return _bind(context, "nodes", address, NODE_OPTIONS)


def _send(socket: zmq.asyncio.Socket, frames: Sequence[bytes]) -> zmq.ZMQError | None:
    """Send without waiting; the socket's future is finished on return."""
    sending = cast(Future[None], socket.send_multipart(frames, flags=zmq.NOBLOCK))
    error = sending.exception()
    if error is not None and not isinstance(error, zmq.ZMQError):
        raise error
    return error


def answer(socket: zmq.asyncio.Socket, envelope: Sequence[bytes], accepted: Accepted) -> None:
    """Answer a client, if it is still there.

    Parameters
    ----------
    socket : `zmq.asyncio.Socket`
        The submit socket.
    envelope : `~collections.abc.Sequence` [`bytes`]
        The way back.
    accepted : `~ppdaemon.messages.Accepted`
        The answer.
    """
    error = _send(socket, [*envelope, encode(accepted)])
    if error is not None:
        _LOG.debug("client does not take its answer", extra={"group": accepted.group, "reason": str(error)})


@dataclass(eq=False)
class NodeLink:
    """Speaks to nodes.

    Parameters
    ----------
    socket : `zmq.asyncio.Socket`
        The node socket.
    name : `str`
        The relay's name.
    life : `str`
        Nonce of this life of the relay.
    clock : `~ppdaemon.clock.Clock`
        For the time in the messages.
    """

    socket: zmq.asyncio.Socket
    name: str
    incarnation: str
    clock: Clock

    def __post_init__(self) -> None:
        self._sequence = 0

    def send(self, order: Send) -> bool:
        """Send one message, without waiting.

        Parameters
        ----------
        order : `~ppdaemon.relay.orders.Send`
            What to say, and on which connection.

        Returns
        -------
        reachable : `bool`
            `False` if the connection is gone. A connection that takes nothing
            more at present is reachable; what it missed is sent again.
        """
        error = _send(self.socket, [order.peer, encode(self._message(order))])
        return error is None or error.errno != errno.EHOSTUNREACH

    def _message(
        self, order: Send
    ) -> Heartbeat | Welcome | HelloRefused | ReserveVisit | CancelVisit | ResultsSeen:
        self._sequence += 1
        common: dict[str, Any] = {
            "origin": self.name,
            "sent_tai": self.clock.tai(),
            "sequence": self._sequence,
        }
        match order:
            case Beat():
                return Heartbeat(**common)
            case Greet():
                return Welcome(**common, incarnation=self.incarnation)
            case TurnAway(_, code, reason):
                return HelloRefused(**common, code=code, reason=reason)
            case Reserve(_, visit, detectors, attempt, received_tai):
                return ReserveVisit(
                    **common, visit=visit, detectors=detectors, attempt=attempt, received_tai=received_tai
                )
            case Withdraw(_, instrument, group, detectors):
                return CancelVisit(**common, instrument=instrument, group=group, detectors=detectors)
            case ConfirmResults(_, keys):
                return ResultsSeen(**common, entries=keys)
