# SPDX-License-Identifier: BSD-3-Clause
"""A journal as long nights leave it, filled in one transaction with the node's own schema."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ppdaemon.clock import Clock, day_obs
from ppdaemon.node.visits.journal import Journal
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import encode

CADENCE_S = 35.0
"""Between two visits of a survey, seconds."""
FAILS_EVERY = 100
"""One visit-detector of this many has a bad outcome."""
STAGES = {
    "accepted": 0.0,
    "assigned": 0.01,
    "prepared": 9.5,
    "arrived": 68.0,
    "ingested": 68.1,
    "first_task": 68.2,
    "processed": 130.5,
    "spooled": 131.0,
    "central": 134.0,
}
"""Seconds from the acceptance."""
FILL = """
INSERT INTO attempt (instrument, grp, detector, attempt, visit, received_tai, survey, stages, outcome, reason,
    retriable, final, pipeline, engine, slot, pid, exposures, datasets, shutter_close_tai, ended_tai, seen,
    reported)
WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row LIMIT :rows),
visit AS (SELECT n, n / :detectors AS number FROM row),
at AS (SELECT n, number, :last_tai - :cadence_s * ((:rows - 1) / :detectors - number) AS tai FROM visit),
named AS (SELECT *, strftime('%Y-%m-%dT%H:%M:%f', tai, 'unixepoch') AS grp, n % :every = 0 AS bad FROM at)
SELECT :instrument, grp, n % :detectors, 1, replace(:visit, 'GROUP', grp), tai, 'survey',
    (SELECT json_group_object(key, tai + value) FROM json_each(:stages)),
    iif(bad, :failed, :succeeded), iif(bad, 'task subtract: RuntimeError: no template in tract 42', ''), 0, 1,
    '/opt/ap_pipe/ApPipe.yaml', 'direct', n % :detectors, 1000 + n % :detectors, json_array(number), 41,
    tai + 60, tai + 131, json_array(number), 1
FROM named ORDER BY n
"""


def fill(path: Path, rows: int, detectors: int, instrument: str) -> str:
    """Make a journal of rows that end now; return the group of the newest visit."""
    Journal(path).close()
    visit = read_next_visit({"groupId": "GROUP", "instrument": instrument, "survey": "survey", "nimages": 1})
    with closing(sqlite3.connect(path)) as db:
        # One wait for the disk, at the end: else the first checkpoint of a program that is measured would
        # wait until 900 MB of a million rows are written.
        db.execute("PRAGMA synchronous = OFF")
        with db:
            db.execute(FILL, _values(rows, detectors, instrument, encode(visit).decode()))
        (group,) = db.execute("SELECT grp FROM attempt ORDER BY rowid DESC LIMIT 1").fetchone()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return str(group)


def _values(rows: int, detectors: int, instrument: str, visit: str) -> dict[str, object]:
    values: dict[str, object] = {"rows": rows, "detectors": detectors, "instrument": instrument}
    values |= {"last_tai": Clock().tai() - 200, "cadence_s": CADENCE_S, "every": FAILS_EVERY, "visit": visit}
    return values | {
        "stages": str(STAGES).replace("'", '"'),
        "failed": Outcome.FAILED,
        "succeeded": Outcome.SUCCEEDED,
    }


def night_of() -> str:
    """Return the night of the newest rows, as ``--night`` takes it."""
    return str(day_obs(Clock().tai() - 200))
