#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A transfer registers datasets that the target's datastore rejects, without files, and returns them as added.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.transfer_from into a repo whose datastore has constraints on dataset types, as from the repo
#           of a host or of a night into the shared one.
# Expected: as put, ingest, import_ and ingest_zip of the same dataset: DatasetTypeNotSupportedError, and
#           nothing is registered. Or what is rejected is left out: skip_missing, true by default, promises
#           that datasets without an artifact are not transferred.
# Seen:     the datasets are registered in their run and returned among "the refs added to this Butler",
#           whatever skip_missing is; their files are not copied, and get fails with FileNotFoundError.
#           One warning counts them without a name. Who deletes the source after the transfer has lost
#           them. After the constraint is removed a second transfer copies the files. Compare the result
#           with stored_many of the target before anything is deleted.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys
from collections.abc import Callable
from pathlib import Path

from lsst.daf.butler import Butler, Config, DatasetRef, DatasetType, FileDataset

work = Path(sys.argv[1])
KIND = {"storage_class": "StructuredDataDict", "dimensions": ("instrument",)}


def repo(name: str, rejected: list[str]) -> Butler:
    Butler.makeRepo(str(work / name), config=Config({"datastore": {"constraints": {"reject": rejected}}}))
    butler = Butler.from_config(str(work / name), writeable=True, run="run")
    butler.registry.insertDimensionData("instrument", {"name": "Cam"})
    dimensions = butler.dimensions.conform(KIND["dimensions"])
    butler.registry.registerDatasetType(DatasetType("made", dimensions, KIND["storage_class"]))
    return butler


source = repo("source", [])
ref = source.put({"version": 1}, "made", instrument="Cam")
folder = work / "exported"
folder.mkdir()
FILE = {"filename": str(folder / "export.yaml"), "directory": str(folder), "transfer": "copy"}
with source.export(**FILE) as export:
    export.saveDatasets([ref])
archive = source.retrieve_artifacts_zip([ref], str(work))


def put(target: Butler) -> list[DatasetRef]:
    return [target.put({"version": 1}, ref)]


def ingest(target: Butler) -> list[DatasetRef]:
    formatter = "lsst.daf.butler.formatters.yaml.YamlFormatter"
    target.ingest(FileDataset(source.getURI(ref), [ref], formatter=formatter), transfer="copy")
    return [ref]


def transfer(skip_missing: bool) -> Callable[[Butler], list[DatasetRef]]:
    return lambda target: list(
        target.transfer_from(source, [ref], transfer="copy", skip_missing=skip_missing)
    )


WAYS: dict[str, Callable[[Butler], object]] = {
    "put": put,
    "ingest": ingest,
    "import_": lambda target: target.import_(**FILE),
    "ingest_zip": lambda target: target.ingest_zip(archive, transfer="copy"),
    "transfer_from": transfer(True),
    "transfer_from, skip_missing=False": transfer(False),
}


def tried(number: int, way: Callable[[Butler], object]) -> tuple[object, bool, bool, object]:
    """Return the result in a new repo, whether the dataset is known, whether it is said to exist, and get."""
    target = repo(f"target{number}", ["made"])
    try:
        result = way(target)
    except Exception as error:
        result = type(error).__name__
    registered = target.get_dataset(ref.id) is not None
    try:
        content = target.get(ref)
    except Exception as error:
        content = type(error).__name__
    return result, registered, bool(target.exists(ref, full_check=False)), content


seen = {name: tried(number, way) for number, (name, way) in enumerate(WAYS.items())}
for name, (result, registered, exists, content) in seen.items():
    print(f"{name}: {result}; registered {registered}, exists {exists}, get: {content}")

settings = work / f"target{len(WAYS) - 1}" / "butler.yaml"
config = Config(str(settings))
config["datastore", "constraints", "reject"] = []
config.dumpToUri(str(settings))
target = Butler.from_config(str(settings.parent), writeable=True)
again = transfer(True)(target), target.get(ref)
print(f"transfer_from after the constraint is removed: {again}")
refused = "DatasetTypeNotSupportedError", False, False, "FileNotFoundError"
expected = dict.fromkeys(WAYS, refused) | {
    name: ([ref], True, False, "FileNotFoundError") for name in WAYS if name.startswith("transfer_from")
}
sys.exit(0 if seen == expected and again == ([ref], {"version": 1}) else 1)
PY
