# SPDX-License-Identifier: BSD-3-Clause
"""How a simulated camera's files reach the raw root, and who is told.

Covers the ways of writing, and arrival notices. What the files contain is
decided in `ppdaemon.demo.raws`, what of it is wrong in `ppdaemon.demo.faults`.
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
from ppdaemon.demo.faults import Again, Faults, Landing
from ppdaemon.demo.raws import publish
from ppdaemon.errors import ConfigError, Unavailable

__all__ = ("Delivery", "NoticeKind", "NoticeSender", "WriteMode", "notice")

_PIECES = 20
_BLOCK = 2880
_LINGER_MS = 1000


class WriteMode(enum.StrEnum):
    """How a file comes into being."""

    RENAME = "rename"
    """Whole at once: written under another name, then renamed."""
    LINK = "link"
    """Whole at once: written elsewhere, then linked here."""
    SLOW = "slow"
    """Under its own name, growing, closed at the end."""
    REOPEN = "reopen"
    """Under its own name, closed after its first block and opened once more."""


class NoticeKind(enum.StrEnum):
    """The two forms of arrival notices."""

    S3 = "s3"
    """A bucket notification with ``Records``."""
    PLAIN = "plain"
    """A path relative to the raw root."""


def notice(kind: NoticeKind, path: Path, size: int, tai_s: float, bucket: str = "raws") -> dict[str, Any]:
    """Make the notice of one file.

    Parameters
    ----------
    kind : `NoticeKind`
        Its form.
    path : `pathlib.Path`
        The file, relative to the raw root.
    size : `int`
        Bytes.
    tai_s : `float`
        When it arrived, TAI seconds since 1970.
    bucket : `str`, optional
        Bucket named in the S3 form.

    Returns
    -------
    message : `dict`
        To be sent as JSON.
    """
    when = f"{tai_iso(tai_s)}Z"
    if kind is NoticeKind.PLAIN:
        return {"path": path.as_posix(), "size": size, "time": when}
    stored = {"key": quote_plus(path.as_posix()), "size": size, "eTag": f"{size:x}"}
    record = {
        "eventName": "ObjectCreated:Put",
        "eventTime": when,
        "s3": {"bucket": {"name": bucket}, "object": stored},
    }
    return {"Records": [record]}


class NoticeSender:
    """A ZeroMQ socket that tells subscribers of files.

    Parameters
    ----------
    address : `str`
        ``tcp://...`` or ``ipc://...``.
    kind : `NoticeKind`
        Form of the notices.
    bind : `bool`, optional
        Whether to bind the address (else connect to it).

    Raises
    ------
    ConfigError
        Raised where the address cannot be used.
    """

    def __init__(self, address: str, kind: NoticeKind, *, bind: bool = True):
        self._kind = kind
        self._address = address
        self._context = zmq.Context()
        # An XPUB is a PUB that hears of its subscribers.
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = _LINGER_MS
        try:
            (self._socket.bind if bind else self._socket.connect)(address)
        except zmq.ZMQError as error:
            self.close()
            verb = "bind" if bind else "connect to"
            raise ConfigError([f"notices: cannot {verb} {address!r}: {error}"]) from None

    def wait_for_subscriber(self, timeout_s: float) -> None:
        """Wait until somebody listens: what is sent before is lost.

        Raises
        ------
        Unavailable
            Raised where nobody subscribes in time.
        """
        if not self._socket.poll(int(timeout_s * 1000)):
            raise Unavailable(
                f"nobody subscribed to {self._address} in {timeout_s:g} s: start the node first"
            )

    def send(self, path: Path, size: int, tai_s: float) -> None:
        """Tell of one file, a path relative to the raw root."""
        message = json.dumps(notice(self._kind, path, size, tai_s)).encode()
        self._socket.send_multipart([b"raw", message])

    def close(self) -> None:
        """Send what is left and close."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Delivery:
    """Brings files to the raw root.

    Parameters
    ----------
    root : `pathlib.Path`
        The raw root.
    tai : `~collections.abc.Callable`
        The present, TAI seconds since 1970.
    mode : `WriteMode`, optional
        How files come into being.
    faults : `~ppdaemon.demo.faults.Faults`, optional
        What goes wrong.
    notices : `NoticeSender`, optional
        Who tells of them.
    slow_s : `float`, optional
        How long a file grows, or is closed between two openings.
    sleep : `~collections.abc.Callable`, optional
        Waits some seconds.
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
        """Write a detector's sidecar and image, unless it is to be dropped.

        Parameters
        ----------
        path : `pathlib.Path`
            The FITS file, relative to the raw root.
        image, sidecar : `bytes`
            The files' contents.
        detector : `int`
            Detector number.

        Returns
        -------
        delivered : `bool`
            Whether anything was written.
        """
        return bool(self.deliver_all([(detector, path, image, sidecar)]))

    def deliver_all(self, files: Iterable[tuple[int, Path, bytes, bytes]]) -> int:
        """Write the files of an exposure; slow writers write side by side.

        Parameters
        ----------
        files : `~collections.abc.Iterable`
            Detector number, path, image and sidecar of each detector.

        Returns
        -------
        delivered : `int`
            Detectors of which anything was written.
        """
        landings = [
            self._faults.landings(path, image, sidecar, detector) for detector, path, image, sidecar in files
        ]
        in_order = sorted(itertools.chain(*landings), key=lambda landing: landing.after_s)
        waited_s = 0.0
        for after_s, together in itertools.groupby(in_order, key=lambda landing: landing.after_s):
            if after_s > waited_s:
                self._sleep(after_s - waited_s)
                waited_s = after_s
            self._write(list(together))
        return sum(1 for each in landings if each)

    def _write(self, landings: list[Landing]) -> None:
        """Write files at the same time: each a piece, then each the next piece."""
        writers = [(landing, self._writer(landing)) for landing in landings]
        while writers:
            writing = []
            for landing, writer in writers:
                if next(writer, None) is not None:
                    writing.append((landing, writer))
                elif self._notices is not None:
                    self._notices.send(landing.path, len(landing.content), self._tai())
            if writing:
                self._sleep(self._slow_s / _PIECES)
            writers = writing

    def _writer(self, landing: Landing) -> Iterator[int]:
        target = self.root / landing.path
        target.parent.mkdir(parents=True, exist_ok=True)
        match landing.again, self._mode:
            case (Again.REPLACE, _) | (None, WriteMode.RENAME):
                publish(target, landing.content)
                return iter(())
            case None, WriteMode.LINK:
                _link(target, landing.content)
                return iter(())
            case (Again.OVERWRITE, _) | (None, WriteMode.SLOW):
                return _grow(target, landing.content)
            case None, WriteMode.REOPEN:
                return _reopen(target, landing.content)
            case unexpected:
                raise AssertionError(unexpected)


def _link(target: Path, content: bytes) -> None:
    elsewhere = target.with_name(f".{target.name}.staged")
    elsewhere.write_bytes(content)
    os.link(elsewhere, target)
    elsewhere.unlink()


def _grow(target: Path, content: bytes) -> Iterator[int]:
    """Write a file piece by piece; yields the bytes written so far."""
    step = len(content) // _PIECES + 1
    with target.open("wb", buffering=0) as stream:
        for start in range(0, len(content), step):
            yield start
            stream.write(content[start : start + step])


def _reopen(target: Path, content: bytes) -> Iterator[int]:
    """Write the first block, close, and after a while open and write the rest."""
    target.write_bytes(content[:_BLOCK])
    yield from itertools.repeat(_BLOCK, _PIECES)
    with target.open("ab") as stream:
        stream.write(content[_BLOCK:])
