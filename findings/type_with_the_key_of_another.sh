#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A running Butler stores datasets of a type that was removed as datasets of the type that was registered next.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.put of a long-lived process into a repo in SQLite, after another process has removed a dataset type
#           and registered another one, as when a type gets another name or storage class during the night.
# Expected: MissingDatasetTypeError, or a failed constraint, as if no other type was registered, and as in PostgreSQL,
#           whose sequence gives each key once. A run that was removed is looked up by its name: MissingCollectionError.
# Seen:     SQLite gives the key of the removed row to the next one, as the column is no AUTOINCREMENT, and the Butler
#           remembers keys of types. put succeeds and returns a dataset of the old type; in the repo it is one of the
#           new type, whose readers get the other content, or cannot read it; a put of the new type with the same data
#           ID is refused. ingest and transfer_from register the type first, and are right. Call registry.refresh()
#           before each series of puts, or restart what runs.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import sys

from lsst.daf.butler import Butler, DatasetRef, DatasetType


def open_repo() -> Butler:
    return Butler.from_config(sys.argv[1], writeable=True)


def register(butler: Butler, name: str, storage_class: str = "StructuredDataDict") -> None:
    dataset_type = DatasetType(name, ("instrument",), storage_class, universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)


def put(butler: Butler, content: object, name: str, run: str) -> DatasetRef | str:
    try:
        return butler.put(content, name, instrument="Cam", run=run)
    except Exception as error:
        return type(error).__name__


def stored(run: str) -> object:
    """Return the type and content of the only dataset of a run, as a new client has them."""
    butler = open_repo()
    (ref,) = butler.query_all_datasets(run)
    try:
        return ref.datasetType.name, butler.get(ref)
    except Exception as error:
        return ref.datasetType.name, type(error).__name__


Butler.makeRepo(sys.argv[1])
other = open_repo()
other.registry.insertDimensionData("instrument", {"name": "Cam"})
for run in ("1", "2", "3", "4", "gone"):
    other.collections.register(run)
register(other, "old")
running = open_repo()
running.get_dataset_type("old")

other.registry.removeDatasetType("old")
seen = {"removed": put(running, {"of": "old"}, "old", "1")}
register(other, "new")
seen["another was registered"] = put(running, {"of": "old"}, "old", "2").datasetType.name, stored("2")
seen["new in the same run"] = put(other, {"of": "new"}, "new", "2")
other.pruneDatasets(other.query_all_datasets("2"), disassociate=True, unstore=True, purge=True)
other.registry.removeDatasetType("new")
register(other, "old", "int")
seen["of another storage class"] = put(running, {"of": "old"}, "old", "3").datasetType.name, stored("3")
running.registry.refresh()
seen["refreshed"] = put(running, {"of": "old"}, "old", "4")
other.removeRuns(["gone"])
other.collections.register("next")
seen["a removed run"] = put(running, 1, "old", "gone")
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "removed": "ConflictingDefinitionError",
    "another was registered": ("old", ("new", {"of": "old"})),
    "new in the same run": "ConflictingDefinitionError",
    "of another storage class": ("old", ("old", "ValueError")),
    "refreshed": "TypeError",
    "a removed run": "MissingCollectionError",
}
sys.exit(0 if seen == expected else 1)
PY
