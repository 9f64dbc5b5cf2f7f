# SPDX-License-Identifier: BSD-3-Clause
"""A daemon's control socket, asked with plain blocking calls and a deadline.

Covers connecting, asking, and what each way of not answering is called. Does
not cover what is asked and answered: that is `ppdaemon.reports`.
"""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon import reports
from ppdaemon.errors import BadMessage, ConfigError, PPDaemonError, Refused, Unavailable
from ppdaemon.states import ExitCode
from ppdaemon.wire import decode, encode, explain

__all__ = ("Daemon", "Denied", "NotFound", "NotRunning")

REPLY_LIMIT = 67_108_864
"""Largest reply, bytes: 10,000 visits with long reasons fit in."""

REQUEUE_S = 30.0
"""A look for raws that came long ago takes 2 s of this at the most."""

BACKLOG_PAUSE_S = 0.05
"""Pause before the next try where the socket's backlog is full."""


class NotRunning(Unavailable):
    """Nobody listens on the socket: start the daemon."""


class Denied(PPDaemonError):
    """The socket is another group's: become a member of that group."""

    exit_code = ExitCode.PERMISSION


class NotFound(PPDaemonError):
    """The daemon knows no such slot or visit: look at the name."""

    exit_code = ExitCode.DATA


class _Line:
    """A connection that sends and takes lines, each before a deadline."""

    def __init__(self, path: Path):
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._buffer = bytearray()

    def __enter__(self) -> "_Line":
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
            except BlockingIOError:  # a full backlog, which a unix socket does not wait for
                time.sleep(BACKLOG_PAUSE_S)
            else:
                return

    def send(self, line: bytes, deadline: float) -> None:
        self._set_timeout(deadline)
        self._socket.sendall(line + b"\n")

    def receive(self, deadline: float) -> bytes:
        """Return the next line; what came of a later one is kept."""
        searched = 0
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


class Daemon:
    """One daemon, asked over its control socket.

    Every call makes its own connection, and answers or raises within the
    time-out.

    Parameters
    ----------
    path : `pathlib.Path`
        The daemon's unix socket.
    timeout_s : `float`
        How long one call may take altogether.
    """

    def __init__(self, path: Path, timeout_s: float = 5.0):
        self._path = path
        self._timeout_s = timeout_s

    def ask(self, request: pydantic.BaseModel, *, timeout_s: float | None = None) -> Any:
        """Send one request, return the data of its answer.

        Parameters
        ----------
        request : `pydantic.BaseModel`
            One of those in `ppdaemon.reports`.
        timeout_s : `float`, optional
            How long this one may take.

        Returns
        -------
        data : `object`
            Plain JSON values.

        Raises
        ------
        NotRunning
            Raised if there is no socket, or nobody listens on it.
        Denied
            Raised if this user may not connect.
        ppdaemon.errors.Unavailable
            Raised if no answer comes in time, or none that is understood.
        ppdaemon.errors.Refused
            Raised if the daemon does not do this now.
        ppdaemon.errors.ConfigError
            Raised if the daemon's configuration file cannot be used.
        NotFound
            Raised if it knows no such slot or visit.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        with _Line(self._path) as line:
            try:
                line.connect(deadline)
                line.send(encode(request), deadline)
                return _data(line.receive(deadline))
            except (OSError, EOFError, BadMessage) as error:
                raise self._explained(error, timeout_s) from None

    def _explained(self, error: Exception, timeout_s: float) -> PPDaemonError:
        match error:
            case TimeoutError():
                return Unavailable(f"{self._path}: no answer within {timeout_s:g} s; is the daemon hung?")
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                return NotRunning(f"{self._path}: no daemon listens here ({error.strerror})")
            case PermissionError():
                return Denied(f"{self._path}: not allowed; members of the socket's group are")
            case EOFError() | ConnectionError():
                return Unavailable(f"{self._path}: the daemon has closed the connection")
            case BadMessage():
                return Unavailable(
                    f"{self._path}: answer not understood, the daemon may be newer than ppctl ({error})"
                )
            case _:
                return Unavailable(f"{self._path}: {error}")

    def _ask_for[T](
        self, request: pydantic.BaseModel, adapter: pydantic.TypeAdapter[T], *, timeout_s: float | None = None
    ) -> T:
        data = self.ask(request, timeout_s=timeout_s)
        try:
            return _validated(data, adapter)
        except BadMessage as error:
            raise self._explained(error, self._timeout_s) from None

    def status(self) -> reports.StatusReport:
        """Return how the daemon is; raises as `ask` does."""
        return self._ask_for(reports.StatusRequest(), _STATUS)

    def workers(self) -> tuple[reports.WorkerRow, ...]:
        """Return all slots; raises as `ask` does."""
        return self._ask_for(reports.WorkersRequest(), _WORKERS)

    def visits(self, limit: int, *, failed: bool = False) -> tuple[reports.VisitRow, ...]:
        """Return the newest visit-detectors; raises as `ask` does.

        Parameters
        ----------
        limit : `int`
            How many at the most.
        failed : `bool`
            Only those with a bad outcome.
        """
        return self._ask_for(reports.VisitsRequest(limit=limit, failed=failed), _VISITS)

    def visit(self, group: str) -> tuple[reports.VisitRow, ...]:
        """Return the visit-detectors of one group; raises as `ask` does.

        Parameters
        ----------
        group : `str`
            Name of the group.
        """
        rows = self._ask_for(reports.VisitRequest(group=group), _VISITS)
        if not rows:
            raise NotFound(f"the daemon's journal has no visit {group!r}")
        return rows

    def late(self, limit: int) -> tuple[reports.LateRow, ...]:
        """Return the newest raws that came too late; raises as `ask` does.

        Parameters
        ----------
        limit : `int`
            How many at the most.
        """
        return self._ask_for(reports.LateRequest(limit=limit), _LATE)

    def requeue(
        self, group: str, detectors: tuple[int, ...] | None, *, force: bool
    ) -> tuple[reports.RequeueRow, ...]:
        """Try detectors of a visit again; raises as `ask` does.

        Parameters
        ----------
        group : `str`
            Name of the group.
        detectors : `tuple` [`int`] or `None`
            Which; `None` means all.
        force : `bool`
            Whether something may be done twice.
        """
        request = reports.RequeueRequest(group=group, detectors=detectors, force=force)
        return self._ask_for(request, _REQUEUED, timeout_s=REQUEUE_S)

    def watch(self, tick_s: float) -> Iterator[reports.StatusReport | None]:
        """Follow the daemon until it goes away.

        Parameters
        ----------
        tick_s : `float`
            Longest pause between two yields.

        Yields
        ------
        report : `~ppdaemon.reports.StatusReport` or `None`
            The status at once and after each change; `None` after a pause
            without one.
        """
        deadline = time.monotonic() + self._timeout_s
        with _Line(self._path) as line:
            try:
                line.connect(deadline)
                line.send(encode(reports.Watch()), deadline)
                yield _validated(_data(line.receive(deadline)), _STATUS)
                while True:
                    try:
                        data = line.receive(time.monotonic() + tick_s)
                    except TimeoutError:
                        yield None
                    else:
                        yield _validated(_data(data), _STATUS)
            except (OSError, EOFError, BadMessage) as error:
                raise self._explained(error, self._timeout_s) from None


_STATUS = pydantic.TypeAdapter(reports.StatusReport)
_WORKERS = pydantic.TypeAdapter(tuple[reports.WorkerRow, ...])
_VISITS = pydantic.TypeAdapter(tuple[reports.VisitRow, ...])
_LATE = pydantic.TypeAdapter(tuple[reports.LateRow, ...])
_REQUEUED = pydantic.TypeAdapter(tuple[reports.RequeueRow, ...])


def _validated[T](data: Any, adapter: pydantic.TypeAdapter[T]) -> T:
    try:
        return adapter.validate_python(data)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None


def _data(line: bytes) -> Any:
    """Return what an ``ok`` carries; raise what a ``failed`` means."""
    reply = decode(line, reports.REPLIES, limit=REPLY_LIMIT)
    if not isinstance(reply, reports.Failed):
        return reply.data
    match reply.code:
        case "not_found":
            raise NotFound(reply.text)
        case "refused":
            raise Refused(reply.text)
        case "config":
            raise ConfigError(reply.text.splitlines())
        case "bad_request":
            raise Unavailable(
                f"the daemon does not understand ppctl, they may differ in version: {reply.text}"
            )
        case "internal":
            raise PPDaemonError(f"the daemon failed: {reply.text}")
