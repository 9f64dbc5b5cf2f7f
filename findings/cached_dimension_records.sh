#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A running Butler queries a new detector or filter and cannot use it; a changed band stays the old one.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    a daemon's Butler, and another process that registers a new filter or detector, or corrects a
#           band, during the night: put, registry.expandDataId, find_dataset(dimension_records=True),
#           query_datasets(with_dimension_records=True).
# Expected: a record that is not in the cache of instruments, detectors, filters and bands is looked up in
#           the database, as those of visits and exposures are; or queries do not give it either.
# Seen:     query_dimension_records of the same Butler gives the new record, and find_dataset without
#           records the dataset. put and expandDataId: DataIdValueError "Could not fetch record for dimension
#           detector"; query_datasets with records: LookupError. After a correction of its band the filter has
#           the new band in queries, and the old one, without an error, in each expanded data ID, so that
#           datasets are put into files of the old band. Butler.clone() copies the cache.
#           registry.refresh() before each use helps.
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

from lsst.daf.butler import Butler, DatasetType

repo = sys.argv[1]
Butler.makeRepo(repo)
other = Butler.from_config(repo, writeable=True, run="run")  # stands for another process
insert = other.registry.insertDimensionData
insert("instrument", {"name": "Cam", "detector_max": 9, "visit_max": 9, "exposure_max": 9})
insert("detector", {"instrument": "Cam", "id": 1, "full_name": "d1"})
insert("physical_filter", {"instrument": "Cam", "name": "old", "band": "g"})
dimensions = other.dimensions.conform(["instrument", "detector", "physical_filter"])
other.registry.registerDatasetType(DatasetType("flat", dimensions, "StructuredDataDict"))
other.put({}, "flat", instrument="Cam", detector=1, physical_filter="old")

running = Butler.from_config(repo, writeable=True, run="night")
before = running.registry.expandDataId(instrument="Cam", detector=1, physical_filter="old")["band"]

insert("detector", {"instrument": "Cam", "id": 2, "full_name": "d2"})
insert("physical_filter", {"instrument": "Cam", "name": "new", "band": "r"})
other.put({}, "flat", instrument="Cam", detector=2, physical_filter="new")
corrected = {"instrument": "Cam", "name": "old", "band": "z"}
other.registry.syncDimensionData("physical_filter", corrected, update=True)

NEW = {"instrument": "Cam", "detector": 2, "physical_filter": "new"}
OLD = {"instrument": "Cam", "detector": 1, "physical_filter": "old"}


def outcome(step: Callable[[], object]) -> object:
    try:
        return step()
    except Exception as error:
        return type(error).__name__


def seen_by(butler: Butler) -> dict[str, object]:
    steps: dict[str, Callable[[], object]] = {
        "detectors by query": lambda: [each.id for each in butler.query_dimension_records("detector")],
        "dataset found": lambda: butler.find_dataset("flat", NEW, collections="run") is not None,
        "found with records": lambda: (
            butler.find_dataset("flat", NEW, collections="run", dimension_records=True) is not None
        ),
        "datasets with records": lambda: len(
            butler.query_datasets("flat", "run", with_dimension_records=True)
        ),
        "new one expanded": lambda: butler.registry.expandDataId(NEW)["band"],
        "band by query": lambda: butler.query_dimension_records("physical_filter", data_id=OLD)[0].band,
        "band expanded": lambda: butler.registry.expandDataId(OLD)["band"],
    }
    return {name: outcome(step) for name, step in steps.items()}


stale = {
    "detectors by query": [1, 2],
    "dataset found": True,
    "found with records": "DataIdValueError",
    "datasets with records": "LookupError",
    "new one expanded": "DataIdValueError",
    "band by query": "z",
    "band expanded": "g",
}
valid = stale | {"found with records": True, "datasets with records": 2}
valid |= {"new one expanded": "r", "band expanded": "z"}
failed_put = outcome(lambda: running.put({}, "flat", NEW))
file = running.getURI(running.put({}, "flat", OLD)).relative_to(running.get_datastore_roots().popitem()[1])
results = {"running": seen_by(running), "clone": seen_by(running.clone())}
results["new Butler"] = seen_by(Butler.from_config(repo))
running.registry.refresh()
results["refreshed"] = seen_by(running)
print("put of the new detector:", failed_put, "; file of the corrected filter:", file)
for name, result in results.items():
    print(f"{name}: {result}")
unchanged = before == "g" and failed_put == "DataIdValueError" and "/g/" in str(file)
unchanged &= results == {"running": stale, "clone": stale, "new Butler": valid, "refreshed": valid}
sys.exit(0 if unchanged else 1)
PY
