# SPDX-License-Identifier: BSD-3-Clause
"""Takes visits from streams of a Redis server, which the observatory's fan-out writes.

Nodes of one consumer group share the entries. An entry is acknowledged when the journal has the outcome of
its visit-detector; until then it is pending with this node, which renews it: another node takes what was not
renewed, unless somebody has the permit. Permits are keys of the same server. Cancellations and results do not
go over streams.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ppdaemon.backoff import Backoff
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.messages import (
    DetectorsOfVisit,
    PermitRefused,
    Permitted,
    ReserveVisit,
    ResultEntry,
    ResultsSeen,
    Welcome,
)
from ppdaemon.node.visits.model import FromLink, RelayLost
from ppdaemon.node.visits.redisentries import (
    LEFT_IDLE_MS,
    ORIGIN,
    DetectorKey,
    HeldEntries,
    Place,
    ServerClock,
    can_claim,
    claim_idle_ms,
    dead_consumers,
    key_of,
    read_entry,
    refusal_reason,
    reservations,
    settle,
)
from ppdaemon.node.visits.redisgroup import Fields, RedisGroup
from ppdaemon.reports import ProblemSource, RedisReport
from ppdaemon.throttle import Throttle

__all__ = ("RedisClient",)

_LOG = logging.getLogger(__name__)

ROOM_S = 1.0
"""Interval of looking whether a slot is idle again, when no outcome shows it: after a visit-detector that an
operator has repeated."""
GATHER_S, GAP_S = 0.02, 0.003
"""The entries of a visit are written one after another. Those without a gap, at most of the first time, share
a transaction of the journal: a second one would begin 20 ms after it. `BLOCK` cannot wait for less than
100 ms."""
TEND_S = 2.0
"""Longest interval of renewing entries, and of looking for those of others: one that was handed back waits
for it."""
ANSWER_S = 10.0
"""A decision about a reservation takes some 20 ms, and longer on a busy disk."""
STEADY_S = 60.0
"""A connection that was lost sooner counts as one more failure: the server may refuse a later command."""
RENEWALS = 4
"""Renewals within `redis.claim_after_s`: a single late one must not give an entry away."""
PAGE = 500
"""Entries whose contents are looked at together."""
TIDY_S = 60.0
"""Interval of trimming streams and deleting dead consumers."""
DEAD_S = 86_400.0
"""A consumer that has done nothing for a day and has nothing pending is deleted."""
AWAY_S = 4.0
"""A server that was started again needs a moment."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Pauses between attempts to connect."""
LOG_EVERY_S = 60.0
"""A writer that always sends garbage would otherwise cause a warning per entry."""
FIRST: Mapping[Place, int] = {}
"""No entry was taken from another consumer."""


class RedisClient:
    """The streams as a source of visits; see `~ppdaemon.node.visits.source.VisitSource`.

    `open_visits` returns the number of open visit-detectors, also of those that an operator has requested.
    """

    kind: ProblemSource = "redis"

    def __init__(
        self,
        config: NodeConfig,
        incarnation: str,
        clock: Clock,
        on_message: Callable[[FromLink], None],
        count: Counter[str],
        open_visits: Callable[[], int],
    ):
        import redis

        folder = config.node.state_dir.stat()
        identity = f"{clock.boot()}:{folder.st_dev}:{folder.st_ino}"
        # The last two: an answer that the library cannot read, of another kind of server.
        self._errors = (redis.RedisError, OSError, Unavailable, LookupError, ValueError)
        self._refused_command = redis.ResponseError
        self._config = config.redis
        self._node = config.node.name
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self._expiry_s = config.node.expiry_s
        # In shadow mode the stream is the present service's.
        self._trim_after_s = None if config.shadow.enabled else config.redis.trim_after_s
        self._incarnation = incarnation
        self._clock = clock
        self._on_message = on_message
        self._count = count
        self._open_visits = open_visits
        self._capacity = config.workers.max
        self._accepting = True
        self._held = HeldEntries()
        self._foreign: set[Place] = set()
        """Pending entries that this node does not serve."""
        self._refused: set[Place] = set()
        """Entries that it cannot have at present: it would take them from nodes that can."""
        self._group = RedisGroup(config, identity)
        self._server_clock = ServerClock()
        self._work: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        """Commands that follow from decisions; with a new connection they are decided anew."""
        self._room = asyncio.Event()
        """Set when slots may be idle again."""
        self._full = asyncio.Event()
        """Set when a command that waits for entries would take some that this node cannot have."""
        self._throttle = Throttle(LOG_EVERY_S, clock.mono)
        self._problem = ""
        self._connected = False
        self._away_since = clock.mono()
        self._pending = self._waiting = 0
        self._last_tai: float | None = None

    # --- for the other parts of the node ---------------------------------------

    @property
    def text(self) -> str:
        """The state of the connection, for operators."""
        place = f"{self._config.url}, group {self._config.group}"
        if self._connected:
            return f"connected to {place}"
        return self._problem or f"connecting to {place}"

    @property
    def problem(self) -> str:
        """Why no visits are received, or blank."""
        if self.away_s <= AWAY_S:
            return ""
        reason = self._problem or "no answer"
        return f"redis: no visits are received: {reason}; connecting again all the time"

    @property
    def drained(self) -> bool:
        """Return `False`: there is no relay at which an operator could have drained this node."""
        return False

    @property
    def away_s(self) -> float:
        """Seconds without a connection."""
        return 0.0 if self._connected else self._clock.mono() - self._away_since

    @property
    def connected(self) -> bool:
        """Whether the server answers."""
        return self._connected

    @property
    def samples(self) -> Mapping[str, str]:
        """By kind of invalid entry: the beginning of the first one."""
        return self._throttle.samples

    def report(self) -> RedisReport:
        """Return what is known of the streams."""
        return RedisReport(
            connected=self._connected,
            streams=self._config.streams,
            group=self._config.group,
            held=len(self._held),
            pending=self._pending,
            waiting=self._waiting,
            last_tai=self._last_tai,
        )

    def set_accepting(self, accepting: bool) -> None:
        """Take entries, or none while the node drains."""
        self._accepting = accepting
        self._capacity_changed()

    def set_capacity(self, capacity: int) -> None:
        """Have another number of visit-detectors at once."""
        self._capacity = capacity
        self._capacity_changed()

    def _capacity_changed(self) -> None:
        self._refused.clear()
        self._room.set()
        if self._free <= 0:
            self._full.set()

    def reconfigure(self, config: NodeConfig) -> None:
        """Do nothing: the password is read with each connection, other keys need a restart."""

    def send_accepted(self, visit: ReserveVisit, detectors: Sequence[int]) -> None:
        """Note that the journal has entries, which are pending until there is an outcome."""
        for detector in detectors:
            self._held.answered(DetectorKey(visit.visit.instrument, visit.visit.group, detector))

    def send_refused(
        self, visit: ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool
    ) -> None:
        """Acknowledge entries that no node needs; leave the others to other nodes."""
        for detector in detectors:
            key = DetectorKey(visit.visit.instrument, visit.visit.group, detector)
            if final:
                self._end(dict.fromkeys(self._held.of(key), reason), "redis_refused")
            else:
                self._refused.update(self._held.of(key))
                self._put(self._leave, self._held.of(key))

    def send_results(self, entries: Sequence[ResultEntry]) -> None:
        """Acknowledge the entries of outcomes, and leave what was returned to other nodes."""
        if self._connected and entries:
            self._put(self._settle, tuple(entries))

    def ask_permits(self, visits: Sequence[DetectorsOfVisit]) -> None:
        """Take permits, unless another node has them."""
        if self._connected:
            self._put(self._take_permits, tuple(visits))

    def _put(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        self._work.put_nowait(partial(work, *arguments))

    # --- the connection ---------------------------------------------------------

    async def run(self) -> None:
        """Connect and take entries until canceled."""
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, steady_s=STEADY_S)
        self._away_since = self._clock.mono()
        try:
            while True:
                try:
                    self._group.open()
                    await self._begin()
                    await self._serve()
                except self._errors as error:
                    self._lose(str(error) or type(error).__name__)
                finally:
                    await self._group.close()
                await asyncio.sleep(backoff.failed(self._clock.mono()))
        finally:
            self._lose("")
            await self._group.close()  # canceled in the call above

    async def _begin(self) -> None:
        """Find the groups, and read what is pending with this node: a reply may have been lost."""
        await self._read_clock()
        await self._group.hold_name()
        for stream in self._config.streams:
            await self._find(stream)
        own = [found for stream in self._config.streams for found in await self._group.read_own(stream)]
        self._held.clear()
        self._work = asyncio.Queue()
        self._problem = ""
        # Living consumers look dead while the server was away: they have this time to renew their entries.
        self._claim_at = self._clock.mono() + self._config.claim_after_s
        self._tidy_at = self._clock.mono()
        self._connected = True
        _LOG.info("connected to Redis", extra={"url": self._config.url, "pending": len(own)})
        welcome = Welcome(
            origin=ORIGIN, sent_tai=self._clock.tai(), sequence=0, incarnation=self._incarnation, epoch=0
        )
        self._on_message(welcome)
        self._take(own)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(each) for each in (self._read(), self._tend(), self._do_work())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _lose(self, problem: str) -> None:
        self._problem = problem
        if self._connected:
            self._connected = False
            self._away_since = self._clock.mono()
            self._on_message(RelayLost())
        if problem:
            self._warn("redis_connection", f"Redis: {problem}; no visits are received; trying again")

    async def _find(self, stream: str) -> None:
        now_ms = self._server_clock.now_ms(self._clock.mono())
        await self._group.find(stream, now_ms - 1000 * self._expiry_s)

    async def _read_clock(self) -> None:
        self._server_clock = ServerClock(await self._group.time_ms(), self._clock.mono())

    async def _do_work(self) -> None:
        while True:
            work = await self._work.get()
            await work()
            self._room.set()

    # --- entries ----------------------------------------------------------------

    @property
    def _free(self) -> int:
        """How many visit-detectors this node can have in addition."""
        capacity = self._capacity if self._accepting else 0
        return capacity - max(len(self._held), self._open_visits())

    async def _read(self) -> None:
        """Take new entries as long as slots are idle."""
        while True:
            if (free := self._free) <= 0:
                self._room.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(ROOM_S):
                        await self._room.wait()
                continue
            self._full.clear()
            found = await self._unless_full(self._group.read(self._count_of(free)))
            until = self._clock.mono() + GATHER_S
            # More slots may be idle than when the command was sent.
            while found and (rest := self._free - len(found)) > 0 and self._clock.mono() < until:
                await asyncio.sleep(GAP_S)
                if not (more := await self._group.read(self._count_of(rest), wait=False)):
                    break
                found += more
            if found:
                self._last_tai = self._clock.tai()
                self._take(found)

    def _count_of(self, free: int) -> int:
        """Return how many entries are taken of each stream."""
        return max(1, free // len(self._config.streams))

    async def _unless_full(
        self, command: Coroutine[Any, Any, list[tuple[Place, Fields]]]
    ) -> list[tuple[Place, Fields]]:
        """Return the answer to a command, or nothing if it was given up: what the server has delivered
        nevertheless is found as pending.
        """
        loop = asyncio.get_running_loop()
        tasks = loop.create_task(command), loop.create_task(self._full.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0].done() else []
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, found: Iterable[tuple[Place, Fields]], attempts: Mapping[Place, int] = FIRST) -> None:
        """Send visits on; acknowledge what is none."""
        mono = self._clock.mono()
        server_tai = self._server_clock.now_tai(mono)
        taken = []
        for place, fields in found:
            age_s = self._server_clock.age_s(place, mono)
            if not fields:
                self._end({place: "its content was trimmed"}, "redis_trimmed")
                continue
            try:
                entry = read_entry(place, fields, attempts.get(place, 1))
            except BadMessage as error:
                self._end({place: str(error)}, f"bad_message.{error.kind}", repr(fields))
                continue
            if reason := refusal_reason(entry, age_s, server_tai, self._expiry_s):
                self._end({place: reason}, "redis_refused")
            elif entry.detector in self._served.get(entry.visit.instrument, ()):
                self._held.take(entry, mono)
                taken.append(entry)
            elif self._config.unserved == "acknowledge":
                text = f"{entry.visit.instrument} {entry.detector} is not served here"
                self._end({place: text}, "redis_unserved", log=False)
            else:
                self._foreign.add(place)
                self._put(self._leave, (place,))
        ages_s = {entry.place: self._server_clock.age_s(entry.place, mono) for entry in taken}
        for message in reservations(taken, ages_s, self._clock.tai()):
            self._on_message(message)

    def _end(
        self, reasons: Mapping[Place, str], kind: str, sample: str | None = None, *, log: bool = True
    ) -> None:
        """Acknowledge entries that no node needs, and count them."""
        self._held.leave(reasons.keys())
        for place, reason in reasons.items():
            if log:
                text = f"acknowledged entry {place.id} of {place.stream} without an outcome: {reason}"
                self._warn(kind, text, sample)
            else:
                self._count[kind] += 1
        self._put(self._group.acknowledge, tuple(reasons))

    async def _leave(self, places: Collection[Place]) -> None:
        """Let other nodes take entries at once."""
        self._held.leave(places)
        await self._group.give(self._node, places, idle=LEFT_IDLE_MS)

    # --- permits and outcomes -----------------------------------------------------

    async def _take_permits(self, visits: Sequence[DetectorsOfVisit]) -> None:
        await self._group.hold_name()  # a node that has hung may have lost it
        keys = [
            (visit, DetectorKey(visit.instrument, visit.group, detector))
            for visit in visits
            for detector in visit.detectors
        ]
        owners = await self._group.owners([key for _, key in keys], take=True)
        mine: list[DetectorsOfVisit] = []
        others: list[DetectorsOfVisit] = []
        for (visit, key), owner in zip(keys, owners, strict=True):
            one = visit.model_copy(update={"detectors": (key.detector,)})
            (mine if owner == self._node else others).append(one)
        envelope = {"origin": ORIGIN, "sent_tai": self._clock.tai(), "sequence": 0}
        if mine:
            self._on_message(
                Permitted(**envelope, epoch=0, incarnation=self._incarnation, visits=tuple(mine))
            )
        if others:
            self._count["redis_permits_refused"] += len(others)
            self._on_message(PermitRefused(**envelope, visits=tuple(others), reason="another node has it"))

    async def _settle(self, entries: Sequence[ResultEntry]) -> None:
        """Acknowledge outcomes of which this node has the permit, and leave or give what it has not ended.

        An outcome takes the permit, too: of an entry that another node has taken meanwhile, or that was
        written twice, only one outcome counts.
        """
        owners: dict[DetectorKey, str] = {}
        for returned in (False, True):
            keys = [key_of(entry) for entry in entries if bool(entry.returned) is returned]
            owners |= zip(keys, await self._group.owners(keys, take=not returned), strict=True)
        chosen = settle(entries, owners, self._held, self._node)
        await self._group.acknowledge(chosen.acknowledged)
        await self._group.release(chosen.released)  # before the entries are left: nobody would take them
        await self._leave(chosen.left)
        for owner, places in chosen.given.items():
            await self._group.give(owner, places)
            self._held.end(places)
        self._held.end(chosen.acknowledged)
        self._on_message(
            ResultsSeen(
                origin=ORIGIN,
                sent_tai=self._clock.tai(),
                sequence=0,
                entries=tuple((*key_of(entry), entry.attempt) for entry in entries),
                moved=tuple((*key_of(e), e.attempt) for e in entries if key_of(e) in chosen.moved),
            )
        )

    # --- renewing, claiming, tidying ----------------------------------------------

    async def _tend(self) -> None:
        pause_s = min(TEND_S, self._config.claim_after_s / RENEWALS)
        while True:
            await self._read_clock()
            await self._group.hold_name()
            for stream in self._config.streams:
                await self._renew(stream)
                await self._claim(stream)
            self._pending, self._waiting = await self._group.counts()
            if self._clock.mono() >= self._tidy_at:
                self._tidy_at = self._clock.mono() + TIDY_S
                self._refused.clear()
                for stream in self._config.streams:
                    await self._tidy(stream)
            await asyncio.sleep(pause_s)

    async def _renew(self, stream: str) -> None:
        """Reset the idle times of this node's entries, and take those that it does not know or has no answer
        about.
        """
        own = await self._group.pending(stream, consumername=self._node)
        held, unknown = self._held.sort(stream, own)
        await self._group.give(self._node, held)
        again = self._held.unanswered(stream, self._clock.mono() - ANSWER_S)
        self._take(await self._group.contents([*unknown, *again]), again)

    async def _claim(self, stream: str) -> None:
        """Take entries that their consumers have not renewed, as many as slots are idle."""
        mono = self._clock.mono()
        idle_ms = claim_idle_ms(self._config.claim_after_s, self._claim_at - mono)
        pending = {each.place: each for each in await self._group.pending(stream, idle=idle_ms)}
        self._foreign = {place for place in self._foreign if place.stream != stream or place in pending}
        expired = [place for place in pending if self._server_clock.age_s(place, mono) > self._expiry_s]
        if expired:  # of any consumer
            self._end(dict.fromkeys(expired, "expired, and its consumer has not ended it"), "redis_refused")
        wanted = sorted(pending.keys() - self._held.places - self._foreign - self._refused - set(expired))
        while wanted and self._free > 0:
            page, wanted = wanted[:PAGE], wanted[PAGE:]
            if chosen := (await self._claimable(page))[: max(0, self._free)]:
                taken = await self._group.claim(stream, chosen, idle_ms)
                self._count["redis_claimed"] += len(taken)
                for place, _ in taken:
                    context = {"entry": place.id, "consumer": pending[place].consumer}
                    _LOG.info("took an entry that its consumer has not renewed", extra=context)
                # Another attempt than any before: this node may have returned it itself.
                self._take(taken, {place: pending[place].deliveries + 1 for place, _ in taken})

    async def _claimable(self, places: Sequence[Place]) -> list[Place]:
        """Return which entries this node may take, of those that other consumers have not renewed."""
        entries, chosen = [], []
        for place, fields in await self._group.contents(places):
            try:
                entries.append(read_entry(place, fields))
            except BadMessage:
                chosen.append(place)  # to acknowledge it
        owners = await self._group.owners([entry.key for entry in entries], take=False)
        for entry, owner in zip(entries, owners, strict=True):
            if can_claim(entry, self._served, owner, self._node):
                chosen.append(entry.place)
            elif not owner:
                self._foreign.add(entry.place)
        return chosen

    async def _tidy(self, stream: str) -> None:
        """Trim a stream, and delete consumers that are gone; a user of the server may lack the right."""
        await self._find(stream)
        try:
            if self._trim_after_s is not None:
                now_ms = self._server_clock.now_ms(self._clock.mono())
                await self._group.trim(stream, now_ms - 1000 * self._trim_after_s)
            consumers = await self._group.consumers(stream)
            await self._group.delete_consumers(stream, dead_consumers(consumers, self._node, DEAD_S))
        except self._refused_command as error:
            self._warn("redis_tidy", f"Redis: {stream} is not trimmed, or its dead consumers stay: {error}")

    def _warn(self, kind: str, text: str, sample: str | None = None) -> None:
        """Count an event; log it unless its kind was logged recently."""
        self._count[kind] += 1
        if self._throttle.passes(kind, sample):
            _LOG.warning("%s", text, extra={"kind": kind, "count": self._count[kind]})
