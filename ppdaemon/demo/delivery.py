# SPDX-License-Identifier: BSD-3-Clause
"""How a simulated camera's files reach the raw root, and who is told.

Covers the ways of writing, faults on request, and arrival notices. What the
files contain is decided in `ppdaemon.demo.raws`.
"""

import enum
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote_plus

import zmq

from ppdaemon.clock import tai_iso
from ppdaemon.demo.raws import publish
from ppdaemon.errors import ConfigError, Unavailable

__all__ = ("Delivery", "Faults", "NoticeKind", "NoticeSender", "WriteMode", "notice")

_SLOW_PIECES = 20
_LINGER_MS = 1000


class WriteMode(enum.StrEnum):
    """How a file comes into being."""

    RENAME = "rename"
    """Whole at once: written under another name, then renamed."""
    SLOW = "slow"
    """Under its own name, growing, closed at the end."""


class NoticeKind(enum.StrEnum):
    """The two forms of arrival notices."""

    S3 = "s3"
    """A bucket notification with ``Records``."""
    PLAIN = "plain"
    """A path relative to the raw root."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose."""

    drop_detectors: frozenset[int] = frozenset()
    """Detectors whose files never come."""
    truncate_bytes: int | None = None
    """FITS files end after this many bytes."""


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
    faults : `Faults`, optional
        What goes wrong.
    notices : `NoticeSender`, optional
        Who tells of them.
    slow_s : `float`, optional
        How long a file grows in slow mode.
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
    ):
        self.root = root
        self._tai = tai
        self._mode = mode
        self._faults = faults or Faults()
        self._notices = notices
        self._slow_s = slow_s

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
        if detector in self._faults.drop_detectors:
            return False
        self._write(path.with_suffix(".json"), sidecar)
        self._write(path, image[: self._faults.truncate_bytes])
        return True

    def _write(self, path: Path, content: bytes) -> None:
        target = self.root / path
        if self._mode is WriteMode.RENAME:
            publish(target, content)
        else:
            self._grow(target, content)
        if self._notices is not None:
            self._notices.send(path, len(content), self._tai())

    def _grow(self, target: Path, content: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        step = len(content) // _SLOW_PIECES + 1
        with target.open("wb", buffering=0) as stream:
            for start in range(0, len(content), step):
                stream.write(content[start : start + step])
                time.sleep(self._slow_s / _SLOW_PIECES)
