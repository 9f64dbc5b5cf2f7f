# SPDX-License-Identifier: BSD-3-Clause
"""The node's accepted visits and their outcomes: one SQLite file.

One row per attempt at a visit-detector. When a call has returned, its changes
survive a crash of the machine. All calls of `Journal` block; it belongs to one
thread, that of a `~ppdaemon.sqlitefile.BatchWriter`.
"""

import json
import math
import operator
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, assert_never

from ppdaemon.clock import Clock, day_obs
from ppdaemon.journalfile import converted, mark_catchup
from ppdaemon.messages import Raw, ResultEntry
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import model
from ppdaemon.node.visits.requeue import is_returned
from ppdaemon.reports import GIVEN_UP, REQUEUED
from ppdaemon.retries import HANDED_BACK, QUARANTINED, WITHDRAWN
from ppdaemon.sqlitefile import SchemaStep, SqliteFile
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit, parent_group
from ppdaemon.wire import encode

__all__ = ("Journal", "RowMissing")

BUSY_S = 5.0
"""How long a call waits for another program that reads or repairs the file."""
MAX_LATE_RAWS = 10_000
"""Only the newest late raws are stored: fifty exposures of 205 detectors."""

_CLOCK = Clock()

PRUNE_BATCH = 500
"""Rows that one call of `Journal.prune` looks at: some 10 ms in which nothing else can be written."""

_SCHEMA = """
CREATE TABLE attempt (
    instrument TEXT NOT NULL, grp TEXT NOT NULL, detector INTEGER NOT NULL, attempt INTEGER NOT NULL,
    visit TEXT NOT NULL, received_tai REAL NOT NULL, survey TEXT NOT NULL,
    stages TEXT NOT NULL, outcome TEXT, reason TEXT NOT NULL DEFAULT '', retriable INTEGER NOT NULL DEFAULT 0,
    final INTEGER NOT NULL DEFAULT 0, pipeline TEXT NOT NULL DEFAULT '', engine TEXT NOT NULL DEFAULT '',
    slot INTEGER, pid INTEGER, exposures TEXT NOT NULL DEFAULT '[]', partial INTEGER NOT NULL DEFAULT 0,
    datasets INTEGER NOT NULL DEFAULT 0, shutter_close_tai REAL, ended_tai REAL,
    no_return TEXT NOT NULL DEFAULT '', seen TEXT NOT NULL DEFAULT '[]', figures TEXT NOT NULL DEFAULT '{}',
    reported INTEGER NOT NULL DEFAULT 0, asked INTEGER NOT NULL DEFAULT 1,
    boot TEXT NOT NULL DEFAULT '', received_mono REAL NOT NULL DEFAULT 0.0,
    PRIMARY KEY (instrument, grp, detector, attempt)
);
CREATE INDEX unfinished ON attempt (final) WHERE final = 0;
CREATE INDEX unreported ON attempt (reported) WHERE final = 1 AND reported = 0;
CREATE INDEX by_group ON attempt (grp);
CREATE INDEX bad ON attempt (outcome) WHERE outcome IS NOT NULL;
CREATE TABLE late (
    instrument TEXT NOT NULL, exposure INTEGER NOT NULL, detector INTEGER NOT NULL, grp TEXT NOT NULL,
    path TEXT NOT NULL, seen_tai REAL NOT NULL,
    PRIMARY KEY (instrument, exposure, detector)
);
-- Counts, not a row for each worker: some rows a night, which are never deleted.
CREATE TABLE recycled (
    day_obs INTEGER NOT NULL, cause TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (day_obs, cause)
);
"""
_QUARANTINED = "CREATE INDEX quarantined ON attempt (final) WHERE outcome = 'succeeded' AND reason != ''"
"""Without it a list of what failed reads all successes, some million rows of a month."""
_STEPS: tuple[SchemaStep, ...] = (
    lambda db: db.executescript(_SCHEMA),
    lambda db: db.execute(_QUARANTINED),
)
_FIRST_VERSION = 4
"""Of the schema, without its later steps; files of the versions before have other columns."""

_WRITTEN = [
    field.name
    for field in fields(model.JournalEntry)
    if field.name not in ("key", "visit", "received_tai", "received_mono", "asked", "reported")
]
"""Columns that change while an attempt is open."""
_VALUES = operator.attrgetter(*_WRITTEN)
_AS_JSON = (dict, tuple)

LOST = "its outputs were lost before they were exported: the host stopped while they were on the RAM disk"
"""Reason of a visit-detector that had succeeded."""

_IS_VISIT_DETECTOR = "instrument = ? AND grp = ? AND detector = ?"
_IS_KEY = f"{_IS_VISIT_DETECTOR} AND attempt = ?"
_UPDATE = f"UPDATE attempt SET {' = ?, '.join(_WRITTEN)} = ? WHERE {_IS_KEY}"


class RowMissing(LookupError):
    """A row to update does not exist; the transaction was rolled back."""


class Journal(SqliteFile):
    """The file; each call is one transaction.

    A corrupt file is moved aside and a new one is created.
    """

    def __init__(self, path: Path, clock: Clock = _CLOCK, *, shadow: bool = False):
        self._clock = clock
        super().__init__(path, "ppdaemon", _STEPS, first=_FIRST_VERSION, busy_s=BUSY_S)
        self._encoded: tuple[NextVisit | None, str] = None, ""
        """The visit that was inserted last, and its text."""
        with self.transaction():
            self._keep_ages()
        # Their outputs may wait for another repo.
        self._set_mode(path, shadow, "attempt", "node.state_dir")

    def _keep_ages(self) -> None:
        """Count the ages of open visits in this boot of the host. The time that it was down is not
        counted, as at the relay: no wall clock counts.
        """
        boots = self._db.execute(
            "SELECT DISTINCT boot FROM attempt WHERE final = 0 AND boot != ?", (self._clock.boot(),)
        ).fetchall()
        for (boot,) in boots:
            # The last time of that boot that is known: of its newest row.
            (last,) = self._db.execute(
                "SELECT received_mono FROM attempt WHERE boot = ? ORDER BY rowid DESC LIMIT 1", (boot,)
            ).fetchone()
            self._db.execute(
                "UPDATE attempt SET boot = ?1, received_mono = min(?2, received_mono + ?2 - ?3)"
                " WHERE final = 0 AND boot = ?4",
                (self._clock.boot(), self._clock.mono(), last, boot),
            )

    # --- writing -----------------------------------------------------------

    def probe(self) -> None:
        """Write a value that the file has already; raise `sqlite3.Error` if that is not possible."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        self._db.execute(f"PRAGMA user_version = {version}")

    def write(self, write: model.Write) -> object:
        """Perform one write of a decision and return its result, if it has one.

        Raises `RowMissing` or `sqlite3.IntegrityError` if the journal
        contradicts it; then nothing is written.
        """
        with self.transaction():
            match write:
                case model.Update(entries=entries):
                    self._update(*entries)
                case model.Accept(entries=entries):
                    return [self._accept(entry) for entry in entries]
                case model.Retry(before=ended, entry=entry):
                    self._update(ended)
                    self._insert(entry)
                case model.Requeue(before=before, entries=entries):
                    for last, entry in zip(before, entries, strict=True):
                        self._requeue(last, entry)
                case model.RecordLateRaws(raws=raws):
                    return self._record_late_raws(raws)
                case model.MarkReported(keys=reported, moved=moved):
                    self._db.executemany(
                        "UPDATE attempt SET reported = 1"
                        f" WHERE final = 1 AND {_IS_VISIT_DETECTOR} AND max(attempt, asked) = ?",
                        reported,
                    )
                    # Seen by operators, and by a request to process it again.
                    self._db.executemany(
                        "UPDATE attempt SET reason = ? || reason WHERE final = 1"
                        f" AND {_IS_VISIT_DETECTOR} AND max(attempt, asked) = ?"
                        " AND reason NOT LIKE ? AND reason NOT LIKE ?",
                        [(f"{WITHDRAWN}; ", *key, f"{WITHDRAWN}%", f"{HANDED_BACK}%") for key in moved],
                    )
                case model.MarkExported(keys=keys, tai=tai, skipped=skipped):
                    self._db.executemany(
                        "UPDATE attempt SET stages = json_set(stages, '$.central', ?),"
                        f" reason = replace(replace(reason, ?, ''), ?, '') WHERE {_IS_KEY}",
                        [(tai, f"{QUARANTINED}; ", QUARANTINED, *key) for key in keys],
                    )
                    self._db.executemany(
                        "UPDATE attempt SET figures = json_set(figures, '$.not_exported', ?)"
                        f" WHERE {_IS_KEY}",
                        [(text, *key) for key, text in skipped.items()],
                    )
                case model.MarkGivenUp(types=types):
                    self._db.executemany(
                        f"UPDATE attempt SET figures = json_set(figures, '$.{GIVEN_UP}', ?) WHERE {_IS_KEY}",
                        [(text, *key) for key, text in types.items()],
                    )
                case model.MarkQuarantined(keys=keys):
                    # Behind what says that another node may have it: by that it is not processed here, too.
                    elsewhere, marked = f"{WITHDRAWN}; ", f"%{QUARANTINED}%"
                    self._db.executemany(
                        "UPDATE attempt SET reason = iif(reason LIKE ?, ?, '') || ?"
                        " || rtrim('; ' || replace(reason, ?, ''), '; ')"
                        f" WHERE {_IS_KEY} AND outcome IS NOT ? AND reason NOT LIKE ?",
                        [
                            (
                                f"{elsewhere}%",
                                elsewhere,
                                QUARANTINED,
                                elsewhere,
                                *key,
                                Outcome.CANCELLED,
                                marked,
                            )
                            for key in keys
                        ],
                    )
                case model.MarkLost(keys=keys, reason=reason):
                    # No datasets: the row may be deleted some day, and is not listed at the next start.
                    self._db.executemany(
                        "UPDATE attempt SET outcome = ?, reason = ?, retriable = (no_return = ''),"
                        f" datasets = 0 WHERE {_IS_KEY} AND (? OR boot != ?)"
                        " AND json_extract(stages, '$.central') IS NULL",
                        [
                            (Outcome.INTERRUPTED, reason or LOST, *key, bool(reason), self._clock.boot())
                            for key in keys
                        ],
                    )
                case model.MarkCatchup(keys=keys, state=state, run=run, tai=tai):
                    mark_catchup(self._db, keys, state, run, tai)
                case model.MarkUnreported(keys=keys):
                    # Never lower: a repeated older reservation must not hide a later one.
                    self._db.executemany(
                        # It counts again: the relay has given the visit-detector back to this node.
                        "UPDATE attempt SET reported = 0, asked = max(asked, ?),"
                        " reason = replace(reason, ?, '')"
                        f" WHERE final = 1 AND {_IS_VISIT_DETECTOR}"
                        f" AND attempt = (SELECT max(attempt) FROM attempt WHERE {_IS_VISIT_DETECTOR})",
                        [(key.attempt, f"{WITHDRAWN}; ", *key[:3], *key[:3]) for key in keys],
                    )
                case model.CountRecycled(cause=cause, tai=tai):
                    self._db.execute(
                        "INSERT INTO recycled VALUES (?, ?, 1)"
                        " ON CONFLICT (day_obs, cause) DO UPDATE SET count = count + 1",
                        (day_obs(tai), cause),
                    )
                case _:
                    assert_never(write)
        return None

    def _accept(self, entry: model.JournalEntry) -> int | None:
        """Insert a visit-detector and return the number of its attempt, or return `None` if the
        journal has it. A canceled one, or one that was handed back, is inserted again
        if the relay requests a later attempt than any before: a repeated message must
        not be a second visit.
        """
        *visit_detector, asked = entry.key
        last, known = self._db.execute(
            "SELECT coalesce(max(attempt), 0),"
            # Neither final nor open: a retry followed.
            " max(asked >= ? OR outcome IS NULL OR (final = 1 AND outcome != ?))"
            f" FROM attempt WHERE {_IS_VISIT_DETECTOR}",
            (asked, Outcome.CANCELLED, *visit_detector),
        ).fetchone()
        if not known:
            # The node's own retries have numbers, too.
            attempt: int = max(asked, last + 1)
            self._insert(entry, attempt)
            return attempt
        self._db.execute(
            f"UPDATE attempt SET asked = max(asked, ?) WHERE final = 0 AND {_IS_VISIT_DETECTOR}",
            (asked, *visit_detector),
        )
        return None

    def _requeue(self, before: model.JournalEntry, entry: model.JournalEntry) -> None:
        """Insert one more attempt at a visit-detector whose outcome was final,
        which it is no longer.
        """
        (last,) = self._db.execute(
            f"SELECT max(attempt) FROM attempt WHERE {_IS_VISIT_DETECTOR}", before.key[:3]
        ).fetchone()
        if last != before.key.attempt:
            raise sqlite3.IntegrityError(f"the relay has requested {before.key} again in the meantime")
        self._db.execute(f"UPDATE attempt SET final = 0 WHERE {_IS_VISIT_DETECTOR}", entry.key[:3])
        self._insert(entry)

    def _insert(self, entry: model.JournalEntry, attempt: int | None = None) -> None:
        """Insert an attempt, with another number than that of its key if one is passed."""
        if entry.visit is not self._encoded[0]:  # once for all detectors of a visit
            self._encoded = entry.visit, encode(entry.visit).decode()
        visit, stages = self._encoded[1], json.dumps(entry.stages)
        self._db.execute(
            "INSERT INTO attempt (instrument, grp, detector, attempt, visit, received_tai, survey, stages,"
            " asked, figures, boot, received_mono) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *entry.key[:3],
                attempt or entry.key.attempt,
                *(visit, entry.received_tai, entry.visit.survey, stages, entry.asked),
                *(json.dumps(entry.figures), self._clock.boot(), entry.received_mono),
            ),
        )

    def _update(self, *entries: model.JournalEntry) -> None:
        for entry in entries:
            values = [json.dumps(v) if isinstance(v, _AS_JSON) else v for v in _VALUES(entry)]
            changed = self._db.execute(_UPDATE, (*values, *entry.key)).rowcount
            if not changed:
                raise RowMissing(f"the journal has no row of {entry.key}")

    def _record_late_raws(self, raws: Sequence[Raw]) -> tuple[int, int]:
        """List those raws as late whose visit-detector has ended without them,
        unless it was ignored or handed back; return their number and that of the raws without
        a visit-detector in the journal.
        """
        late = unmatched = 0
        for raw in raws:
            group = parent_group(raw.group)
            last = self._db.execute(
                "SELECT final AND outcome != ? AND reason NOT LIKE ?, exposures, seen, outcome FROM attempt"
                f" WHERE {_IS_VISIT_DETECTOR} ORDER BY attempt DESC LIMIT 1",
                (Outcome.IGNORED, f"{HANDED_BACK}%", raw.instrument, group, raw.detector),
            ).fetchone()
            if last is None:
                unmatched += 1
                continue
            # After an unusable raw, another file of the same exposure is late.
            unused = last[3] in (Outcome.BAD_RAW, Outcome.RAW_UNREADABLE)
            used = json.loads(last[1]) + ([] if unused else json.loads(last[2]))
            if last[0] and raw.exposure not in used:
                late += self._db.execute(
                    "INSERT OR IGNORE INTO late VALUES (?, ?, ?, ?, ?, ?)",
                    (raw.instrument, raw.exposure, raw.detector, group, raw.path, raw.seen_tai),
                ).rowcount
        self._db.execute(
            "DELETE FROM late WHERE rowid <= (SELECT max(rowid) FROM late) - ?", (MAX_LATE_RAWS,)
        )
        return late, unmatched

    def prune(
        self, before_tai: float, after: int, *, reporting: bool, before_mono: float = math.inf
    ) -> int | None:
        """Delete visit-detectors that ended before a time, among the next rows; return where the next
        call must continue (`after`, first 0), `None` if no older rows are left.

        Those are kept whose last attempt is open, or whose outputs are not exported. With `reporting`
        also those whose outcome the relay has not confirmed; and those that were received in this boot
        of the host after `before_mono`, monotonic seconds.
        """
        with self.transaction():
            # By row number, which is the order of acceptance: no index by time, which each write
            # would have to maintain.
            rows = self._db.execute(
                "SELECT rowid, received_tai FROM attempt WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (after, PRUNE_BATCH),
            ).fetchall()
            if not any(received_tai < before_tai for _, received_tai in rows):
                return None
            upto = rows[-1][0]
            ended = self._db.execute(
                "SELECT instrument, grp, detector FROM attempt AS this WHERE rowid > ? AND rowid <= ?"
                # A wall clock that is a month ahead must not delete what this boot has received since.
                " AND final = 1 AND ended_tai < ? AND NOT (boot = ? AND received_mono > ?)"
                " AND (reported = 1 OR NOT ?)"
                " AND (datasets = 0 OR json_extract(stages, '$.central') IS NOT NULL)"
                " AND NOT EXISTS (SELECT 1 FROM attempt AS next WHERE next.instrument = this.instrument"
                " AND next.grp = this.grp AND next.detector = this.detector"
                " AND next.attempt > this.attempt)",
                (after, upto, before_tai, self._clock.boot(), before_mono, reporting),
            ).fetchall()
            # All attempts together: an earlier one alone would count as unfinished.
            self._db.executemany(f"DELETE FROM attempt WHERE {_IS_VISIT_DETECTOR}", ended)
            if ended:
                self._db.execute(
                    "DELETE FROM late WHERE NOT EXISTS (SELECT 1 FROM attempt WHERE attempt.instrument ="
                    " late.instrument AND attempt.grp = late.grp AND attempt.detector = late.detector)"
                )
            return int(upto)

    # --- reading -----------------------------------------------------------

    def _rows(self, query: str, *values: object) -> Iterator[dict[str, Any]]:
        """Yield each row as a mapping of column names to converted values."""
        return converted(self._db.execute(query, values))

    def _entries(self, query: str, *values: object) -> list[model.JournalEntry]:
        """Return the attempts that a query yields; its first four columns are the key."""
        rows = (list(row.items()) for row in self._rows(query, *values))
        return [model.JournalEntry(Key(*(value for _, value in row[:4])), **dict(row[4:])) for row in rows]

    def last_attempts(self, group: str) -> list[model.JournalEntry]:
        """Return the last attempt at each detector of a visit, by instrument
        and detector; ``no_return`` is set if any attempt passed that point.
        """
        return self._entries(
            "SELECT instrument, grp, detector, max(attempt), visit, received_tai, stages, outcome, reason,"
            " final, partial, (SELECT max(no_return) FROM attempt AS any WHERE any.grp = this.grp"
            " AND any.instrument = this.instrument AND any.detector = this.detector) AS no_return, asked,"
            " reported, figures"
            " FROM attempt AS this WHERE grp = ? GROUP BY instrument, detector ORDER BY instrument, detector",
            group,
        )

    def unfinished(self) -> list[model.JournalEntry]:
        """Return the last attempt at each visit-detector without a final
        outcome, the oldest first.
        """
        return self._entries(
            "SELECT instrument, grp, detector, attempt, visit, received_tai, received_mono, stages,"
            " exposures, shutter_close_tai, no_return, slot, pid, asked, figures FROM attempt AS this"
            " WHERE final = 0 AND NOT EXISTS (SELECT 1 FROM attempt AS next"
            " WHERE next.instrument = this.instrument AND next.grp = this.grp"
            " AND next.detector = this.detector AND next.attempt > this.attempt) ORDER BY rowid"
        )

    def followed(self, keys: Sequence[Key]) -> set[Key]:
        """Return those attempts that have a later attempt in the journal, or were given back to the relay
        for one on another node.
        """
        query = (
            "SELECT EXISTS (SELECT 1 FROM attempt WHERE instrument = ?1 AND grp = ?2 AND detector = ?3"
            " AND (attempt > ?4 OR (attempt = ?4 AND outcome = ?5 AND (reason LIKE ?6 OR reason LIKE ?7))))"
        )
        returned = Outcome.CANCELLED, f"{HANDED_BACK}%", f"{WITHDRAWN}%"
        return {key for key in keys if self._db.execute(query, (*key, *returned)).fetchone()[0]}

    def not_exported(self) -> list[Key]:
        """Return the attempts whose outputs were spooled and are not in the central repo."""
        rows = self._db.execute(
            "SELECT instrument, grp, detector, attempt FROM attempt WHERE final = 1 AND datasets > 0"
            " AND json_extract(stages, '$.central') IS NULL"
        )
        return [Key(*row) for row in rows]

    def without_images(self, keys: Sequence[Key]) -> set[Key]:
        """Return those attempts whose images were given up."""
        query = (
            f"SELECT EXISTS (SELECT 1 FROM attempt WHERE {_IS_KEY} AND"
            f" json_extract(figures, '$.{GIVEN_UP}') IS NOT NULL)"
        )
        return {key for key in keys if self._db.execute(query, key).fetchone()[0]}

    def unreported(self, limit: int) -> list[ResultEntry]:
        """Return outcomes that the relay has not confirmed, the oldest first."""
        rows = self._rows(
            'SELECT instrument, grp AS "group", detector, max(attempt, asked) AS attempt, outcome, reason,'
            " asked FROM attempt WHERE final = 1 AND reported = 0 ORDER BY rowid LIMIT ?",
            limit,
        )
        entries = (ResultEntry(**row) for row in rows)
        return [entry.model_copy(update={"returned": is_returned(entry) or None}) for entry in entries]

    def latest_outcomes(self, limit: int) -> list[tuple[ResultEntry, bool, float]]:
        """Return the newest outcomes, the oldest first: whether the relay has confirmed them, and for
        how long their visits are known to be received, seconds. While an operator's attempt is open, the
        outcome before it counts.
        """
        known = {self._clock.boot(): self._clock.mono()}
        found = []
        for *key, asked, outcome, reason, reported, boot, received_mono in self._db.execute(
            "SELECT instrument, grp, detector, max(attempt, asked), asked, outcome, reason, reported, boot,"
            " received_mono FROM attempt AS this WHERE final = 1 OR outcome IS NOT NULL AND EXISTS (SELECT 1"
            " FROM attempt AS next WHERE next.instrument = this.instrument AND next.grp = this.grp"
            " AND next.detector = this.detector AND next.attempt = this.attempt + 1"
            " AND next.outcome IS NULL AND json_extract(next.figures, ?) IS NOT NULL)"
            " ORDER BY rowid DESC LIMIT ?",
            (f"$.{REQUEUED}", limit),
        ):
            names = dict(zip(("instrument", "group", "detector", "attempt"), key, strict=True))
            entry = ResultEntry(**names, asked=asked, outcome=outcome, reason=reason)
            age_s = known.setdefault(boot, received_mono) - received_mono
            found.append((entry.model_copy(update={"returned": is_returned(entry)}), bool(reported), age_s))
        return found[::-1]
