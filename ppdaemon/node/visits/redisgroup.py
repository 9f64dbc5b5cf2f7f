# SPDX-License-Identifier: BSD-3-Clause
"""Commands of a consumer group: its entries, their consumers, and permits. Decides nothing."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ppdaemon.config import NodeConfig
from ppdaemon.errors import Unavailable
from ppdaemon.node.visits.redisentries import DetectorKey, Pending, Place, permit_key
from ppdaemon.redisserver import (
    SOCKET_S,
    StreamGroup,
    groups_of,
    name_mark,
    open_server,
    rivals,
    shadow_mark,
)

__all__ = ("Fields", "RedisGroup")

BLOCK_MS = 2000
"""How long a command waits for new entries: less than the time limit of an answer."""
assert BLOCK_MS < 1000 * SOCKET_S
NAME_MS = 30_000
"""How long the server keeps which node has a name, without a renewal."""
PAGE = 500
"""Entries in one answer about pending ones."""

DELETE_CONSUMER = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
    return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""
"""In one step: with a consumer that has taken an entry since, its pending entries would be deleted."""

type Fields = Mapping[bytes, bytes]


class RedisGroup:
    """The group of a node, over one connection after another. All methods may raise the errors of the
    library. `identity` is the same in each run with this state folder, until the host is booted.
    """

    def __init__(self, config: NodeConfig, identity: str):
        self.streams = config.redis.streams
        self._config = config.redis
        self._node = config.node.name
        self._identity = identity
        self._shadow = config.shadow.enabled
        self._server: Any = None

    def open(self) -> None:
        """Use a new connection.

        Raises `~ppdaemon.errors.Unavailable` if the password cannot be read.
        """
        self._server = open_server(self._config, f"ppdaemon-{self._node}")

    async def close(self) -> None:
        """End the connection, if there is one."""
        if self._server is not None:
            await self._server.aclose()
            self._server = None

    async def time_ms(self) -> float:
        """Return the server's time, milliseconds since 1970."""
        seconds, microseconds = await self._server.time()
        return 1000 * int(seconds) + int(microseconds) / 1000

    # --- the group ----------------------------------------------------------------

    async def hold_name(self) -> None:
        """Keep this node's name for it.

        Raises `~ppdaemon.errors.Unavailable` if another node has it: both would take the same pending
        entries, and each other's permits for their own.
        """
        marks = [name_mark(stream, self._config.group, self._node) for stream in self.streams]
        async with self._server.pipeline(transaction=False) as pipe:
            for mark in marks:
                pipe.set(mark, self._identity, nx=True, px=NAME_MS)
                pipe.get(mark)
            found = await pipe.execute()
            if any(value != self._identity.encode() for value in found[1::2]):
                raise Unavailable(
                    f"another node has the name {self._node}, or had it {NAME_MS // 1000} s ago: each needs a"
                    " node.name of its own"
                )
            for mark in marks:
                pipe.set(mark, self._identity, px=NAME_MS)
            await pipe.execute()

    async def find(self, stream: str, after_ms: float) -> None:
        """Create the group of a stream if nobody has, for the entries that were written after a time.

        Raises `~ppdaemon.errors.Unavailable` if visits would be processed twice, or taken from others.
        """
        groups, group = await groups_of(self._server, stream), self._config.group
        known = groups.get(group)
        self._refuse_rivals(stream, groups)
        # A group of the present service may have no consumer now: a shadow leaves it alone all the same.
        if known is not None and (known.consumers or self._shadow) and known.shadow != self._shadow:
            modes = "present service", "shadow mode"
            raise Unavailable(
                f"group {group} of stream {stream} is one of the {modes[known.shadow]}, whose visits this"
                " node would take: use another redis.group"
            )
        if self._shadow:
            await self._server.set(shadow_mark(stream, group), self._node)
        if known is None:
            from redis import ResponseError

            with suppress(ResponseError):  # another node has made it meanwhile
                # Not from the end: a server that has lost the group may have entries that nobody has read.
                start = str(max(0, int(after_ms)))
                await self._server.xgroup_create(stream, group, id=start, mkstream=True)

    def _refuse_rivals(self, stream: str, groups: Mapping[str, StreamGroup]) -> None:
        if (others := rivals(groups.values(), self._config)) and not self._shadow:
            raise Unavailable(
                f"stream {stream} has another group, {others[0]}, whose consumers process the same visits: if"
                f" nobody uses it, delete it (XGROUP DESTROY {stream} {others[0]}); if they process none,"
                " list it in redis.watching_groups; else use its name as redis.group, or set shadow: true"
            )

    async def counts(self) -> tuple[int, int]:
        """Return how many entries are pending with consumers, and how many wait for one. Raises as `find`
        does: each visit until another group is noticed may be processed twice.
        """
        groups = []
        for stream in self.streams:
            groups.append(await groups_of(self._server, stream))
            self._refuse_rivals(stream, groups[-1])
        own = [each[self._config.group] for each in groups if self._config.group in each]
        return sum(each.pending for each in own), sum(each.waiting for each in own)

    async def trim(self, stream: str, before_ms: float) -> None:
        """Delete entries that were written before a time of the server, as far as that is cheap."""
        await self._server.xtrim(stream, minid=max(0, int(before_ms)), approximate=True)

    async def consumers(self, stream: str) -> Sequence[Mapping[str, Any]]:
        """Return the consumers of the group."""
        found: Sequence[Mapping[str, Any]] = await self._server.xinfo_consumers(stream, self._config.group)
        return found

    async def delete_consumers(self, stream: str, names: Iterable[str]) -> None:
        """Delete consumers, but not one that has something pending."""
        for name in names:
            await self._server.eval(DELETE_CONSUMER, 1, stream, self._config.group, name)

    # --- entries --------------------------------------------------------------------

    async def read(self, count: int, *, wait: bool = True) -> list[tuple[Place, Fields]]:
        """Return new entries of all streams, at most `count` of each; `wait` for the first one."""
        streams = dict.fromkeys(self.streams, ">")
        return _entries(
            await self._server.xreadgroup(
                self._config.group, self._node, streams, count=count, block=BLOCK_MS if wait else None
            )
        )

    async def read_own(self, stream: str) -> list[tuple[Place, Fields]]:
        """Return the entries that are pending with this node."""
        found: list[tuple[Place, Fields]] = []
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

    async def contents(self, places: Sequence[Place]) -> list[tuple[Place, Fields]]:
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

    async def pending(self, stream: str, **options: object) -> list[Pending]:
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

    async def claim(self, stream: str, places: Sequence[Place], idle_ms: int) -> list[tuple[Place, Fields]]:
        """Take entries from other consumers, as far as these have not renewed them; return those."""
        ids = [place.id for place in places]
        answer = await self._server.xclaim(stream, self._config.group, self._node, idle_ms, ids)
        return [(Place(stream, name.decode()), fields or {}) for name, fields in answer if name]

    async def acknowledge(self, places: Collection[Place]) -> None:
        """Acknowledge entries of any consumer."""
        await self._by_stream(places, lambda pipe, stream, ids: pipe.xack(stream, self._config.group, *ids))

    async def give(self, consumer: str, places: Collection[Place], **options: object) -> None:
        """Make entries pending with a consumer, which has them anew."""
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

    # --- permits --------------------------------------------------------------------

    def _permit(self, key: DetectorKey) -> str:
        return permit_key(key, self._config.group if self._shadow else "")

    async def owners(self, keys: Sequence[DetectorKey], *, take: bool) -> list[str]:
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

    async def release(self, keys: Collection[DetectorKey]) -> None:
        """Give up permits of this node."""
        if keys:
            await self._server.delete(*map(self._permit, keys))


def _entries(answer: Any) -> list[tuple[Place, Fields]]:
    """Return the entries in the answer to XREADGROUP; a trimmed one has no fields."""
    return [
        (Place(stream.decode(), name.decode()), fields or {})
        for stream, entries in answer or ()
        for name, fields in entries
    ]
