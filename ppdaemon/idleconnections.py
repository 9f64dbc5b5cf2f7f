# SPDX-License-Identifier: BSD-3-Clause
"""Bounds the connections of a bound socket: the ones that send nothing make room for others.

libzmq closes a connection without a handshake by itself, but not one whose peer is silent
afterwards. Its monitor reports the descriptor of each connection that it accepts, and each message
has the one that it came from; libzmq sees a connection that is shut down here as one that its peer
has closed.
"""

import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from ppdaemon.throttle import Throttle

__all__ = ("ConnectionLimit", "OpenConnections")

_LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
"""More than the nodes and clients of any site; a descriptor and some 100 kB of memory each."""
IDLE_S = 5.0
"""A connection that has sent nothing for this long may have to make room: programs send their first
message at once, and nodes send heartbeats."""

type Inode = int
"""Number of a socket in the kernel, which no other one has while it is open."""


@dataclass(slots=True)
class OpenConnections:
    """The open connections of one socket. Pure code."""

    _open: OrderedDict[int, tuple[Inode, float]] = field(default_factory=OrderedDict)
    """By descriptor: its inode, and when it was opened or last used, monotonic seconds; the one that
    has been idle for longest is the first."""

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, descriptor: int, inode: Inode, now: float) -> list[tuple[int, Inode]]:
        """Add a connection; return those to close for it, which are removed."""
        self._open[descriptor] = inode, now
        self._open.move_to_end(descriptor)
        surplus = []
        while len(self._open) > MAX_CONNECTIONS:
            idle, (its_inode, last_used) = next(iter(self._open.items()))
            if now - last_used < IDLE_S:
                break
            del self._open[idle]
            surplus.append((idle, its_inode))
        return surplus

    def used(self, descriptor: int, now: float) -> None:
        """Record a message."""
        if (known := self._open.get(descriptor)) is not None:
            self._open[descriptor] = known[0], now
            self._open.move_to_end(descriptor)

    def closed(self, descriptor: int) -> None:
        """Remove a connection that has ended."""
        self._open.pop(descriptor, None)


class ConnectionLimit:
    """Closes connections of a bound socket that have been idle for longest, above `MAX_CONNECTIONS`.

    `name` is that of the socket in logs.
    """

    def __init__(self, bound: zmq.asyncio.Socket, name: str, throttle: Throttle, mono: Callable[[], float]):
        self._bound = bound
        self._name = name
        self._throttle = throttle
        self._mono = mono
        self._connections = OpenConnections()
        self._address = _listening_on(bound.getsockopt_string(zmq.LAST_ENDPOINT))
        address = f"inproc://monitor-{name}-{id(self):x}"
        bound.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._events = bound.context.socket(zmq.PAIR)
        # Unlimited: libzmq's thread, which serves all connections, would wait for this one.
        self._events.set(zmq.RCVHWM, 0)
        self._events.connect(address)

    async def run(self) -> None:
        """Follow the connections until canceled."""
        try:
            while True:
                event = await recv_monitor_message(self._events)
                descriptor = event["value"]
                if event["event"] == zmq.EVENT_DISCONNECTED:
                    self._connections.closed(descriptor)
                elif (inode := self._inode(descriptor)) is not None:
                    for idle, its_inode in self._connections.opened(descriptor, inode, self._mono()):
                        self._shut_down(idle, its_inode)
        finally:
            self._bound.disable_monitor()
            self._events.close(linger=0)

    def used(self, frame: zmq.Frame) -> None:
        """Record that a connection has sent a message, by one of its frames (received with
        ``copy=False``).
        """
        self._connections.used(int(frame.get(zmq.SRCFD)), self._mono())

    def _inode(self, descriptor: int) -> Inode | None:
        """Return the inode of a connection; `None` if the descriptor is another one's by now."""
        with _Duplicate(descriptor) as connection:
            return connection.inode if connection.is_of(self._address) else None

    def _shut_down(self, descriptor: int, inode: Inode) -> None:
        with _Duplicate(descriptor) as connection:
            # Not the file that has got the same number since then.
            if not connection.is_of(self._address) or connection.inode != inode:
                return
            connection.shut_down()
        if self._throttle.passes(f"{self._name} idle"):
            _LOG.warning(
                "closed a connection that has sent nothing for longest: there are too many",
                extra={"socket": self._name, "limit": MAX_CONNECTIONS},
            )


class _Duplicate:
    """A descriptor of libzmq's thread, duplicated: it stays the same file whatever that thread does."""

    def __init__(self, descriptor: int):
        self._socket: socket.socket | None = None
        try:
            number = os.dup(descriptor)
        except OSError:  # closed by now
            return
        try:
            self._socket = socket.socket(fileno=number)
        except OSError:  # not a socket
            os.close(number)

    def __enter__(self) -> "_Duplicate":
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    @property
    def inode(self) -> Inode:
        """The inode of the open socket."""
        assert self._socket is not None
        return os.fstat(self._socket.fileno()).st_ino

    def is_of(self, address: str | int) -> bool:
        """Return whether it is a connection to this port or path, which only the bound socket accepts."""
        if self._socket is None:
            return False
        try:
            own = self._socket.getsockname()
            self._socket.getpeername()
        except OSError:  # its peer has gone
            return False
        return bool(address == (own[1] if isinstance(own, tuple) else own))

    def shut_down(self) -> None:
        """End the connection in both directions."""
        assert self._socket is not None
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # its peer was faster
            return


def _listening_on(endpoint: str) -> str | int:
    """Return the port of a TCP endpoint, the path of another one."""
    scheme, _, rest = endpoint.partition("://")
    return int(rest.rpartition(":")[2]) if scheme == "tcp" else rest
