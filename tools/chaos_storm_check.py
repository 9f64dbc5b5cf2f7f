# SPDX-License-Identifier: BSD-3-Clause
"""Check a storm over several nodes: compare ledger, all journals, permanent writes and exports. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos_check import Row, Violation

from ppdaemon.states import Outcome
from ppdaemon.testing.played import VisitDetector

OF_THE_RELAY = frozenset({Outcome.CANCELLED, Outcome.EXPIRED, Outcome.INTERRUPTED})
"""Outcomes that the relay may decide for a visit-detector that no node has processed."""
GIVEN_AWAY = ("withdrawn", "handed back")
"""Beginnings of reasons with which a journal ends what the relay has ended or given to another node."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What the relay answers about a visit-detector."""

    node: str | None
    outcome: Outcome | None
    reason: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.outcome} ({self.reason}) of {self.node}, attempt {self.attempt}"


@dataclass(frozen=True, slots=True)
class StormRecords:
    """The records of a storm; those of a node by its name."""

    accepted: frozenset[VisitDetector]
    ledger: Mapping[VisitDetector, LedgerEntry]
    journals: Mapping[str, Sequence[Row]]
    writes: Mapping[str, Mapping[VisitDetector, int]]
    exports: Mapping[str, Mapping[VisitDetector, Sequence[int]]]
    """Attempts whose outputs are in the central repo."""


def find_storm_violations(records: StormRecords) -> list[Violation]:
    """Return the violations; none if every guarantee was met."""
    finals: dict[VisitDetector, dict[str, Row]] = {}
    known = set(records.accepted)
    for node, rows in records.journals.items():
        for row in rows:
            known.add(row.key)
            if row.final and not row.reason.startswith(GIVEN_AWAY):
                finals.setdefault(row.key, {})[node] = row  # the last one: it may have come back
    found: list[Violation] = []
    for key in sorted(known):
        found += [
            Violation(kind, text, key)
            for kind, text in (
                *_check_ledger(records.ledger.get(key), finals.get(key, {})),
                *_check_traces(key, records),
            )
        ]
    return found


def _check_ledger(entry: LedgerEntry | None, finals: Mapping[str, Row]) -> list[tuple[str, str]]:
    """Compare the relay's outcome with the journals."""
    if entry is None:
        return [("lost", "the ledger does not have it")]
    if entry.outcome is None:
        return [("open", f"no outcome in the ledger; the journals have {_texts(finals)}")]
    found = [
        ("wrong", f"{node} has succeeded, the ledger has {entry}")
        for node, row in finals.items()
        if row.outcome is Outcome.SUCCEEDED and (entry.node, entry.outcome) != (node, row.outcome)
    ]
    final = finals.get(entry.node or "")
    if final is not None and final.outcome != entry.outcome:
        found.append(("wrong", f"the ledger has {entry}, the journal of {entry.node} {final}"))
    elif final is None and entry.outcome not in OF_THE_RELAY:
        found.append(("wrong", f"the ledger has {entry}, the journals {_texts(finals)}"))
    return found


def _check_traces(key: VisitDetector, records: StormRecords) -> list[tuple[str, str]]:
    """Compare the outcome with the files on disk."""
    writes = Counter({node: each[key] for node, each in records.writes.items() if each.get(key)})
    exports = Counter({node: len(each[key]) for node, each in records.exports.items() if each.get(key)})
    entry = records.ledger.get(key)
    found = []
    for what, counts in (("permanent writes", writes), ("exports", exports)):
        if counts.total() > 1:
            found.append(("doubled", f"{counts.total()} {what}: {dict(counts)}"))
        elif counts and entry is not None and entry.outcome and entry.node not in counts:
            found.append(("wrong", f"{what} of {', '.join(counts)}, the ledger has {entry}"))
        if not counts and entry is not None and entry.outcome is Outcome.SUCCEEDED:
            found.append(("lost", f"succeeded without {what}"))
    return found


def _texts(finals: Mapping[str, Row]) -> str:
    return "; ".join(f"{node}: {row}" for node, row in finals.items()) or "nothing"
