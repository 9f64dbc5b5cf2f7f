# SPDX-License-Identifier: BSD-3-Clause
"""The judge of a chaos run: compares promises, journal, permanent writes, exports.

`judge` is pure; it trusts the relay's list of promises and the traces on disk,
and tells where the daemon's own journal contradicts them.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ppdaemon.folders import NodeFolders
from ppdaemon.reports import StatusReport
from ppdaemon.states import BAD_OUTCOMES, Outcome
from ppdaemon.testing.played import VisitDetector

__all__ = (
    "Evidence",
    "Row",
    "Told",
    "Violation",
    "is_quiet",
    "judge",
    "read_exports",
    "read_rows",
    "read_writes",
)

LATE = frozenset({Outcome.PREPARE_TIMEOUT, Outcome.RUN_TIMEOUT, Outcome.EXPORT_TIMEOUT})
"""What may happen to anybody on a computer that is too busy."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    kind: str
    """``lost``, ``doubled``, ``leaked`` or ``wrong``."""
    what: str
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
        said = f", past {self.no_return}" if self.no_return else ""
        retriable = ", retriable" if self.retriable else ""
        return (
            f"attempt {self.attempt}: {self.outcome} ({self.reason}), {final}{retriable}{said}, "
            f"worker {self.pid}"
        )


@dataclass(frozen=True, slots=True)
class Told:
    """What the relay was told of a visit-detector."""

    outcome: Outcome
    attempt: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a run has left to be judged by."""

    promised: frozenset[VisitDetector]
    told: Mapping[VisitDetector, Sequence[Told]]
    rows: Sequence[Row]
    writes: Mapping[VisitDetector, int] | None
    """Permanent writes; `None` where they cannot be counted."""
    exports: Mapping[VisitDetector, Sequence[int]] | None
    """Attempts whose outputs are in the central repo."""
    reasons: Mapping[VisitDetector, Sequence[str]] = field(default_factory=dict)
    """What was done to a visit-detector, and may spoil it."""
    hurt: frozenset[int] = frozenset()
    """Workers that were killed or stopped."""
    raw_in_time: frozenset[VisitDetector] = frozenset()
    """Whose raws landed well before the wait for them ended."""
    refused: Mapping[VisitDetector, str] = field(default_factory=dict)
    """What the node did not take, and never will: there is no reason to."""


def is_quiet(status: StatusReport | None) -> bool:
    """Return whether nothing is under way in a daemon that may be stopped now.

    One that starts does not know yet what the one before has left.
    """
    if status is None or status.state not in ("running", "degraded"):
        return False
    return not (status.open_visits or status.spooled)


def read_rows(journal: Path) -> list[Row]:
    """Read the journal's file.

    Parameters
    ----------
    journal : `pathlib.Path`
        SQLite, as `ppdaemon.node.visits.journal` writes it.

    Returns
    -------
    rows : `list` [`Row`]
        In the order of writing.
    """
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
    """Count the permanent writes of scripted workers: a byte each."""
    writes = {}
    for path in folder.iterdir() if folder.exists() else ():
        group, _, detector = path.name.rpartition("~")
        writes[group, int(detector)] = path.stat().st_size
    return writes


def read_exports(names: Iterable[str]) -> dict[VisitDetector, list[int]]:
    """Return the attempts that were exported, by their spools' names."""
    exports: dict[VisitDetector, list[int]] = defaultdict(list)
    for name in names:
        spooled = NodeFolders.read_spooled(name)
        if spooled is not None:
            exports[spooled[1], spooled[2]].append(spooled[3])
    return exports


def judge(evidence: Evidence) -> list[Violation]:
    """Find what was broken.

    Parameters
    ----------
    evidence : `Evidence`
        What a run has left.

    Returns
    -------
    violations : `list` [`Violation`]
        Empty if every promise was kept.
    """
    rows: dict[VisitDetector, list[Row]] = defaultdict(list)
    for row in evidence.rows:
        rows[row.key].append(row)
    found = [Violation("wrong", f"refused: {why}", key) for key, why in sorted(evidence.refused.items())]
    for key in sorted(evidence.promised | rows.keys() | evidence.told.keys()):
        found += _judge_one(key, rows[key], evidence)
    return found


def _judge_one(key: VisitDetector, rows: Sequence[Row], evidence: Evidence) -> list[Violation]:
    finals = [row for row in rows if row.final]
    told = {said.outcome for said in evidence.told.get(key, ())}
    found: list[tuple[str, str]] = []
    if not finals:
        found.append(("lost", f"no final outcome in the journal ({len(rows)} rows)"))
    if finals and any(row.outcome is None for row in rows):
        found.append(("wrong", "an attempt without an outcome beside the final one"))
    if not told:
        found.append(("lost", "no outcome was told to the relay"))
    if len(finals) > 1:
        found.append(("doubled", f"{len(finals)} final rows"))
    if len(told) > 1:
        found.append(("doubled", f"different outcomes were told: {', '.join(sorted(told))}"))
    if len(finals) == 1:
        if told and told != {finals[0].outcome}:
            found.append(("doubled", f"told {', '.join(sorted(told))}, but journaled {finals[0].outcome}"))
        found += _judge_traces(key, finals[0], evidence)
        found += _judge_outcome(key, finals[0], rows, evidence)
    writes = (evidence.writes or {}).get(key, 0)
    if writes > 1:
        found.append(("doubled", f"{writes} permanent writes"))
    return [Violation(kind, what, key) for kind, what in found]


def _judge_traces(key: VisitDetector, final: Row, evidence: Evidence) -> list[tuple[str, str]]:
    """Compare an outcome with what lies on disk."""
    found = []
    succeeded = final.outcome is Outcome.SUCCEEDED
    if evidence.writes is not None:
        writes = evidence.writes.get(key, 0)
        if succeeded and not writes:
            found.append(("lost", "succeeded without its permanent write"))
        if final.retriable and writes:
            found.append(("wrong", "called retriable after a permanent write"))
    if evidence.exports is not None:
        exported = Counter(evidence.exports.get(key, ()))
        wanted = Counter([final.attempt] if succeeded else [])
        if wanted - exported:
            found.append(("lost", f"attempt {final.attempt} was not exported"))
        if exported - wanted:
            extra = sorted((exported - wanted).elements())
            found.append(("doubled", f"exported attempts {extra}, the outcome is {final.outcome}"))
    return found


def _judge_outcome(
    key: VisitDetector, final: Row, rows: Sequence[Row], evidence: Evidence
) -> list[tuple[str, str]]:
    """Ask whether something was done that explains an outcome."""
    if final.outcome is Outcome.NO_IMAGE:
        return [("wrong", "no_image, though its raw was there")] if key in evidence.raw_in_time else []
    if evidence.reasons.get(key) or any(row.pid in evidence.hurt for row in rows):
        return []
    if final.outcome in (BAD_OUTCOMES | {Outcome.CANCELLED}) - LATE:
        return [("wrong", f"{final.outcome} ({final.reason}), though nothing was done to it")]
    return []
