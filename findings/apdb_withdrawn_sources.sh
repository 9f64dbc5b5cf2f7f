#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Sources that are withdrawn from the APDB are returned to the next visit as if they were valid.
#
# Package:  lsst-dax-apdb 30.2026.4100, with Python 3.13. Date: 2026-11-30.
# Where:    Apdb.withdrawDiaSources and withdrawDiaForcedSources, for a visit with bad data that was
#           processed; then a visit of the same field, which reads the history of its objects.
# Expected: a source that the schema calls "marked invalid" is left out by getDiaSources,
#           getDiaSourcesForDiaObjects and getDiaForcedSources, as an object is left out by getDiaObjects
#           from the end of its validity on; its object does not count it. Or there is a parameter.
# Seen:     all three return it, in each way of searching. It is in the history of the packets that are made
#           next, and in nDiaSources of its object, which stays in getDiaObjects although no valid source is
#           left. containsVisitDetector is true: the visit, processed again, looks stored. The one sign is a
#           value in the column timeWithdrawnMjdTai: a reader has to filter by it, and to count again.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-dax-apdb==30.2026.4100
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys
from pathlib import Path

import pandas
from astropy.time import Time
from lsst.dax.apdb import Apdb, ApdbTables, DiaForcedSourceId, DiaObjectId, DiaSourceId
from lsst.dax.apdb.sql import ApdbSql
from lsst.sphgeom import Angle, Circle, LonLat, UnitVector3d

REGION = Circle(UnitVector3d(LonLat.fromDegrees(10.0, 0.0)), Angle.fromDegrees(1.0))
PLACE = {"ra": 10.0, "dec": 0.0}
FIRST, BAD, NEXT = (Time(f"2026-01-01T00:0{minute}:00", scale="tai") for minute in range(3))


def rows(apdb: Apdb, table: ApdbTables, **values: object) -> pandas.DataFrame:
    last = {column.name for column in apdb.tableDef(ApdbTables.DiaObjectLast).columns}
    required = {
        column.name: 0.0
        for column in apdb.tableDef(table).columns
        if not column.nullable or (table is ApdbTables.DiaObject and column.name in last)
    }
    for filled_by_store in ("pixelId", "validityStartMjdTai"):
        required.pop(filled_by_store, None)
    return pandas.DataFrame([required | PLACE | values])


def store(apdb: Apdb, time: Time, visit: int, count: int) -> None:
    image = {"visit": visit, "detector": 1, "midpointMjdTai": time.mjd, "diaObjectId": 1}
    apdb.store(
        time,
        rows(apdb, ApdbTables.DiaObject, diaObjectId=1, nDiaSources=count),
        rows(apdb, ApdbTables.DiaSource, diaSourceId=visit, **image),
        rows(apdb, ApdbTables.DiaForcedSource, diaForcedSourceId=visit, **image),
    )


def read(apdb: Apdb) -> dict[str, list]:
    """Return the visits that each method returns, and the objects with their count of sources."""
    tables = {
        "getDiaSources": apdb.getDiaSources(REGION, None, NEXT),
        "getDiaSources of objects": apdb.getDiaSources(REGION, [1], NEXT),
        "getDiaSourcesForDiaObjects": apdb.getDiaSourcesForDiaObjects(
            [DiaObjectId(diaObjectId=1, **PLACE)], FIRST
        ),
        "getDiaForcedSources": apdb.getDiaForcedSources(REGION, [1], NEXT),
    }
    seen = {name: sorted(table["visit"].tolist()) for name, table in tables.items()}
    marked = tables["getDiaSources"].dropna(subset=["timeWithdrawnMjdTai"])
    seen["marked"] = sorted(marked["visit"].tolist())
    seen["counts of objects"] = [int(count) for count in apdb.getDiaObjects(REGION)["nDiaSources"]]
    seen["visits contained"] = [visit for visit in (1, 2, 3) if apdb.containsVisitDetector(visit, 1)]
    return seen


unchanged = True
for index in ("baseline", "last_object_table"):
    file = Path(sys.argv[1], f"{index}.sqlite3")
    apdb = Apdb.from_config(
        ApdbSql.init_database(db_url=f"sqlite:///{file}", ss_schema_file="", dia_object_index=index)
    )
    store(apdb, FIRST, 1, 1)
    store(apdb, BAD, 2, 2)
    before = read(apdb)
    time = {"midpointMjdTai": BAD.mjd}
    apdb.withdrawDiaSources([DiaSourceId(diaSourceId=2, **PLACE, **time)])
    forced = {"diaObjectId": 1, "visit": 2, "detector": 1}
    apdb.withdrawDiaForcedSources([DiaForcedSourceId(**forced, **PLACE, **time)])
    after = read(apdb)
    apdb.withdrawDiaSources([DiaSourceId(diaSourceId=1, **PLACE, midpointMjdTai=FIRST.mjd)])
    none_left = read(apdb)
    closed = apdb.setValidityEnd([DiaObjectId(diaObjectId=1, **PLACE)], NEXT)
    objects = len(apdb.getDiaObjects(REGION))
    print(f"{index}: {before}\n    withdrawn: {after}\n    all withdrawn: {none_left}")
    print(f"    {closed} validity ended: {objects} objects")
    unchanged &= set(map(tuple, list(before.values())[:4])) == {(1, 2)}
    unchanged &= before["marked"] == [] and before | {"marked": [2]} == after
    unchanged &= before | {"marked": [1, 2]} == none_left and (closed, objects) == (1, 0)
sys.exit(0 if unchanged else 1)
PY
