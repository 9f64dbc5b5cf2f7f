# SPDX-License-Identifier: BSD-3-Clause
"""The client's end of a control socket: one request in a connection of its own, each with a time limit.

Requests and answers are those of `ppdaemon.reports`, the other end is `ppdaemon.controlserver`.
"""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon import reports
from ppdaemon.errors import (
    BadMessage,
    ConfigError,
    Denied,
    NotFound,
    NotRunning,
    PPDaemonError,
    Refused,
    Unavailable,
)
from ppdaemon.wire import decode, encode, explain

__all__ = ("ControlClient",)

REPLY_LIMIT = 67_108_864
"""Largest reply in bytes: 10,000 visits with long reasons fit."""

BACKLOG_PAUSE_S = 0.05
"""Pause before connecting again when the socket's backlog is full."""


CHECK_FIRST = "look at its effect before you repeat it; drain, resume and reload may be repeated"
"""What to do about a command without an answer."""


class _Connection:
    """A connection that sends and receives lines, each before a deadline."""

    def __init__(self, path: Path):
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._buffer = bytearray()

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _set_timeout(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def connect(self, deadline: float) -> None:
        while True:
            self._set_timeout(deadline)
            try:
                self._socket.connect(str(self._path))
            except BlockingIOError:  # the backlog is full; connect() on a unix socket does not wait
                time.sleep(BACKLOG_PAUSE_S)
            else:
                return

    def send(self, line: bytes, deadline: float) -> None:
        self._set_timeout(deadline)
        self._socket.sendall(line + b"\n")

    def receive(self, deadline: float) -> bytes:
        """Return the next line; bytes after it stay in the buffer."""
        searched = 0  # so that a long reply is not searched from its start for each packet
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > REPLY_LIMIT:
                raise BadMessage(f"more than {REPLY_LIMIT} bytes without a line break", "size")
            self._set_timeout(deadline)
            data = self._socket.recv(262_144)
            if not data:
                raise EOFError
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class ControlClient:
    """A program, reached over its control socket.

    Each call opens a new connection, and returns or raises before its
    time limit. An object may be used by several threads.

    Parameters
    ----------
    path : `pathlib.Path`
        The unix socket.
    timeout_s : `float`
        Time limit of one call in seconds, connecting included.
    """

    program = ""
    """Name of the program, for messages."""
    only_reading = ""
    """Why only requests that change nothing may be sent, or blank."""

    def __init__(self, path: Path, timeout_s: float = 5.0):
        self._path = path
        self._timeout_s = timeout_s

    def ask(self, request: pydantic.BaseModel, *, timeout_s: float | None = None) -> Any:
        """Send a request and return the data of the answer.

        Parameters
        ----------
        request : `pydantic.BaseModel`
            One of those in `ppdaemon.reports`.
        timeout_s : `float`, optional
            Time limit of this call in seconds instead of that of the object.

        Returns
        -------
        data : `object`
            JSON values, as the docstring of the request describes them.

        Raises
        ------
        ppdaemon.errors.NotRunning
            Raised if the socket does not exist, or no process listens on it.
        ppdaemon.errors.Denied
            Raised if this user may not connect, or not use this command.
        ppdaemon.errors.Unavailable
            Raised if no valid answer arrives within the time limit.
        ppdaemon.errors.Refused
            Raised if the daemon cannot do this in its present state.
        ppdaemon.errors.ConfigError
            Raised if the daemon's configuration file has errors (reload).
        ppdaemon.errors.NotFound
            Raised if there is no such slot or visit.
        ppdaemon.errors.PPDaemonError
            Raised if the request caused an internal error in the daemon.
        """
        if self.only_reading and type(request) not in reports.READING:
            raise ConfigError(self.only_reading.splitlines())
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            with _Connection(self._path) as line:
                line.connect(deadline)
                line.send(encode(request), deadline)
                return _data(line.receive(deadline))
        except (OSError, EOFError, BadMessage) as error:
            known = self._as_error(error, timeout_s)
            if isinstance(error, TimeoutError | EOFError) and type(request) not in reports.READING:
                known = Unavailable(f"{known}. The command may still be carried out: {CHECK_FIRST}")
            raise known from None

    def _as_error(self, error: Exception, timeout_s: float) -> PPDaemonError:
        match error:
            case TimeoutError():
                return Unavailable(
                    f"{self._path}: no answer within {timeout_s:g} s; the daemon may hang, see its log"
                )
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                return NotRunning(
                    f"{self._path}: no daemon listens here ({error.strerror}); is {self.program} running?"
                )
            case PermissionError():
                return Denied(
                    f"{self._path}: permission denied; ask an operator to add this user to security.readers "
                    "or security.operators of the daemon's configuration"
                )
            case EOFError() | ConnectionError():
                return Unavailable(f"{self._path}: the daemon has closed the connection")
            case BadMessage():
                return Unavailable(
                    f"{self._path}: invalid answer, the daemon may have another version than ppctl, or is not"
                    f" a {self.program}: --relay is for pprelay only, --bridge for ppbridge ({error})"
                )
            case _:
                return Unavailable(f"{self._path}: {error}")

    def _request[T](
        self, request: pydantic.BaseModel, adapter: pydantic.TypeAdapter[T], *, timeout_s: float | None = None
    ) -> T:
        data = self.ask(request, timeout_s=timeout_s)
        try:
            return _validated(data, adapter)
        except BadMessage as error:
            raise self._as_error(error, self._timeout_s) from None

    def _follow[T](
        self, request: pydantic.BaseModel, adapter: pydantic.TypeAdapter[T], tick_s: float
    ) -> Iterator[T | None]:
        deadline = time.monotonic() + self._timeout_s
        try:
            with _Connection(self._path) as line:
                line.connect(deadline)
                line.send(encode(request), deadline)
                yield _validated(_data(line.receive(deadline)), adapter)
                # No further time limit: a daemon without changes sends nothing.
                while True:
                    try:
                        data = line.receive(time.monotonic() + tick_s)
                    except TimeoutError:
                        yield None
                    else:
                        yield _validated(_data(data), adapter)
        except (OSError, EOFError, BadMessage) as error:
            raise self._as_error(error, self._timeout_s) from None


def _validated[T](data: Any, adapter: pydantic.TypeAdapter[T]) -> T:
    try:
        return adapter.validate_python(data)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None


def _data(line: bytes) -> Any:
    """Return the data of an ``ok`` reply; raise the error of a ``failed`` one."""
    reply = decode(line, reports.REPLIES, limit=REPLY_LIMIT)
    if not isinstance(reply, reports.RequestFailed):
        return reply.data
    match reply.code:
        case "not_found":
            raise NotFound(reply.text)
        case "denied":
            raise Denied(reply.text)
        case "refused":
            raise Refused(reply.text)
        case "config":
            raise ConfigError(reply.text.splitlines())
        case "bad_request":
            raise Unavailable(
                "the daemon rejects the request, its version may differ from ppctl's, or it is another "
                f"program: --relay is for pprelay only, --bridge for ppbridge ({reply.text})"
            )
        case "internal":
            raise PPDaemonError(f"internal error in the daemon, see its log: {reply.text}")
