# SPDX-License-Identifier: BSD-3-Clause
"""Takes next_visit and its cancellations from the observatory's Kafka topics.

Each relay reads all partitions, and has committed offsets of its own: in a consumer group that relays
share, a cancellation could reach another relay than its visit, and each restart would stop all of them.
An offset is committed when the ledger has the visit.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.kafkaconsumer import CLUSTER_S, KafkaConsumer, Place
from ppdaemon.messages import Accepted
from ppdaemon.relay.config import KafkaConfig
from ppdaemon.relay.kafkaevents import Offsets, SchemaRegistry, UnknownSchema, event_json
from ppdaemon.relay.submitserver import EARLY_CANCEL_S, SubmitServer
from ppdaemon.throttle import Throttle, sample_of

__all__ = ("KafkaSource",)

_LOG = logging.getLogger(__name__)

MAX_OPEN = 1000
"""Messages that may wait for the ledger or the registry; above it nothing is read."""
RETRY_S = 1.0
"""Pause before a message is served again that could not be."""
UNKNOWN_S = 30.0
"""How long a message waits for a schema that the registry does not have."""
COMMIT_S = 1.0
"""Interval of commits."""
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
        group: str,
        server: SubmitServer,
        throttle: Throttle,
        put: Callable[[Callable[[], None]], Awaitable[None]],
    ):
        self._config = config
        self._server = server
        self._throttle = throttle
        self._put = put
        self._registry = SchemaRegistry(
            config.registry, config.registry_user, config.registry_password, config.registry_ca
        )
        self._offsets = Offsets(EARLY_CANCEL_S)
        self._aside: deque[tuple[float, _Taken]] = deque()
        """What could not be served, and when it is tried again, monotonic seconds."""
        self._assigned: set[Place] = set()
        self._client = KafkaConsumer(group, config.brokers, config.options, config.password)

    @property
    def problem(self) -> str:
        """Why no events come, or they would come again after a restart; may be read at any time."""
        return self._client.problem or self._registry.problem

    async def run(self) -> None:
        """Read until canceled."""
        loop = asyncio.get_running_loop()
        commit_at = loop.time()
        try:
            while True:
                now = loop.time()
                if self._client.check_is_due:
                    await self._client.call(self._assign)
                if now >= commit_at:
                    commit_at = now + COMMIT_S
                    await self._client.call(self._client.commit, self._offsets.settle(time.monotonic()))
                while self._aside and self._aside[0][0] <= now:
                    again = await self._client.call(self._again, self._aside.popleft()[1])
                    await self._put(partial(self._serve, again))
                if self._offsets.open >= MAX_OPEN:
                    await asyncio.sleep(RETRY_S)
                    continue
                for taken in await self._client.call(self._take):
                    self._offsets.take(taken.place, taken.offset, taken.read_at)
                    await self._put(partial(self._serve, taken))
        finally:
            await self._client.close()

    # --- in the thread -----------------------------------------------------------

    def _assign(self) -> None:
        """Read all partitions of the topics that are not yet read."""
        try:
            known = self._client.topics()
            missing = [
                topic for topic in self._config.topics if not getattr(known.get(topic), "partitions", None)
            ]
            text = f"the cluster has no topic {', '.join(missing)}" if missing else ""
            self._client.problems["topics"] = text
            places = {
                (topic, number)
                for topic in self._config.topics
                if topic not in missing
                for number in known[topic].partitions
            }
            if new := sorted(places - self._assigned):
                self._client.consumer.incremental_assign(self._begins(new))
                self._assigned.update(new)
                _LOG.info("reading from Kafka", extra={"partitions": len(self._assigned)})
        except self._client.library.KafkaException as error:
            self._client.problems["cluster"] = error.args[0].str()

    def _begins(self, places: Sequence[Place]) -> list[Any]:
        """Return partitions with the offset from which each is read."""
        partition = self._client.library.TopicPartition
        begins = self._client.consumer.committed([partition(*place) for place in places], timeout=CLUSTER_S)
        self._check(begins)
        fresh = [each for each in begins if each.offset < 0]
        if fresh:
            since_ms = round((time.time() - FIRST_S) * 1000)
            asked = [partition(each.topic, each.partition, since_ms) for each in fresh]
            fresh = self._client.consumer.offsets_for_times(asked, timeout=CLUSTER_S)
            self._check(fresh)
            for each in fresh:
                if each.offset < 0:  # there is no message since then
                    each.offset = self._client.consumer.get_watermark_offsets(each, timeout=CLUSTER_S)[1]
            # At once: a relay that ends before its first commit must not miss what came meanwhile.
            self._check(self._client.consumer.commit(offsets=fresh, asynchronous=False))
        return [*(each for each in begins if each.offset >= 0), *fresh]

    def _check(self, partitions: Sequence[Any]) -> None:
        """Raise the error of a partition: its offset is not known then, and looks like none."""
        for each in partitions:
            if each.error is not None:
                raise self._client.library.KafkaException(each.error)

    def _take(self) -> list[_Taken]:
        """Wait for messages."""
        return [self._taken(message) for message in self._client.take()]

    def _taken(self, message: Any) -> _Taken:
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
