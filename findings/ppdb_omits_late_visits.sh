#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A visit that is stored late in the APDB is never replicated to the PPDB, also with --update.
#
# Package:  lsst-dax-ppdb 30.2026.1430, lsst-dax-apdb 30.2026.4100, with Python 3.13. Date: 2026-11-30.
# Where:    Apdb.store(visit_time, ...), "Time of the visit", puts sources into a chunk by that time.
#           Replicator.run, or `ppdb-replication run --update`, after this chunk was replicated.
# Expected: the new unique_id of the chunk ("updated on each new store ... so that it can be verified
#           on PPDB side") leads to another copy, at least with update=True ("allow updates to
#           previously replicated data"); or replication stops with an error.
# Seen:     a UserWarning "Inconsistent values of unique ID", then the chunk is left out because its
#           number is known, whatever `update` is. The sources of the late visit are in the APDB
#           only; replication goes on with later chunks. Sources are safe if visit_time is the time
#           of storing.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-dax-ppdb==30.2026.1430 lsst-dax-apdb==30.2026.4100
"$work/venv/bin/python" - "$work" <<'PY'
import sqlite3
import sys
import warnings
from pathlib import Path

import pandas
from astropy.time import Time
from lsst.dax.apdb import Apdb, ApdbReplica, ApdbTables
from lsst.dax.apdb.sql import ApdbSql
from lsst.dax.ppdb import Ppdb
from lsst.dax.ppdb.replicator import Replicator
from lsst.dax.ppdb.sql import PpdbSql

files = {name: Path(sys.argv[1], f"{name}.sqlite3") for name in ("apdb", "ppdb")}
config = ApdbSql.init_database(db_url=f"sqlite:///{files['apdb']}", ss_schema_file="", enable_replica=True)
apdb, replica = Apdb.from_config(config), ApdbReplica.from_config(config)
ppdb = Ppdb.from_config(PpdbSql.init_database(db_url=f"sqlite:///{files['ppdb']}"))


def catalog(table: ApdbTables, number: int, **values: object) -> pandas.DataFrame:
    columns = {column.name: 0 for column in apdb.tableDef(table).columns if not column.nullable}
    columns |= {"diaObjectId": number, "ra": 10.0, "dec": 0.0} | values
    return pandas.DataFrame([columns]).drop(columns="pixelId")


def store(number: int, isot: str) -> None:
    time = Time(isot, scale="tai")
    ids = {"diaSourceId": number, "visit": number, "midpointMjdTai": time.mjd}
    apdb.store(time, catalog(ApdbTables.DiaObject, number), catalog(ApdbTables.DiaSource, number, **ids))


def replicate(update: bool) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        Replicator(replica, ppdb, update, min_wait_time=300, max_wait_time=900, check_interval=1).run(
            exit_on_empty=True
        )
    texts = {str(each.message)[:32] for each in caught if each.category is UserWarning}
    return ", ".join(sorted(texts)) or "no warning"


def visits(name: str) -> list[int]:
    with sqlite3.connect(files[name]) as connection:
        return [row[0] for row in connection.execute('SELECT visit FROM "DiaSource" ORDER BY visit')]


store(1, "2026-01-01T00:00:00")
store(2, "2026-01-01T01:00:00")
seen = [(replicate(False), visits("apdb"), visits("ppdb"))]
store(3, "2026-01-01T00:00:35")  # in the same ten minutes as the first
store(4, "2026-01-01T02:00:00")
for update in (False, True):
    seen.append((replicate(update), visits("apdb"), visits("ppdb")))
for warning, stored, replicated in seen:
    print(f"{warning}; visits in the APDB {stored}, in the PPDB {replicated}")
omitted = ("Inconsistent values of unique ID", [1, 2, 3, 4], [1, 2, 4])
sys.exit(0 if seen == [("no warning", [1, 2], [1, 2]), omitted, omitted] else 1)
PY
