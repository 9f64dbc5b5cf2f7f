#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A dimension record with a NaN cannot be synchronized into a SQLite registry.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    translators return NaN for the sky angle of an image without ROTPA, and
#           raw ingest calls Registry.syncDimensionData with that record.
# Expected: as with None, the row is inserted with a NULL (SQLite stores NaN as NULL),
#           or the record is refused because of its NaN before anything is written.
# Seen:     the row is inserted, read back as NULL, compared with NaN, found to differ;
#           RuntimeError "Conflict ({'sky_angle': None}) in sync after successful
#           insert ... it may also be a bug in daf_butler". Nothing stays in the
#           table. A caller must replace NaN by None before it synchronizes.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" - "$work/repo" <<'PY'
import math
import sys

from lsst.daf.butler import Butler

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
for element, record in (
    ("instrument", {"name": "Cam", "detector_max": 1, "visit_max": 9, "exposure_max": 9}),
    ("physical_filter", {"instrument": "Cam", "name": "r", "band": "r"}),
    ("day_obs", {"instrument": "Cam", "id": 20260101}),
    ("group", {"instrument": "Cam", "name": "g"}),
):
    butler.registry.syncDimensionData(element, record)


def synchronized(number: int, sky_angle: float | None) -> str:
    record = {"instrument": "Cam", "id": number, "obs_id": f"o{number}", "group": "g"}
    record |= {"physical_filter": "r", "day_obs": 20260101, "sky_angle": sky_angle}
    try:
        butler.registry.syncDimensionData("exposure", record)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "inserted"


seen = {angle: synchronized(number, angle) for number, angle in enumerate((12.5, None, math.nan), 1)}
for angle, text in seen.items():
    print(f"sky_angle {angle}: {text}")
records = butler.query_dimension_records("exposure", instrument="Cam", explain=False)
print("in the registry:", {record.id: record.sky_angle for record in records})
unchanged = (
    seen[12.5] == seen[None] == "inserted"
    and seen[math.nan].startswith("RuntimeError: Conflict ({'sky_angle': None}) in sync")
    and {record.id for record in records} == {1, 2}
)
sys.exit(0 if unchanged else 1)
PY
