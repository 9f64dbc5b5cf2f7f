# SPDX-License-Identifier: BSD-3-Clause
"""Receives arrival notices over ZeroMQ: object-store events, plain paths, and URIs.

PUB sockets lose messages without an error; the survey finds the files of a lost notice.
"""

import asyncio
import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_plus

import zmq
import zmq.asyncio

from ppdaemon.backoff import Backoff
from ppdaemon.curve import ClientKeys
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.ratelimit import RateLimit, tokens_of
from ppdaemon.throttle import sample_of
from ppdaemon.wire import parse_json
from ppdaemon.zmqmonitor import ConnectionMonitor

__all__ = ("Elsewhere", "Notice", "StoredObject", "Subscription", "listen", "pass_on", "read_notice")

NOTICE_LIMIT = 1_000_000
"""Bytes; some 1500 records."""
MAX_WRAPPERS = 4
"""A record in SNS in SQS in a batch."""
ENVELOPES = (
    "Message",
    "Body",
    "body",
    "Sns",
    "data",
    "data_base64",
    "value",
    "message",
    "payload",
    "records",
)
"""Fields with the content of an envelope, which is JSON or its text: those of SNS and SQS, then those
of CloudEvents, of Kafka's bridges, and of web hooks."""
MAX_FOLDER_CHARS = 100
"""Characters of a bucket and a folder in a note."""
LONGEST_VERSION = 100
"""Characters of an ETag and a size; an ETag has 32 to 40."""
MAX_FRAMES = 4
"""The JSON, and up to three topics."""
RECEIVE_QUEUE = 20_000
"""Messages: a hundred exposures of 205 detectors."""
AT_ONCE = 20
"""Messages that are read before other tasks run: some 2 ms. Their files are then checked in one batch. A long
one counts as several: it may have 1500 files."""
MONITOR_MS = 1000
"""Milliseconds without a message after which the connection is checked."""
HANDSHAKE_MS = 3000
"""A handshake takes milliseconds; a half-open connection is made again after this time."""
HEARTBEAT_MS = 2000
"""A publisher's host that has crashed is detected after three of these."""
FIRST_PAUSE_S = 1.0
"""Pause after the first failed attempt to open another connection: with too many open files, others
have to be closed first."""
LONGEST_PAUSE_S = 30.0
"""Limit of the growing pauses between further attempts."""


NO_CREATIONS = frozenset({"PutRetention", "PutLegalHold", "PutTagging", "DeleteTagging"})
"""Events that MinIO counts among ``ObjectCreated`` although the content of the object stays."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in an object store, as named in a notice."""

    scheme: str
    """Such as ``s3``."""
    host: str
    """Host or bucket."""
    key: str
    """Without escapes and without the leading slash."""
    tenant: str | None = field(default=None, compare=False)
    """The owner of the bucket in its ARN; `None` if the notice has no ARN."""
    version: str = field(default="", compare=False)
    """Differs if an object was replaced: ETag and size. Empty if the notice has neither."""

    @property
    def uri(self) -> str:
        """Scheme, host and key, without escapes."""
        return f"{self.scheme}://{self.host}/{self.key}"


@dataclass(slots=True)
class Notice:
    """The content of one message."""

    files: list[str | StoredObject] = field(default_factory=list)
    """Finished objects, and finished files by a path that is absolute or relative to a raw root."""
    problems: list[BadMessage] = field(default_factory=list)
    """One for each invalid record."""
    test_events: int = 0
    """Messages that a store sends when a subscription is made."""


@dataclass(slots=True)
class Elsewhere:
    """The objects of one source that are below no root."""

    objects: int = 0
    last: str = ""
    """Bucket and first folder of the last one."""

    def add(self, stored: StoredObject) -> None:
        """Count an object."""
        self.objects += 1
        folder, slash, _ = stored.key.partition("/")
        self.last = sample_of(f"{stored.scheme}://{stored.host}/{folder}{slash}"[:MAX_FOLDER_CHARS])

    @property
    def note(self) -> str:
        """Text for `~ppdaemon.reports.ArrivalSource.note`; empty if there are none."""
        if not self.objects:
            return ""
        return f"{self.objects} objects are below no configured root, the last one in {self.last}"


def read_notice(frames: Sequence[bytes]) -> Notice:
    """Parse one message: topics, then a frame of JSON.

    Returns the valid records, and the problems of the others; events other than the creation of a
    file, such as removals, are skipped. Raises BadMessage if the whole message is invalid.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise BadMessage(f"{len(frames)} frames, 1 to {MAX_FRAMES} are accepted", "frames")
    notice = Notice()
    _read(parse_json(frames[-1], limit=NOTICE_LIMIT), notice, MAX_WRAPPERS)
    return notice


def _read(content: Any, notice: Notice, wrappers: int) -> None:
    """Add the content of a message, which may be wrapped, to a notice."""
    if wrappers < 0:
        raise BadMessage(f"more than {MAX_WRAPPERS} wrappers", "content")
    match content:
        case {"Records": list(records)} | {"Messages": list(records)} | {"Event": list(records)}:
            _read_records(records, notice, wrappers)
        case [_, *_]:
            _read_records(content, notice, wrappers)
        case {"eventName": _} | {"s3": _}:
            _read_records([content], notice, wrappers)
        case {"Event": "s3:TestEvent"} | {"Type": "SubscriptionConfirmation" | "UnsubscribeConfirmation"}:
            notice.test_events += 1
        case {"detail": {"bucket": _, "object": _} as detail, "detail-type": kind}:
            if kind == "Object Created":  # the key of an EventBridge event is not encoded
                notice.files.append(_stored(detail, encoded=False))
        case {"EventName": name, "Key": str(path)}:  # MinIO without Records: bucket and key, not encoded
            bucket, _, key = path.partition("/")
            if _is_creation(name):
                notice.files.append(StoredObject("s3", _text(bucket), _text(key)))
        case {"path": path}:
            notice.files.append(_string(path, "path"))
        case {"uri": uri}:
            notice.files.append(_parse_uri(_string(uri, "uri")))
        case dict() if name := next((name for name in ENVELOPES if content.get(name)), ""):
            _read(_unwrapped(content[name], encoded=name == "data_base64"), notice, wrappers - 1)
        case dict():
            raise BadMessage("neither records of an object store nor one of the fields path and uri", "field")
        case _:
            raise BadMessage("not a JSON object", "content")


def _unwrapped(content: Any, *, encoded: bool) -> Any:
    """Return the content of an envelope; its text may be encoded in base 64."""
    if not isinstance(content, str):
        return content
    try:
        data = base64.b64decode(content, validate=True) if encoded else content.encode(errors="replace")
    except ValueError as error:
        raise BadMessage(f"data_base64: {error}", "encoding") from None
    return parse_json(data, limit=NOTICE_LIMIT)


def _read_records(records: list[Any], notice: Notice, wrappers: int) -> None:
    """Add records; one that is invalid must not cost the others."""
    for record in records:
        try:
            if isinstance(record, dict) and record and not record.keys() & {"eventName", "s3"}:
                _read(record, notice, wrappers - 1)
            elif _is_creation(record["eventName"]):
                # Ceph writes keys as they are; others encode them, MinIO the slashes, too.
                encoded = not str(record.get("eventSource")).startswith("ceph:")
                notice.files.append(_stored(record["s3"], encoded=encoded))
        except (KeyError, TypeError, IndexError) as error:
            notice.problems.append(BadMessage(f"a record without {error}", "record"))
        except BadMessage as error:
            notice.problems.append(error)


def _stored(content: Mapping[str, Any], *, encoded: bool) -> StoredObject:
    """Return the object in the part of a record that is named ``s3`` or ``detail``."""
    try:
        bucket, named = content["bucket"], content["object"]
        key, name = _text(named["key"]), _text(bucket["name"])
    except (KeyError, TypeError) as error:
        raise BadMessage(f"a record without {error}", "record") from None
    etag, size = named.get("eTag", named.get("etag", "")), named.get("size", "")
    return StoredObject(
        "s3",
        name,
        unquote_plus(key) if encoded else key,
        _tenant(bucket.get("arn")),
        f"{str(etag).strip('"')}/{size}"[:LONGEST_VERSION] if etag or size else "",
    )


def _tenant(arn: Any) -> str | None:
    """Return the owner in ``arn:aws:s3:<region>:<owner>:<bucket>``; it may be empty."""
    parts = arn.split(":", 5) if isinstance(arn, str) else []
    return parts[4] if len(parts) == 6 else None


def _is_creation(event_name: Any) -> bool:
    """Return whether an event is ``ObjectCreated:Put`` or similar; some stores prefix ``s3:``."""
    kind, _, how = _text(event_name).removeprefix("s3:").partition(":")
    return (kind == "ObjectCreated" and how not in NO_CREATIONS) or (kind, how) == ("ObjectSynced", "Create")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadMessage("a record whose event, bucket or key is not a string", "record")
    return value


def _string(value: Any, field_name: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadMessage(f"{field_name}: not a string", "field")
    return value


def _parse_uri(uri: str) -> str | StoredObject:
    """Return the path of a ``file`` URI, or the object of another URI."""
    # Groups contain "#", which a URI parser would treat as the start of a fragment.
    scheme, _, rest = uri.partition(":")
    scheme = scheme.lower()
    if scheme == "file" and not rest.startswith("//"):
        rest = f"//{rest}"  # the form file:/path of RFC 8089, which Java writes
    host, _, path = rest.removeprefix("//").partition("/")
    if scheme == "file" and host in ("", "localhost"):
        return "/" + unquote(path)
    if not rest.startswith("//") or not host or not path or scheme == "file":
        raise BadMessage(f"{uri[:200]!r} is neither file:///... nor <scheme>://<host>/...", "uri")
    return StoredObject(scheme, host, unquote(path))


class Subscription:
    """Receives the messages of a publisher, which may start later.

    Raises ConfigError if the address is invalid.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        address: str,
        mono: Callable[[], float],
        keys: ClientKeys | None = None,
    ):
        self._context = context
        self._keys = keys
        self._address = address
        self._mono = mono
        self._socket, self._queue, self._monitor = self._connect()
        self.connected = False
        """Whether a publisher is connected; a lost one is detected after the time of the heartbeats."""
        self.refusal = ""
        """Why no publisher is connected, if a handshake failed."""

    async def receive(self, on_problem: Callable[[BadMessage, bytes | None], None]) -> list[bytes]:
        """Return the next message; connect again if libzmq has ended the connection, which `on_problem`
        is called with, and with failed attempts, without a message.
        """
        while True:
            with contextlib.suppress(zmq.Again):
                frames = self._queue.recv_multipart(zmq.DONTWAIT)
                self.connected = True
                return frames
            if await self._socket.poll(MONITOR_MS):
                continue
            ended = await self._monitor.ended()
            self.connected = self._monitor.connected
            self.refusal = self._monitor.refusal
            if ended:
                large = (
                    f"the connection was ended, for example by a message of more than {NOTICE_LIMIT} bytes"
                )
                reason = f"{self._address}: {self.refusal or large}; connecting again"
                on_problem(BadMessage(reason, "connection"), None)
                self.close()
                await self._reconnect(on_problem)

    def close(self) -> None:
        """Close the socket; messages in its queue are discarded."""
        self._monitor.close()

    async def _reconnect(self, on_problem: Callable[[BadMessage, bytes | None], None]) -> None:
        """Connect again, with growing pauses while that is not possible."""
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                self._socket, self._queue, self._monitor = self._connect()
            except (zmq.ZMQError, ConfigError) as error:
                pause_s = backoff.failed(self._mono())
                reason = f"{self._address}: cannot connect again, no notices are received: {error}"
                on_problem(BadMessage(f"{reason}; next attempt in {pause_s:g} s", "connection_failed"), None)
                await asyncio.sleep(pause_s)
            else:
                return

    def _connect(self) -> tuple[zmq.asyncio.Socket, zmq.Socket[bytes], ConnectionMonitor]:
        """Return a socket to wait with, the same one without asyncio, which makes a future for each message,
        and its monitor.
        """
        socket = self._context.socket(zmq.SUB)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
        socket.set(zmq.MAXMSGSIZE, NOTICE_LIMIT)
        # Without heartbeats the crash of a publisher's host would not be detected.
        socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        socket.set(zmq.SUBSCRIBE, b"")
        # A server that accepts connections without a word must not keep this one for ever.
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if self._keys is not None:
            self._keys.apply(socket)
        monitor = ConnectionMonitor(socket, self._mono)
        try:
            socket.connect(self._address)
        except zmq.ZMQError as error:
            monitor.close()
            raise ConfigError([f"arrivals.subscribe: {self._address}: {error.strerror}"]) from None
        return socket, zmq.Socket.shadow(socket), monitor


def pass_on(
    frames: Sequence[bytes],
    on_file: Callable[[str | StoredObject], None],
    on_problem: Callable[[BadMessage, bytes | None], None],
    on_test: Callable[[], None],
) -> None:
    """Read one message; call `on_file` with each path and object, `on_problem` with each error and the
    message, and `on_test` for each test event.
    """
    try:
        notice = read_notice(frames)
    except BadMessage as error:
        on_problem(error, frames[-1])
        return
    for problem in notice.problems:
        on_problem(problem, frames[-1])
    for _ in range(notice.test_events):
        on_test()
    for file in notice.files:
        on_file(file)


async def listen(
    subscription: Subscription,
    on_file: Callable[[str | StoredObject], None],
    on_problem: Callable[[BadMessage, bytes | None], None],
    on_test: Callable[[], None],
    rate: RateLimit,
) -> None:
    """Receive notices until canceled.

    Calls these as `pass_on` does, `on_problem` also for an error of the connection, with `None`. Reads
    no faster than `rate`: what waits fills the queue of this publisher alone.
    """
    read = 0.0
    while True:
        frames = await subscription.receive(on_problem)
        tokens = tokens_of(sum(map(len, frames)))
        while wait_s := rate.take(None, tokens):
            text = f"a publisher sends more than {rate.per_s:g} notices/s, which are read later"
            on_problem(BadMessage(text, "rate"), None)
            await asyncio.sleep(wait_s)
        pass_on(frames, on_file, on_problem, on_test)
        read += tokens
        if read >= AT_ONCE:
            # receive does not yield to other tasks while messages are queued.
            await asyncio.sleep(0)
            read = 0.0
