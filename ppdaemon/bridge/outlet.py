# SPDX-License-Identifier: BSD-3-Clause
"""Sends the notices of the ring to nodes: each asks for what comes after a number, and gets it when there
is something.

One question has one answer, so nothing is lost where a queue is full, a replay is the same as what comes
now, and a slow node delays no other one.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import zmq
import zmq.asyncio

from ppdaemon.bridge.ring import Extent, Ring, Stored
from ppdaemon.clock import Clock
from ppdaemon.curve import Gatekeeper
from ppdaemon.errors import BadMessage, Refused
from ppdaemon.idleconnections import MAX_CONNECTIONS, ConnectionLimit
from ppdaemon.messages import ASK_LIMIT, ASK_NOTICES, AskNotices, Notices
from ppdaemon.routers import COMMON_OPTIONS, send
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.throttle import Throttle, sample_of
from ppdaemon.wire import decode, encode

__all__ = ("NODES", "OPTIONS", "Newest", "Outlet", "begin_of")

_LOG = logging.getLogger(__name__)

NODES = "nodes"
"""The socket, by its key in the configuration; also the domain of its allow-list."""
OPTIONS = COMMON_OPTIONS | {
    zmq.MAXMSGSIZE: ASK_LIMIT,
    zmq.RCVHWM: 1000,
    zmq.SNDHWM: 1000,
    zmq.ROUTER_HANDOVER: 0,
    # The answer to a node that has disconnected is an error instead of nothing.
    zmq.ROUTER_MANDATORY: 1,
}
AT_ONCE, BYTES_AT_ONCE = 250, 500_000
"""Notices and bytes of one answer: more than an exposure has arrive in two."""
QUIET_S = 1.0
"""A question without notices is answered after this time, so that a node knows that it is connected."""
GONE_S = 3600.0
"""A node that has not asked for this long is no longer listed."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that waits for its answer."""

    ask: AskNotices
    node: str
    """Its name by its key, or the one that it gives."""
    at: float
    """Monotonic seconds."""


def begin_of(ask: AskNotices, epoch: str, extent: Extent, recent: int) -> tuple[int, int]:
    """Return the first notice of the answer to a question, and how many before it are no longer there.

    `recent` is the first notice within `~ppdaemon.messages.AskNotices.age_s`. Pure.
    """
    wanted = ask.number + 1
    if not ask.epoch:  # a node that was never connected
        wanted = recent
    elif ask.epoch != epoch or ask.number > extent.last:  # another ring, or an old copy: all is new
        wanted = extent.first
    return max(min(wanted, recent), extent.first), max(0, extent.first - wanted)


@dataclass(slots=True)
class Newest:
    """The newest notices in memory, as many as one answer may have. Pure.

    A node that is up to date gets them without the ring, whose thread has further notices to write.
    """

    _stored: deque[Stored] = field(default_factory=deque)
    _bytes: int = 0

    def add(self, stored: Stored) -> None:
        """Add a notice of the ring."""
        if self._stored and stored.number != self._stored[-1].number + 1:
            self._stored.clear()
            self._bytes = 0
        self._stored.append(stored)
        self._bytes += len(stored.body)
        while self._stored and (len(self._stored) > AT_ONCE or self._bytes > BYTES_AT_ONCE):
            self._bytes -= len(self._stored.popleft().body)

    def after(self, number: int, extent: Extent) -> list[bytes] | None:
        """Return all notices after a number; `None` if some are not here, or are in the ring no longer."""
        if number == extent.last:
            return []
        if not (self._stored and self._stored[-1].number == extent.last):
            return None
        if not max(extent.first, self._stored[0].number) <= number + 1 <= extent.last:
            return None
        return [each.body for each in self._stored if each.number > number]


class Outlet:
    """Answers the questions of nodes on a bound ROUTER."""

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        gatekeeper: Gatekeeper | None,
        writer: BatchWriter[Ring],
        epoch: str,
        extent: Extent,
        clock: Clock,
        throttle: Throttle,
    ):
        self._socket = socket
        self._gatekeeper = gatekeeper
        self._writer = writer
        self._epoch = epoch
        self._clock = clock
        self._throttle = throttle
        self.extent = extent
        """What the ring has."""
        self.sent = 0
        """Notices sent to nodes, to each one counted."""
        self.nodes: dict[str, tuple[int, float]] = {}
        """By name: the last notice that a node has, and when it asked last, monotonic seconds."""
        self._newest = Newest()
        self._asked: dict[bytes, _Asked] = {}
        """By connection."""
        self._due = asyncio.Event()
        self.limit = ConnectionLimit(socket, NODES, throttle, clock.mono)

    def committed(self, extent: Extent, bodies: Sequence[bytes] = ()) -> None:
        """Answer those who wait: the ring has changed, or got these notices as its last ones."""
        self.extent = extent
        for number, body in enumerate(bodies, extent.last - len(bodies) + 1):
            self._newest.add(Stored(number, body))
        # Not by the task of `answer`, whose turn comes after all requests of a burst that have arrived.
        self._answer_from_memory()
        self._due.set()

    def tick(self) -> None:
        """Answer those who have waited long enough, and forget nodes that are gone; called once a second."""
        self._due.set()
        now = self._clock.mono()
        self.nodes = {name: seen for name, seen in self.nodes.items() if now - seen[1] <= GONE_S}

    def revoke(self, names: Collection[str]) -> None:
        """Forget nodes that are no longer admitted: their questions are not answered."""
        self._asked = {peer: asked for peer, asked in self._asked.items() if asked.node not in names}
        self.nodes = {name: seen for name, seen in self.nodes.items() if name not in names}

    async def receive(self) -> None:
        """Take questions until canceled."""
        while True:
            received = await self._socket.recv_multipart(copy=False)
            self.limit.used(received[-1])
            frames = [frame.bytes for frame in received]
            sender = None
            if self._gatekeeper is not None:
                sender = self._gatekeeper.sender(NODES, received[-1])
                if sender is None:
                    self._throttle.passes("nodes revoked")
                    continue
            try:
                if len(frames) != 2:
                    raise BadMessage(f"{len(frames)} frames instead of two", "frames")
                ask = decode(frames[1], ASK_NOTICES, limit=ASK_LIMIT)
            except BadMessage as error:
                if self._throttle.passes(f"nodes {error.kind}"):
                    context = {"reason": str(error), "sample": sample_of(frames[-1])}
                    _LOG.warning("ignored a message of a node", extra=context)
                continue
            now = self._clock.mono()
            name = sender or ask.node
            self.nodes.pop(name, None)  # the last one is that which asked last
            self.nodes[name] = ask.number if ask.epoch == self._epoch else 0, now
            if len(self.nodes) > MAX_CONNECTIONS:
                del self.nodes[next(iter(self.nodes))]
            self._asked[frames[0]] = _Asked(ask, name, now)
            self._due.set()

    async def answer(self) -> None:
        """Answer questions until canceled."""
        while True:
            await self._due.wait()
            self._due.clear()
            for peer, asked in self._answer_from_memory():
                await self._answer(peer, asked)

    def _answer_from_memory(self) -> list[tuple[bytes, _Asked]]:
        """Answer the questions that are due, and return those that need the ring."""
        return [
            (peer, asked)
            for peer, asked in [*self._asked.items()]
            if self._is_due(asked) and not self._answer_at_once(peer, asked)
        ]

    def _is_due(self, asked: _Asked) -> bool:
        ask = asked.ask
        return (
            ask.age_s is not None
            or (ask.epoch, ask.number) != (self._epoch, self.extent.last)
            or self._clock.mono() - asked.at >= QUIET_S
        )

    def _answer_at_once(self, peer: bytes, asked: _Asked) -> bool:
        """Answer from memory; return whether that was possible."""
        ask = asked.ask
        if ask.age_s is not None or ask.epoch != self._epoch:
            return False
        if (found := self._newest.after(ask.number, self.extent)) is None:
            return False
        self._send(peer, asked, self.extent, ask.number + 1, 0, found)
        return True

    async def _answer(self, peer: bytes, asked: _Asked) -> None:
        ask = asked.ask
        try:
            extent, begin, lost, found = await self._writer.call(lambda ring: self._read(ring, ask))
        except (Refused, OSError, sqlite3.Error) as error:  # tried again with the next tick
            if self._throttle.passes("nodes ring"):
                context = {"node": ask.node, "reason": str(error)}
                _LOG.warning("cannot read the ring for a node", extra=context)
            return
        if self._asked.get(peer) is asked:  # it has not asked again meanwhile
            self._send(peer, asked, extent, begin, lost, found)

    def _send(
        self, peer: bytes, asked: _Asked, extent: Extent, begin: int, lost: int, found: Sequence[bytes]
    ) -> None:
        ask = asked.ask
        del self._asked[peer]
        head = Notices(
            request=ask.request,
            epoch=self._epoch,
            first=begin,
            lost=lost,
            is_other=bool(ask.epoch) and (ask.epoch != self._epoch or ask.number > extent.last),
            newest_age_s=None if extent.newest_tai is None else self._clock.tai() - extent.newest_tai,
        )
        # A node that has disconnected asks again on its next connection.
        if send(self._socket, [peer, encode(head), *found]) is None:
            self.sent += len(found)

    def _read(self, ring: Ring, ask: AskNotices) -> tuple[Extent, int, int, list[bytes]]:
        extent = ring.extent()
        recent = extent.last + 1
        if ask.age_s is not None:
            recent = ring.begin(self._clock.tai() - ask.age_s)
        begin, lost = begin_of(ask, self._epoch, extent, recent)
        return extent, begin, lost, [each.body for each in ring.read(begin, AT_ONCE, BYTES_AT_ONCE)]
