# SPDX-License-Identifier: BSD-3-Clause
"""One place where records are published: a bounded queue, and a thread that sends what is in it.

Each place has its own thread, so that one that does not answer delays no other.
"""

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ppdaemon.backoff import Backoff
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.publish.config import Publication
from ppdaemon.publish.kafka import KafkaMessage, KafkaProducer
from ppdaemon.publish.records import Record
from ppdaemon.publish.restproxy import RestProxy, TooMany
from ppdaemon.reports import DestinationReport

__all__ = ("Destination", "Sink", "open_sink")

_LOG = logging.getLogger(__name__)

BATCH = 500
"""Records that are sent together: one request, or one wait for acknowledgments."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""After a failure; records wait meanwhile."""


class Sink(Protocol):
    """Sends records to one place."""

    def send(self, records: Sequence[Record]) -> tuple[Sequence[Record], int, str]:
        """Return the records that are to be sent again, the number of those that are never accepted,
        and the reason.
        """


class Destination:
    """The queue of one publication. When it is full the oldest records are dropped, and counted."""

    def __init__(
        self,
        config: Publication,
        open_sink: Callable[[Publication], Sink],
        sleep: Callable[[float], object] | None = None,
    ):
        self.config = config
        """What `open_sink` opens for the next batch; may be replaced by one of the same name."""
        self._open_sink = open_sink
        self._sink: tuple[Publication, Sink] | None = None
        """Used by the thread only, with the configuration for which it was opened."""
        self._stopping = threading.Event()
        self._sleep = self._stopping.wait if sleep is None else sleep
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._filled = threading.Condition()
        """Guards all that follows: the process adds and reports while the thread sends."""
        self._queue: deque[Record] = deque()
        self._sending = 0
        self._sent = 0
        self._dropped = 0
        self._problem = ""

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._run, name=f"publish to {self.config.name}", daemon=True).start()

    def add(self, records: Iterable[Record]) -> None:
        """Add records without waiting."""
        with self._filled:
            self._queue.extend(records)
            self._drop_oldest()
            self._filled.notify()

    def report(self) -> DestinationReport:
        """Return the counts since the start."""
        with self._filled:
            return DestinationReport(
                name=self.config.name,
                sent=self._sent,
                dropped=self._dropped,
                waiting=len(self._queue) + self._sending,
                problem=self._problem,
            )

    def stop(self) -> None:
        """Send nothing more after the present batch."""
        self._stopping.set()
        with self._filled:
            self._filled.notify()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._filled:
                self._filled.wait_for(lambda: self._queue or self._stopping.is_set())
            self.send_some()

    def send_some(self) -> None:
        """Send the oldest records; pause after a failure."""
        with self._filled:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._sending = len(batch)
        later, refused, reason = self._send(batch)
        with self._filled:
            self._sending = 0
            self._sent += len(batch) - len(later) - refused
            self._dropped += refused
            self._queue.extendleft(reversed(later))
            self._drop_oldest()
            was, self._problem = self._problem, reason if later else ""
        if reason and reason != was:
            _LOG.warning(
                "%d records for %s are not taken: %s", len(later) + refused, self.config.name, reason
            )
        if later:
            self._sleep(self._backoff.failed(time.monotonic()))
        else:
            self._backoff.succeeded()

    def _send(self, batch: Sequence[Record]) -> tuple[Sequence[Record], int, str]:
        config = self.config
        try:
            if self._sink is None or self._sink[0] is not config:
                self._sink = config, self._open_sink(config)
            return self._sink[1].send(batch)
        except Unavailable as error:
            return batch, 0, str(error)

    def _drop_oldest(self) -> None:
        while len(self._queue) > self.config.queue:
            self._queue.popleft()
            self._dropped += 1


def open_sink(config: Publication) -> Sink:
    """Return what sends to a publication's address."""
    if config.topic:
        return _KafkaSink(config)
    return _RestSink(config)


class _KafkaSink:
    def __init__(self, config: Publication):
        self._topic = config.topic
        self._producer = KafkaProducer(config.brokers, config.options, config.timeout_s, config.password)

    def send(self, records: Sequence[Record]) -> tuple[Sequence[Record], int, str]:
        messages = {KafkaMessage(record.key, json.dumps(record.value).encode()): record for record in records}
        unsent = self._producer.send(self._topic, list(messages))
        return [messages[message] for message in unsent.later], len(unsent.refused), unsent.reason


class _RestSink:
    def __init__(self, config: Publication):
        self._proxy = RestProxy(config.to, config.token, config.timeout_s)

    def send(self, records: Sequence[Record]) -> tuple[Sequence[Record], int, str]:
        refused, reason = 0, ""
        groups = itertools.groupby(
            sorted(records, key=lambda record: record.topic), key=lambda record: (record.topic, record.schema)
        )
        waiting = [list(group) for _, group in groups]
        while waiting:
            try:
                self._proxy.send(waiting[0])
            except TooMany:
                half = len(waiting[0]) // 2
                waiting[:1] = [waiting[0][:half], waiting[0][half:]]
                continue
            except BadMessage as error:
                refused, reason = refused + len(waiting[0]), str(error)
            except Unavailable as error:
                return list(itertools.chain.from_iterable(waiting)), refused, str(error)
            del waiting[0]
        return (), refused, reason
