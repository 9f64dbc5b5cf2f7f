# SPDX-License-Identifier: BSD-3-Clause
"""Reading the ledger of a relay beside the relay, or without one.

Covers what ``ppctl --relay`` shows of visits. `ppdaemon.relay.ledger` writes the file.
"""

from pathlib import Path

from ppdaemon.reports import RelayDetectorRow, RelayVisitRow
from ppdaemon.sqlitereader import reading
from ppdaemon.states import Outcome

__all__ = ("LEDGER_NAME", "read_visit", "read_visits")

LEDGER_NAME = "ledger.sqlite"
"""The file in the relay's state directory."""

_STATE = (
    "CASE WHEN outcome IS NOT NULL THEN 'ended' WHEN permit IS NOT NULL THEN 'permitted'"
    " WHEN acked_tai IS NOT NULL THEN 'acknowledged' WHEN node IS NOT NULL THEN 'sent' ELSE 'waiting' END"
)


def read_visits(path: Path, limit: int) -> list[RelayVisitRow]:
    """Return the newest visits, the newest first.

    Raises `~ppdaemon.errors.Unavailable` if the file cannot be read.
    """
    rows: dict[int, RelayVisitRow] = {}
    with reading(path) as db:
        query = (
            "SELECT number, instrument, group_id, coalesce(json_extract(content, '$.survey'), ''),"
            f" received_tai, cancelled, ended_tai, {_STATE} AS state, outcome, count(*)"
            " FROM (SELECT * FROM visits ORDER BY number DESC LIMIT ?) JOIN detectors ON visit = number"
            " GROUP BY number, state, outcome ORDER BY number DESC"
        )
        for number, instrument, group, survey, received, cancelled, ended, *counted in db.execute(
            query, (limit,)
        ):
            if number not in rows:
                rows[number] = RelayVisitRow(
                    instrument=instrument,
                    group=group,
                    survey=str(survey),
                    received_tai=received,
                    cancelled=bool(cancelled),
                    ended_tai=ended,
                    detectors=0,
                    open={},
                    outcomes={},
                )
            rows[number] = _counted(rows[number], *counted)
    return list(rows.values())


def _counted(row: RelayVisitRow, state: str, outcome: str | None, number: int) -> RelayVisitRow:
    """Return a row with a number of further detectors in one state."""
    changes: dict[str, object] = {"detectors": row.detectors + number}
    if outcome is None:
        changes["open"] = row.open | {state: number}
    else:
        changes["outcomes"] = row.outcomes | {Outcome(outcome): number}
    return row.model_copy(update=changes)


def read_visit(path: Path, group: str) -> list[RelayDetectorRow]:
    """Return the detectors of a group's visits; an empty list if it is unknown.

    Raises `~ppdaemon.errors.Unavailable` if the file cannot be read.
    """
    with reading(path) as db:
        found = db.execute(
            f"SELECT instrument, detector, {_STATE}, node, attempt, received_tai, acked_tai, outcome,"
            " reason FROM visits JOIN detectors ON visit = number WHERE group_id = ?"
            " ORDER BY instrument, detector",
            (group,),
        ).fetchall()
    return [
        RelayDetectorRow(
            instrument=instrument,
            group=group,
            detector=detector,
            state=state,
            node=node,
            attempt=attempt,
            received_tai=received,
            acknowledged_tai=acked,
            outcome=outcome,
            reason=reason,
        )
        for instrument, detector, state, node, attempt, received, acked, outcome, reason in found
    ]
