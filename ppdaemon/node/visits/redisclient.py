# SPDX-License-Identifier: BSD-3-Clause
"""Takes visits from streams of a Redis server, which the observatory's fan-out writes.

Nodes of one consumer group share the entries. An entry is acknowledged when the journal has the outcome of
its visit-detector; until then it is pending with this node, which renews it: another node takes what was not
renewed, unless somebody has the permit. Permits are keys of the same server. Cancellations and results do not
go over streams.
"""

import asyncio
import logging
from collections import Counter, defaultdict
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
    Pending,
    Place,
    ServerClock,
    can_claim,
    claim_idle_ms,
    dead_consumers,
    key_of,
    permit_key,
    read_entry,
    refusal_reason,
    reservations,
    settle,
)
from ppdaemon.redisserver import SOCKET_S, groups_of, open_server, rivals, shadow_mark
from ppdaemon.reports import ProblemSource, RedisReport
from ppdaemon.throttle import Throttle

__all__ = ("RedisClient",)

_LOG = logging.getLogger(__name__)

BLOCK_MS = 2000
"""How long a command waits for new entries: less than the time limit of an answer."""
assert BLOCK_MS < 1000 * SOCKET_S
ROOM_S = 1.0
"""Interval of looking whether a slot is idle again, when no outcome shows it: after a visit-detector that an
operator has repeated."""
TEND_S = 2.0
"""Longest interval of renewing entries, and of looking for those of others: one that was handed back waits
for it."""
RENEWALS = 4
"""Renewals within `redis.claim_after_s`: a single late one must not give an entry away."""
PAGE = 500
"""Entries in one answer about pending ones."""
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

DELETE_CONSUMER = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
    return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""
"""In one step: with a consumer that has taken an entry since, its pending entries would be deleted."""

type Fields = Mapping[bytes, bytes]


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

        self._errors = (redis.RedisError, OSError, Unavailable)
        self._refused_command = redis.ResponseError
        self._config = config.redis
        self._node = config.node.name
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self._expiry_s = config.node.expiry_s
        self._shadow = config.shadow.enabled
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
        self._server: Any = None
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
        self._room.set()
        if self._free <= 0:
            self._full.set()

    def reconfigure(self, config: NodeConfig) -> None:
        """Do nothing: the password is read with each connection, other keys need a restart."""

    def send_accepted(self, visit: ReserveVisit, detectors: Sequence[int]) -> None:
        """Do nothing: an entry is pending until there is an outcome."""

    def send_refused(
        self, visit: ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool
    ) -> None:
        """Acknowledge entries that no node needs; leave the others to other nodes."""
        for detector in detectors:
            key = DetectorKey(visit.visit.instrument, visit.visit.group, detector)
            if final:
                self._end(dict.fromkeys(self._held.of(key), reason), "redis_refused")
            else:
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
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._away_since = self._clock.mono()
        try:
            while True:
                try:
                    self._server = open_server(self._config, f"ppdaemon-{self._node}")
                    await self._begin()
                    backoff.succeeded()
                    await self._serve()
                except self._errors as error:
                    self._lose(str(error) or type(error).__name__)
                finally:
                    if self._server is not None:
                        await self._server.aclose()
                await asyncio.sleep(backoff.failed(self._clock.mono()))
        finally:
            self._lose("")

    async def _begin(self) -> None:
        """Find the groups, and read what is pending with this node: a reply may have been lost."""
        await self._read_clock()
        for stream in self._config.streams:
            await self._find_group(stream)
        own = [found for stream in self._config.streams for found in await self._read_own(stream)]
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

    async def _read_clock(self) -> None:
        seconds, microseconds = await self._server.time()
        self._server_clock = ServerClock(1000 * seconds + microseconds / 1000, self._clock.mono())

    async def _find_group(self, stream: str) -> None:
        """Create the group if nobody has; refuse to process visits twice, or to take them from others."""
        groups, group = await groups_of(self._server, stream), self._config.group
        known = groups.get(group)
        if (others := rivals(groups.values(), group)) and not self._shadow:
            raise Unavailable(
                f"stream {stream} has another group, {others[0]}, whose consumers process the same visits:"
                " use its name as redis.group, delete it if nobody uses it, or set shadow: true"
            )
        if known is not None and known.consumers and known.shadow != self._shadow:
            modes = "present service", "shadow mode"
            raise Unavailable(
                f"group {group} of stream {stream} is one of the {modes[known.shadow]}, whose visits this"
                " node would take: use another redis.group"
            )
        if self._shadow:
            await self._server.set(shadow_mark(stream, group), self._node)
        if known is None:
            with suppress(self._refused_command):  # another node has made it meanwhile
                # From the beginning: a server that has lost the group may have entries that nobody has read.
                await self._server.xgroup_create(stream, group, id="0", mkstream=True)

    async def _read_own(self, stream: str) -> list[tuple[Place, Fields, int]]:
        found: list[tuple[Place, Fields, int]] = []
        after = "0"
        while True:
            answer = await self._server.xreadgroup(
                self._config.group, self._node, {stream: after}, count=PAGE
            )
            page = _entries(answer)
            found += page
            if len(page) < PAGE:
                return found
            after = page[-1][0].id

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
        streams = dict.fromkeys(self._config.streams, ">")
        while True:
            if (free := self._free) <= 0:
                self._room.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(ROOM_S):
                        await self._room.wait()
                continue
            self._full.clear()
            # COUNT is that of each stream.
            command = self._server.xreadgroup(
                self._config.group, self._node, streams, count=max(1, free // len(streams)), block=BLOCK_MS
            )
            if found := _entries(await self._unless_full(command)):
                self._last_tai = self._clock.tai()
                self._take(found)

    async def _unless_full(self, command: Coroutine[Any, Any, Any]) -> Any:
        """Return the answer to a command, or `None` if it was given up: what the server has delivered
        nevertheless is found as pending.
        """
        loop = asyncio.get_running_loop()
        tasks = loop.create_task(command), loop.create_task(self._full.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0].done() else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, found: Iterable[tuple[Place, Fields, int]]) -> None:
        """Send visits on; acknowledge what is none."""
        tai, mono = self._clock.tai(), self._clock.mono()
        taken = []
        for place, fields, attempt in found:
            age_s = self._server_clock.age_s(place, mono)
            if not fields:
                self._end({place: "its content was trimmed"}, "redis_trimmed")
                continue
            try:
                entry = read_entry(place, fields, attempt)
            except BadMessage as error:
                self._end({place: str(error)}, f"bad_message.{error.kind}", repr(fields))
                continue
            if reason := refusal_reason(entry, self._served, age_s, tai, self._expiry_s):
                self._end({place: reason}, "redis_refused")
            elif entry.detector in self._served[entry.visit.instrument]:
                self._held.take(entry)
                taken.append(entry)
            elif self._config.unserved == "acknowledge":
                self._end(
                    {place: f"detector {entry.detector} is not served here"}, "redis_unserved", log=False
                )
            else:
                self._put(self._leave, (place,))
        ages_s = {entry.place: self._server_clock.age_s(entry.place, mono) for entry in taken}
        for message in reservations(taken, ages_s, tai):
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
        self._put(self._acknowledge, tuple(reasons))

    async def _acknowledge(self, places: Collection[Place]) -> None:
        await self._by_stream(places, lambda pipe, stream, ids: pipe.xack(stream, self._config.group, *ids))

    async def _leave(self, places: Collection[Place]) -> None:
        """Let other nodes take entries at once."""
        self._held.leave(places)
        await self._claim_for(self._node, places, idle=LEFT_IDLE_MS)

    async def _claim_for(self, consumer: str, places: Collection[Place], **options: object) -> None:
        await self._by_stream(
            places,
            lambda pipe, stream, ids: pipe.xclaim(
                stream, self._config.group, consumer, 0, ids, justid=True, **options
            ),
        )

    async def _by_stream(
        self, places: Collection[Place], command: Callable[[Any, str, list[str]], object]
    ) -> None:
        ids: dict[str, list[str]] = defaultdict(list)
        for place in places:
            ids[place.stream].append(place.id)
        if ids:
            async with self._server.pipeline(transaction=False) as pipe:
                for stream, chosen in ids.items():
                    command(pipe, stream, chosen)
                await pipe.execute()

    # --- permits and outcomes -----------------------------------------------------

    def _permit(self, key: DetectorKey) -> str:
        return permit_key(key, self._config.group if self._shadow else "")

    async def _owners(self, keys: Sequence[DetectorKey], *, take: bool) -> list[str]:
        """Return which node has each permit, or a blank; `take` those that nobody has for this node."""
        if not keys:
            return []
        async with self._server.pipeline(transaction=False) as pipe:
            for key in keys:
                if take:
                    pipe.set(self._permit(key), self._node, nx=True, ex=round(self._config.permit_s))
                pipe.get(self._permit(key))
            values = await pipe.execute()
        return [(value or b"").decode(errors="replace") for value in (values[1::2] if take else values)]

    async def _take_permits(self, visits: Sequence[DetectorsOfVisit]) -> None:
        keys = [
            (visit, DetectorKey(visit.instrument, visit.group, detector))
            for visit in visits
            for detector in visit.detectors
        ]
        owners = await self._owners([key for _, key in keys], take=True)
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
            owners |= zip(keys, await self._owners(keys, take=not returned), strict=True)
        chosen = settle(entries, owners, self._held, self._node)
        await self._acknowledge(chosen.acknowledged)
        if chosen.released:  # before the entries are left: nobody would take them
            await self._server.delete(*map(self._permit, chosen.released))
        await self._leave(chosen.left)
        for owner, places in chosen.given.items():
            await self._claim_for(owner, places)
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
            for stream in self._config.streams:
                await self._renew(stream)
                await self._claim(stream)
            await self._look()
            if self._clock.mono() >= self._tidy_at:
                self._tidy_at = self._clock.mono() + TIDY_S
                for stream in self._config.streams:
                    await self._tidy(stream)
            await asyncio.sleep(pause_s)

    async def _renew(self, stream: str) -> None:
        """Reset the idle times of this node's entries, and take those that it does not know."""
        own = await self._pending_of(stream, consumername=self._node)
        held, unknown = self._held.sort(stream, own)
        await self._claim_for(self._node, held)
        self._take([(place, fields, 1) for place, fields in await self._contents(unknown)])

    async def _claim(self, stream: str) -> None:
        """Take entries that their consumers have not renewed, as many as slots are idle."""
        mono = self._clock.mono()
        idle_ms = claim_idle_ms(self._config.claim_after_s, self._claim_at - mono)
        pending = {each.place: each for each in await self._pending_of(stream, idle=idle_ms)}
        self._foreign = {place for place in self._foreign if place.stream != stream or place in pending}
        expired = [place for place in pending if self._server_clock.age_s(place, mono) > self._expiry_s]
        if expired:  # whoever has them
            self._end(dict.fromkeys(expired, "expired, and its consumer has not ended it"), "redis_refused")
        wanted = sorted(pending.keys() - self._held.places - self._foreign - set(expired))
        while wanted and self._free > 0:
            page, wanted = wanted[:PAGE], wanted[PAGE:]
            if chosen := (await self._claimable(page))[: max(0, self._free)]:
                answer = await self._server.xclaim(stream, self._config.group, self._node, idle_ms, chosen)
                taken = [(Place(stream, name.decode()), fields) for name, fields in answer if name]
                self._count["redis_claimed"] += len(taken)
                for place, _ in taken:
                    context = {"entry": place.id, "consumer": pending[place].consumer}
                    _LOG.info("took an entry that its consumer has not renewed", extra=context)
                # Another attempt than any before: this node may have returned it itself.
                self._take([(place, fields, pending[place].deliveries + 1) for place, fields in taken])

    async def _claimable(self, places: Sequence[Place]) -> list[str]:
        """Return which entries this node may take, of those that other consumers have not renewed."""
        entries, chosen = [], []
        for place, fields in await self._contents(places):
            try:
                entries.append(read_entry(place, fields))
            except BadMessage:
                chosen.append(place.id)  # to acknowledge it
        owners = await self._owners([entry.key for entry in entries], take=False)
        for entry, owner in zip(entries, owners, strict=True):
            if can_claim(entry, self._served, owner, self._node):
                chosen.append(entry.place.id)
            elif not owner:
                self._foreign.add(entry.place)
        return chosen

    async def _contents(self, places: Sequence[Place]) -> list[tuple[Place, Fields]]:
        """Return the contents of entries; an empty one if it was trimmed."""
        if not places:
            return []
        async with self._server.pipeline(transaction=False) as pipe:
            for place in places:
                pipe.xrange(place.stream, place.id, place.id)
            answers = await pipe.execute()
        return [
            (place, answer[0][1] if answer else {}) for place, answer in zip(places, answers, strict=True)
        ]

    async def _pending_of(self, stream: str, **options: object) -> list[Pending]:
        """Return pending entries of a stream."""
        found: list[Pending] = []
        after = "-"
        while True:
            page = await self._server.xpending_range(stream, self._config.group, after, "+", PAGE, **options)
            for each in page:
                place, consumer = Place(stream, each["message_id"].decode()), each["consumer"]
                found.append(Pending(place, consumer.decode(errors="replace"), each["times_delivered"]))
            if len(page) < PAGE:
                return found
            after = f"({found[-1].place.id}"

    async def _look(self) -> None:
        """Count what the group has not ended, for operators."""
        groups = [await groups_of(self._server, stream) for stream in self._config.streams]
        own = [each[self._config.group] for each in groups if self._config.group in each]
        self._pending = sum(each.pending for each in own)
        self._waiting = sum(each.waiting for each in own)

    async def _tidy(self, stream: str) -> None:
        """Trim a stream, and delete consumers that are gone; a user of the server may lack the right."""
        await self._find_group(stream)
        group = self._config.group
        try:
            if self._config.trim_after_s is not None:
                before_ms = self._server_clock.now_ms(self._clock.mono()) - 1000 * self._config.trim_after_s
                await self._server.xtrim(stream, minid=max(0, int(before_ms)), approximate=True)
            consumers = await self._server.xinfo_consumers(stream, group)
            for consumer in dead_consumers(consumers, self._node, DEAD_S):
                await self._server.eval(DELETE_CONSUMER, 1, stream, group, consumer)
        except self._refused_command as error:
            self._warn("redis_tidy", f"Redis: {stream} is not trimmed, or its dead consumers stay: {error}")

    def _warn(self, kind: str, text: str, sample: str | None = None) -> None:
        """Count an event; log it unless its kind was logged recently."""
        self._count[kind] += 1
        if self._throttle.passes(kind, sample):
            _LOG.warning("%s", text, extra={"kind": kind, "count": self._count[kind]})


def _entries(answer: Any) -> list[tuple[Place, Fields, int]]:
    """Return the entries in the answer to XREADGROUP; a trimmed one has no fields."""
    return [
        (Place(stream.decode(), name.decode()), fields or {}, 1)
        for stream, entries in answer or ()
        for name, fields in entries
    ]
