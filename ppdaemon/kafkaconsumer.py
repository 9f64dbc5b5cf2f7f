# SPDX-License-Identifier: BSD-3-Clause
"""A consumer of Kafka topics: its library, its thread, its problems, its commits.

The client library is the extra ``kafka``; it is imported when a consumer is made. Its calls are made by one
thread. What is read, and from where, is decided by who uses it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppdaemon.errors import Unavailable
from ppdaemon.kafkaclient import Brokers, client_options
from ppdaemon.passwordfile import read_password

__all__ = ("CLUSTER_S", "COMMITTED_S", "KafkaConsumer", "Place")

_LOG = logging.getLogger(__name__)

type Place = tuple[str, int]
"""Topic and partition."""

POLL_S = 0.2
"""How long a call waits for a message, and a stop for that call."""
BATCH = 100
"""Messages that are taken at once."""
CLUSTER_S = 5.0
"""Time limit of a question to the cluster."""
CHECK_S, RETRY_S = 30.0, 1.0
"""Interval of questions to the cluster: while it answers, and while it does not."""
LOG_S = 10.0
"""Shortest interval of log lines while a problem lasts."""
COMMITTED_S = 6.0
"""How long a commit waits for the group's coordinator; the library's minimum."""


class KafkaConsumer:
    """A consumer of a group, which commits when it is told to.

    `options` are those of the configuration, `password` is the file with ``sasl.password``. Raises
    `~ppdaemon.errors.Unavailable` if the library is not installed or refuses one of them.
    """

    def __init__(
        self, group: str, brokers: str | None, options: Mapping[str, str], password: Path | None = None
    ):
        try:
            import confluent_kafka
        except ImportError as error:
            raise Unavailable(f"{error}: install ppdaemon with the extra kafka") from error
        self.library: Any = confluent_kafka
        self.problems = {"password": "", "cluster": "", "topics": "", "reading": "", "commit": ""}
        """Why no messages come, or they would come again after a restart; may be read at any time."""
        self._brokers = Brokers(options)
        self._user = options.get("sasl.username", "")
        self._password_file = password
        self._checked_at = self._logged_at = -math.inf
        self._logged = ""
        """The problem that was logged last; blank if none is."""
        self._to_commit: dict[Place, int] = {}
        """What the cluster has not confirmed."""
        self._unreadable: dict[Place, str] = {}
        """Errors of partitions, until their next messages: the library reports each once."""
        self._thread = ThreadPoolExecutor(1, "kafka")
        options = client_options(options, password)
        self._password = options.get("sasl.password", "")
        try:
            self.consumer = confluent_kafka.Consumer(
                {
                    "group.id": group,
                    # Of a partition whose committed offset has been deleted; what is too old is refused.
                    "auto.offset.reset": "earliest",
                    # A stop waits for a commit under way, and commits for the coordinator as long as this.
                    "session.timeout.ms": round(COMMITTED_S * 1000),
                    **options,
                    "bootstrap.servers": brokers,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "error_cb": self._failed,
                    "on_commit": self._committed,
                    "logger": self._brokers,
                }
            )
        except confluent_kafka.KafkaException as error:
            raise Unavailable(f"Kafka: {error.args[0].str()}") from error
        except (AttributeError, TypeError, ValueError) as error:  # an option that is no text
            raise Unavailable(f"Kafka: kafka.options: {error}") from error

    @property
    def problem(self) -> str:
        """The first of the problems; blank if there is none."""
        problems = dict(self.problems)
        if problems["cluster"]:  # the library only says that it is away
            problems["cluster"] = self._brokers.reason or problems["cluster"]
        # A password that cannot be read is the reason for the refusal of the former one.
        reasons = problems.pop("password"), self._brokers.refusal, *problems.values()
        text = next(filter(None, reasons), "")
        return text and f"Kafka: {text}"

    async def call[T](self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in the thread of the library."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def close(self) -> None:
        """Leave the group, and end the thread."""
        await self.call(self.consumer.close)
        self._thread.shutdown(wait=False)

    # --- in the thread -----------------------------------------------------------

    @property
    def check_is_due(self) -> bool:
        """Whether the cluster should be asked again for its topics."""
        away = self.problems["cluster"] or self.problems["topics"] or self._brokers.refusal
        return time.monotonic() >= self._checked_at + (RETRY_S if away else CHECK_S)

    def topics(self) -> Mapping[str, Any]:
        """Return the topics of the cluster by name; use the password that is in the file now.

        Raises the library's ``KafkaException`` if the cluster does not answer.
        """
        self._renew_password()
        try:
            found: Mapping[str, Any] = self.consumer.list_topics(timeout=CLUSTER_S).topics
        except self.library.KafkaException as error:
            self.problems["cluster"] = error.args[0].str()
            raise
        finally:
            self._checked_at = time.monotonic()
        self.problems["cluster"] = ""
        self._brokers.forget()
        return found

    def _renew_password(self) -> None:
        if self._password_file is None:
            return
        try:
            password = read_password(self._password_file)
        except ValueError as error:
            self.problems["password"] = str(error)
            return
        self.problems["password"] = ""
        if password != self._password:
            self.consumer.set_sasl_credentials(self._user, password)  # for the next connections
            self._password = password
            _LOG.info("a new password is used for Kafka", extra={"file": str(self._password_file)})

    def take(self) -> list[Any]:
        """Wait for messages."""
        first = self.consumer.poll(POLL_S)
        self._log_problem()
        if first is None:
            return []
        found = [first]
        with suppress(self.library.KafkaException):  # the first one must not be lost
            found += self.consumer.consume(BATCH - 1, 0)
        return [message for message in found if self._is_readable(message)]

    def _log_problem(self) -> None:
        text, now = self.problem, time.monotonic()
        if text != self._logged and now >= self._logged_at + LOG_S:
            self._logged, self._logged_at = text, now
            if text:
                _LOG.warning("%s", text)

    def _is_readable(self, message: Any) -> bool:
        place, error = (message.topic(), message.partition()), message.error()
        if error is None:
            self._unreadable.pop(place, None)
            self.problems["cluster"] = ""
        else:
            self._unreadable[place] = f"{place[0]} [{place[1]}]: {error.str()}"
        self.problems["reading"] = next(iter(self._unreadable.values()), "")
        return error is None

    def commit(self, begins: Mapping[Place, int]) -> None:
        """Commit these offsets, and those again that the cluster has not confirmed; also serve callbacks."""
        self._to_commit |= begins
        if not self._to_commit:
            return
        offsets = [self.library.TopicPartition(*place, offset) for place, offset in self._to_commit.items()]
        try:
            self.consumer.commit(offsets=offsets, asynchronous=True)
        except self.library.KafkaException as error:
            self._committed(error.args[0], ())

    def forget(self, places: Sequence[Place]) -> None:
        """Commit nothing more of partitions that belong to another consumer now."""
        for place in places:
            self._to_commit.pop(place, None)
            self._unreadable.pop(place, None)

    def _failed(self, error: Any) -> None:
        # The library reconnects by itself; it reports each broker, and then that all are away.
        if error.code() == self.library.KafkaError._ALL_BROKERS_DOWN or error.fatal():
            self.problems["cluster"] = error.str()

    def _committed(self, error: Any, partitions: Sequence[Any]) -> None:
        """Forget offsets that the cluster has confirmed."""
        for each in partitions:
            place = each.topic, each.partition
            if error is None and each.error is None and self._to_commit.get(place) == each.offset:
                del self._to_commit[place]
        failed = next((found for found in (error, *(each.error for each in partitions)) if found), None)
        self.problems["commit"] = f"offsets are not committed: {failed.str()}" if failed else ""
