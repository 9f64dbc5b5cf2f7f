# SPDX-License-Identifier: BSD-3-Clause
"""The producer of Kafka messages: sends some, waits for the acknowledgments.

The client library is the extra ``kafka``; it is imported when a producer is made. It starts
threads and does not survive a fork: only processes that fork nothing make one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ppdaemon.errors import Unavailable
from ppdaemon.kafkaclient import Brokers, client_options

__all__ = ("KafkaMessage", "KafkaProducer", "Unsent")

MARGIN_S = 2.0
"""How much longer than its time limit a message may take until its failure is reported."""


@dataclass(frozen=True, slots=True, eq=False)
class KafkaMessage:
    """A message of a topic; two of the same content are two."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Unsent:
    """Messages that were not acknowledged, and why."""

    later: tuple[KafkaMessage, ...] = ()
    """Send them again: the cluster was not available."""
    refused: tuple[KafkaMessage, ...] = ()
    """Never accepted, such as one that is too large."""
    reason: str = ""


class KafkaProducer:
    """Sends messages to a cluster; not for several threads.

    `options` are those of librdkafka, `password` is the file with ``sasl.password``. Raises
    `~ppdaemon.errors.Unavailable` if the library is not installed or refuses an option.

    After a failure because a broker has refused the connection, the files of certificates and of the password
    are read again.
    """

    def __init__(
        self, brokers: str, options: Mapping[str, str], timeout_s: float, password: Path | None = None
    ):
        try:
            import confluent_kafka
        except ImportError as error:
            raise Unavailable(f"{error}: install ppdaemon with the extra kafka") from error
        self._timeout_s = timeout_s
        self._permanent = {
            confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE,
            confluent_kafka.KafkaError.INVALID_MSG_SIZE,
        }
        self._error = confluent_kafka.KafkaException
        self._late = confluent_kafka.KafkaError._MSG_TIMED_OUT
        self._new_client = confluent_kafka.Producer
        self._options = options
        self._password = password
        self._settings = {
            "message.timeout.ms": round(timeout_s * 1000),
            # No message twice if only an acknowledgment was lost.
            "enable.idempotence": True,
        }
        self._servers = brokers
        self._open()

    def _open(self) -> None:
        brokers = Brokers(self._options)
        settings = {
            **self._settings,
            **client_options(self._options, self._password),
            "bootstrap.servers": self._servers,
            # Errors are returned with the messages; the library would print each attempt to connect.
            "logger": brokers,
        }
        try:
            self._producer: Any = self._new_client(settings)
        except self._error as error:
            raise Unavailable(f"Kafka: {error.args[0].str()}") from error
        except (AttributeError, TypeError, ValueError) as error:  # an option that is no text
            raise Unavailable(f"Kafka: options: {error}") from error
        self._brokers, self._refused = brokers, False

    def send(self, topic: str, messages: Sequence[KafkaMessage]) -> Unsent:
        """Send messages in order and wait for their acknowledgments, within the time limit.

        Raises `~ppdaemon.errors.Unavailable` if the file of the password cannot be used.
        """
        if self._refused:
            # Only then: a client whose cluster is slow would never get to send if each try began anew.
            self._open()
        later: list[KafkaMessage] = []
        refused: list[KafkaMessage] = []
        reasons: list[str] = []

        def failed(message: KafkaMessage, error: Any) -> None:
            (refused if error.code() in self._permanent else later).append(message)
            # The library only says that the time was over.
            late = error.code() == self._late and (self._brokers.refusal or self._brokers.reason)
            reasons.append(f"Kafka: {late or error.str()}")

        def delivered(message: KafkaMessage, error: Any, _: object) -> None:
            if error is not None:
                failed(message, error)

        for message in messages:
            try:
                self._producer.produce(
                    topic, message.value, message.key.encode(), on_delivery=partial(delivered, message)
                )
            except self._error as error:
                failed(message, error.args[0])
            except BufferError as error:  # the queue of the library is full
                later.append(message)
                reasons.append(f"Kafka: {error}")
        if self._producer.flush(self._timeout_s + MARGIN_S):
            # The library drops them then, and calls `delivered` for each.
            self._producer.purge()
            self._producer.flush(MARGIN_S)
        # Noted now: the next messages may come when it is forgotten.
        self._refused = bool(later and self._brokers.refusal)
        return Unsent(tuple(later), tuple(refused), reasons[0] if reasons else "")

    def close(self) -> None:
        """Drop what is not sent."""
        self._producer.purge()
        self._producer.flush(MARGIN_S)
