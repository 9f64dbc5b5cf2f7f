# SPDX-License-Identifier: BSD-3-Clause
"""Takes next_visit and its cancellations from the observatory's Kafka topics.

Each relay reads all partitions, and has committed offsets of its own: in a consumer group that relays
share, a cancellation could reach another relay than its visit, and each restart would stop all of them.
An offset is committed when the ledger has the visit. The client library is the extra ``kafka``; it is
imported when a source is made. Its calls are made by one thread.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.messages import Accepted
from ppdaemon.relay.config import KafkaConfig
from ppdaemon.relay.kafkaevents import Offsets, Place, SchemaRegistry, UnknownSchema, event_json
from ppdaemon.relay.submitserver import EARLY_CANCEL_S, SubmitServer
from ppdaemon.throttle import Throttle, sample_of

__all__ = ("KafkaSource",)

_LOG = logging.getLogger(__name__)

POLL_S = 0.2
"""How long a call waits for a message, and a stop for that call."""
BATCH = 100
"""Messages that are taken at once."""
MAX_OPEN = 1000
"""Messages that may wait for the ledger or the registry; above it nothing is read."""
RETRY_S = 1.0
"""Pause before a message is served again that could not be."""
UNKNOWN_S = 30.0
"""How long a message waits for a schema that the registry does not have."""
REFRESH_S = 30.0
"""Interval of looking for new partitions."""
CLUSTER_S = 5.0
"""Time limit of a question to the cluster."""
COMMIT_S = 1.0
"""Interval of commits."""
COMMITTED_S = 6.0
"""How long a commit waits for the group's coordinator; the library's minimum."""
FIRST_S = 120.0
"""A relay without committed offsets begins with the messages of this time before its start."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A message: its event as JSON, or why there is none."""

    place: Place
    offset: int
    read_at: float
    """Monotonic seconds."""
    event: bytes | BadMessage | Unavailable
    raw: bytes


class KafkaSource:
    """The topics of one cluster; `put` adds an event to the relay's queue.

    Raises `~ppdaemon.errors.Unavailable` if the library is not installed or refuses an option.
    """

    def __init__(
        self,
        config: KafkaConfig,
        name: str,
        server: SubmitServer,
        throttle: Throttle,
        put: Callable[[Callable[[], None]], Awaitable[None]],
    ):
        try:
            import confluent_kafka
        except ImportError as error:
            raise Unavailable(f"{error}: install ppdaemon with the extra kafka") from error
        self._library: Any = confluent_kafka
        self._config = config
        self._server = server
        self._throttle = throttle
        self._put = put
        self._registry = SchemaRegistry(config.registry)
        self._offsets = Offsets(EARLY_CANCEL_S)
        self._aside: deque[tuple[float, _Taken]] = deque()
        """What could not be served, and when it is tried again, monotonic seconds."""
        self._assigned: set[Place] = set()
        self._to_commit: dict[Place, int] = {}
        """What the cluster has not confirmed."""
        self._unreadable: dict[Place, str] = {}
        """Errors of partitions, until their next messages: the library reports each once."""
        self._thread = ThreadPoolExecutor(1, "kafka")
        self._problems = {"cluster": "", "reading": "", "commit": ""}
        settings = {
            "group.id": f"ppdaemon-{name}",
            # Of a partition whose committed offset has been deleted; what is too old is refused.
            "auto.offset.reset": "earliest",
            # A stop waits for a commit under way, and commits for the coordinator as long as this.
            "session.timeout.ms": round(COMMITTED_S * 1000),
            **config.options,
            "bootstrap.servers": config.brokers,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "error_cb": self._failed,
            "on_commit": self._committed,
            "logger": _quiet,
        }
        try:
            self._consumer = confluent_kafka.Consumer(settings)
        except confluent_kafka.KafkaException as error:
            raise Unavailable(f"Kafka: {error.args[0].str()}") from error
        except (AttributeError, TypeError, ValueError) as error:  # an option that is no text
            raise Unavailable(f"Kafka: kafka.options: {error}") from error

    @property
    def problem(self) -> str:
        """Why no events come, or they would come again after a restart; may be read at any time."""
        return next(filter(None, (*self._problems.values(), self._registry.problem)), "")

    async def run(self) -> None:
        """Read until canceled."""
        loop = asyncio.get_running_loop()
        refresh_at = commit_at = loop.time()
        try:
            while True:
                now = loop.time()
                if now >= refresh_at:
                    refresh_at = now + (REFRESH_S if await self._call(self._assign) else RETRY_S)
                if now >= commit_at:
                    commit_at = now + COMMIT_S
                    await self._call(self._commit, self._offsets.settle(time.monotonic()))
                while self._aside and self._aside[0][0] <= now:
                    again = await self._call(self._again, self._aside.popleft()[1])
                    await self._put(partial(self._serve, again))
                if self._offsets.open >= MAX_OPEN:
                    await asyncio.sleep(RETRY_S)
                    continue
                for taken in await self._call(self._take):
                    self._offsets.take(taken.place, taken.offset, taken.read_at)
                    await self._put(partial(self._serve, taken))
        finally:
            await self._call(self._consumer.close)
            self._thread.shutdown(wait=False)

    async def _call[T](self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- in the thread -----------------------------------------------------------

    def _failed(self, error: Any) -> None:
        # The library reconnects by itself; it reports each broker, and then that all are away.
        if error.code() == self._library.KafkaError._ALL_BROKERS_DOWN or error.fatal():
            self._problems["cluster"] = f"Kafka: {error.str()}"

    def _assign(self) -> bool:
        """Read all partitions of the topics that are not yet read; return whether all topics exist."""
        try:
            known = self._consumer.list_topics(timeout=CLUSTER_S).topics
            self._problems["cluster"] = ""
            missing = [
                topic for topic in self._config.topics if not getattr(known.get(topic), "partitions", None)
            ]
            if missing:
                self._problems["cluster"] = f"Kafka: the cluster has no topic {', '.join(missing)}"
            places = {
                (topic, number)
                for topic in self._config.topics
                if topic not in missing
                for number in known[topic].partitions
            }
            if new := sorted(places - self._assigned):
                self._consumer.incremental_assign(self._begins(new))
                self._assigned.update(new)
                _LOG.info("reading from Kafka", extra={"partitions": len(self._assigned)})
        except self._library.KafkaException as error:
            self._problems["cluster"] = f"Kafka: {error.args[0].str()}"
            return False
        return not missing

    def _begins(self, places: Sequence[Place]) -> list[Any]:
        """Return partitions with the offset from which each is read."""
        partition = self._library.TopicPartition
        begins = self._consumer.committed([partition(*place) for place in places], timeout=CLUSTER_S)
        self._check(begins)
        fresh = [each for each in begins if each.offset < 0]
        if fresh:
            since_ms = round((time.time() - FIRST_S) * 1000)
            asked = [partition(each.topic, each.partition, since_ms) for each in fresh]
            fresh = self._consumer.offsets_for_times(asked, timeout=CLUSTER_S)
            self._check(fresh)
            for each in fresh:
                if each.offset < 0:  # there is no message since then
                    each.offset = self._consumer.get_watermark_offsets(each, timeout=CLUSTER_S)[1]
            # At once: a relay that ends before its first commit must not miss what came meanwhile.
            self._check(self._consumer.commit(offsets=fresh, asynchronous=False))
        return [*(each for each in begins if each.offset >= 0), *fresh]

    def _check(self, partitions: Sequence[Any]) -> None:
        """Raise the error of a partition: its offset is not known then, and looks like none."""
        for each in partitions:
            if each.error is not None:
                raise self._library.KafkaException(each.error)

    def _take(self) -> list[_Taken]:
        """Wait for messages."""
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        found = [first]
        with suppress(self._library.KafkaException):  # the first one must not be lost
            found += self._consumer.consume(BATCH - 1, 0)
        return [self._taken(message) for message in found if self._is_event(message)]

    def _is_event(self, message: Any) -> bool:
        place, error = (message.topic(), message.partition()), message.error()
        if error is None:
            self._unreadable.pop(place, None)
        else:
            self._unreadable[place] = f"Kafka: {place[0]} [{place[1]}]: {error.str()}"
        self._problems["reading"] = next(iter(self._unreadable.values()), "")
        return error is None

    def _taken(self, message: Any) -> _Taken:
        self._problems["cluster"] = ""
        place = message.topic(), message.partition()
        raw = message.value() or b""
        return _Taken(place, message.offset(), time.monotonic(), self._event(raw), raw)

    def _event(self, raw: bytes) -> bytes | BadMessage | Unavailable:
        try:
            return event_json(raw, self._registry.schema)
        except (BadMessage, Unavailable) as error:
            return error

    def _again(self, taken: _Taken) -> _Taken:
        return replace(taken, event=self._event(taken.raw))

    def _commit(self, begins: Mapping[Place, int]) -> None:
        """Commit these offsets, and those again that the cluster has not confirmed; also serve callbacks."""
        self._to_commit |= begins
        if not self._to_commit:
            return
        offsets = [self._library.TopicPartition(*place, offset) for place, offset in self._to_commit.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except self._library.KafkaException as error:
            self._committed(error.args[0], ())

    def _committed(self, error: Any, partitions: Sequence[Any]) -> None:
        """Forget offsets that the cluster has confirmed."""
        for each in partitions:
            place = each.topic, each.partition
            if error is None and each.error is None and self._to_commit.get(place) == each.offset:
                del self._to_commit[place]
        failed = next((found for found in (error, *(each.error for each in partitions)) if found), None)
        self._problems["commit"] = f"Kafka: offsets are not committed: {failed.str()}" if failed else ""

    # --- in the pump --------------------------------------------------------------

    def _serve(self, taken: _Taken) -> None:
        match taken.event:
            case bytes():
                self._server.take([taken.event], partial(self._answered, taken), taken.read_at)
            case BadMessage() as error:
                self._warn("ignored a message of Kafka", taken, error.kind, str(error))
                self._finish(taken)
            case UnknownSchema() as error:
                self._put_aside(taken, str(error), UNKNOWN_S)
            case Unavailable() as error:
                self._put_aside(taken, str(error), self._server.config.expiry_s)

    def _answered(self, taken: _Taken, answer: Accepted) -> None:
        if answer.again:
            self._put_aside(taken, answer.reason, self._server.config.expiry_s)
        else:
            self._finish(taken)

    def _put_aside(self, taken: _Taken, reason: str, limit_s: float) -> None:
        """Serve a message again later, for a limited time."""
        if time.monotonic() - taken.read_at > limit_s:
            self._warn("gave up a message of Kafka", taken, "kafka expired", reason)
            self._finish(taken)
        else:
            self._warn("a message of Kafka waits", taken, "kafka waits", reason)
            self._aside.append((time.monotonic() + RETRY_S, taken))

    def _warn(self, text: str, taken: _Taken, kind: str, reason: str) -> None:
        if self._throttle.passes(kind):
            topic, number = taken.place
            context = {"topic": topic, "partition": number, "offset": taken.offset, "reason": reason}
            _LOG.warning(text, extra={**context, "sample": sample_of(taken.raw)})

    def _finish(self, taken: _Taken) -> None:
        self._offsets.finish(taken.place, taken.offset, time.monotonic())


class _Quiet:
    def log(self, *_: object) -> None:
        """Drop a message of the library: its errors come by `error_cb`."""


_quiet = _Quiet()
