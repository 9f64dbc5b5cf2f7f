#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A dataset that is pruned in a transaction is lost when the transaction is rolled back.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    an output is replaced: `with butler.transaction():` Butler.pruneDatasets of the former
#           dataset, then Butler.put of the new one, which fails; or Butler.removeRuns before it.
# Expected: as after a put or ingest that is rolled back, all is as before: the former dataset is
#           registered, and its file is there. Or files are deleted after the outermost commit.
# Seen:     files are deleted when pruneDatasets or removeRuns returns, although only an inner
#           transaction has ended. The rollback restores the rows: the dataset is known to registry
#           and datastore, exists(full_check=False) is true, and get fails with FileNotFoundError.
#           Datasets have to be pruned after the transaction that makes them needless.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import sys
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DatasetType

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
butler.registry.registerDatasetType(DatasetType("made", butler.dimensions.empty, "StructuredDataDict"))


def first_put(run: str) -> DatasetRef:
    butler.collections.register(run)
    return butler.put({"version": 1}, "made", run=run)


def state(ref: DatasetRef) -> tuple[bool, bool, bool, object]:
    file = Path(butler.getURI(ref).ospath)
    try:
        content = butler.get(ref)
    except Exception as error:
        content = type(error).__name__
    registered = butler.get_dataset(ref.id) is not None
    return registered, bool(butler.exists(ref, full_check=False)), file.exists(), content


def replaced(run: str, first_step: str) -> tuple[bool, bool, bool, object]:
    """Replace a dataset by one that cannot be written; return what is known and stored of the former."""
    ref = first_put(run)
    try:
        with butler.transaction():
            match first_step:
                case "put":
                    butler.put({"version": 2}, "made", run=run)
                case "prune":
                    butler.pruneDatasets([ref], disassociate=True, unstore=True, purge=True)
                case "remove run":
                    butler.removeRuns([run])
                    butler.collections.register(run)
            butler.put({"version": object()}, "made", run=run)
    except Exception as error:
        print(f"{first_step}: rolled back because of {type(error).__name__}")
    return state(ref)


seen = {step: replaced(f"run{number}", step) for number, step in enumerate(("put", "prune", "remove run"))}
for step, (registered, exists, file, content) in seen.items():
    print(f"{step}: registered {registered}, exists {exists}, file {file}, content {content}")
lost = True, True, False, "FileNotFoundError"
unchanged = seen == {"put": (True, True, True, {"version": 1}), "prune": lost, "remove run": lost}
sys.exit(0 if unchanged else 1)
PY
