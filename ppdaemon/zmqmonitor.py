# SPDX-License-Identifier: BSD-3-Clause
"""Detects connections that libzmq has ended for good."""

from collections.abc import Callable

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

__all__ = ("KEYS_OF_ONE", "UNKNOWN_KEY", "WRONG_SERVER", "ConnectionMonitor")

EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
UNKNOWN_KEY = "the server does not admit this key; add it there"
KEYS_OF_ONE = "only one of the two ends has keys; compare their configuration"
WRONG_SERVER = "the server ended the handshake; check that it has keys, and that this end has its public key"
REFUSALS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: UNKNOWN_KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: KEYS_OF_ONE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: WRONG_SERVER,
}
"""What a failed handshake means."""

GRACE_S = 1.0
"""A lost connection that is made again is retried at once: measured below 1 ms, also when the
peer is absent."""


class ConnectionMonitor:
    """Detects that the only connection of a socket has ended and is not made again.

    A message above MAXMSGSIZE, or any other breach of the protocol, ends the session of a
    connecting socket: it receives nothing more, without an error. The only trace is a
    disconnection that no retry follows. A new socket is needed then, because libzmq ignores
    another ``connect`` to the same address. Closes the socket and raises ZMQError if there are too many
    sockets or open files.
    """

    refusal = ""
    """Why the last handshake failed; blank if it succeeded, or none has ended yet."""

    def __init__(self, socket: zmq.asyncio.Socket, mono: Callable[[], float]):
        self._socket = socket
        self._mono = mono
        try:
            self._events = socket.get_monitor_socket(EVENTS)
        except zmq.ZMQError:
            # The event loop refers to the socket: without this it would stay open.
            socket.close()
            raise
        self._disconnected_at: float | None = None
        self.connected = False
        """Whether a ZeroMQ peer has answered and was not lost, when `ended` was last called. Another
        program may accept connections to a wrong address."""

    async def ended(self) -> bool:
        """Return whether the connection has ended for good; call it about once a second."""
        # Received only if there is an event: nothing waits here that could be canceled.
        while await self._events.poll(0):
            event = zmq.Event((await recv_monitor_message(self._events))["event"])
            if event in REFUSALS:
                # Without keys such a handshake says nothing about them: the server was just ending.
                if (
                    event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                    or self._socket.get(zmq.MECHANISM) == zmq.CURVE
                ):
                    self.refusal = REFUSALS[event]
                continue
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.refusal = ""
            self._disconnected_at = self._mono() if event == zmq.EVENT_DISCONNECTED else None
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return self._disconnected_at is not None and self._mono() - self._disconnected_at >= GRACE_S

    def close(self) -> None:
        """Close the socket and the monitor."""
        self._socket.disable_monitor()
        self._events.close(linger=0)
        self._socket.close()
