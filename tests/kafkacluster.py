# SPDX-License-Identifier: BSD-3-Clause
"""A Kafka cluster in this process: the client library's own, which has the real protocol."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

WITHIN_S = 20.0


class KafkaCluster:
    """One broker; topics are created when they are used."""

    def __init__(self) -> None:
        # The cluster exists as long as this client.
        self._client: Any = Producer({"test.mock.num.brokers": 1})
        (broker,) = self._client.list_topics(timeout=WITHIN_S).brokers.values()
        self.brokers = f"{broker.host}:{broker.port}"

    def close(self) -> None:
        """End it: its threads and connections belong to the client, which others may still refer to."""
        self._client = None

    def write(self, topic: str, values: Iterable[bytes | None]) -> None:
        """Write messages, and wait until the cluster has them."""
        for value in values:
            self._client.produce(topic, value)
        assert self._client.flush(WITHIN_S) == 0

    def read(self, topic: str, count: int) -> list[tuple[str, bytes]]:
        """Wait for messages of a topic; return their keys and values."""
        consumer = Consumer(
            {"bootstrap.servers": self.brokers, "group.id": "test", "auto.offset.reset": "earliest"}
        )
        found: list[tuple[str, bytes]] = []
        partitions: list[TopicPartition] = []
        until = time.monotonic() + WITHIN_S
        try:
            while len(found) < count:
                assert time.monotonic() < until, f"{len(found)} of {count} messages of {topic}"
                if not partitions:
                    # Without a group, for whose members the cluster would wait 3 s.
                    numbers = consumer.list_topics(topic, timeout=WITHIN_S).topics[topic].partitions
                    partitions = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers]
                    consumer.assign(partitions)
                message: Any = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    found.append((message.key().decode(), message.value()))
        finally:
            consumer.close()
        return found


@contextmanager
def kafka_cluster() -> Iterator[KafkaCluster]:
    """Yield a cluster."""
    cluster = KafkaCluster()
    try:
        yield cluster
    finally:
        cluster.close()
