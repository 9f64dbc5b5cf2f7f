# SPDX-License-Identifier: BSD-3-Clause
"""Receives arrival notices over ZeroMQ: object-store events, plain paths, and URIs.

PUB sockets lose messages without an error; the survey finds the files of a lost notice.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_plus

import zmq
import zmq.asyncio

from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.wire import parse_json

__all__ = ("Notice", "StoredObject", "listen", "read_notice", "subscriber")

NOTICE_LIMIT = 1_000_000
"""Bytes; some 1500 records."""
MAX_FRAMES = 4
"""The JSON, and up to three topics."""
RECEIVE_QUEUE = 20_000
"""Messages: a hundred exposures of 205 detectors."""
HEARTBEAT_MS = 2000
"""A publisher's host that has crashed is detected after three of these."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in an object store, as named in a notice."""

    scheme: str
    """Such as ``s3``."""
    host: str
    """Host or bucket."""
    key: str
    """Without escapes and without the leading slash."""

    @property
    def uri(self) -> str:
        """Scheme, host and key, without escapes."""
        return f"{self.scheme}://{self.host}/{self.key}"


@dataclass(frozen=True, slots=True)
class Notice:
    """The content of one message."""

    files: tuple[str | StoredObject, ...]
    """Finished objects, and finished files by a path that is absolute or relative to a raw root."""
    problems: tuple[BadMessage, ...] = ()
    """One for each invalid record."""


def read_notice(frames: Sequence[bytes]) -> Notice:
    """Parse one message: topics, then a frame of JSON.

    Returns the valid records, and the problems of the others; events other than the creation of a
    file, such as removals, are skipped. Raises BadMessage if the whole message is invalid.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise BadMessage(f"{len(frames)} frames, 1 to {MAX_FRAMES} are accepted", "frames")
    content = parse_json(frames[-1], limit=NOTICE_LIMIT)
    if not isinstance(content, dict):
        raise BadMessage("not a JSON object", "content")
    if "Records" in content:
        return _read_records(content["Records"])
    for field in ("path", "uri"):
        if field in content:
            value = content[field]
            if not isinstance(value, str) or not value:
                raise BadMessage(f"{field}: not a string", "field")
            return Notice((value if field == "path" else _parse_uri(value),))
    raise BadMessage("none of the fields Records, path and uri", "field")


def subscriber(context: zmq.asyncio.Context, address: str) -> zmq.asyncio.Socket:
    """Return a socket, to be closed by the caller, that subscribes to a publisher, which may start later.

    Raises ConfigError if the address is invalid.
    """
    socket = context.socket(zmq.SUB)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
    socket.set(zmq.MAXMSGSIZE, NOTICE_LIMIT)
    # Without heartbeats the crash of a publisher's host would not be detected.
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    socket.set(zmq.SUBSCRIBE, b"")
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError([f"arrivals.subscribe: {address}: {error.strerror}"]) from None
    return socket


async def listen(
    socket: zmq.asyncio.Socket,
    on_file: Callable[[str | StoredObject], None],
    on_problem: Callable[[BadMessage], None],
) -> None:
    """Receive notices until canceled; call `on_file` for each path and object, `on_problem` for errors."""
    while True:
        frames = await socket.recv_multipart()
        try:
            notice = read_notice(frames)
        except BadMessage as error:
            on_problem(error)
        else:
            for problem in notice.problems:
                on_problem(problem)
            for file in notice.files:
                on_file(file)
        # recv_multipart does not yield to other tasks while messages are queued.
        await asyncio.sleep(0)


def _read_records(records: Any) -> Notice:
    if not isinstance(records, list):
        raise BadMessage("Records: not a list", "field")
    objects: list[StoredObject] = []
    problems: list[BadMessage] = []
    for record in records:
        try:
            if _is_creation(record["eventName"]):
                s3 = record["s3"]
                bucket, key = _text(s3["bucket"]["name"]), unquote_plus(_text(s3["object"]["key"]))
                objects.append(StoredObject("s3", bucket, key))
        except (KeyError, TypeError, IndexError) as error:
            problems.append(BadMessage(f"a record without {error}", "record"))
        except BadMessage as error:
            problems.append(error)
    return Notice(tuple(objects), tuple(problems))


def _is_creation(event_name: Any) -> bool:
    """Return whether an event is ``ObjectCreated:Put`` or similar; some stores prefix ``s3:``."""
    return _text(event_name).removeprefix("s3:").startswith("ObjectCreated:")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadMessage("a record whose event, bucket or key is not a string", "record")
    return value


def _parse_uri(uri: str) -> str | StoredObject:
    """Return the path of a ``file`` URI, or the object of another URI."""
    # Groups contain "#", which a URI parser would treat as the start of a fragment.
    scheme, separator, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    if scheme == "file" and host in ("", "localhost"):
        return "/" + unquote(path)
    if not separator or not host or not path or scheme == "file":
        raise BadMessage(f"{uri[:200]!r} is neither file:///... nor <scheme>://<host>/...", "uri")
    return StoredObject(scheme, host, unquote(path))
