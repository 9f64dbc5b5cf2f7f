# SPDX-License-Identifier: BSD-3-Clause
"""Messages of the observatory's Kafka topics: to JSON, as the submit socket takes it; and which offsets
are done with. Opens no connection to Kafka; asks the schema registry over HTTP.
"""

import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import fastavro

from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.kafkaconsumer import Place

__all__ = ("Offsets", "SchemaRegistry", "event_json")

MAGIC = 0
"""First byte of a message in Confluent's wire format; the schema's number, four bytes, follows."""
HEADER = 5
"""Bytes before the record."""
REGISTRY_S = 5.0
"""Time limit of one request."""
PAUSE_S = 1.0
"""How long a registry that did not answer is not asked again: each further message would wait for it, too."""


def event_json(value: bytes | None, schema: Callable[[int], Any]) -> bytes:
    """Return an event as a JSON object.

    Parameters
    ----------
    value : `bytes`, optional
        A message: JSON, or Avro in Confluent's wire format.
    schema : `~collections.abc.Callable`
        Returns the parsed schema with a number; may raise the errors of `SchemaRegistry.schema`.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if it is neither; such a message never becomes readable.
    """
    if not value:
        raise BadMessage("no content: a tombstone", "kafka empty")
    if value[0] != MAGIC:
        return value
    if len(value) < HEADER:
        raise BadMessage(f"{len(value)} bytes, too short for Avro", "kafka avro")
    number = int.from_bytes(value[1:HEADER])
    stream = io.BytesIO(value[HEADER:])
    parsed = schema(number)
    try:
        record = fastavro.schemaless_reader(stream, parsed, None)
    except Exception as error:  # for bytes of another schema, whatever the decoder meets first
        text = f"no record of schema {number}: {type(error).__name__} {error}"
        raise BadMessage(text, "kafka avro") from error
    if rest := len(stream.read()):
        raise BadMessage(f"{rest} bytes behind the record of schema {number}", "kafka avro")
    return json.dumps(record, default=str).encode()


class SchemaRegistry:
    """The schemas of a registry, each read once.

    Not for several threads. `url` is its address, or `None` if there is no registry; `clock` returns
    monotonic seconds.
    """

    def __init__(self, url: str | None, clock: Callable[[], float] = time.monotonic):
        self._url = url and url.rstrip("/")
        self._clock = clock
        self._schemas: dict[int, Any] = {}
        self._ask_at = 0.0
        self.problem = ""
        """Why the registry cannot be asked; may be read at any time."""

    def schema(self, number: int) -> Any:
        """Return a parsed schema.

        Raises `~ppdaemon.errors.BadMessage` if the registry does not have it, and
        `~ppdaemon.errors.Unavailable` if it does not answer: try again later.
        """
        if number not in self._schemas:
            if self.problem and self._clock() < self._ask_at:
                raise Unavailable(self.problem)
            try:
                self._schemas[number] = self._read(number)
                self.problem = ""
            except Unavailable as error:
                self.problem, self._ask_at = str(error), self._clock() + PAUSE_S
                raise
            except BadMessage:
                self.problem = ""
                raise
        return self._schemas[number]

    def _read(self, number: int) -> Any:
        if self._url is None:
            raise BadMessage("Avro, and kafka.registry is not set", "kafka schema")
        address = f"{self._url}/schemas/ids/{number}"
        try:
            with urllib.request.urlopen(address, timeout=REGISTRY_S) as answer:
                text = json.load(answer)["schema"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise BadMessage(f"{self._url} has no schema {number}", "kafka schema") from error
            raise Unavailable(f"{address}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            # The last ones: not the registry answers, but a proxy before it.
            raise Unavailable(f"{address}: {type(error).__name__} {error}") from error
        try:
            return fastavro.parse_schema(json.loads(text))
        except Exception as error:  # for a wrong schema, whatever the parser meets first
            raise BadMessage(f"{address}: no schema: {error}", "kafka schema") from error


class Offsets:
    """Which messages of each partition are done with, and from where a next run must read.

    `keep_s` is the time for which a message is read again after a restart, although it is done with.
    """

    def __init__(self, keep_s: float):
        self._keep_s = keep_s
        self._done: dict[Place, dict[int, float | None]] = {}
        """In the order of offsets: when each was done with, or `None`."""

    def take(self, place: Place, offset: int) -> None:
        """Remember a message that has been read."""
        self._done.setdefault(place, {})[offset] = None

    def finish(self, place: Place, offset: int, now: float) -> None:
        """Remember that a message is done with; `now` is monotonic seconds."""
        self._done[place][offset] = now

    @property
    def open(self) -> int:
        """Number of messages that are not done with."""
        return sum(when is None for done in self._done.values() for when in done.values())

    def settle(self, now: float) -> Mapping[Place, int]:
        """Forget what no next run needs; return the first offset that it needs, where that has changed."""
        begins: dict[Place, int] = {}
        for place, done in self._done.items():
            while done:
                offset, when = next(iter(done.items()))
                if when is None or now - when < self._keep_s:
                    break
                del done[offset]
                begins[place] = offset + 1
        return begins
