#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# An insert that skips an existing record adds the sky pixels of the record that it skips.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    Registry.insertDimensionData("visit", ..., skip_existing=True), as a second host
#           calls it for a visit that the first host has inserted with another region.
# Expected: the stored record is not changed, nor where it is found.
# Seen:     its region stays; rows for the other region are added to visit_skypix_overlap.
#           A query by sky pixel finds the visit in both places. The stored record, inserted
#           again with replace=True, removes these rows.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" - "$work/repo" <<'PY'
import sqlite3
import sys
from pathlib import Path

from lsst.daf.butler import Butler
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
insert = butler.registry.insertDimensionData
insert("instrument", {"name": "Cam", "detector_max": 1, "visit_max": 9, "exposure_max": 9})
insert("physical_filter", {"instrument": "Cam", "name": "r", "band": "r"})
insert("day_obs", {"instrument": "Cam", "id": 20260101})


def visit(ra: float) -> dict:
    corners = [(ra, 0.0), (ra + 0.1, 0.0), (ra + 0.1, 0.1), (ra, 0.1)]
    region = ConvexPolygon([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])
    keys = {"instrument": "Cam", "id": 1, "physical_filter": "r", "day_obs": 20260101}
    return {**keys, "name": "one", "region": region}


def pixels() -> int:
    with sqlite3.connect(Path(sys.argv[1], "gen3.sqlite3")) as connection:
        return connection.execute("SELECT count(*) FROM visit_skypix_overlap").fetchone()[0]


insert("visit", visit(10.0))
first = pixels()
insert("visit", visit(50.0), skip_existing=True)
(stored,) = butler.query_dimension_records("visit", instrument="Cam")
second, unchanged = pixels(), stored.region == visit(10.0)["region"]
insert("visit", stored, replace=True)
print(f"pixels: {first}, after the skipped insert {second}, after a replacement {pixels()}")
print("region unchanged:", unchanged)
sys.exit(0 if unchanged and second > first == pixels() else 1)
PY
