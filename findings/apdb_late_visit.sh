#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# An APDB that stores a visit late takes the older state of its objects for the last one.
#
# Package:  lsst-dax-apdb 30.2026.4100, with Python 3.13. Date: 2026-11-30.
# Where:    Apdb.store(visit_time, ...), "Time of the visit", for visits that end in another order
#           than they were taken in: a repeated visit, or one of the daytime.
# Expected: validity follows visit_time: the late visit gets the interval between its neighbors, and
#           getDiaObjects returns the state of the newest visit.
# Seen:     the interval that was open is closed with the late visit's time, before its own start,
#           and the late visit's is open from then on: intervals overlap, one is negative.
#           getDiaObjects and DiaObjectLast have the older state. No error, no warning. Only times
#           that grow from call to call are safe, as the time of storing.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-dax-apdb==30.2026.4100
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sqlite3
import sys
from pathlib import Path

import pandas
from astropy.time import Time
from lsst.dax.apdb import Apdb, ApdbTables
from lsst.dax.apdb.sql import ApdbSql
from lsst.sphgeom import Angle, Circle, LonLat, UnitVector3d

REGION = Circle(UnitVector3d(LonLat.fromDegrees(10.0, 0.0)), Angle.fromDegrees(1.0))
ORDER = (1, 3, 2)  # minutes; the number of sources of the object grows with them


def seen(index: str) -> tuple[int, list[tuple]]:
    """Return the sources of the object that is returned, and of all its states, with their validity."""
    file = Path(sys.argv[1], f"{index}.sqlite3")
    apdb = Apdb.from_config(
        ApdbSql.init_database(db_url=f"sqlite:///{file}", ss_schema_file="", dia_object_index=index)
    )
    last_columns = {column.name for column in apdb.tableDef(ApdbTables.DiaObjectLast).columns}
    columns = apdb.tableDef(ApdbTables.DiaObject).columns
    required = {each.name: 0.0 for each in columns if not each.nullable or each.name in last_columns}
    del required["validityStartMjdTai"], required["pixelId"]
    for minute in ORDER:
        row = required | {"diaObjectId": 1, "ra": 10.0, "dec": 0.0, "nDiaSources": minute}
        apdb.store(Time(f"2026-01-01T00:0{minute}:00", scale="tai"), pandas.DataFrame([row]))
    (last,) = apdb.getDiaObjects(REGION)["nDiaSources"]
    with sqlite3.connect(file) as connection:
        states = connection.execute(
            "SELECT nDiaSources, (validityEndMjdTai - validityStartMjdTai) * 1440"
            ' FROM "DiaObject" ORDER BY nDiaSources'
        ).fetchall()
    return int(last), [(count, minutes if minutes is None else round(minutes)) for count, minutes in states]


unchanged = True
for index in ("baseline", "last_object_table"):
    last, states = seen(index)
    print(f"{index}: the object has {last} sources; states (sources, minutes valid): {states}")
    unchanged &= last == 2 and states == [(1, 2), (2, None), (3, -1)]
sys.exit(0 if unchanged else 1)
PY
