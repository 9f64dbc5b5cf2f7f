# SPDX-License-Identifier: BSD-3-Clause
"""What the node has promised and what became of it: one SQLite file.

One row per attempt at a visit-detector. What a call has returned from
survives the machine. `Journal` blocks and belongs to one thread, that of a
`~ppdaemon.sqlitefile.BatchWriter`.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from ppdaemon.messages import ResultEntry
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import latetable
from ppdaemon.node.visits.entry import Entry
from ppdaemon.node.visits.latetable import LateTable
from ppdaemon.node.visits.turn import (
    Accept,
    NoteExported,
    NoteRaws,
    NoteReported,
    Requeue,
    Retry,
    Unreport,
    Update,
    Write,
)
from ppdaemon.reports import VisitRow
from ppdaemon.sqlitefile import SqliteFile
from ppdaemon.states import BAD_OUTCOMES, Outcome, Stage
from ppdaemon.visit import NextVisit
from ppdaemon.wire import encode

__all__ = ("Journal", "RowMissing")

BUSY_S = 5.0
"""For another program that reads or mends the file."""

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
"""


def _complete(db: sqlite3.Connection) -> None:
    """Make what is missing."""
    db.executescript(_SCHEMA)
    known = {row[1] for row in db.execute("PRAGMA table_info(attempt)")}
    for column, empty in (("seen", "[]"), ("figures", "{}")):
        if column not in known:
            db.execute(f"ALTER TABLE attempt ADD COLUMN {column} TEXT NOT NULL DEFAULT '{empty}'")
    db.execute(latetable.SCHEMA)


_STEPS = (_complete, _complete)
"""Files of version 1 may lack as much as a new one: columns and tables were
added without counting."""

_COLUMNS = (
    "instrument, grp, detector, attempt, survey, outcome, reason, pipeline, engine, slot, pid, exposures,"
    " partial, retriable, datasets, stages, figures, shutter_close_tai, ended_tai"
)

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
        self.late = LateTable(self._db, self.transaction)
        """Raws that came too late (`~ppdaemon.node.visits.latetable.LateTable`)."""

    def write(self, write: Write) -> object:
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
        match write:
            case Update(entries=entries):
                self.update(entries)
            case Accept(entries=entries):
                return self.accept(entries)
            case Retry(before=before, entry=entry):
                self.retry(before, entry)
            case NoteRaws(raws=raws):
                return self.late.note(raws)
            case NoteReported(keys=reported):
                self.reported(reported)
            case NoteExported(keys=keys, tai=tai):
                self.exported(keys, tai)
            case Unreport(keys=keys):
                self.unreport(keys)
            case Requeue(before=ended, entries=entries):
                self.requeue(ended, entries)
            case _:
                assert_never(write)
        return None

    def accept(self, entries: Sequence[Entry]) -> list[bool]:
        """Promise visit-detectors.

        Parameters
        ----------
        entries : `~collections.abc.Sequence` [`Entry`]
            What the relay asks for.

        Returns
        -------
        new : `list` [`bool`]
            `False` where the journal already has the visit-detector, unless
            it was cancelled before the relay asked for a later attempt.
        """
        new = []
        with self.transaction():
            for entry in entries:
                *place, attempt = entry.key
                known = self._db.execute(
                    f"SELECT 1 FROM attempt WHERE {_IS_PLACE} AND (attempt >= ? OR outcome IS NOT ?)",
                    (*place, attempt, Outcome.CANCELLED),
                ).fetchone()
                new.append(known is None)
                if known is None:
                    self._insert(entry)
                else:
                    self._db.execute(
                        f"UPDATE attempt SET asked = max(asked, ?) WHERE final = 0 AND {_IS_PLACE}",
                        (attempt, *place),
                    )
        return new

    def retry(self, before: Entry, entry: Entry) -> None:
        """Promise one more attempt at a visit-detector.

        Parameters
        ----------
        before : `Entry`
            The attempt that has ended; written in the same transaction.
        entry : `Entry`
            The next one.
        """
        with self.transaction():
            self._write([before])
            self._insert(entry)

    def requeue(self, before: Sequence[Entry], entries: Sequence[Entry]) -> None:
        """Insert one more attempt at visit-detectors that had their outcome,
        which is theirs no more.

        Parameters
        ----------
        before : `~collections.abc.Sequence` [`Entry`]
            The last attempts, as they were read.
        entries : `~collections.abc.Sequence` [`Entry`]
            The next attempts, in the same order.

        Raises
        ------
        sqlite3.IntegrityError
            Raised if another attempt has been accepted meanwhile; then
            nothing is inserted.
        """
        with self.transaction():
            for old, entry in zip(before, entries, strict=True):
                (last,) = self._db.execute(
                    f"SELECT max(attempt) FROM attempt WHERE {_IS_PLACE}", old.key[:3]
                ).fetchone()
                if last != old.key.attempt:
                    raise sqlite3.IntegrityError(f"the relay has asked for {old.key} again meanwhile")
                self._db.execute(f"UPDATE attempt SET final = 0 WHERE {_IS_PLACE}", entry.key[:3])
                self._insert(entry)

    def last_attempts(self, group: str) -> list[Entry]:
        """Return the last attempt at each detector of a visit.

        Parameters
        ----------
        group : `str`
            The visit's group.

        Returns
        -------
        entries : `list` [`Entry`]
            By instrument and detector. ``no_return`` is what any of the
            attempts announced.
        """
        rows = self._db.execute(
            "SELECT instrument, grp, detector, max(attempt), visit, received_tai, stages, outcome, reason,"
            " final, partial, (SELECT max(no_return) FROM attempt AS any WHERE any.grp = this.grp"
            " AND any.instrument = this.instrument AND any.detector = this.detector), asked"
            " FROM attempt AS this WHERE grp = ? GROUP BY instrument, detector ORDER BY instrument, detector",
            (group,),
        )
        return [
            Entry(
                key=Key(*row[:4]),
                visit=NextVisit.model_validate_json(row[4]),
                received_tai=row[5],
                stages=_read_stages(row[6]),
                outcome=None if row[7] is None else Outcome(row[7]),
                reason=row[8],
                final=bool(row[9]),
                partial=bool(row[10]),
                no_return=row[11],
                asked=row[12],
            )
            for row in rows
        ]

    def _insert(self, entry: Entry) -> None:
        visit = entry.visit
        self._db.execute(
            "INSERT INTO attempt (instrument, grp, detector, attempt, visit, received_tai, survey, stages,"
            " asked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *entry.key,
                encode(visit).decode(),
                entry.received_tai,
                visit.survey,
                _stages(entry),
                entry.asked,
            ),
        )

    def update(self, entries: Sequence[Entry]) -> None:
        """Write what has changed in these rows.

        Parameters
        ----------
        entries : `~collections.abc.Sequence` [`Entry`]
            Rows that `accept`, `retry` or `requeue` has inserted.

        Raises
        ------
        RowMissing
            Raised if the journal has no row of one of them; then nothing is
            written.
        """
        with self.transaction():
            self._write(entries)

    def _write(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            changed = self._db.execute(
                "UPDATE attempt SET stages = ?, figures = ?, outcome = ?, reason = ?, retriable = ?,"
                " final = ?, pipeline = ?, engine = ?, slot = ?, pid = ?, exposures = ?, partial = ?,"
                " datasets = ?, shutter_close_tai = ?, ended_tai = ?, no_return = ?, seen = ?"
                f" WHERE {_IS_KEY}",
                (
                    _stages(entry),
                    json.dumps(entry.figures),
                    entry.outcome,
                    entry.reason,
                    entry.retriable,
                    entry.final,
                    entry.pipeline,
                    entry.engine,
                    entry.slot,
                    entry.pid,
                    json.dumps(entry.exposures),
                    entry.partial,
                    entry.datasets,
                    entry.shutter_close_tai,
                    entry.ended_tai,
                    entry.no_return,
                    json.dumps(entry.seen),
                    *entry.key,
                ),
            ).rowcount
            if not changed:
                raise RowMissing(f"the journal has no row of {entry.key}")

    def exported(self, keys: Sequence[Key], tai: float) -> None:
        """Note that these rows' outputs are in the central repo.

        Parameters
        ----------
        keys : `~collections.abc.Sequence` [`~ppdaemon.node.slots.assignment.Key`]
            Which rows.
        tai : `float`
            When, TAI seconds since 1970.
        """
        with self.transaction():
            self._db.executemany(
                f"UPDATE attempt SET stages = json_set(stages, '$.central', ?) WHERE {_IS_KEY}",
                [(tai, *key) for key in keys],
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

    def unfinished(self) -> list[Entry]:
        """Return the attempts that no outcome of their visit-detector follows.

        Returns
        -------
        entries : `list` [`Entry`]
            The oldest first; the last attempt of each visit-detector.
        """
        rows = self._db.execute(
            "SELECT instrument, grp, detector, attempt, visit, received_tai, stages, exposures,"
            " shutter_close_tai, no_return, slot, pid, asked FROM attempt AS this"
            " WHERE final = 0 AND NOT EXISTS (SELECT 1 FROM attempt AS next"
            " WHERE next.instrument = this.instrument AND next.grp = this.grp"
            " AND next.detector = this.detector AND next.attempt > this.attempt) ORDER BY rowid"
        )
        return [
            Entry(
                key=Key(*row[:4]),
                visit=NextVisit.model_validate_json(row[4]),
                received_tai=row[5],
                stages=_read_stages(row[6]),
                exposures=tuple(json.loads(row[7])),
                shutter_close_tai=row[8],
                no_return=row[9],
                slot=row[10],
                pid=row[11],
                asked=row[12],
            )
            for row in rows
        ]

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
        rows = self._db.execute(
            "SELECT instrument, grp, detector, max(attempt, asked), outcome, reason FROM attempt"
            " WHERE final = 1 AND reported = 0 ORDER BY rowid LIMIT ?",
            (limit,),
        )
        return [
            ResultEntry(
                instrument=row[0],
                group=row[1],
                detector=row[2],
                attempt=row[3],
                outcome=row[4],
                reason=row[5],
            )
            for row in rows
        ]

    def reported(self, keys: Sequence[tuple[str, str, int, int]]) -> None:
        """Note that the relay has these outcomes.

        Parameters
        ----------
        keys : `~collections.abc.Sequence` [`tuple`]
            Instrument, group, detector and attempt of each, as they were told.
        """
        with self.transaction():
            self._db.executemany(
                "UPDATE attempt SET reported = 1"
                f" WHERE final = 1 AND {_IS_PLACE} AND max(attempt, asked) = ?",
                keys,
            )

    def unreport(self, keys: Sequence[Key]) -> None:
        """Have these visit-detectors' outcomes told once more.

        Parameters
        ----------
        keys : `~collections.abc.Sequence` [`~ppdaemon.node.slots.assignment.Key`]
            Which, and the attempt that the relay asked for: it may count
            other attempts than the node does.
        """
        with self.transaction():
            self._db.executemany(
                f"UPDATE attempt SET reported = 0, asked = ? WHERE final = 1 AND {_IS_PLACE}"
                f" AND attempt = (SELECT max(attempt) FROM attempt WHERE {_IS_PLACE})",
                [(key.attempt, *key[:3], *key[:3]) for key in keys],
            )

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
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM attempt {where} ORDER BY rowid DESC LIMIT ?", (*values, limit)
        )
        return [_visit_row(row) for row in rows]

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
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM attempt WHERE grp = ? ORDER BY instrument, detector, attempt", (group,)
        )
        return [_visit_row(row) for row in rows]


def _stages(entry: Entry) -> str:
    return json.dumps(entry.stages)


def _read_stages(text: str) -> dict[Stage, float]:
    return {Stage(name): tai for name, tai in json.loads(text).items()}


def _visit_row(row: tuple[object, ...]) -> VisitRow:
    names = (name.strip() for name in _COLUMNS.split(","))
    values = dict(zip(names, row, strict=True))
    values["group"] = values.pop("grp")
    values["exposures"] = json.loads(str(values["exposures"]))
    values["stages"] = json.loads(str(values["stages"]))
    values["figures"] = json.loads(str(values["figures"]))
    return VisitRow.model_validate(values)
