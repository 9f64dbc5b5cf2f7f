#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Metadata of a task that are read from their file have floats for all that looks like a number.
#
# Package:  lsst-pipe-base 30.2026.4300, pydantic 2.14.4, with Python 3.13. Date: 2026-11-29.
# Where:    Butler.get of a dataset of class TaskMetadata, or TaskMetadata.model_validate_json.
# Expected: what was written: integers, booleans and texts, as the strict types of its fields require.
# Seen:     1 -> 1.0, True -> 1.0, "1" -> 1.0, 2**60 + 1 loses its last digits. The first type
#           of the fields' unions converts everything with float() before it is checked.
#           QuantumSuccessCaveats(metadata["quantum"]["caveats"]) raises ValueError for a
#           combination of flags (7.0, a task without work) that is new in the process.
#           A reader must convert to int or str itself.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-pipe-base==30.2026.4300 pydantic==2.14.4
"$work/venv/bin/python" - <<'PY'
import sys

from lsst.pipe.base import QuantumSuccessCaveats, TaskMetadata

written = {"number": 1, "flag": True, "text": "1", "large": 2**60 + 1}
read = TaskMetadata.model_validate_json(TaskMetadata.from_dict(written).model_dump_json())
for name, value in written.items():
    print(f"{name}: {value!r} -> {read[name]!r}")
try:
    flags = f"{QuantumSuccessCaveats(7.0)!r}"
except ValueError as error:
    flags = f"ValueError: {error}"
print("caveats 7.0:", flags)
floats = all(type(read[name]) is float for name in written)
sys.exit(0 if floats and int(read["large"]) != written["large"] and flags.startswith("ValueError") else 1)
PY
