#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs, filters and groups whose names differ in a blank, a colon or an underscore share their files.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.put with the default templates of file names, into runs with a time in their names, or for groups
#           or filters whose names come from announcements and headers: "2026-01-01T12:00" and
#           "2026-01-01T12_00", "g sdss" and "g_sdss".
# Expected: different datasets have different files, as those of "#" and "+" have, which are quoted; or the second
#           put is refused before it writes.
# Seen:     blanks and colons become underscores. Each put overwrites the file of the other dataset without a word:
#           get of the first returns the content of the second, or FileIntegrityError if the sizes differ.
#           Nothing but a look at the URIs tells. Keep these characters out of the names of runs, and translate
#           the names of filters to one spelling.
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

from lsst.daf.butler import Butler, DatasetRef, DatasetType

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
CAM = {"instrument": "Cam"}
FILTERS = "g sdss", "g_sdss", "g:sdss"
GROUPS = "T12:00", "T12_00"
RUNS = "T12:00", "T12_00", "T12 00"
QUOTED = "T12#00", "T12+00", "T12-00"
butler.registry.insertDimensionData("instrument", {"name": "Cam"})
butler.registry.insertDimensionData(
    "physical_filter", *(CAM | {"name": name, "band": "g"} for name in FILTERS)
)
butler.registry.insertDimensionData("group", *(CAM | {"name": name} for name in GROUPS))
for name, dimensions in (("table", ()), ("flat", ("physical_filter",)), ("region", ("group",))):
    dataset_type = DatasetType(name, dimensions, "StructuredDataDict", universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)
for run in (*RUNS, *QUOTED, "run", "long 1", "long_1"):
    butler.collections.register(run)


def result(action: Callable[[], object]) -> object:
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def put_each(
    put: Callable[[str], DatasetRef], names: tuple[str, ...]
) -> tuple[list[DatasetRef], int, set[object]]:
    """Put a dataset per name; return them, the number of their files, and all that get returns."""
    refs = [put(name) for name in names]
    files = {str(butler.getURI(ref)) for ref in refs}
    return refs, len(files), {result(lambda ref=ref: butler.get(ref)["name"]) for ref in refs}


def in_run(name: str) -> DatasetRef:
    return butler.put({"name": name}, "table", run=name)


def of_filter(name: str) -> DatasetRef:
    return butler.put({"name": name}, "flat", CAM | {"physical_filter": name}, run="run")


def of_group(name: str) -> DatasetRef:
    return butler.put({"name": name}, "region", CAM | {"group": name}, run="run")


cases = {
    "runs": put_each(in_run, RUNS),
    "filters": put_each(of_filter, FILTERS),
    "groups": put_each(of_group, GROUPS),
    "quoted": put_each(in_run, QUOTED),
}
seen: dict[str, object] = {name: (files, contents) for name, (_, files, contents) in cases.items()}
longer = butler.put({"name": "a longer text"}, "table", run="long 1")
shorter = butler.put({"name": "short"}, "table", run="long_1")
seen["sizes differ"] = result(lambda: butler.get(longer)), result(lambda: butler.get(shorter)["name"])
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "runs": (1, {"T12 00"}),
    "filters": (1, {"g:sdss"}),
    "groups": (1, {"T12_00"}),
    "quoted": (3, set(QUOTED)),
    "sizes differ": ("FileIntegrityError", "short"),
}
sys.exit(0 if seen == expected else 1)
PY
