# SPDX-License-Identifier: BSD-3-Clause
"""What operators read in a node's journal, beside the daemon or without it, and the marks of the catch-up.

`ppdaemon.node.visits.journal` writes the file.
"""

import heapq
import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ppdaemon.reports import (
    FALLBACK,
    CatchupState,
    JournalFilter,
    LateRequest,
    LateRow,
    VisitRow,
    VisitsRequest,
    VisitSummariesRequest,
    VisitSummary,
)
from ppdaemon.retries import CATCHUP, QUARANTINED
from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome, Stage, state_of
from ppdaemon.visit import NextVisit

__all__ = (
    "SHADOW_ID",
    "FailedVisit",
    "NightRow",
    "converted",
    "copy_night",
    "count_late_raws",
    "failed_visits",
    "is_shadow",
    "last_attempts",
    "late_raws",
    "mark_catchup",
    "newest_tai",
    "recycled",
    "visit",
    "visit_detectors",
    "visit_summaries",
)

_SHOWN = (
    'instrument, grp AS "group", detector, attempt, survey, outcome, reason, pipeline, engine, slot, pid,'
    " exposures, partial, retriable, datasets, stages, figures, shutter_close_tai, ended_tai,"
    " (SELECT max(no_return) FROM attempt AS any WHERE any.grp = attempt.grp"
    " AND any.instrument = attempt.instrument AND any.detector = attempt.detector) AS no_return"
)
"""Columns of a `~ppdaemon.reports.VisitRow`."""

_READ: dict[str, Callable[[Any], Any]] = {
    "exposures": lambda text: tuple(json.loads(text)),
    "figures": json.loads,
    "late": json.loads,
    "seen": json.loads,
    "final": bool,
    "outcome": lambda text: None if text is None else Outcome(text),
    "partial": bool,
    "reported": bool,
    "stages": lambda text: {Stage(name): tai for name, tai in json.loads(text).items()},
    "visit": NextVisit.model_validate_json,
}
"""Converters of columns that have another type in SQLite."""

_UNUSED = (
    "NOT EXISTS (SELECT 1 FROM attempt AS each, json_each(each.exposures) WHERE each.instrument ="
    " late.instrument AND each.grp = late.grp AND each.detector = late.detector AND value = late.exposure)"
)
"""No attempt has used a late raw."""

_IS_VISIT = "grp = ? AND instrument = ?"
_SUMMARY = (
    "SELECT json_group_object(detector, CASE WHEN outcome = ? AND partial THEN ? ELSE outcome END),"
    " max(json_type(figures, ?)), max(survey), min(received_tai),"
    " max(CASE outcome WHEN ? THEN json_extract(stages, '$.processed') - shutter_close_tai END)"
    " FROM (SELECT detector, outcome, partial, survey, received_tai, stages, figures, shutter_close_tai"
    f" FROM attempt WHERE {_IS_VISIT} ORDER BY detector, attempt)"
)
"""By detector, its state if it is not open; whether a fallback ran, survey, time, and latency."""
_FALLBACKS = (
    "SELECT json_group_object(detector, json_type(figures, ?))"
    f" FROM (SELECT detector, figures FROM attempt WHERE {_IS_VISIT} ORDER BY detector, attempt)"
)
"""By detector, whether a fallback ran."""
_SAME = "{0}.instrument = {1}.instrument AND {0}.grp = {1}.grp AND {0}.detector = {1}.detector"
_IS_LAST = (
    # A canceled one stays final when the relay requests the visit-detector once more.
    "({0}.final = 1 OR {0}.outcome IS NULL) AND ({0}.outcome IS NOT 'cancelled' OR NOT EXISTS"
    f" (SELECT 1 FROM attempt AS next WHERE {_SAME.format('next', '{0}')} AND next.attempt > {{0}}.attempt))"
)
_BEGUN = (
    "one.received_tai >= ?1 AND one.received_tai < ?2 AND one.rowid >= ?3 AND one.rowid < ?4"
    " AND (one.attempt = 1 OR NOT EXISTS (SELECT 1 FROM attempt AS earlier"
    f" WHERE {_SAME.format('earlier', 'one')} AND earlier.received_tai < ?1))"
)
_COUNTED = (
    "{0}.instrument, {0}.grp, {0}.detector, {0}.attempt, {0}.outcome, {0}.exposures, {0}.stages,"
    " {0}.figures, {0}.reason, {0}.survey, {0}.partial, {0}.datasets, {0}.shutter_close_tai,"
    " {0}.pipeline"
)
"""Columns of a `NightRow`."""
_IN_TIME = f"SELECT {_COUNTED.format('one')} FROM attempt AS one WHERE {_BEGUN} AND {_IS_LAST.format('one')}"
_AFTERWARDS = (
    f"SELECT DISTINCT {_COUNTED.format('last')} FROM attempt AS one"
    f" JOIN attempt AS last ON {_SAME.format('last', 'one')}"
    f" WHERE {_BEGUN} AND last.attempt > one.attempt AND last.received_tai >= ?2"
    f" AND NOT ({_IS_LAST.format('one')}) AND {_IS_LAST.format('last')}"
)
"""Last attempts that were made after the time in which the first one was."""

SHADOW_ID = 0x50504453
"""SQLite's ``application_id`` of a journal, or a ledger, of shadow mode; of others it is 0."""
CLOCK_STEP_S = 3600.0
"""Rows are in the order of acceptance, whose times are those of a clock that may have been set."""


class NightRow(NamedTuple):
    """What the report of a night needs of a `~ppdaemon.reports.VisitRow`, not validated: a night has
    200,000, and half of its time would be spent on that.
    """

    instrument: str
    group: str
    detector: int
    attempt: int
    outcome: Outcome | None
    exposures: Sequence[int]
    stages: Mapping[Stage, float]
    figures: Mapping[str, Any]
    reason: str
    survey: str
    partial: bool
    datasets: int
    shutter_close_tai: float | None
    pipeline: str


def converted(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    """Yield each row as a mapping of column names to converted values."""
    names = [column for column, *_ in cursor.description]
    for row in cursor:
        yield {
            name: _READ[name](value) if name in _READ else value
            for name, value in zip(names, row, strict=True)
        }


@dataclass(frozen=True, slots=True)
class FailedVisit:
    """A visit-detector that needs daytime reprocessing."""

    row: VisitRow
    visit: NextVisit
    received_tai: float
    exposures: tuple[int, ...]
    """Exposures whose raws have arrived, used or not, also after the outcome."""


def visit_detectors(db: sqlite3.Connection, request: VisitsRequest) -> list[VisitRow]:
    """Return the attempts that a request selects, the newest first."""
    return [VisitRow(**row) for row in converted(_visit_detectors(db, request, _SHOWN))]


def failed_visits(db: sqlite3.Connection, request: VisitsRequest) -> list[FailedVisit]:
    """Return the visit-detectors that a request selects, with what is needed to process them."""
    more = (
        " visit, received_tai, seen, (SELECT json_group_array(exposure) FROM late WHERE"
        " late.instrument = attempt.instrument AND late.grp = attempt.grp"
        " AND late.detector = attempt.detector) AS late"
    )
    found = []
    for row in converted(_visit_detectors(db, request, f"{_SHOWN},{more}")):
        visit, received_tai, seen, late = (
            row.pop(name) for name in ("visit", "received_tai", "seen", "late")
        )
        exposures = {*row["exposures"], *seen, *late}
        found.append(FailedVisit(VisitRow(**row), visit, received_tai, tuple(sorted(exposures))))
    return found


def _visit_detectors(db: sqlite3.Connection, request: VisitsRequest, columns: str) -> sqlite3.Cursor:
    conditions, values = _selected(db, request)
    if request.failed:
        bad = ", ".join("?" * len(BAD_OUTCOMES))
        conditions.append(
            f"final = 1 AND (outcome IN ({bad})"
            " OR outcome = ? AND json_extract(figures, '$.files_not_taken') > 0"
            # As in the journal's index of them.
            " OR outcome = 'succeeded' AND reason != '' AND reason LIKE ?)"
        )
        values += [*sorted(BAD_OUTCOMES), Outcome.NO_IMAGE, f"{QUARANTINED}%"]
    query = f"SELECT {columns} FROM attempt {_where(conditions)} ORDER BY rowid DESC LIMIT ?"
    return db.execute(query, (*values, request.limit))


def visit(db: sqlite3.Connection, group: str) -> list[VisitRow]:
    """Return all attempts of one group, by instrument, detector and attempt."""
    query = f"SELECT {_SHOWN} FROM attempt WHERE grp = ? ORDER BY instrument, detector, attempt"
    return [VisitRow(**row) for row in converted(db.execute(query, (group,)))]


def late_raws(db: sqlite3.Connection, request: LateRequest) -> list[LateRow]:
    """Return the selected late raws that no attempt has used, the newest first."""
    conditions, values = _selected(db, request, prefix="attempt.", tai="late.seen_tai")
    conditions += [
        _UNUSED,
        "attempt.attempt = (SELECT max(attempt) FROM attempt AS any WHERE any.instrument = late.instrument"
        " AND any.grp = late.grp AND any.detector = late.detector)",
    ]
    rows = converted(
        db.execute(
            'SELECT late.instrument, late.grp AS "group", late.detector, late.exposure, late.path,'
            " late.seen_tai, attempt.attempt, attempt.outcome FROM late JOIN attempt"
            f" USING (instrument, grp, detector) {_where(conditions)}"
            " ORDER BY late.rowid DESC LIMIT ?",
            (*values, request.limit),
        )
    )
    return [LateRow(**row) for row in rows]


def count_late_raws(db: sqlite3.Connection, request: LateRequest | None = None) -> int:
    """Return the number of all late raws that no attempt has used, or of those that a request selects."""
    conditions, values = _selected(db, request or LateRequest(), prefix="late.", tai="late.seen_tai")
    query = f"SELECT count(*) FROM late {_where([*conditions, _UNUSED])}"
    (number,) = db.execute(query, values).fetchone()
    return int(number)


def mark_catchup(
    db: sqlite3.Connection,
    keys: Iterable[tuple[str, str, int, int]],
    state: CatchupState,
    run: str,
    tai: float,
) -> None:
    """Note what the catch-up does with attempts: instrument, group, detector and number of each."""
    value = json.dumps({"state": state, "run": run, "tai": tai})
    db.executemany(
        "UPDATE attempt SET figures = CASE WHEN ? = 'released'"
        f" THEN json_remove(figures, '$.{CATCHUP}') ELSE json_set(figures, '$.{CATCHUP}', json(?)) END"
        " WHERE instrument = ? AND grp = ? AND detector = ? AND attempt = ?",
        [(state, value, *key) for key in keys],
    )


def newest_tai(db: sqlite3.Connection) -> float | None:
    """Return when the newest attempt was accepted; `None` if there is none."""
    row = db.execute("SELECT received_tai FROM attempt ORDER BY rowid DESC LIMIT 1").fetchone()
    return None if row is None else float(row[0])


def last_attempts(db: sqlite3.Connection, begin_tai: float, end_tai: float) -> Iterator[NightRow]:
    """Yield the last attempt at each visit-detector that was accepted first within these times, also if
    it was made later.
    """
    load = json.JSONDecoder().decode
    rows = _row_of(db, begin_tai - CLOCK_STEP_S), _row_of(db, end_tai + CLOCK_STEP_S)
    for query in (_IN_TIME, _AFTERWARDS):
        for values in db.execute(query, (begin_tai, end_tai, *rows)):
            outcome, *texts = values[4:8]
            known = None if outcome is None else Outcome(outcome)
            yield NightRow._make((*values[:4], known, *map(load, texts), *values[8:]))


def copy_night(db: sqlite3.Connection, path: Path, day_obs: int, begin_tai: float, end_tai: float) -> None:
    """Write a night to a new journal with no other: all attempts at visit-detectors that were accepted first
    within these times, late raws, and replaced workers. Raises `sqlite3.Error`.
    """
    rows = _row_of(db, begin_tai - CLOCK_STEP_S), _row_of(db, end_tai + CLOCK_STEP_S)
    selected: dict[str, tuple[str, Sequence[float]]] = {
        "attempt": (
            "(instrument, grp, detector) IN (SELECT one.instrument, one.grp, one.detector"
            f" FROM attempt AS one WHERE {_BEGUN})",
            (begin_tai, end_tai, *rows),
        ),
        "late": ("seen_tai >= ? AND seen_tai < ?", (begin_tai, end_tai)),
        "recycled": ("day_obs = ?", (day_obs,)),
    }
    with closing(sqlite3.connect(path, autocommit=True)) as copy:
        copy.execute("BEGIN")
        # Tables before their indexes; those of SQLite itself come with them.
        for name, sql in db.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
            " ORDER BY rowid"
        ):
            copy.execute(sql)
            if name in selected:
                condition, values = selected[name]
                found = db.execute(f"SELECT * FROM {name} WHERE {condition} ORDER BY rowid", values)
                marks = ", ".join("?" * len(found.description))
                copy.executemany(f"INSERT INTO {name} VALUES ({marks})", found)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        copy.execute(f"PRAGMA user_version = {version}")
        copy.execute(f"PRAGMA application_id = {SHADOW_ID if is_shadow(db) else 0}")
        copy.execute("COMMIT")


def is_shadow(db: sqlite3.Connection) -> bool:
    """Return whether the journal is that of a node in shadow mode."""
    return bool(db.execute("PRAGMA application_id").fetchone()[0] == SHADOW_ID)


def recycled(db: sqlite3.Connection, day_obs: int) -> dict[str, int]:
    """Return how many workers were replaced in a night, by cause."""
    return dict(db.execute("SELECT cause, count FROM recycled WHERE day_obs = ? ORDER BY cause", (day_obs,)))


def visit_summaries(db: sqlite3.Connection, request: VisitSummariesRequest) -> list[VisitSummary]:
    """Return the visits of which at least one attempt is selected, the newest first: in the order in which
    they were accepted, whatever was tried again since then.
    """
    conditions, values = _selected(db, request)
    query = (
        f"SELECT grp, instrument, rowid FROM attempt {_where([*conditions, 'rowid < ?'])} ORDER BY rowid DESC"
    )
    first_rows: dict[tuple[str, str], int] = {}
    newest: list[int] = []  # a heap of the first rows of those that are returned
    # Row by row: no index has only the visits.
    rows = db.execute(query, (*values, sys.maxsize))
    while (found := next(rows, None)) is not None:
        group, instrument, row = found
        if (group, instrument) in first_rows:
            continue
        if len(newest) == request.limit and row < newest[0]:
            break  # what comes now was accepted before all of these
        first, number = db.execute(
            f"SELECT min(rowid), count(*) FROM attempt WHERE {_IS_VISIT} AND rowid <= ?",
            (group, instrument, row),
        ).fetchone()
        first_rows[group, instrument] = first
        heapq.heappush(newest, first)
        if len(newest) > request.limit:
            heapq.heappop(newest)
        if not conditions and number == row - first + 1:
            # Some 200 rows that follow each other. With conditions each query could sort all that it finds.
            rows = db.execute(query, (first,))
    visits = heapq.nlargest(request.limit, first_rows, key=first_rows.__getitem__)
    return [_summary(db, instrument, group) for group, instrument in visits]


def _summary(db: sqlite3.Connection, instrument: str, group: str) -> VisitSummary:
    key = (group, instrument)
    # By SQLite: 1,000 visits have 205,000 rows. Of two attempts the later one is that in the mapping.
    row = db.execute(
        _SUMMARY, (Outcome.SUCCEEDED, PARTIAL, f"$.{FALLBACK}", Outcome.SUCCEEDED, *key)
    ).fetchone()
    text, fallback, survey, received_tai, slowest_s = row
    detectors: dict[int, str] = {int(detector): state for detector, state in json.loads(text).items()}
    if None in detectors.values():
        for detector, stages in db.execute(
            f"SELECT detector, stages FROM attempt WHERE {_IS_VISIT} AND outcome IS NULL", key
        ):
            detectors[detector] = state_of(None, map(Stage, json.loads(stages)), partial=False)
    first, reason = None, ""
    if not BAD_OUTCOMES.isdisjoint(detectors.values()):
        first = min(detector for detector, state in detectors.items() if state in BAD_OUTCOMES)
        (reason,) = db.execute(
            f"SELECT reason FROM attempt WHERE {_IS_VISIT} AND detector = ? ORDER BY attempt DESC LIMIT 1",
            (*key, first),
        ).fetchone()
        reason = reason or detectors[first]
    number = 0
    if fallback is not None:
        (text,) = db.execute(_FALLBACKS, (f"$.{FALLBACK}", *key)).fetchone()
        number = sum(kind is not None for kind in json.loads(text).values())
    return VisitSummary(
        instrument=instrument,
        group=group,
        survey=survey,
        received_tai=received_tai,
        detectors=detectors,
        slowest_s=slowest_s,
        failed_detector=first,
        reason=reason,
        fallbacks=number,
    )


def _where(conditions: Iterable[str]) -> str:
    joined = " AND ".join(conditions)
    return f"WHERE {joined}" if joined else ""


def _selected(
    db: sqlite3.Connection, request: JournalFilter, *, prefix: str = "", tai: str = "received_tai"
) -> tuple[list[str], list[object]]:
    """Return the conditions of a filter, and their values."""
    conditions: list[str] = []
    values: list[object] = []

    def add(condition: str, *those: object) -> None:
        conditions.append(condition)
        values.extend(those)

    def add_one_of(column: str, those: Sequence[object]) -> None:
        add(f"{prefix}{column} IN ({', '.join('?' * len(those))})", *those)

    for limit_tai, comparison, step_s in (
        (request.since_tai, ">=", -CLOCK_STEP_S),
        (request.until_tai, "<", CLOCK_STEP_S),
    ):
        if limit_tai is not None:
            add(f"{tai} {comparison} ?", limit_tai)
            if not prefix:  # the table of attempts is large
                add(f"rowid {comparison} ?", _row_of(db, limit_tai + step_s))
    if request.instrument is not None:
        add(f"{prefix}instrument = ?", request.instrument)
    if request.group is not None:
        add(f"{prefix}grp = ?", request.group)
    if request.group_prefix is not None:
        # As a range, for which there is an index.
        add(f"{prefix}grp >= ?", request.group_prefix)
        add(f"{prefix}grp < ?", request.group_prefix + "\U0010ffff")
    if request.survey is not None:
        add(f"{prefix}survey = ?", request.survey)
    if request.detectors is not None:
        add_one_of("detector", request.detectors)
    if request.outcomes:
        add_one_of("outcome", request.outcomes)
    return conditions, values


def _row_of(db: sqlite3.Connection, tai: float) -> int:
    """Return the number of the first row that was accepted at or after a time, or of the next row to come;
    by bisection: an index by time would cost each write.
    """
    first, last = db.execute(
        "SELECT coalesce(min(rowid), 0), coalesce(max(rowid) + 1, 0) FROM attempt"
    ).fetchone()
    while first < last:
        middle = (first + last) // 2
        row, received = db.execute(
            "SELECT rowid, received_tai FROM attempt WHERE rowid >= ? ORDER BY rowid LIMIT 1", (middle,)
        ).fetchone()
        if received < tai:
            first = row + 1
        else:
            last = middle
    return int(first)
