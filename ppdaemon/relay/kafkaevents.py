# SPDX-License-Identifier: BSD-3-Clause
"""Messages of the observatory's Kafka topics: to JSON, as the submit socket takes it; and which offsets
are done with. Opens no connection to Kafka; asks the schema registry over HTTP.
"""

import base64
import http.client
import io
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fastavro

from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.kafkaconsumer import Place
from ppdaemon.passwordfile import read_password

__all__ = ("Offsets", "SchemaRegistry", "UnknownSchema", "event_json")

MAGIC = 0
"""First byte of a message in Confluent's wire format; the schema's number, four bytes, follows."""
HEADER = 5
"""Bytes before the record."""
REGISTRY_S = 5.0
"""Time limit of one request."""
PAUSE_S = 1.0
"""How long a registry that did not answer is not asked again: each further message would wait for it, too."""
MAX_MISSING = 1000
"""Schemas of which it is remembered that the registry does not have them."""


class UnknownSchema(Unavailable):
    """The registry does not have a schema: one of its servers may lag behind the others for a moment."""


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

    Not for several threads. `url` is its address, or `None` if there is no registry; `user`, the file
    `password` and the file `authority` (certificates) are those of the configuration; `clock` returns
    monotonic seconds.
    """

    def __init__(
        self,
        url: str | None,
        user: str | None = None,
        password: Path | None = None,
        authority: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._url = url and url.rstrip("/")
        self._user = user
        self._password = password
        self._authority = authority
        self._clock = clock
        self._schemas: dict[int, Any] = {}
        self._ask_at = 0.0
        self._missing: dict[int, float] = {}
        """Schemas that the registry does not have, and when it is asked again."""
        self.problem = ""
        """Why the registry cannot be asked; may be read at any time."""

    def schema(self, number: int) -> Any:
        """Return a parsed schema.

        Raises `~ppdaemon.errors.BadMessage` if there is no registry, or it has something else, and
        `~ppdaemon.errors.Unavailable` if it does not answer, or `UnknownSchema`: try again later.
        """
        if number not in self._schemas:
            if (ask_at := self._missing.get(number)) is not None and self._clock() < ask_at:
                raise UnknownSchema(self._unknown(number))
            if self.problem and self._clock() < self._ask_at:
                raise Unavailable(self.problem)
            try:
                self._schemas[number] = self._read(number)
                self.problem = ""
            except UnknownSchema:
                self.problem = ""
                if len(self._missing) >= MAX_MISSING:
                    self._missing.clear()
                self._missing[number] = self._clock() + PAUSE_S
                raise
            except Unavailable as error:
                self.problem, self._ask_at = str(error), self._clock() + PAUSE_S
                raise
            except BadMessage:
                self.problem = ""
                raise
        return self._schemas[number]

    def _unknown(self, number: int) -> str:
        return f"{self._url} has no schema {number}"

    def _read(self, number: int) -> Any:
        if self._url is None:
            raise BadMessage("Avro, and kafka.registry is not set", "kafka schema")
        address = f"{self._url}/schemas/ids/{number}"
        try:
            with urllib.request.urlopen(
                self._request(address), timeout=REGISTRY_S, context=self._context()
            ) as answer:
                text = json.load(answer)["schema"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise UnknownSchema(self._unknown(number)) from error
                advice = "; check kafka.registry_user and the file registry_password"
                raise Unavailable(f"{address}: {error}{advice * (error.code in (401, 403))}") from error
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            # The last ones: not the registry answers, but a proxy before it.
            raise Unavailable(f"{address}: {_explained(error, self._url)}") from error
        try:
            return fastavro.parse_schema(json.loads(text))
        except Exception as error:  # for a wrong schema, whatever the parser meets first
            raise BadMessage(f"{address}: no schema: {error}", "kafka schema") from error

    def _request(self, address: str) -> urllib.request.Request:
        request = urllib.request.Request(address)
        if self._user is not None and self._password is not None:
            try:
                login = f"{self._user}:{read_password(self._password)}".encode()
            except ValueError as error:
                raise Unavailable(f"kafka.registry_password: {error}") from None
            # Not for the server to which this one may redirect.
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
        return request

    def _context(self) -> ssl.SSLContext | None:
        if self._authority is None:
            return None
        try:
            return ssl.create_default_context(cafile=self._authority)
        except OSError as error:
            raise Unavailable(f"kafka.registry_ca: {self._authority}: {error}") from None


def _explained(error: Exception, url: str) -> str:
    """Return why there was no answer of a registry, and what one can do."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    match reason:
        case ssl.SSLCertVerificationError():
            text = f"its certificate is not accepted: {reason.verify_message}"
            return f"{text}; check kafka.registry and kafka.registry_ca, or renew the certificate"
        case ssl.SSLError():
            return f"no TLS connection: {reason.reason}; if it has no TLS, write http:// in kafka.registry"
        case ConnectionResetError() | http.client.BadStatusLine() if url.startswith("http:"):
            return "it closed the connection; if it expects TLS, write https:// in kafka.registry"
    return f"{type(error).__name__} {error}"


class Offsets:
    """Which messages of each partition are done with, and from where a next run must read.

    `keep_s` is the time for which a message is read again after a restart, although it is done with.
    """

    def __init__(self, keep_s: float):
        self._keep_s = keep_s
        self._done: dict[Place, dict[int, float | None]] = {}
        """In the order of offsets: when each was done with, or `None`."""
        self._taken: dict[tuple[Place, int], float] = {}
        """In the order of times: when messages were read that are not done with."""

    def take(self, place: Place, offset: int, now: float) -> None:
        """Remember a message that has been read; `now` is monotonic seconds."""
        self._done.setdefault(place, {})[offset] = None
        self._taken[place, offset] = now

    def finish(self, place: Place, offset: int, now: float) -> None:
        """Remember that a message is done with."""
        self._done[place][offset] = now
        del self._taken[place, offset]

    @property
    def open(self) -> int:
        """Number of messages that are not done with."""
        return len(self._taken)

    def settle(self, now: float) -> Mapping[Place, int]:
        """Forget what no next run needs; return the first offset that it needs, where that has changed."""
        # The visit of a cancellation may be among the open messages, of any age.
        now = min(now, next(iter(self._taken.values()), now))
        begins: dict[Place, int] = {}
        for place, done in self._done.items():
            while done:
                offset, when = next(iter(done.items()))
                if when is None or now - when < self._keep_s:
                    break
                del done[offset]
                begins[place] = offset + 1
        return begins
