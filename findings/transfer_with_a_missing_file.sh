#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# One file that is gone from the source keeps a transfer from copying any other, also with skip_missing.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.transfer_from(..., skip_missing=True) of many datasets, of which one has a record in the
#           source's datastore and no file any more: as a preload of calibrations and templates, or
#           `butler transfer-datasets` of a night's outputs.
# Expected: "The datastore artifact has to exist for a transfer to be made but non-existence is not an
#           error": this dataset is left out, as one that was unstored is, and the others are transferred;
#           or, if it is an error, FileNotFoundError with its name.
# Seen:     an ExceptionGroup with each way of copying or linking, which `except OSError` does not catch, and
#           nothing is transferred. dry_run promises all of them, the missing one too. A repeat fails
#           alike: the caller must find the file by stored_many of the source, and leave it out.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import logging
import sys
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DatasetType

logging.disable(logging.WARNING)
work = Path(sys.argv[1])
DETECTORS = range(3)


def repo(name: str) -> Butler:
    Butler.makeRepo(str(work / name))
    butler = Butler.from_config(str(work / name), writeable=True, run="run")
    insert = butler.registry.insertDimensionData
    insert("instrument", {"name": "Cam"})
    insert("detector", *({"instrument": "Cam", "id": each, "full_name": f"{each}"} for each in DETECTORS))
    dimensions = butler.dimensions.conform(("instrument", "detector"))
    butler.registry.registerDatasetType(DatasetType("made", dimensions, "StructuredDataDict"))
    return butler


def datasets(source: Butler) -> list[DatasetRef]:
    return [source.put({"detector": each}, "made", instrument="Cam", detector=each) for each in DETECTORS]


def transferred(name: str, source: Butler, refs: list[DatasetRef], **options: object) -> tuple[object, list[int]]:
    """Return what a transfer into a new repo promises or raises, and the detectors that can be read there."""
    target = repo(name)
    result: object
    try:
        found = target.transfer_from(source, refs, skip_missing=True, **options)
        result = sorted(ref.dataId["detector"] for ref in found)
    except* OSError as group:
        result = type(group).__name__, len(group.exceptions), isinstance(group, OSError)
    have = target.query_datasets("made", collections="run", explain=False)
    return result, sorted(target.get(ref)["detector"] for ref in have)


unstored, gone = repo("unstored"), repo("gone")
refs = datasets(unstored)
unstored.pruneDatasets([refs[1]], unstore=True, disassociate=False)
seen = {"unstored": transferred("to-unstored", unstored, refs, transfer="copy")}
refs = datasets(gone)
Path(gone.getURI(refs[1]).ospath).unlink()
for mode in ("copy", "link", "hardlink", "symlink", "auto"):
    seen[mode] = transferred(f"to-{mode}", gone, refs, transfer=mode)
seen["dry_run"] = transferred("to-dry", gone, refs, transfer="copy", dry_run=True)
for name, (result, have) in seen.items():
    print(f"{name}: {result}, then there are {have}")
failed = ("ExceptionGroup", 1, False), []
expected = dict.fromkeys(("copy", "link", "hardlink", "symlink", "auto"), failed)
expected |= {"unstored": ([0, 2], [0, 2]), "dry_run": ([0, 1, 2], [])}
sys.exit(0 if seen == expected else 1)
PY
