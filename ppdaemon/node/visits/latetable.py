# SPDX-License-Identifier: BSD-3-Clause
"""Raws that came after the outcome of their visit-detector: a table of the journal.

Belongs to the journal's thread, as the journal does.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from ppdaemon.messages import Raw
from ppdaemon.reports import LateRow
from ppdaemon.states import Outcome
from ppdaemon.visit import parent_group

__all__ = ("SCHEMA", "LateTable")

MOST = 10_000
"""Raws that are kept, the newest: fifty exposures of 205 detectors."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS late (
    instrument TEXT NOT NULL, exposure INTEGER NOT NULL, detector INTEGER NOT NULL, grp TEXT NOT NULL,
    path TEXT NOT NULL, seen_tai REAL NOT NULL,
    PRIMARY KEY (instrument, exposure, detector)
)
"""

_LAST = " FROM attempt WHERE instrument = ? AND grp = ? AND detector = ? ORDER BY attempt DESC LIMIT 1"


class LateTable:
    """Keeps late raws until they are used, or too many.

    Parameters
    ----------
    db : `sqlite3.Connection`
        The journal.
    transaction : `~collections.abc.Callable`
        Begins a transaction there.
    """

    def __init__(self, db: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]):
        self._db = db
        self._transaction = transaction

    def note(self, raws: Sequence[Raw]) -> tuple[int, int]:
        """Keep those raws whose visit-detector had its outcome without them,
        unless nobody wants them.

        Parameters
        ----------
        raws : `~collections.abc.Sequence` [`~ppdaemon.messages.Raw`]
            Raws that no open visit-detector has use for.

        Returns
        -------
        late, unmatched : `int`
            How many came too late, and how many are of visits that were
            never announced. The others were known.
        """
        late = unmatched = 0
        with self._transaction():
            for raw in raws:
                group = parent_group(raw.group)
                last = self._db.execute(
                    f"SELECT final AND outcome != ?, exposures, seen {_LAST}",
                    (Outcome.IGNORED, raw.instrument, group, raw.detector),
                ).fetchone()
                if last is None:
                    unmatched += 1
                elif last[0] and raw.exposure not in (*json.loads(last[1]), *json.loads(last[2])):
                    late += self._add(raw, group)
            self._db.execute("DELETE FROM late WHERE rowid <= (SELECT max(rowid) FROM late) - ?", (MOST,))
        return late, unmatched

    def _add(self, raw: Raw, group: str) -> int:
        return self._db.execute(
            "INSERT OR IGNORE INTO late VALUES (?, ?, ?, ?, ?, ?)",
            (raw.instrument, raw.exposure, raw.detector, group, raw.path, raw.seen_tai),
        ).rowcount

    def rows(self, limit: int) -> list[LateRow]:
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
        found = self._db.execute(
            "SELECT late.instrument, late.grp, late.detector, late.exposure, late.path, late.seen_tai,"
            " max(attempt.attempt), attempt.outcome FROM late JOIN attempt"
            " USING (instrument, grp, detector) GROUP BY late.rowid"
            " HAVING NOT EXISTS (SELECT 1 FROM json_each(attempt.exposures) WHERE value = late.exposure)"
            " ORDER BY late.rowid DESC LIMIT ?",
            (limit,),
        )
        names = ("instrument", "group", "detector", "exposure", "path", "seen_tai", "attempt", "outcome")
        return [LateRow.model_validate(dict(zip(names, row, strict=True))) for row in found]
