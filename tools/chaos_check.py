# SPDX-License-Identifier: BSD-3-Clause
"""Check a chaos run: compare accepted visits, journal, permanent writes and exports.

`find_violations` is pure. It relies on the relay's records and the traces on
disk, and finds where the daemon's journal contradicts them.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ppdaemon.folders import NodeFolders
from ppdaemon.reports import StatusReport
from ppdaemon.retries import HANDED_BACK
from ppdaemon.states import BAD_OUTCOMES, Outcome
from ppdaemon.testing.played import VisitDetector

LATE = frozenset({Outcome.PREPARE_TIMEOUT, Outcome.RUN_TIMEOUT, Outcome.EXPORT_TIMEOUT})
"""Outcomes that may also happen without a fault, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken guarantee."""

    kind: str
    """``lost``, ``doubled``, ``leaked`` or ``wrong``."""
    description: str
    key: VisitDetector | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the journal."""

    key: VisitDetector
    attempt: int
    outcome: Outcome | None
    reason: str
    final: bool
    retriable: bool
    pid: int | None
    no_return: str

    def __str__(self) -> str:
        final = "final" if self.final else "not final"
        no_return = f", past {self.no_return}" if self.no_return else ""
        retriable = ", retriable" if self.retriable else ""
        return (
            f"attempt {self.attempt}: {self.outcome} ({self.reason}), {final}{retriable}{no_return}, "
            f"worker {self.pid}"
        )


@dataclass(frozen=True, slots=True)
class ReceivedOutcome:
    """An outcome that the relay received for a visit-detector."""

    outcome: Outcome
    attempt: int


@dataclass(frozen=True, slots=True)
class RunRecords:
    """The records of a run."""

    accepted: frozenset[VisitDetector]
    received: Mapping[VisitDetector, Sequence[ReceivedOutcome]]
    rows: Sequence[Row]
    writes: Mapping[VisitDetector, int] | None
    """Number of permanent writes; `None` if they cannot be counted."""
    exports: Mapping[VisitDetector, Sequence[int]] | None
    """Attempts whose outputs are in the central repo; `None` if they are not known."""
    reasons: Mapping[VisitDetector, Sequence[str]] = field(default_factory=dict)
    """Faults that a visit-detector had, which may explain its outcome."""
    harmed_pids: frozenset[int] = frozenset()
    """Pids of workers that were killed or stopped."""
    raw_in_time: frozenset[VisitDetector] = frozenset()
    """Visit-detectors whose raws were written well before the end of the wait."""
    refused: Mapping[VisitDetector, str] = field(default_factory=dict)
    """Visit-detectors that the node refused for good; there is no reason to do so."""


def is_quiet(status: StatusReport | None) -> bool:
    """Return whether a daemon has no open work and can be stopped.

    One that is starting has not read the leftovers of the previous run yet.
    """
    if status is None or status.state not in ("running", "degraded"):
        return False
    return not (status.open_visits or status.spooled)


def read_rows(journal: Path) -> list[Row]:
    """Read the rows of a journal (SQLite) in the order of writing."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        found = db.execute(
            "SELECT grp, detector, attempt, outcome, reason, final, retriable, pid, no_return"
            " FROM attempt ORDER BY rowid"
        ).fetchall()
    return [
        Row(
            key=(group, detector),
            attempt=attempt,
            outcome=Outcome(outcome) if outcome else None,
            reason=reason,
            final=bool(final),
            retriable=bool(retriable),
            pid=pid,
            no_return=no_return,
        )
        for group, detector, attempt, outcome, reason, final, retriable, pid, no_return in found
    ]


def read_writes(folder: Path) -> dict[VisitDetector, int]:
    """Count the permanent writes of scripted workers: one byte each."""
    writes = {}
    for path in folder.iterdir() if folder.exists() else ():
        group, _, detector = path.name.rpartition("~")
        writes[group, int(detector)] = path.stat().st_size
    return writes


def read_exports(names: Iterable[str]) -> dict[VisitDetector, list[int]]:
    """Return the exported attempts, from the names of their spools."""
    exports: dict[VisitDetector, list[int]] = defaultdict(list)
    for name in names:
        spooled = NodeFolders.parse_spool_name(name)
        if spooled is not None:
            exports[spooled[1], spooled[2]].append(spooled[3])
    return exports


def find_violations(records: RunRecords) -> list[Violation]:
    """Return the violations; none if every guarantee was met."""
    rows: dict[VisitDetector, list[Row]] = defaultdict(list)
    for row in records.rows:
        rows[row.key].append(row)
    found = [Violation("wrong", f"refused: {reason}", key) for key, reason in sorted(records.refused.items())]
    for key in sorted(records.accepted | rows.keys() | records.received.keys()):
        found += _check_one(key, rows[key], records)
    return found


def _check_one(key: VisitDetector, rows: Sequence[Row], records: RunRecords) -> list[Violation]:
    # What was handed back has ended without an outcome; the next attempt has one.
    finals = [row for row in rows if row.final and not row.reason.startswith(HANDED_BACK)]
    received = {result.outcome for result in records.received.get(key, ())}
    found: list[tuple[str, str]] = []
    if not finals:
        found.append(("lost", f"no final outcome in the journal ({len(rows)} rows)"))
    if finals and any(row.outcome is None for row in rows):
        found.append(("wrong", "an attempt without an outcome beside the final one"))
    if not received:
        found.append(("lost", "the relay received no outcome"))
    if len(finals) > 1:
        found.append(("doubled", f"{len(finals)} final rows"))
    if len(received) > 1:
        found.append(("doubled", f"the relay received different outcomes: {', '.join(sorted(received))}"))
    if len(finals) == 1:
        if received and received != {finals[0].outcome}:
            outcomes = ", ".join(sorted(received))
            found.append(("doubled", f"the relay received {outcomes}, the journal has {finals[0].outcome}"))
        found += _check_traces(key, finals[0], records)
        found += _check_outcome(key, finals[0], rows, records)
    writes = (records.writes or {}).get(key, 0)
    if writes > 1:
        found.append(("doubled", f"{writes} permanent writes"))
    return [Violation(kind, description, key) for kind, description in found]


def _check_traces(key: VisitDetector, final: Row, records: RunRecords) -> list[tuple[str, str]]:
    """Compare an outcome with the files on disk."""
    found = []
    succeeded = final.outcome is Outcome.SUCCEEDED
    if records.writes is not None:
        writes = records.writes.get(key, 0)
        if succeeded and not writes:
            found.append(("lost", "succeeded without its permanent write"))
        if final.retriable and writes:
            found.append(("wrong", "marked as retriable after a permanent write"))
    if records.exports is not None:
        exported = Counter(records.exports.get(key, ()))
        expected = Counter([final.attempt] if succeeded else [])
        if expected - exported:
            found.append(("lost", f"attempt {final.attempt} was not exported"))
        if exported - expected:
            extra = sorted((exported - expected).elements())
            found.append(("doubled", f"exported attempts {extra}, the outcome is {final.outcome}"))
    return found


def _check_outcome(
    key: VisitDetector, final: Row, rows: Sequence[Row], records: RunRecords
) -> list[tuple[str, str]]:
    """Check whether a fault explains the outcome."""
    if final.outcome is Outcome.NO_IMAGE:
        return [("wrong", "no_image, although its raw was written")] if key in records.raw_in_time else []
    if records.reasons.get(key) or any(row.pid in records.harmed_pids for row in rows):
        return []
    if final.outcome in (BAD_OUTCOMES | {Outcome.CANCELLED}) - LATE:
        return [("wrong", f"{final.outcome} ({final.reason}), although it had no fault")]
    return []
