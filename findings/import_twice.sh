#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A second import of the same datasets is refused and deletes the files that the first one has copied.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.import_ of an export with files, repeated after an interruption or by another person; or of a
#           second export that has one dataset of the first, such as calibrations that two sets share.
# Expected: as Butler.ingest and ingest_zip of what is there, which look before they copy: ConflictingDefinitionError,
#           and the files stay. Or the known datasets are left out, as transfer_from leaves them out.
# Seen:     the files are copied over those that are there, then IntegrityError comes from dataset_location, and the
#           rollback removes them: with transfer="copy", "symlink" and "move" ("hardlink" and "direct" keep them). The
#           rows of the first import stay: exists(full_check=False) is true, get fails with FileNotFoundError, and no
#           third import succeeds. Of an export that shares one dataset, this one is lost, and nothing else comes in.
#           Compare the IDs of the export with the registry first.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys
from collections.abc import Sequence
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset

work = Path(sys.argv[1])
DETECTORS = range(3)


def make_repo(name: str) -> Butler:
    Butler.makeRepo(str(work / name))
    butler = Butler.from_config(str(work / name), writeable=True)
    butler.registry.insertDimensionData("instrument", {"name": "Cam"})
    for number in DETECTORS:
        record = {"instrument": "Cam", "id": number, "full_name": str(number)}
        butler.registry.insertDimensionData("detector", record)
    return butler


source = make_repo("source")
source.registry.registerDatasetType(
    DatasetType("bias", ("instrument", "detector"), "StructuredDataDict", universe=source.dimensions)
)
source.collections.register("run")
refs = [source.put({"n": n}, "bias", instrument="Cam", detector=n, run="run") for n in DETECTORS]


def export(name: str, chosen: Sequence[DatasetRef]) -> str:
    folder = work / name
    folder.mkdir()
    with source.export(directory=str(folder), format="yaml", transfer="copy") as writer:
        writer.saveDatasets(chosen)
    return str(folder)


def load(butler: Butler, folder: str, transfer: str) -> str:
    try:
        butler.import_(directory=folder, filename="export.yaml", transfer=transfer)
    except Exception as error:
        return type(error).__name__
    return "imported"


def state(butler: Butler) -> str:
    """Return for each dataset whether it is known (k), and whether its file is there (f)."""
    letters = []
    for ref in refs:
        known, there = butler.exists(ref, full_check=False), butler.exists(ref, full_check=True)
        letters.append(("k" if known else "-") + ("f" if there else "-"))
    return " ".join(letters)


seen = {}
whole = export("whole", refs)
for transfer in ("copy", "symlink", "hardlink"):
    target = make_repo(transfer)
    seen[f"{transfer}, first"] = load(target, whole, transfer), state(target)
    seen[f"{transfer}, second"] = load(target, whole, transfer), state(target)
target = make_repo("shared")
seen["one"] = load(target, export("one", refs[:1]), "copy"), state(target)
seen["all, one of them known"] = load(target, whole, "copy"), state(target)
seen["again"] = load(target, whole, "copy"), state(target)
target = make_repo("ingested")
target.registry.registerDatasetType(refs[0].datasetType)
target.collections.register("run")
for _ in range(2):
    files = [FileDataset(source.getURI(ref), [ref]) for ref in refs]
    try:
        target.ingest(*files, transfer="copy")
        seen["ingest"] = "ingested", state(target)
    except Exception as error:
        seen["ingest, second"] = type(error).__name__, state(target)
for name, value in seen.items():
    print(f"{name}: {value}")
present, lost = "kf kf kf", "k- k- k-"
expected = {
    "copy, first": ("imported", present),
    "copy, second": ("IntegrityError", lost),
    "symlink, first": ("imported", present),
    "symlink, second": ("IntegrityError", lost),
    "hardlink, first": ("imported", present),
    "hardlink, second": ("IntegrityError", present),
    "one": ("imported", "kf -- --"),
    "all, one of them known": ("IntegrityError", "k- -- --"),
    "again": ("IntegrityError", "k- -- --"),
    "ingest": ("ingested", present),
    "ingest, second": ("ConflictingDefinitionError", present),
}
sys.exit(0 if seen == expected else 1)
PY
