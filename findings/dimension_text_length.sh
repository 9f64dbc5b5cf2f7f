#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The declared length of a dimension's text is a limit up to 32 characters and none above.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    records of exposures from headers: the dimensions declare observation_type with
#           length 16, obs_id, target_name and science_program and the key of a group with 64.
# Expected: a text of 300 characters is refused for all of them, in SQLite too, where the
#           Butler adds a CHECK of the length "on all string columns" (registry/databases/sqlite.py).
# Seen:     columns of more than 32 characters become TEXT without CHECK: 300 characters are
#           stored, also as the name of a group, which is a key. Columns up to 32 are limited:
#           17 characters of observation_type end in an IntegrityError. An empty text is
#           refused there, too, and accepted in the longer columns.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import sys

from lsst.daf.butler import Butler

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
for element, record in (
    ("instrument", {"name": "Cam", "detector_max": 1, "visit_max": 99, "exposure_max": 99}),
    ("physical_filter", {"instrument": "Cam", "name": "r", "band": "r"}),
    ("day_obs", {"instrument": "Cam", "id": 20260101}),
    ("group", {"instrument": "Cam", "name": "g"}),
    ("group", {"instrument": "Cam", "name": 300 * "g"}),
):
    butler.registry.syncDimensionData(element, record)

fields = butler.dimensions["exposure"].RecordClass.fields.standard
cases = [("target_name", 300), ("obs_id", 300), ("group", 300), ("target_name", 0)]
cases += [("observation_type", 16), ("observation_type", 17), ("observation_type", 0)]
seen = []
for number, (name, length) in enumerate(cases, 1):
    record = {"instrument": "Cam", "id": number, "obs_id": f"o{number}", "group": "g"}
    record |= {"physical_filter": "r", "day_obs": 20260101, name: length * "g"}
    try:
        butler.registry.syncDimensionData("exposure", record)
        seen.append("inserted")
    except Exception as error:
        seen.append(type(error).__name__)
    print(f"{name} (length {fields[name].length}), {length} characters: {seen[-1]}")
records = butler.query_dimension_records("exposure", instrument="Cam", order_by="exposure.id")
lengths = [len(records[0].target_name), len(records[1].obs_id), len(records[2].group)]
print("in the registry:", lengths)
unchanged = (
    [fields[name].length for name, _ in cases] == [64, 64, 64, 64, 16, 16, 16]
    and seen == ["inserted"] * 5 + ["IntegrityError"] * 2
    and lengths == [300] * 3
)
sys.exit(0 if unchanged else 1)
PY
