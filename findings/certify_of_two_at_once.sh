#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Two calibrations of one detector are certified for the same time if they come in the same call.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Registry.certify of what Registry.queryDatasets has found in the runs of a night: by default it
#           returns the dataset of each run, and so two of a detector for which a run was repeated.
# Expected: ConflictingDefinitionError, as with one call for each of them: a collection of calibrations has
#           at most one dataset of a type, a data ID and a time.
# Seen:     both are certified, without a message, in PostgreSQL too. From then on get and find_dataset raise
#           CalibrationLookupError "Ambiguous" at each time in the range, and a query returns both; a third
#           dataset is refused. decertify must name the data ID, and removes both. Check the data IDs
#           of the datasets for repetitions, or query with findFirst=True.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import sys
from collections.abc import Callable

from astropy.time import Time
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
registry = butler.registry
registry.insertDimensionData("instrument", {"name": "Cam"})
registry.insertDimensionData("detector", {"instrument": "Cam", "id": 1, "full_name": "1"})
dimensions = butler.dimensions.conform(("instrument", "detector"))
registry.registerDatasetType(DatasetType("bias", dimensions, "StructuredDataDict", isCalibration=True))
KEYS = {"instrument": "Cam", "detector": 1}
RUNS = "first", "second", "third"
for run in RUNS:
    butler.collections.register(run)
    butler.put({"run": run}, "bias", KEYS, run=run)
for name in ("one by one", "at once"):
    butler.collections.register(name, CollectionType.CALIBRATION)
day, noon = (Time(f"2026-01-0{each}T12:00:00", scale="tai") for each in (1, 2))
SPAN, WITHIN = Timespan(day, noon), Timespan(day, day)


def result(action: Callable[[], object]) -> object:
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def certified(collection: str) -> list[str]:
    found = butler.query_datasets("bias", collection, find_first=False, explain=False)
    return sorted(ref.run for ref in found)


first, second, third = (butler.find_dataset("bias", KEYS, collections=run) for run in RUNS)
both = list(registry.queryDatasets("bias", collections=["first", "second"]))
seen: dict[str, object] = {
    "first": result(lambda: registry.certify("one by one", [first], SPAN)),
    "second": result(lambda: registry.certify("one by one", [second], SPAN)),
    "left": certified("one by one"),
    "both": result(lambda: registry.certify("at once", both, SPAN)),
    "certified": certified("at once"),
    "get": result(lambda: butler.get("bias", KEYS, collections="at once", timespan=WITHIN)),
    "find_dataset": result(
        lambda: butler.find_dataset("bias", KEYS, collections="at once", timespan=WITHIN)
    ),
    "third": result(lambda: registry.certify("at once", [third], WITHIN)),
}
registry.decertify("at once", "bias", SPAN, dataIds=[first.dataId])
seen["after decertify"] = certified("at once")
for name, value in seen.items():
    print(f"{name}: {value}")
conflict, ambiguous = "ConflictingDefinitionError", "CalibrationLookupError"
expected = {
    "first": None,
    "second": conflict,
    "left": ["first"],
    "both": None,
    "certified": ["first", "second"],
    "get": ambiguous,
    "find_dataset": ambiguous,
    "third": conflict,
    "after decertify": [],
}
sys.exit(0 if seen == expected else 1)
PY
