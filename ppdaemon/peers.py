# SPDX-License-Identifier: BSD-3-Clause
"""Who uses a control socket: users of this host, by the credentials that the kernel reports, and
how many of them at a time.
"""

import asyncio
import os
import socket
import struct
from asyncio.trsock import TransportSocket
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum

from ppdaemon.commonconfig import SecurityConfig
from ppdaemon.privatefiles import user_name

__all__ = ("Connections", "PeerCredentials", "Role", "access_error", "role_of")

CREDENTIALS = struct.Struct("3i")
"""``struct ucred`` of unix(7): process, user, group."""
SO_PEERGROUPS = 59
"""From asm-generic/socket.h; the socket module does not have it."""
MAX_GROUPS = 256
"""A user with more groups is treated as if it had only the primary one; Linux allows 65,536, and Python
reads 1024 bytes of an option."""


class Role(IntEnum):
    """What a user may do; a higher role includes the lower ones."""

    STRANGER = 0
    READER = 1
    OPERATOR = 2


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process at the other end of a unix socket, at the time of its connect."""

    uid: int
    groups: frozenset[int]
    """The primary group and all others."""

    @classmethod
    def of(cls, connection: socket.socket | TransportSocket) -> "PeerCredentials":
        """Return the credentials of the peer; raises OSError if there are none."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        _, uid, gid = CREDENTIALS.unpack(raw)
        try:
            more = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
        except OSError:
            more = b""
        return cls(uid, frozenset({gid, *struct.unpack(f"{len(more) // 4}I", more)}))

    @property
    def name(self) -> str:
        """The user's name; a query of the user database, which may block."""
        return user_name(self.uid)


def role_of(peer: PeerCredentials, config: SecurityConfig) -> Role:
    """Return what a user may do: root and the user of this process are operators, members of the
    group of this process are readers.
    """
    operators, readers = config.operators, config.readers
    if peer.uid in (0, os.geteuid(), *operators.users) or peer.groups & {*operators.groups}:
        return Role.OPERATOR
    if peer.uid in readers.users or peer.groups & {os.getegid(), *readers.groups}:
        return Role.READER
    return Role.STRANGER


def access_error(peer: PeerCredentials, role: Role, command: str) -> str:
    """Return why a user may not use a command; may block."""
    if role is Role.READER:
        return f"user {peer.name} may read, not {command}: add it to security.operators"
    return f"user {peer.name} may not use this socket: add it to security.readers or security.operators"


@dataclass(slots=True)
class Connections:
    """Limits the number of connections, so that silent clients do not keep others out.

    Covers which connection has to go; does not close sockets: it cancels the task of the
    connection.
    """

    most: int
    """Connections that may be open."""
    reserved: int
    """More that operators may open if no connection is idle."""
    _idle: dict[asyncio.Task[None], Role] = field(default_factory=dict)
    """Tasks that wait for a request, the longest waiting first."""
    _busy: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def tasks(self) -> Collection[asyncio.Task[None]]:
        """The tasks of all connections."""
        return (*self._idle, *self._busy)

    def admit(self, task: asyncio.Task[None], role: Role) -> bool:
        """Add a connection, if necessary instead of the one that has waited longest for a request, of
        the lowest role first. Return `False` if all are in use.
        """
        if len(self._idle) + len(self._busy) >= self.most:
            if self._idle:
                # min() returns the first of equal ones.
                oldest = min(self._idle, key=self._idle.__getitem__)
                self.remove(oldest)
                oldest.cancel()
            elif role < Role.OPERATOR or len(self._busy) >= self.most + self.reserved:
                return False
        self._idle[task] = role
        return True

    def set_busy(self, task: asyncio.Task[None]) -> None:
        """Record that a request arrived, which is being answered."""
        self._idle.pop(task, None)
        self._busy.add(task)

    def set_idle(self, task: asyncio.Task[None], role: Role) -> None:
        """Record that the connection waits for its next request."""
        self._busy.discard(task)
        self._idle[task] = role

    def remove(self, task: asyncio.Task[None]) -> None:
        """Forget a connection that has ended."""
        self._idle.pop(task, None)
        self._busy.discard(task)
