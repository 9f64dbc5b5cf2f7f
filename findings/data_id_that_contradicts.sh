#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A data ID whose filter, group or day contradicts its exposure is accepted, and the contradiction dropped.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Registry.expandDataId, Butler.put, get and find_dataset with an exposure and what an announcement
#           or a header says about it: physical_filter, group, day_obs, band.
# Expected: DataIdError, "when a resulting data ID contains contradictory key-value pairs, according to
#           dimension relationships", as for a band that contradicts the filter; or nothing is found, as
#           query_datasets with the same keys finds nothing.
# Seen:     keys that the exposure implies are left out before they are compared, and replaced by those of its
#           record: a dataset that is said to be in filter r is put into g, and is found as one in r.
#           Only if all implied keys are given is the contradiction seen: one more, and right, key
#           turns success into an error. Compare the expanded data ID with what was asked for.
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

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True, run="run")
insert = butler.registry.insertDimensionData
insert("instrument", {"name": "Cam"})
insert("physical_filter", *({"instrument": "Cam", "name": each, "band": each} for each in "gr"))
insert("day_obs", *({"instrument": "Cam", "id": each} for each in (20260101, 20260102)))
insert("group", *({"instrument": "Cam", "name": each} for each in ("one", "two")))
RECORD = {"physical_filter": "g", "day_obs": 20260101, "group": "one", "band": "g"}
record = {name: value for name, value in RECORD.items() if name != "band"}
insert("exposure", {"instrument": "Cam", "id": 1, "obs_id": "o1", **record})
kind = DatasetType("made", butler.dimensions.conform(("instrument", "exposure")), "StructuredDataDict")
butler.registry.registerDatasetType(kind)


def result(action: Callable[[], object]) -> object:
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def expanded(**keys: object) -> object:
    data_id = butler.registry.expandDataId(instrument="Cam", **keys)
    return "accepted" if {name: data_id[name] for name in RECORD if name in data_id} == RECORD else data_id


WRONG = {"physical_filter": "r", "day_obs": 20260102, "group": "two", "band": "r"}
seen = {name: result(lambda: expanded(exposure=1, **{name: value})) for name, value in WRONG.items()}
seen["all, one wrong"] = result(lambda: expanded(exposure=1, **RECORD | {"physical_filter": "r"}))
seen["filter and band"] = result(lambda: expanded(physical_filter="g", band="r"))
said = {"instrument": "Cam", "exposure": 1, "physical_filter": "r"}
seen["put"] = result(lambda: butler.registry.expandDataId(butler.put({}, "made", **said).dataId)["band"])
seen["find_dataset"] = result(lambda: butler.find_dataset("made", **said) is not None)
seen["get"] = result(lambda: butler.get("made", **said))
seen["query_datasets"] = len(butler.query_datasets("made", explain=False, **said))
for name, value in seen.items():
    print(f"{name}: {value}")
inconsistent = "InconsistentDataIdError"
expected = dict.fromkeys(WRONG, "accepted") | {
    "all, one wrong": inconsistent,
    "filter and band": inconsistent,
    "put": "g",
    "find_dataset": True,
    "get": {},
    "query_datasets": 0,
}
sys.exit(0 if seen == expected else 1)
PY
