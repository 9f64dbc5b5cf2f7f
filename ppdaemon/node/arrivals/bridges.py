# SPDX-License-Identifier: BSD-3-Clause
"""Receives the notices of object stores from bridges, also those of the time when this node was away.

Stores are listed only for late raws, so a notice must not be lost. Which notice was taken last is kept on
disk. Raws are kept in memory only: a new run also takes the notices again from `remember_s` before the
oldest open visit was announced, and before the last run took one. What they name twice is delivered once,
as after a survey of a folder.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import pydantic
import zmq
import zmq.asyncio

from ppdaemon.backoff import Backoff
from ppdaemon.clock import Clock
from ppdaemon.config import Publisher
from ppdaemon.curve import ClientKeys
from ppdaemon.durable import sync, write_durably
from ppdaemon.errors import BadMessage
from ppdaemon.messages import NOTICES, NOTICES_LIMIT, AskNotices, Notices
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.wire import decode, encode
from ppdaemon.zmqmonitor import ConnectionMonitor

__all__ = ("SAVE_S", "BridgeLink", "BridgeUse", "Position", "Positions")

_LOG = logging.getLogger(__name__)

SILENCE_S = 4.0
"""A bridge answers each second. After this time without an answer, another connection is made."""
HANDSHAKE_MS = 3000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Pauses after a connection could not be opened: with too many open files, others have to be closed first."""
AT_ONCE = 20
"""Notices that are read before other tasks run: some 2 ms."""
SAVE_S = 1.0
"""Interval of writing positions: what was taken since is taken again after a crash."""


@dataclass(frozen=True, slots=True)
class Position:
    """The last notice that was taken from a bridge."""

    epoch: str = ""
    """The ring that it belongs to; blank before the first connection."""
    number: int = 0
    taken_tai: float = 0.0
    __pydantic_config__: ClassVar = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    def age_s(self, now_tai: float, open_since_tai: float | None, remember_s: float) -> float:
        """Return how old a notice may be that a new run needs: its raw may have been in memory only."""
        taken_tai = self.taken_tai if self.epoch else now_tai
        since_tai = min(now_tai, taken_tai, now_tai if open_since_tai is None else open_since_tai)
        return now_tai - since_tai + remember_s


_POSITIONS = pydantic.TypeAdapter(dict[str, Position])


@dataclass(frozen=True, slots=True)
class BridgeUse:
    """What a node needs to use bridges."""

    node: str
    """Its name."""
    positions: Path
    """File of `Positions`."""
    open_since_tai: Callable[[], float | None]
    """Returns when the oldest open visit was announced; `None` if none is open."""


class Positions:
    """The positions of all bridges, by address, in a file. Blocking code, but for the dictionary."""

    def __init__(self, path: Path):
        self._path = path
        self.of: dict[str, Position] = {}
        try:
            self.of = _POSITIONS.validate_json(path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            _LOG.error("%s cannot be read: notices that came meanwhile may be missed: %s", path, error)
        self._saved = dict(self.of)

    def save(self) -> None:
        """Write the file if a position has changed; raises OSError."""
        current = dict(self.of)
        if current != self._saved:
            partial = self._path.with_suffix(".part")
            write_durably(partial, json.dumps({name: asdict(each) for name, each in current.items()}))
            partial.rename(self._path)
            sync(self._path.parent)
            self._saved = current


class BridgeLink:
    """The connection to one bridge; `take` is called with each notice, `has_room` before."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        bridge: Publisher,
        keys: ClientKeys | None,
        node: str,
        positions: Positions,
        age_s: float,
        remember_s: float,
        take: Callable[[Sequence[bytes]], None],
        has_room: Callable[[], Awaitable[None]],
        counts: ErrorCounts,
        clock: Clock,
    ):
        self._context = context
        self._address = bridge.address
        self._keys = keys
        self._node = node
        self._positions = positions
        self._age_s: float | None = age_s
        self._remember_s = remember_s
        self._take = take
        self._has_room = has_room
        self._counts = counts
        self._clock = clock
        self._cursor = positions.of.get(bridge.address, Position())
        """The last notice of this run; below the position while notices are taken again."""
        self._request = 0
        self._answered_at = clock.mono()
        self._newest_at: float | None = None
        self._waits = False
        self._refusal = ""
        self._loss = ""
        self._lost_at = 0.0

    @property
    def live(self) -> bool:
        """Whether the bridge answers, and has lost nothing for this node of late."""
        return not self._missing and not self._recent_loss

    @property
    def note(self) -> str:
        """Why it does not work, or what else to know."""
        waits = "waits until the raws of earlier notices are read" if self._waits else ""
        return "; ".join(filter(None, (self._missing, self._recent_loss, waits)))

    @property
    def last_notice_s(self) -> float | None:
        """Seconds since the bridge received its last notice; `None` if it has none, or is unknown."""
        return None if self._newest_at is None else max(0.0, self._clock.mono() - self._newest_at)

    @property
    def _missing(self) -> str:
        silent_s = self._clock.mono() - self._answered_at
        if self._waits or silent_s <= SILENCE_S:
            return ""
        return self._refusal or "no answer: raws of object stores are found when it is back"

    @property
    def _recent_loss(self) -> str:
        # As long as a visit may wait for such a raw.
        return self._loss if self._clock.mono() - self._lost_at <= self._remember_s else ""

    async def run(self) -> None:
        """Ask until canceled."""
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                socket, monitor = self._connect()
            except zmq.ZMQError as error:
                pause_s = backoff.failed(self._clock.mono())
                self._counts.warn("bridge.connection", f"{self._address}: cannot connect: {error}")
                await asyncio.sleep(pause_s)
                continue
            try:
                await self._exchange(socket, monitor)
            finally:
                monitor.close()

    def _connect(self) -> tuple[zmq.asyncio.Socket, ConnectionMonitor]:
        socket = self._context.socket(zmq.DEALER)
        monitor = ConnectionMonitor(socket, self._clock.mono)
        socket.setsockopt(zmq.LINGER, 0)
        # A larger frame ends the connection, without an error; another one is made after `SILENCE_S`.
        socket.setsockopt(zmq.MAXMSGSIZE, NOTICES_LIMIT)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if self._keys is not None:
            self._keys.apply(socket)
        try:
            socket.connect(self._address)
        except zmq.ZMQError:
            monitor.close()
            raise
        return socket, monitor

    async def _exchange(self, socket: zmq.asyncio.Socket, monitor: ConnectionMonitor) -> None:
        """Ask again and again; return if the bridge does not answer."""
        await self._ask(socket)
        while (answer := await self._receive(socket, monitor)) is not None:
            await self._on_answer(socket, *answer)

    async def _ask(self, socket: zmq.asyncio.Socket) -> None:
        self._request += 1
        ask = AskNotices(
            node=self._node,
            request=self._request,
            epoch=self._cursor.epoch,
            number=self._cursor.number,
            age_s=self._age_s,
        )
        await socket.send(encode(ask))

    async def _receive(
        self, socket: zmq.asyncio.Socket, monitor: ConnectionMonitor
    ) -> tuple[Notices, list[bytes]] | None:
        """Return the answer to the last question; `None` if none comes."""
        until = self._clock.mono() + SILENCE_S
        while (remaining := until - self._clock.mono()) > 0:
            # A receive that is canceled at a time limit loses messages: first poll, then receive.
            if not await socket.poll(min(remaining, 1.0) * 1000):
                await monitor.ended()
                self._refusal = monitor.refusal
                continue
            head, *notices = await socket.recv_multipart()
            try:
                answer = decode(head, NOTICES, limit=NOTICES_LIMIT)
            except BadMessage as error:
                text = f"{self._address}: ignoring an answer: {error}"
                self._counts.warn(f"bridge.{error.kind}", text, head)
                continue
            if answer.request == self._request:
                self._answered_at, self._refusal = self._clock.mono(), ""
                return answer, notices
        return None

    async def _on_answer(self, socket: zmq.asyncio.Socket, answer: Notices, notices: Sequence[bytes]) -> None:
        if answer.newest_age_s is not None:
            self._newest_at = self._clock.mono() - answer.newest_age_s
        if answer.is_other:
            self._lose("its ring is another one than before: notices in the former one are lost")
        elif answer.lost:
            self._lose(f"its ring no longer had {answer.lost} notices that came while this node was away")
        self._cursor = Position(answer.epoch, answer.first + len(notices) - 1, self._clock.tai())
        self._age_s = None
        # Before these are taken: those that come meanwhile must not wait for that.
        await self._ask(socket)
        for number, notice in enumerate(notices):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
                self._waits = True
                await self._has_room()
                self._waits = False
            self._take([notice])
        self._answered_at = self._clock.mono()
        known = self._positions.of.get(self._address, Position())
        # Not while notices are taken again: a crash then needs them once more.
        if self._cursor.epoch != known.epoch or self._cursor.number > known.number:
            self._positions.of[self._address] = self._cursor

    def _lose(self, text: str) -> None:
        self._loss, self._lost_at = f"{text}; visits may lack their raws", self._clock.mono()
        self._counts.warn("bridge.lost", f"bridge {self._address}: {text}")
