# SPDX-License-Identifier: BSD-3-Clause
"""What the node has promised and what became of it: one SQLite file.

One row per attempt at a visit-detector. What a call has returned from
survives the machine. `Journal` blocks and belongs to one thread, that of a
`~ppdaemon.sqlitefile.BatchWriter`.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, assert_never

from ppdaemon.messages import Raw, ResultEntry
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import turn as t
from ppdaemon.reports import LateRow, VisitRow
from ppdaemon.sqlitefile import SqliteFile
from ppdaemon.states import BAD_OUTCOMES, Outcome, Stage
from ppdaemon.visit import NextVisit, parent_group
from ppdaemon.wire import encode

__all__ = ("Journal", "RowMissing")

BUSY_S = 5.0
"""For another program that reads or mends the file."""
MOST_LATE = 10_000
"""Late raws that are kept, the newest: fifty exposures of 205 detectors."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempt (
    instrument TEXT NOT NULL, grp TEXT NOT NULL, detector INTEGER NOT NULL, attempt INTEGER NOT NULL,
    visit TEXT NOT NULL, received_tai REAL NOT NULL, survey TEXT NOT NULL,
    stages TEXT NOT NULL, outcome TEXT, reason TEXT NOT NULL DEFAULT '', retriable INTEGER NOT NULL DEFAULT 0,
    final INTEGER NOT NULL DEFAULT 0, pipeline TEXT NOT NULL DEFAULT '', engine TEXT NOT NULL DEFAULT '',
    slot INTEGER, pid INTEGER, exposures TEXT NOT NULL DEFAULT '[]', partial INTEGER NOT NULL DEFAULT 0,
    datasets INTEGER NOT NULL DEFAULT 0, shutter_close_tai REAL, ended_tai REAL,
    no_return TEXT NOT NULL DEFAULT '', seen TEXT NOT NULL DEFAULT '[]', figures TEXT NOT NULL DEFAULT '{}',
    reported INTEGER NOT NULL DEFAULT 0, asked INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (instrument, grp, detector, attempt)
);
CREATE INDEX IF NOT EXISTS unfinished ON attempt (final) WHERE final = 0;
CREATE INDEX IF NOT EXISTS unreported ON attempt (reported) WHERE final = 1 AND reported = 0;
CREATE INDEX IF NOT EXISTS by_group ON attempt (grp);
CREATE INDEX IF NOT EXISTS bad ON attempt (outcome) WHERE outcome IS NOT NULL;
CREATE TABLE IF NOT EXISTS late (
    instrument TEXT NOT NULL, exposure INTEGER NOT NULL, detector INTEGER NOT NULL, grp TEXT NOT NULL,
    path TEXT NOT NULL, seen_tai REAL NOT NULL,
    PRIMARY KEY (instrument, exposure, detector)
);
"""


def _complete(db: sqlite3.Connection) -> None:
    """Make what is missing."""
    db.executescript(_SCHEMA)
    known = {row[1] for row in db.execute("PRAGMA table_info(attempt)")}
    for column, empty in (("seen", "[]"), ("figures", "{}")):
        if column not in known:
            db.execute(f"ALTER TABLE attempt ADD COLUMN {column} TEXT NOT NULL DEFAULT '{empty}'")


_STEPS = (_complete, _complete)
"""Files of version 1 may lack as much as a new one: columns and tables were
added without counting."""

_WRITTEN = [
    field.name for field in fields(t.Entry) if field.name not in ("key", "visit", "received_tai", "asked")
]
"""Columns that change while an attempt is open."""

_SHOWN = (
    'instrument, grp AS "group", detector, attempt, survey, outcome, reason, pipeline, engine, slot, pid,'
    " exposures, partial, retriable, datasets, stages, figures, shutter_close_tai, ended_tai"
)
"""Columns of a `~ppdaemon.reports.VisitRow`."""

_READ: dict[str, Callable[[Any], Any]] = {
    "exposures": lambda text: tuple(json.loads(text)),
    "figures": json.loads,
    "final": bool,
    "outcome": lambda text: None if text is None else Outcome(text),
    "partial": bool,
    "stages": lambda text: {Stage(name): tai for name, tai in json.loads(text).items()},
    "visit": NextVisit.model_validate_json,
}
"""How columns are read that are not kept as they are."""

_IS_PLACE = "instrument = ? AND grp = ? AND detector = ?"
_IS_KEY = f"{_IS_PLACE} AND attempt = ?"


class RowMissing(LookupError):
    """A row that must be there is not: the transaction was undone."""


class Journal(SqliteFile):
    """The file; all calls block, each one is a single transaction.

    Parameters
    ----------
    path : `pathlib.Path`
        The SQLite file. One that cannot be read is moved aside, and a new one
        begun.
    """

    def __init__(self, path: Path):
        super().__init__(path, "ppdaemon", _STEPS, busy_s=BUSY_S)

    # --- writing -----------------------------------------------------------

    def write(self, write: t.Write) -> object:
        """Do what a decision asks for.

        Parameters
        ----------
        write : `~ppdaemon.node.visits.turn.Write`
            What to do.

        Returns
        -------
        result : `object`
            As the write says; most have none.

        Raises
        ------
        RowMissing, sqlite3.IntegrityError
            Raised if the journal contradicts it; then nothing is written.
        """
        with self.transaction():
            match write:
                case t.Update(entries=entries):
                    self._update(*entries)
                case t.Accept(entries=entries):
                    return [self._accept(entry) for entry in entries]
                case t.Retry(before=ended, entry=entry):
                    self._update(ended)
                    self._insert(entry)
                case t.Requeue(before=before, entries=entries):
                    for last, entry in zip(before, entries, strict=True):
                        self._requeue(last, entry)
                case t.NoteRaws(raws=raws):
                    return self._note_late(raws)
                case t.NoteReported(keys=reported):
                    self._db.executemany(
                        "UPDATE attempt SET reported = 1"
                        f" WHERE final = 1 AND {_IS_PLACE} AND max(attempt, asked) = ?",
                        reported,
                    )
                case t.NoteExported(keys=keys, tai=tai):
                    self._db.executemany(
                        f"UPDATE attempt SET stages = json_set(stages, '$.central', ?) WHERE {_IS_KEY}",
                        [(tai, *key) for key in keys],
                    )
                case t.Unreport(keys=keys):
                    self._db.executemany(
                        f"UPDATE attempt SET reported = 0, asked = ? WHERE final = 1 AND {_IS_PLACE}"
                        f" AND attempt = (SELECT max(attempt) FROM attempt WHERE {_IS_PLACE})",
                        [(key.attempt, *key[:3], *key[:3]) for key in keys],
                    )
                case _:
                    assert_never(write)
        return None

    def _accept(self, entry: t.Entry) -> bool:
        """Promise a visit-detector; return `False` if the journal already has
        it, unless it was cancelled before the relay asked for a later attempt.
        """
        *place, attempt = entry.key
        known = self._db.execute(
            f"SELECT 1 FROM attempt WHERE {_IS_PLACE} AND (attempt >= ? OR outcome IS NOT ?)",
            (*place, attempt, Outcome.CANCELLED),
        ).fetchone()
        if known is None:
            self._insert(entry)
        else:
            self._db.execute(
                f"UPDATE attempt SET asked = max(asked, ?) WHERE final = 0 AND {_IS_PLACE}", (attempt, *place)
            )
        return known is None

    def _requeue(self, before: t.Entry, entry: t.Entry) -> None:
        """Insert one more attempt at a visit-detector that had its outcome,
        which is its no more.
        """
        (last,) = self._db.execute(
            f"SELECT max(attempt) FROM attempt WHERE {_IS_PLACE}", before.key[:3]
        ).fetchone()
        if last != before.key.attempt:
            raise sqlite3.IntegrityError(f"the relay has asked for {before.key} again meanwhile")
        self._db.execute(f"UPDATE attempt SET final = 0 WHERE {_IS_PLACE}", entry.key[:3])
        self._insert(entry)

    def _insert(self, entry: t.Entry) -> None:
        visit, stages = encode(entry.visit).decode(), json.dumps(entry.stages)
        self._db.execute(
            "INSERT INTO attempt (instrument, grp, detector, attempt, visit, received_tai, survey, stages,"
            " asked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*entry.key, visit, entry.received_tai, entry.visit.survey, stages, entry.asked),
        )

    def _update(self, *entries: t.Entry) -> None:
        for entry in entries:
            values = (getattr(entry, name) for name in _WRITTEN)
            changed = self._db.execute(
                f"UPDATE attempt SET {' = ?, '.join(_WRITTEN)} = ? WHERE {_IS_KEY}",
                (*(json.dumps(v) if isinstance(v, dict | tuple) else v for v in values), *entry.key),
            ).rowcount
            if not changed:
                raise RowMissing(f"the journal has no row of {entry.key}")

    def _note_late(self, raws: Sequence[Raw]) -> tuple[int, int]:
        """Keep those raws whose visit-detector had its outcome without them,
        unless nobody wants them; return how many, and how many are of visits
        that were never announced. The others were known.
        """
        late = unmatched = 0
        for raw in raws:
            group = parent_group(raw.group)
            last = self._db.execute(
                f"SELECT final AND outcome != ?, exposures, seen FROM attempt WHERE {_IS_PLACE}"
                " ORDER BY attempt DESC LIMIT 1",
                (Outcome.IGNORED, raw.instrument, group, raw.detector),
            ).fetchone()
            if last is None:
                unmatched += 1
            elif last[0] and raw.exposure not in (*json.loads(last[1]), *json.loads(last[2])):
                late += self._db.execute(
                    "INSERT OR IGNORE INTO late VALUES (?, ?, ?, ?, ?, ?)",
                    (raw.instrument, raw.exposure, raw.detector, group, raw.path, raw.seen_tai),
                ).rowcount
        self._db.execute("DELETE FROM late WHERE rowid <= (SELECT max(rowid) FROM late) - ?", (MOST_LATE,))
        return late, unmatched

    # --- reading -----------------------------------------------------------

    def _rows(self, query: str, *values: object) -> Iterator[dict[str, Any]]:
        """Yield the values of each row by the names of their columns."""
        cursor = self._db.execute(query, values)
        names = [column for column, *_ in cursor.description]
        for row in cursor:
            yield {
                name: _READ[name](value) if name in _READ else value
                for name, value in zip(names, row, strict=True)
            }

    def _entries(self, query: str, *values: object) -> list[t.Entry]:
        """Return the attempts that a query yields, whose first four columns are their keys."""
        rows = (list(row.items()) for row in self._rows(query, *values))
        return [t.Entry(Key(*(value for _, value in row[:4])), **dict(row[4:])) for row in rows]

    def last_attempts(self, group: str) -> list[t.Entry]:
        """Return the last attempt at each detector of a visit.

        Parameters
        ----------
        group : `str`
            The visit's group.

        Returns
        -------
        entries : `list` [`~ppdaemon.node.visits.turn.Entry`]
            By instrument and detector. ``no_return`` is what any of the
            attempts announced.
        """
        return self._entries(
            "SELECT instrument, grp, detector, max(attempt), visit, received_tai, stages, outcome, reason,"
            " final, partial, (SELECT max(no_return) FROM attempt AS any WHERE any.grp = this.grp"
            " AND any.instrument = this.instrument AND any.detector = this.detector) AS no_return, asked"
            " FROM attempt AS this WHERE grp = ? GROUP BY instrument, detector ORDER BY instrument, detector",
            group,
        )

    def unfinished(self) -> list[t.Entry]:
        """Return the attempts that no outcome of their visit-detector follows.

        Returns
        -------
        entries : `list` [`~ppdaemon.node.visits.turn.Entry`]
            The oldest first; the last attempt of each visit-detector.
        """
        return self._entries(
            "SELECT instrument, grp, detector, attempt, visit, received_tai, stages, exposures,"
            " shutter_close_tai, no_return, slot, pid, asked FROM attempt AS this"
            " WHERE final = 0 AND NOT EXISTS (SELECT 1 FROM attempt AS next"
            " WHERE next.instrument = this.instrument AND next.grp = this.grp"
            " AND next.detector = this.detector AND next.attempt > this.attempt) ORDER BY rowid"
        )

    def followed(self, keys: Sequence[Key]) -> set[Key]:
        """Return those attempts that another attempt at their visit-detector
        has followed.

        Parameters
        ----------
        keys : `~collections.abc.Sequence` [`~ppdaemon.node.slots.assignment.Key`]
            Attempts, in the journal or not.

        Returns
        -------
        followed : `set` [`~ppdaemon.node.slots.assignment.Key`]
            Some of them.
        """
        query = f"SELECT EXISTS (SELECT 1 FROM attempt WHERE {_IS_PLACE} AND attempt > ?)"
        return {key for key in keys if self._db.execute(query, key).fetchone()[0]}

    def unreported(self, limit: int) -> list[ResultEntry]:
        """Return outcomes that no relay has confirmed.

        Parameters
        ----------
        limit : `int`
            How many at the most.

        Returns
        -------
        entries : `list` [`~ppdaemon.messages.ResultEntry`]
            The oldest first.
        """
        rows = self._rows(
            'SELECT instrument, grp AS "group", detector, max(attempt, asked) AS attempt, outcome, reason'
            " FROM attempt WHERE final = 1 AND reported = 0 ORDER BY rowid LIMIT ?",
            limit,
        )
        return [ResultEntry(**row) for row in rows]

    def late(self, limit: int) -> list[LateRow]:
        """Return the raws that came too late and that no attempt has used.

        Parameters
        ----------
        limit : `int`
            How many at the most.

        Returns
        -------
        rows : `list` [`~ppdaemon.reports.LateRow`]
            The newest first.
        """
        rows = self._rows(
            'SELECT late.instrument, late.grp AS "group", late.detector, late.exposure, late.path,'
            " late.seen_tai, max(attempt.attempt) AS attempt, attempt.outcome FROM late JOIN attempt"
            " USING (instrument, grp, detector) GROUP BY late.rowid"
            " HAVING NOT EXISTS (SELECT 1 FROM json_each(attempt.exposures) WHERE value = late.exposure)"
            " ORDER BY late.rowid DESC LIMIT ?",
            limit,
        )
        return [LateRow(**row) for row in rows]

    def visits(self, limit: int, *, bad_only: bool = False) -> list[VisitRow]:
        """Return the newest rows.

        Parameters
        ----------
        limit : `int`
            How many at the most.
        bad_only : `bool`, optional
            Only those with a bad outcome that is final.

        Returns
        -------
        rows : `list` [`~ppdaemon.reports.VisitRow`]
            The newest first.
        """
        where, values = "", []
        if bad_only:
            values = sorted(BAD_OUTCOMES)
            where = f"WHERE final = 1 AND outcome IN ({', '.join('?' * len(values))})"
        rows = self._rows(f"SELECT {_SHOWN} FROM attempt {where} ORDER BY rowid DESC LIMIT ?", *values, limit)
        return [VisitRow(**row) for row in rows]

    def visit(self, group: str) -> list[VisitRow]:
        """Return all rows of one group.

        Parameters
        ----------
        group : `str`
            The visit's group.

        Returns
        -------
        rows : `list` [`~ppdaemon.reports.VisitRow`]
            By detector and attempt; empty if the group is not known.
        """
        rows = self._rows(
            f"SELECT {_SHOWN} FROM attempt WHERE grp = ? ORDER BY instrument, detector, attempt", group
        )
        return [VisitRow(**row) for row in rows]
