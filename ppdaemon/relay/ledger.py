# SPDX-License-Identifier: BSD-3-Clause
"""The relay's database: accepted visits, and node and outcome of each detector.

A `~ppdaemon.sqlitefile.SqliteFile` in the state directory. Blocking code; a
`~ppdaemon.sqlitefile.BatchWriter` runs it in a thread.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.ledgerfile import LEDGER_NAME
from ppdaemon.messages import DetectorOutcome, EndedDetectors, HeldDetectors, Hello
from ppdaemon.relay import orders
from ppdaemon.relay.openvisit import Reservation, ReservationState, age_at_restart
from ppdaemon.sqlitefile import SqliteFile
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit

__all__ = ("AcceptedVisit", "FoundVisit", "Ledger", "UnfinishedVisit")

PRUNE_BATCH = 200
"""Visits deleted in one transaction: 40,000 rows of LSSTCam, about 50 ms in which
no other write can be committed."""

LOCK_WAIT_S = 1.0
"""How long a write waits for another program that has locked the file; clients get
no answer in this time."""

RECENT_VISITS = 200
"""Visits whose nodes are expected to connect after a start; an hour has some 200."""

SCHEMA = """
CREATE TABLE visits (
    number INTEGER PRIMARY KEY,
    instrument TEXT NOT NULL,
    group_id TEXT NOT NULL,
    content TEXT NOT NULL,
    received_tai REAL NOT NULL,
    cancelled INTEGER NOT NULL DEFAULT 0,
    ended_tai REAL,
    boot TEXT NOT NULL DEFAULT '',
    received_mono REAL NOT NULL DEFAULT 0.0,
    adopted INTEGER NOT NULL DEFAULT 0,  -- only a node has announced it: content has instrument and group
    cancelled_tai REAL,
    UNIQUE (group_id, instrument)
) STRICT;
CREATE INDEX visits_ended ON visits (ended_tai);
CREATE TABLE detectors (
    visit INTEGER NOT NULL REFERENCES visits (number) ON DELETE CASCADE,
    detector INTEGER NOT NULL,
    node TEXT,
    attempt INTEGER NOT NULL DEFAULT 1,
    acked_tai REAL,
    outcome TEXT,
    reason TEXT NOT NULL DEFAULT '',
    permit TEXT,  -- the run of the node that may write permanently
    alone INTEGER NOT NULL DEFAULT 0,  -- whether it may without a permit
    decided INTEGER NOT NULL DEFAULT 0,  -- whether by the relay: a later outcome of the node replaces it
    PRIMARY KEY (visit, detector)
) STRICT, WITHOUT ROWID;
CREATE TABLE epoch (last INTEGER NOT NULL) STRICT;
INSERT INTO epoch VALUES (0);
CREATE TABLE drained (node TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
FIRST_VERSION = 5
"""Of the schema; files of the versions before have other columns."""


@dataclass(frozen=True, slots=True)
class UnfinishedVisit:
    """A visit that the previous run of the relay left open."""

    number: int
    fields: dict[str, Any]
    """The announcement, with SAL field names."""
    received_tai: float
    age_s: float
    """For how long it is known to be open; see `~ppdaemon.relay.openvisit.age_at_restart`."""
    cancelled: bool
    reservations: tuple[Reservation, ...]
    """Of the detectors without an outcome."""
    adopted: bool = False
    """See `~ppdaemon.relay.openvisit.OpenVisit.adopted`."""


@dataclass(frozen=True, slots=True)
class AcceptedVisit:
    """What the ledger has for an announcement."""

    number: int
    content: str
    """The JSON of the first announcement of the group."""
    added: tuple[int, ...]
    """The detectors that this announcement has added."""
    cancelled: bool
    is_new: bool
    """Whether it is the first announcement of the group."""
    was_adopted: bool = False
    """Whether the group was known from a node only, without the content of its announcement."""


@dataclass(frozen=True, slots=True)
class FoundVisit:
    """A visit found by its group."""

    instrument: str
    script_sal_index: int
    cancelled: bool
    outcomes: tuple[DetectorOutcome, ...]


class Ledger(SqliteFile):
    """The open ledger in a state directory, which the caller has locked.

    Each method is called within a transaction of the `BatchWriter`.
    """

    def __init__(self, folder: Path, clock: Clock, *, shadow: bool = False):
        self._clock = clock
        path = folder / LEDGER_NAME
        super().__init__(
            path, "pprelay", [lambda db: db.executescript(SCHEMA)], first=FIRST_VERSION, busy_s=LOCK_WAIT_S
        )
        # Those that are open would be sent to nodes of the other mode, too.
        self._set_mode(path, shadow, "visits", "state_dir")
        with self.transaction():
            # The time is a lower limit: the epoch grows also if the ledger is lost.
            (self.epoch,) = self._db.execute(
                "UPDATE epoch SET last = max(last + 1, ?) RETURNING last", (int(clock.tai()),)
            ).fetchone()
        """Number that grows with each start."""

    def accept(
        self, visit: NextVisit, content: str, detectors: Sequence[int], received_tai: float
    ) -> AcceptedVisit:
        """Insert a visit unless its group is there, and a row for each detector without one."""
        cursor = self._db.execute(
            "INSERT INTO visits (instrument, group_id, content, received_tai, boot, received_mono)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (visit.instrument, visit.group, content, received_tai, self._clock.boot(), self._clock.mono()),
        )
        if not cursor.rowcount:  # the group is there: return the content that was accepted
            number, known_content, cancelled, was_adopted = self._db.execute(
                "SELECT number, content, cancelled, adopted FROM visits"
                " WHERE group_id = ? AND instrument = ?",
                (visit.group, visit.instrument),
            ).fetchone()
            if was_adopted:
                self._db.execute(
                    "UPDATE visits SET content = ?, adopted = 0 WHERE number = ?", (content, number)
                )
            else:
                content = known_content
            known = {
                row[0]
                for row in self._db.execute("SELECT detector FROM detectors WHERE visit = ?", (number,))
            }
            added = tuple(detector for detector in detectors if detector not in known)
            if added:
                self._reopen(number, received_tai)
        else:
            assert cursor.lastrowid is not None
            number, cancelled, was_adopted, added = cursor.lastrowid, 0, 0, tuple(detectors)
        self._db.executemany(
            "INSERT INTO detectors (visit, detector) VALUES (?, ?)",
            [(number, detector) for detector in added],
        )
        return AcceptedVisit(
            number, content, added, bool(cancelled), bool(cursor.rowcount), bool(was_adopted)
        )

    def adopt(
        self, hello: Hello, detectors: Mapping[str, Collection[int]]
    ) -> tuple[list[UnfinishedVisit], int]:
        """Insert what a node has in its journal and the ledger, an older copy, does not know; return the
        visits to open, and the number of visit-detectors.

        What is open here is compared by the dispatcher. Only configured `detectors` are accepted.
        """
        opened: list[UnfinishedVisit] = []
        adopted = 0
        listings: tuple[HeldDetectors | EndedDetectors, ...] = (*hello.ended, *hello.holds)
        for listed in listings:
            numbers = [each for each in listed.detectors if each in detectors.get(listed.instrument, ())]
            if not numbers:
                continue
            visit = self._adopted_visit(listed.instrument, listed.group)
            rows = {
                detector: row
                for detector, *row in self._db.execute(
                    "SELECT detector, node, attempt, outcome, decided FROM detectors WHERE visit = ?",
                    (visit.number,),
                )
            }
            unknown = [each for each in numbers if _is_unknown(rows.get(each), hello.origin, listed)]
            self._insert_adopted(visit.number, unknown, hello, listed)
            adopted += len(unknown)
            if isinstance(listed, EndedDetectors) and listed.last is not None:
                again = [each for each in numbers if _is_requeued(rows.get(each), hello.origin, listed)]
                requeued = listed.model_copy(update={"attempt": listed.last})
                self._insert_adopted(visit.number, again, hello, requeued)
                adopted += len(again)
            if unknown and isinstance(listed, HeldDetectors):
                reservations = tuple(
                    each for each in self._reserved(visit.number) if each.detector in unknown
                )
                opened.append(replace(visit, reservations=reservations))
        return opened, adopted

    def _adopted_visit(self, instrument: str, group: str) -> UnfinishedVisit:
        """Return a visit that may be open again; insert it if the ledger does not have it."""
        content, now_tai = {"groupId": group, "instrument": instrument}, self._clock.tai()
        self._db.execute(
            "INSERT INTO visits (instrument, group_id, content, received_tai, boot, received_mono, ended_tai,"
            " adopted) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?4, 1) ON CONFLICT DO NOTHING",
            (instrument, group, json.dumps(content), now_tai, self._clock.boot(), self._clock.mono()),
        )
        number, content, cancelled, adopted = self._db.execute(
            "SELECT number, content, cancelled, adopted FROM visits WHERE group_id = ? AND instrument = ?",
            (group, instrument),
        ).fetchone()
        return UnfinishedVisit(
            number, json.loads(content), now_tai, 0.0, bool(cancelled), (), adopted=bool(adopted)
        )

    def _insert_adopted(
        self, number: int, detectors: Sequence[int], hello: Hello, listed: HeldDetectors | EndedDetectors
    ) -> None:
        values: tuple[Outcome | None, str, str | None, bool]
        if held := isinstance(listed, HeldDetectors):
            values = None, "", hello.incarnation if listed.state != "held" else None, False
        else:
            values = listed.outcome, orders.ADOPTED, None, True
        self._db.executemany(
            "INSERT OR REPLACE INTO detectors (visit, detector, node, attempt, acked_tai, outcome, reason,"
            " permit, decided) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (number, detector, hello.origin, listed.attempt, self._clock.tai(), *values)
                for detector in detectors
            ],
        )
        if detectors and held:
            self._reopen(number, self._clock.tai())

    def _reopen(self, number: int, received_tai: float) -> None:
        """Open a visit again if all its other detectors have ended."""
        self._db.execute(
            "UPDATE visits SET received_tai = ?, boot = ?, received_mono = ?, ended_tai = NULL"
            " WHERE number = ? AND ended_tai IS NOT NULL",
            (received_tai, self._clock.boot(), self._clock.mono(), number),
        )

    def recent_nodes(self) -> set[str]:
        """Return the nodes that the newest visits were sent to."""
        return {
            node
            for (node,) in self._db.execute(
                "SELECT DISTINCT node FROM detectors WHERE node IS NOT NULL"
                " AND visit > (SELECT max(number) FROM visits) - ?",
                (RECENT_VISITS,),
            )
        }

    def find(self, group: str) -> list[FoundVisit]:
        """Return the visits of a group: at most one per instrument."""
        found = []
        for number, instrument, content, cancelled in self._db.execute(
            "SELECT number, instrument, content, cancelled FROM visits WHERE group_id = ?", (group,)
        ).fetchall():
            index = json.loads(content).get("scriptSalIndex", 0)
            found.append(FoundVisit(instrument, index, bool(cancelled), self._outcomes(number)))
        return found

    def _outcomes(self, number: int) -> tuple[DetectorOutcome, ...]:
        rows = self._db.execute(
            "SELECT detector, node, outcome, reason, attempt FROM detectors WHERE visit = ?", (number,)
        )
        return tuple(
            DetectorOutcome(
                detector=detector,
                node=node,
                outcome=None if outcome is None else Outcome(outcome),
                reason=reason,
                attempt=attempt,
            )
            for detector, node, outcome, reason, attempt in rows
        )

    def unfinished_visits(self) -> list[UnfinishedVisit]:
        """Return the visits with detectors without an outcome, the oldest first."""
        now, this_boot = self._clock.mono(), self._clock.boot()
        known = dict(self._db.execute("SELECT boot, max(received_mono) FROM visits GROUP BY boot").fetchall())
        rows = self._db.execute(
            "SELECT number, content, received_tai, boot, received_mono, cancelled, adopted FROM visits"
            " WHERE ended_tai IS NULL ORDER BY number"
        ).fetchall()
        found = [
            UnfinishedVisit(
                number,
                json.loads(content),
                received_tai,
                age_at_restart(boot, received_mono, now, this_boot, known),
                bool(cancelled),
                self._reserved(number),
                bool(adopted),
            )
            for number, content, received_tai, boot, received_mono, cancelled, adopted in rows
        ]
        with self.transaction():  # so that the next run knows the ages over both boots
            self._db.executemany(
                "UPDATE visits SET boot = ?1, received_mono = ?2 WHERE number = ?3 AND boot != ?1",
                [(this_boot, now - visit.age_s, visit.number) for visit in found],
            )
        return found

    def drained_nodes(self) -> set[str]:
        """Return the nodes that get no detectors."""
        return {node for (node,) in self._db.execute("SELECT node FROM drained")}

    def set_drained(self, node: str, drained: bool) -> set[str]:
        """Record whether a node gets no detectors; return all such nodes."""
        if drained:
            self._db.execute("INSERT OR IGNORE INTO drained VALUES (?)", (node,))
        else:
            self._db.execute("DELETE FROM drained WHERE node = ?", (node,))
        return self.drained_nodes()

    def _reserved(self, number: int) -> tuple[Reservation, ...]:
        rows = self._db.execute(
            "SELECT detector, coalesce(node, ''), attempt, acked_tai IS NOT NULL, coalesce(permit, ''),"
            " alone FROM detectors"
            " WHERE visit = ? AND outcome IS NULL",
            (number,),
        )
        return tuple(
            Reservation(
                detector,
                ReservationState.PERMITTED
                if permit
                else ReservationState.ACKNOWLEDGED
                if acked
                else ReservationState.SENT
                if node
                else ReservationState.UNASSIGNED,
                node,
                attempt,
                bool(alone),
                incarnation=permit,
            )
            for detector, node, attempt, acked, permit, alone in rows
        )

    def write(self, write: orders.Write) -> orders.ResultKey | None:
        """Perform one write of an `Effects`; return the key of an outcome that does not count because
        another node has the detector.
        """
        match write:
            case orders.SetRoute(number, node, attempt, detectors, alone):
                self._db.executemany(
                    "UPDATE detectors SET node = ?, attempt = ?, acked_tai = NULL, permit = NULL, alone = ?"
                    " WHERE visit = ? AND detector = ?",
                    [(node, attempt, alone, number, detector) for detector in detectors],
                )
            case orders.ClearRoute(number, detectors, attempt):
                self._db.executemany(
                    "UPDATE detectors SET node = NULL, attempt = ?, acked_tai = NULL, permit = NULL,"
                    " alone = 0 WHERE visit = ? AND detector = ?",
                    [(attempt, number, detector) for detector in detectors],
                )
            case orders.SetPermitted(number, detectors, incarnation):
                self._db.executemany(
                    "UPDATE detectors SET permit = ? WHERE visit = ? AND detector = ?",
                    [(incarnation or None, number, detector) for detector in detectors],
                )
            case orders.SetAcknowledged(number, detectors):
                now_tai = self._clock.tai()
                self._db.executemany(
                    "UPDATE detectors SET acked_tai = ? WHERE visit = ? AND detector = ?",
                    [(now_tai, number, detector) for detector in detectors],
                )
            case orders.SetOutcome(number, detector, outcome, reason, node):
                # "outcome IS NULL": the first outcome of an attempt is final.
                self._db.execute(
                    "UPDATE detectors SET outcome = ?1, reason = ?2, node = coalesce(?3, node),"
                    " decided = ?3 IS NULL WHERE visit = ?4 AND detector = ?5 AND outcome IS NULL",
                    (outcome, _valid_unicode(reason), node, number, detector),
                )
            case orders.UpdateOutcome(instrument, group, detector, node, attempt, outcome, reason):
                found = self._db.execute(
                    "SELECT node FROM detectors WHERE detector = ? AND outcome IS NOT NULL"
                    " AND visit = (SELECT number FROM visits WHERE group_id = ? AND instrument = ?)",
                    (detector, group, instrument),
                ).fetchone()
                if found is not None and found[0] != node:
                    return instrument, group, detector, attempt
                self._db.execute(
                    "UPDATE detectors SET outcome = ?1, reason = ?2, attempt = ?3, decided = 0"
                    " WHERE outcome IS NOT NULL"
                    " AND visit = (SELECT number FROM visits WHERE group_id = ?4 AND instrument = ?5)"
                    " AND detector = ?6 AND node = ?7 AND (attempt < ?3 OR decided)",
                    (outcome, _valid_unicode(reason), attempt, group, instrument, detector, node),
                )
            case orders.SetCancelled(number):
                self._db.execute(
                    "UPDATE visits SET cancelled = 1, cancelled_tai = coalesce(cancelled_tai, ?)"
                    " WHERE number = ?",
                    (self._clock.tai(), number),
                )
            case orders.CloseVisit(number):
                # Not if a detector was added since the decision, in a commit that was queued before.
                self._db.execute(
                    "UPDATE visits SET ended_tai = ? WHERE number = ? AND NOT EXISTS"
                    " (SELECT 1 FROM detectors WHERE visit = number AND outcome IS NULL)",
                    (self._clock.tai(), number),
                )
        return None

    def prune(self, before_tai: float) -> int:
        """Delete at most `PRUNE_BATCH` visits that ended before a time; return the number.

        Call it again until it returns 0.
        """
        return self._db.execute(
            "DELETE FROM visits WHERE number IN (SELECT number FROM visits WHERE ended_tai < ? LIMIT ?)",
            (before_tai, PRUNE_BATCH),
        ).rowcount


def _is_unknown(row: Sequence[Any] | None, node: str, listed: HeldDetectors | EndedDetectors) -> bool:
    """Return whether the ledger does not know what a node has; `row` has node, attempt, outcome, decided.

    An attempt is in the ledger before it is sent, and an outcome before it is confirmed.
    """
    if row is None:
        return True
    its_node, attempt, outcome, decided = row
    if outcome is None:
        return False
    confirmed = isinstance(listed, EndedDetectors) and listed.reported and listed.outcome != outcome
    return listed.attempt > attempt or bool(
        confirmed and decided and (its_node, attempt) == (node, listed.attempt)
    )


def _is_requeued(row: Sequence[Any] | None, node: str, listed: EndedDetectors) -> bool:
    """Return whether the ledger does not know the confirmed outcome of a requeue, which has the relay's
    number of the attempt before it; see `_is_unknown`.
    """
    if row is None or not listed.reported or listed.last is None:
        return False
    its_node, attempt, outcome, _ = row
    # A retry of the node itself has the outcome that the ledger has.
    return its_node == node and listed.last > attempt and outcome not in (None, listed.outcome)


def _valid_unicode(reason: str) -> str:
    """Replace characters that UTF-8 cannot encode: a file name in the reason may have them."""
    return reason.encode(errors="replace").decode()
