# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the control sockets of ppdaemon and pprelay: blocking calls with a time limit.

Covers the connection and the errors. Requests and answers are those of
`ppdaemon.reports`.
"""

import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon import journalfile, reports
from ppdaemon.errors import BadMessage, ConfigError, PPDaemonError, Refused, Unavailable
from ppdaemon.ledgerfile import LEDGER_NAME, read_visit, read_visits
from ppdaemon.reports.common import DEFERRED
from ppdaemon.sqlitereader import reading
from ppdaemon.states import ExitCode
from ppdaemon.wire import decode, encode, explain

__all__ = (
    "BridgeDaemon",
    "ControlClient",
    "Daemon",
    "Denied",
    "NotFound",
    "NotRunning",
    "RelayDaemon",
    "is_there",
)

REPLY_LIMIT = 67_108_864
"""Largest reply in bytes: 10,000 visits with long reasons fit."""

REQUEUE_S = 30.0
"""Time limit of a requeue, of which the search for raws takes at most 2 s."""

BACKLOG_PAUSE_S = 0.05
"""Pause before connecting again when the socket's backlog is full."""


CHECK_FIRST = "look at its effect before you repeat it; drain, resume and reload may be repeated"
"""What to do about a command without an answer."""


def is_there(path: Path) -> bool:
    """Return whether there is a file, or one in a folder that this user may not enter."""
    try:
        return path.exists()
    except PermissionError:
        return True


class NotRunning(Unavailable):
    """No process listens on the socket: start the daemon."""


class Denied(PPDaemonError):
    """This user may not do this: an operator may, or allow it in ``security`` of the configuration."""

    exit_code = ExitCode.PERMISSION


class NotFound(PPDaemonError):
    """The daemon has no such slot or visit: check the number or the group."""

    exit_code = ExitCode.DATA


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
        NotRunning
            Raised if the socket does not exist, or no process listens on it.
        Denied
            Raised if this user may not connect, or not use this command.
        ppdaemon.errors.Unavailable
            Raised if no valid answer arrives within the time limit.
        ppdaemon.errors.Refused
            Raised if the daemon cannot do this in its present state.
        ppdaemon.errors.ConfigError
            Raised if the daemon's configuration file has errors (reload).
        NotFound
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
                    f"{self._path}: invalid answer, the daemon may be newer than ppctl, or is not a "
                    f"{self.program}: --relay is for pprelay only, --bridge for ppbridge ({error})"
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


class Daemon(ControlClient):
    """A node's daemon, reached over ``node.control`` of its configuration; see `ControlClient`.

    Visits and late raws are read from the journal if the daemon does not run.
    """

    program = "ppdaemon"
    journal: Path | None = None
    """The node's journal, if its path is known."""
    from_journal = False
    """Whether the last answer was read from the journal, because the daemon does not run."""

    def status(self) -> reports.StatusReport:
        """Return the state of the daemon; raises as `ask` does."""
        return self._request(reports.StatusRequest(), _STATUS)

    def workers(self) -> tuple[reports.WorkerRow, ...]:
        """Return all slots with their workers; raises as `ask` does."""
        return self._request(reports.WorkersRequest(), _WORKERS)

    def visits(self, limit: int, *, failed: bool = False, **selected: Any) -> tuple[reports.VisitRow, ...]:
        """Return the newest visit-detectors; raises as `ask` does.

        Parameters
        ----------
        limit : `int`
            Maximum number of rows, 1 to 10,000.
        failed : `bool`
            Whether to return only those in `~ppdaemon.states.BAD_OUTCOMES`.
        **selected
            Fields of `~ppdaemon.reports.JournalFilter`.
        """
        request = reports.VisitsRequest(limit=limit, failed=failed, **selected)
        return self._or_journal(request, _VISITS, lambda db: journalfile.visit_detectors(db, request))

    def summaries(self, limit: int, **selected: Any) -> tuple[reports.VisitSummary, ...]:
        """Return the newest visits, at most `limit`, with all their detectors; raises as `ask` does.

        `selected` has fields of `~ppdaemon.reports.JournalFilter`.
        """
        request = reports.VisitSummariesRequest(limit=limit, **selected)
        return self._or_journal(request, _SUMMARIES, lambda db: journalfile.visit_summaries(db, request))

    def visit(self, group: str) -> tuple[reports.VisitRow, ...]:
        """Return the visit-detectors of one group.

        Raises as `ask` does, and `NotFound` if the journal has none.
        """
        request = reports.VisitRequest(group=group)
        rows = self._or_journal(request, _VISITS, lambda db: journalfile.visit(db, group))
        if not rows:
            raise NotFound(f"the daemon's journal has no visit {group!r}")
        return rows

    def late(self, limit: int, **selected: Any) -> tuple[reports.LateRow, ...]:
        """Return the newest raws that arrived after their visit-detector had ended.

        At most `limit` rows, 1 to 10,000; `selected` has fields of `~ppdaemon.reports.JournalFilter`.
        Raises as `ask` does.
        """
        request = reports.LateRequest(limit=limit, **selected)
        return self._or_journal(request, _LATE, lambda db: journalfile.late_raws(db, request))

    def _or_journal[T](
        self,
        request: pydantic.BaseModel,
        adapter: pydantic.TypeAdapter[tuple[T, ...]],
        query: Callable[[sqlite3.Connection], list[T]],
    ) -> tuple[T, ...]:
        self.from_journal = False
        try:
            return self._request(request, adapter)
        except NotRunning:
            if self.journal is None or not is_there(self.journal):
                raise
        try:
            with reading(self.journal) as db:
                rows = tuple(query(db))
        except Unavailable as error:
            # A daemon that starts or stops at this moment changes the file while it is read.
            try:
                return self._request(request, adapter)
            except NotRunning as absent:
                raise Unavailable(f"{absent}; {error}") from None
        self.from_journal = True
        return rows

    def journal_path(self) -> Path:
        """Return the path of the journal: known, or of the running daemon; raises as `ask` does."""
        if self.journal is not None and is_there(self.journal):
            return self.journal
        try:
            logs = self.status().logs
        except NotRunning as error:
            raise NotRunning(f"{error} Its journal is not known: use --config") from None
        return Path(logs).with_name(reports.JOURNAL_NAME)

    def requeue(
        self, group: str, detectors: tuple[int, ...] | None, *, force: bool
    ) -> tuple[reports.RequeueRow, ...]:
        """Process detectors of a visit again; raises as `ask` does.

        Parameters
        ----------
        group : `str`
            Group of the visit, as announced in the next_visit.
        detectors : `tuple` [`int`] or `None`
            Detector ids; `None` means all that the journal has of the group.
        force : `bool`
            Whether to process again although permanent results, such as alerts,
            may be written twice.

        Returns
        -------
        rows : `tuple` [`~ppdaemon.reports.RequeueRow`]
            The new attempt or the reason of the refusal, for each detector.
        """
        request = reports.RequeueRequest(group=group, detectors=detectors, force=force)
        return self._request(request, _REQUEUED, timeout_s=REQUEUE_S)

    def mark_catchup(
        self, instrument: str, group: str, detectors: tuple[int, ...], **mark: Any
    ) -> tuple[reports.RequeueRow, ...]:
        """Note that the catch-up has detectors of a visit, or not; raises as `ask` does.

        `mark` has the other fields of `~ppdaemon.reports.CatchupRequest`. Returns for each detector the
        attempt, or the reason of the refusal.
        """
        request = reports.CatchupRequest(instrument=instrument, group=group, detectors=detectors, **mark)
        return self._request(request, _REQUEUED)

    def watch(self, tick_s: float) -> Iterator[reports.StatusReport | None]:
        """Yield the state of the daemon until the connection ends.

        Parameters
        ----------
        tick_s : `float`
            Longest time between two yields, seconds.

        Yields
        ------
        report : `~ppdaemon.reports.StatusReport` or `None`
            The state at once and after each change; `None` if it has not
            changed for `tick_s`.

        Raises
        ------
        ppdaemon.errors.Unavailable
            Raised when the daemon closes the connection.
        """
        return self._follow(reports.Watch(), _STATUS, tick_s)

    def watch_visits(self, tick_s: float) -> Iterator[tuple[reports.VisitChange, ...] | None]:
        """Yield what changes of visits from now on, and `None` as `watch` does; raises as it does.

        The first list is empty: what was changed before it can be read from now on.
        """
        return self._follow(reports.WatchVisits(), _CHANGES, tick_s)

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


class RelayDaemon(ControlClient):
    """A relay, reached over ``control`` of its configuration; see `ControlClient`.

    Visits are read from the relay's ledger if the relay does not run.
    """

    program = "pprelay"
    ledger: Path | None = None
    """The relay's ledger; `None` for the one beside the socket."""
    from_ledger = False
    """Whether the last visits were read from the ledger, because the relay does not run."""

    def status(self) -> reports.RelayStatusReport:
        """Return the state of the relay; raises as `ask` does."""
        return self._request(reports.StatusRequest(), _RELAY_STATUS)

    def nodes(self) -> tuple[reports.RelayNodeRow, ...]:
        """Return the nodes that the relay knows; raises as `ask` does."""
        return self._request(reports.NodesRequest(), _NODES)

    def visits(self, limit: int) -> tuple[reports.RelayVisitRow, ...]:
        """Return the newest visits, at most 1000; raises as `ask` does."""
        request = reports.VisitsRequest(limit=limit)
        return self._or_ledger(request, _RELAY_VISITS, lambda path: read_visits(path, limit))

    def visit(self, group: str) -> tuple[reports.RelayDetectorRow, ...]:
        """Return the detectors of the visits of one group.

        Raises as `ask` does, and `NotFound` if the ledger has none.
        """
        request = reports.VisitRequest(group=group)
        rows = self._or_ledger(request, _RELAY_DETECTORS, lambda path: read_visit(path, group))
        if not rows:
            raise NotFound(f"the relay's ledger has no visit {group!r}")
        return rows

    def _or_ledger[T](
        self,
        request: pydantic.BaseModel,
        adapter: pydantic.TypeAdapter[tuple[T, ...]],
        read: Callable[[Path], list[T]],
    ) -> tuple[T, ...]:
        self.from_ledger = False
        try:
            return self._request(request, adapter)
        except NotRunning:
            path = self.ledger or self._path.with_name(LEDGER_NAME)
            if not is_there(path):
                raise
            self.from_ledger = True
            return tuple(read(path))


class BridgeDaemon(ControlClient):
    """A bridge, reached over ``control`` of its configuration; see `ControlClient`."""

    program = "ppbridge"

    def status(self) -> reports.BridgeStatusReport:
        """Return the state of the bridge; raises as `ask` does."""
        return self._request(reports.StatusRequest(), _BRIDGE_STATUS)


_STATUS = pydantic.TypeAdapter(reports.StatusReport)
_WORKERS = pydantic.TypeAdapter(tuple[reports.WorkerRow, ...], config=DEFERRED)
_VISITS = pydantic.TypeAdapter(tuple[reports.VisitRow, ...], config=DEFERRED)
_SUMMARIES = pydantic.TypeAdapter(tuple[reports.VisitSummary, ...], config=DEFERRED)
_LATE = pydantic.TypeAdapter(tuple[reports.LateRow, ...], config=DEFERRED)
_CHANGES = pydantic.TypeAdapter(tuple[reports.VisitChange, ...], config=DEFERRED)
_REQUEUED = pydantic.TypeAdapter(tuple[reports.RequeueRow, ...], config=DEFERRED)

_RELAY_STATUS = pydantic.TypeAdapter(reports.RelayStatusReport)
_BRIDGE_STATUS = pydantic.TypeAdapter(reports.BridgeStatusReport)
_NODES = pydantic.TypeAdapter(tuple[reports.RelayNodeRow, ...], config=DEFERRED)
_RELAY_VISITS = pydantic.TypeAdapter(tuple[reports.RelayVisitRow, ...], config=DEFERRED)
_RELAY_DETECTORS = pydantic.TypeAdapter(tuple[reports.RelayDetectorRow, ...], config=DEFERRED)


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
