# SPDX-License-Identifier: BSD-3-Clause
"""What can be asked of ppdaemon, pprelay and ppbridge: blocking calls with a time limit.

A daemon or a relay that does not run is replaced by its journal or ledger, where that is possible.
"""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon import journalfile, reports
from ppdaemon.ctl.controlclient import ControlClient
from ppdaemon.errors import NotFound, NotRunning, Unavailable
from ppdaemon.ledgerfile import LEDGER_NAME, read_visit, read_visits
from ppdaemon.reports.common import DEFERRED
from ppdaemon.sqlitereader import reading

__all__ = ("BridgeDaemon", "Daemon", "RelayDaemon", "is_there")

REQUEUE_S = 30.0
"""Time limit of a requeue, of which the search for raws takes at most 2 s."""


def is_there(path: Path) -> bool:
    """Return whether there is a file, or one in a folder that this user may not enter."""
    try:
        return path.exists()
    except PermissionError:
        return True


class Daemon(ControlClient):
    """A node's daemon, reached over ``node.control`` of its configuration.

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

        Raises as `ask` does, and `~ppdaemon.errors.NotFound` if the journal has none.
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
        except NotRunning as error:
            if self.journal is None:
                raise
            if not is_there(self.journal):
                raise NotRunning(f"{error} There is no journal {self.journal} either.") from None
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


class RelayDaemon(ControlClient):
    """A relay, reached over ``control`` of its configuration.

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

        Raises as `ask` does, and `~ppdaemon.errors.NotFound` if the ledger has none.
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
    """A bridge, reached over ``control`` of its configuration."""

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
