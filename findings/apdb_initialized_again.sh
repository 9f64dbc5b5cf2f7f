#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# An APDB that is initialized a second time gets other settings and versions for its old tables.
#
# Package:  lsst-dax-apdb 30.2026.4100, lsst-sdm-schemas 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    ApdbSql.init_database, which `apdb-cli create-sql` calls, without drop, for a database that has data: a
#           deployment that is repeated with new defaults, or with the schema of a newer release.
# Expected: an error: it is to "initialize new APDB instance", and there is drop for an old one. Or nothing changes:
#           settings that fit the tables are frozen in the database, so that no client has others.
# Seen:     no error and no warning. Tables that exist are left as they are, and the frozen settings and versions are
#           overwritten. With another htm_level or index, clients that open the database find no object and no source
#           where they are, so that each detection would become a new object. With a newer schema the check of versions
#           refuses the clients that fit the tables, and lets those pass that do not: their reading and storing end in
#           errors of missing columns. The same call with the former settings repairs it.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-dax-apdb==30.2026.4100 lsst-sdm-schemas==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys
from importlib import resources
from pathlib import Path

import yaml
from astropy.time import Time, TimeDelta
from lsst.dax.apdb import Apdb, ApdbTables
from lsst.dax.apdb.sql import ApdbSql
from lsst.sphgeom import Angle, Circle, LonLat, UnitVector3d
from pandas import DataFrame

WORK = Path(sys.argv[1])
URL = f"sqlite:///{WORK}/apdb.db"
FIELD = Circle(UnitVector3d(LonLat.fromDegrees(10.0, 0.0)), Angle.fromDegrees(0.1))
NOW = Time("2026-01-01T00:00:00", scale="tai")
GIVEN = {"pixelId", "validityStartMjdTai"}  # by the APDB


def make_table(apdb: Apdb, table: ApdbTables, **values: float) -> DataFrame:
    """Make a row of a table, with zeros in the other columns that must not be null."""
    columns = apdb.tableDef(table).columns
    needed = {column.name: 0 for column in columns if not column.nullable and column.name not in GIVEN}
    return DataFrame([needed | values])


def result(action: object) -> object:
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def found(config: object) -> object:
    """Open the database as a new client; return how many objects and sources the field has."""
    return result(
        lambda: (
            len((apdb := Apdb.from_config(config)).getDiaObjects(FIELD)),
            len(apdb.getDiaSources(FIELD, None, NOW)),
        )
    )


def store(apdb: Apdb, number: int, **more: int) -> None:
    place = {"ra": 10.0, "dec": 0.0, "diaObjectId": number}
    objects = make_table(apdb, ApdbTables.DiaObject, **place)
    source = {"diaSourceId": number, "midpointMjdTai": NOW.mjd}
    sources = make_table(apdb, ApdbTables.DiaSource, **place, **source, **more)
    apdb.store(NOW + TimeDelta(number, format="sec"), objects, sources)


first = ApdbSql.init_database(db_url=URL)
store(Apdb.from_config(first), 1)
seen = {"first": found(first)}
for name, changed in {"htm_level": 16, "dia_object_index": "last_object_table"}.items():
    seen[name] = found(ApdbSql.init_database(db_url=URL, **{name: changed}))
    seen[f"{name}, with the first configuration"] = found(first)
seen["the former settings again"] = found(ApdbSql.init_database(db_url=URL))

schema = yaml.safe_load(resources.files("lsst.sdm.schemas").joinpath("apdb.yaml").read_text())
major = int(schema["version"].partition(".")[0]) + 1
schema["version"] = f"{major}.0.0"
(sources,) = (table for table in schema["tables"] if table["name"] == "DiaSource")
sources["columns"].append({"name": "extra", "@id": "#DiaSource.extra", "datatype": "long"})
(WORK / "newer.yaml").write_text(yaml.safe_dump(schema))
newer = ApdbSql.init_database(db_url=URL, schema_file=str(WORK / "newer.yaml"))
seen["newer schema"] = found(newer)
seen["newer schema, with the first configuration"] = found(first)
seen["newer schema, store"] = result(lambda: store(Apdb.from_config(newer), 2, extra=1))
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "first": (1, 1),
    "htm_level": (0, 0),
    "htm_level, with the first configuration": (0, 0),
    "dia_object_index": (0, 1),
    "dia_object_index, with the first configuration": (0, 1),
    "the former settings again": (1, 1),
    "newer schema": "OperationalError",
    "newer schema, with the first configuration": "IncompatibleVersionError",
    "newer schema, store": "DatabaseError",
}
sys.exit(0 if seen == expected else 1)
PY
