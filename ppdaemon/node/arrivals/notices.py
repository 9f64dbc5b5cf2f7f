# SPDX-License-Identifier: BSD-3-Clause
"""Arrival notices over ZeroMQ: object-store events, plain paths, and URIs.

Whether what a notice names is fetched is not decided here.
Notices come from PUB sockets, which lose messages without an error: the survey
finds what a lost notice named.
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
RECEIVE_QUEUE = 20_000
HEARTBEAT_MS = 2000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object, as a notice names it."""

    scheme: str
    """Such as ``s3``."""
    host: str
    """Or the bucket."""
    key: str
    """Without escapes, and without the first slash."""

    @property
    def uri(self) -> str:
        """Scheme, host and key, without escapes."""
        return f"{self.scheme}://{self.host}/{self.key}"


@dataclass(frozen=True, slots=True)
class Notice:
    """What one message announces."""

    files: tuple[str | StoredObject, ...]
    """What is finished: objects, and files by an absolute path or one relative
    to a raw root."""
    problems: tuple[BadMessage, ...] = ()
    """Records that cannot be used."""


def read_notice(frames: Sequence[bytes]) -> Notice:
    """Read one message, whose last frame is the JSON; those before it are topics.

    Returns good records, and what is wrong with the others; events that do not announce a file,
    such as removals, give nothing. Raises BadMessage if nothing of the message can be used.
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
            return Notice((value if field == "path" else _named_by(value),))
    raise BadMessage("none of the fields Records, path and uri", "field")


def subscriber(context: zmq.asyncio.Context, address: str) -> zmq.asyncio.Socket:
    """Return a socket, for the caller to close, that subscribes to a publisher, which may start later.

    Raises ConfigError if there can be no publisher at the address.
    """
    socket = context.socket(zmq.SUB)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
    socket.set(zmq.MAXMSGSIZE, NOTICE_LIMIT)
    # A publisher's host that vanished is noticed, and connected to again.
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
    noticed: Callable[[str | StoredObject], None],
    complain: Callable[[BadMessage], None],
) -> None:
    """Receive notices until cancelled; pass on each path and each object, and what cannot be used."""
    while True:
        frames = await socket.recv_multipart()
        try:
            notice = read_notice(frames)
        except BadMessage as error:
            complain(error)
        else:
            for problem in notice.problems:
                complain(problem)
            for file in notice.files:
                noticed(file)
        # Receiving what is already there does not give way to other tasks.
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
    """Return whether it is ``ObjectCreated:Put`` or its like, and no removal; some stores
    prefix ``s3:``.
    """
    return _text(event_name).removeprefix("s3:").startswith("ObjectCreated:")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadMessage("a record whose event, bucket or key is no string", "record")
    return value


def _named_by(uri: str) -> str | StoredObject:
    """Return the path of a file's URI, or the object that another one names."""
    # Groups have "#" in them, which a URI parser would take for a fragment.
    scheme, separator, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    if scheme == "file" and host in ("", "localhost"):
        return "/" + unquote(path)
    if not separator or not host or not path or scheme == "file":
        raise BadMessage(f"{uri[:200]!r} is neither file:///... nor <scheme>://<host>/...", "uri")
    return StoredObject(scheme, host, unquote(path))
