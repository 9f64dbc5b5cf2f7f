# SPDX-License-Identifier: BSD-3-Clause
"""Write a simulated camera's files to the raw root and publish arrival notices.

Covers the ways of writing and the notices. The contents of the files come from
`ppdaemon.demo.raws`, the faults in them from `ppdaemon.demo.faults`.
"""

import enum
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote_plus

import zmq

from ppdaemon.clock import tai_iso
from ppdaemon.demo.faults import Faults, Rewrite, ScheduledFile
from ppdaemon.demo.raws import publish
from ppdaemon.errors import ConfigError, Unavailable

__all__ = ("Delivery", "NoticeKind", "NoticeSender", "WriteMode", "notice")

# A slow file has this many sizes while it grows.
_PIECES = 20
# One FITS block: the header is complete, the data are missing.
_BLOCK = 2880
# Time to send queued notices when the socket is closed.
_LINGER_MS = 1000


class WriteMode(enum.StrEnum):
    """The way in which a file appears under its name."""

    RENAME = "rename"
    """Complete at once: written under another name, then renamed."""
    LINK = "link"
    """Complete at once: written under another name, then hard-linked."""
    SLOW = "slow"
    """Written under its own name in pieces, closed at the end."""
    REOPEN = "reopen"
    """Written under its own name, closed after its first block and opened again."""


class NoticeKind(enum.StrEnum):
    """The two forms of arrival notices."""

    S3 = "s3"
    """A bucket notification with ``Records``."""
    PLAIN = "plain"
    """A path relative to the raw root."""


def notice(kind: NoticeKind, path: Path, size: int, tai_s: float) -> dict[str, Any]:
    """Return the notice of one file as a dict to be sent as JSON.

    `path` is relative to the raw root, `size` is in bytes, `tai_s` is the time
    of arrival in TAI seconds since 1970.
    """
    when = f"{tai_iso(tai_s)}Z"
    if kind is NoticeKind.PLAIN:
        return {"path": path.as_posix(), "size": size, "time": when}
    stored = {"key": quote_plus(path.as_posix()), "size": size, "eTag": f"{size:x}"}
    record = {
        "eventName": "ObjectCreated:Put",
        "eventTime": when,
        "s3": {"bucket": {"name": "raws"}, "object": stored},
    }
    return {"Records": [record]}


class NoticeSender:
    """A ZeroMQ socket that publishes arrival notices.

    `address` is ``tcp://...`` or ``ipc://...``. Raises `ConfigError` if the
    address cannot be used.
    """

    def __init__(self, address: str, kind: NoticeKind, *, bind: bool = True):
        self._kind = kind
        self._address = address
        self._context = zmq.Context()
        # An XPUB is a PUB that also receives the subscriptions, see wait_for_subscriber.
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = _LINGER_MS
        try:
            (self._socket.bind if bind else self._socket.connect)(address)
        except zmq.ZMQError as error:
            self.close()
            verb = "bind" if bind else "connect to"
            raise ConfigError([f"notices: cannot {verb} {address!r}: {error}"]) from None

    def wait_for_subscriber(self, timeout_s: float) -> None:
        """Wait for the first subscriber: notices sent before that are lost.

        Raises `Unavailable` if there is none in time.
        """
        if not self._socket.poll(int(timeout_s * 1000)):
            raise Unavailable(
                f"no subscriber connected to {self._address} in {timeout_s:g} s: start the node first"
            )

    def send(self, path: Path, size: int, tai_s: float) -> None:
        """Publish the notice of one file, a path relative to the raw root."""
        message = json.dumps(notice(self._kind, path, size, tai_s)).encode()
        self._socket.send_multipart([b"raw", message])

    def close(self) -> None:
        """Send the queued notices and close the socket."""
        # Only term waits for the queued notices, at most for the linger time.
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Delivery:
    """Writes files below the raw root and publishes their notices.

    `slow_s` is the time that a file needs to grow (`WriteMode.SLOW`) or is
    closed between two openings (`WriteMode.REOPEN`).
    """

    def __init__(
        self,
        root: Path,
        tai: Callable[[], float],
        *,
        mode: WriteMode = WriteMode.RENAME,
        faults: Faults | None = None,
        notices: NoticeSender | None = None,
        slow_s: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.root = root
        self._tai = tai
        self._mode = mode
        self._faults = faults or Faults()
        self._notices = notices
        self._slow_s = slow_s
        self._sleep = sleep

    def deliver(self, path: Path, image: bytes, sidecar: bytes, detector: int) -> bool:
        """Write a detector's sidecar and image; return False if the detector is dropped.

        `path` is that of the FITS file, relative to the raw root.
        """
        return bool(self.deliver_all([(detector, path, image, sidecar)]))

    def deliver_all(self, files: Iterable[tuple[int, Path, bytes, bytes]]) -> int:
        """Write the files of an exposure and return the number of delivered detectors.

        `files` yields detector number, path, image and sidecar. Slow files are
        written in parallel, as those of a real camera are.
        """
        files_to_write = [
            self._faults.files_to_write(path, image, sidecar, detector)
            for detector, path, image, sidecar in files
        ]
        in_order = sorted(itertools.chain(*files_to_write), key=lambda scheduled: scheduled.after_s)
        waited_s = 0.0
        for after_s, together in itertools.groupby(in_order, key=lambda scheduled: scheduled.after_s):
            # Delays are relative to the first file, so only the rest is waited for.
            if after_s > waited_s:
                self._sleep(after_s - waited_s)
                waited_s = after_s
            self._write(list(together))
        return sum(1 for each in files_to_write if each)

    def _write(self, files_to_write: list[ScheduledFile]) -> None:
        """Write files in parallel: one piece of each, then the next piece of each."""
        writers = [(scheduled, self._writer(scheduled)) for scheduled in files_to_write]
        while writers:
            writing = []
            for scheduled, writer in writers:
                if next(writer, None) is not None:
                    writing.append((scheduled, writer))
                elif self._notices is not None:
                    self._notices.send(scheduled.path, len(scheduled.content), self._tai())
            if writing:
                self._sleep(self._slow_s / _PIECES)
            writers = writing

    def _writer(self, scheduled: ScheduledFile) -> Iterator[int]:
        target = self.root / scheduled.path
        target.parent.mkdir(parents=True, exist_ok=True)
        # A rewrite does not use the mode: the file exists already.
        match scheduled.rewrite, self._mode:
            case (Rewrite.REPLACE, _) | (None, WriteMode.RENAME):
                publish(target, scheduled.content)
                return iter(())
            case None, WriteMode.LINK:
                _hard_link(target, scheduled.content)
                return iter(())
            case (Rewrite.OVERWRITE, _) | (None, WriteMode.SLOW):
                return _grow(target, scheduled.content)
            case None, WriteMode.REOPEN:
                return _reopen(target, scheduled.content)
            case unexpected:
                raise AssertionError(unexpected)


def _hard_link(target: Path, content: bytes) -> None:
    staged = target.with_name(f".{target.name}.staged")
    staged.write_bytes(content)
    os.link(staged, target)
    staged.unlink()


def _grow(target: Path, content: bytes) -> Iterator[int]:
    """Write a file piece by piece; yield the number of bytes written before each piece."""
    step = len(content) // _PIECES + 1
    with target.open("wb", buffering=0) as stream:
        for start in range(0, len(content), step):
            yield start
            stream.write(content[start : start + step])


def _reopen(target: Path, content: bytes) -> Iterator[int]:
    """Write the first block and close the file; open it later and write the rest."""
    target.write_bytes(content[:_BLOCK])
    yield from itertools.repeat(_BLOCK, _PIECES)
    with target.open("ab") as stream:
        stream.write(content[_BLOCK:])
