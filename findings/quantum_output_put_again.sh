#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A second put of an output of a quantum is refused and deletes what the first put has written.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    QuantumBackedButler.put of a dataset that it has written: a task that writes an output of many
#           parts twice, or a quantum that is run again with the same butler after a failure.
# Expected: as Butler.put of the same DatasetRef: ConflictingDefinitionError before anything is written, and
#           the first content stays; or the second content replaces the first.
# Seen:     the file is overwritten, then IntegrityError (UNIQUE constraint) comes from the records in
#           memory, and the rollback removes the file. The record of the first put stays: the dataset is in
#           actual_outputs of the provenance, and Butler.transfer_from with skip_missing=True registers it
#           in the repo, where exists(full_check=False) is true and get fails with FileNotFoundError.
#           Whoever catches the error has lost the first output; prune it before it is put again.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import logging
import sys
from pathlib import Path

from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    LimitedButler,
    QuantumBackedButler,
)

logging.disable(logging.WARNING)  # the provenance is read without a check of the inputs
repo = sys.argv[1]
Butler.makeRepo(repo)
butler = Butler.from_config(repo, writeable=True)


def new_ref(run: str) -> DatasetRef:
    dataset_type = DatasetType("made", butler.dimensions.empty, "StructuredDataDict")
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register(run)
    return DatasetRef(dataset_type, DataCoordinate.make_empty(butler.dimensions), run=run)


def quantum_butler(ref: DatasetRef) -> QuantumBackedButler:
    return QuantumBackedButler.from_predicted(
        repo,
        predicted_inputs=[],
        predicted_outputs=[ref.id],
        dimensions=butler.dimensions,
        datastore_records={},
    )


def content(source: LimitedButler, ref: DatasetRef) -> object:
    try:
        return source.get(ref)
    except Exception as error:
        return type(error).__name__


def put_twice(target: LimitedButler, ref: DatasetRef, *, prune: bool) -> tuple[str, object]:
    """Return the error of the second put and what is read afterwards."""
    target.put({"version": 1}, ref)
    assert content(target, ref) == {"version": 1}
    if prune:
        target.pruneDatasets([ref], disassociate=False, unstore=True, purge=False)
    try:
        target.put({"version": 2}, ref)
    except Exception as error:
        return type(error).__name__, content(target, ref)
    return "none", content(target, ref)


ref = new_ref("full")
full = put_twice(butler, ref, prune=False)
print("Butler:", full)
ref = new_ref("pruned")
pruned = put_twice(quantum_butler(ref), ref, prune=True)
print("QuantumBackedButler, pruned before:", pruned)
ref = new_ref("quantum")
quantum = quantum_butler(ref)
twice = put_twice(quantum, ref, prune=False)
files = [path for path in Path(repo, "quantum").rglob("*") if path.is_file()]
in_provenance = ref.id in quantum.extract_provenance_data().actual_outputs
print("QuantumBackedButler:", twice, "files", files, "in the provenance", in_provenance)
transferred = len(butler.transfer_from(quantum, [ref], transfer="copy", skip_missing=True))
known = bool(butler.exists(ref, full_check=False))
print("transferred", transferred, "exists", known, "content", content(butler, ref))
unchanged = full == ("ConflictingDefinitionError", {"version": 1}) and pruned == ("none", {"version": 2})
unchanged &= twice == ("IntegrityError", "FileNotFoundError") and not files and in_provenance
unchanged &= transferred == 1 and known and content(butler, ref) == "FileNotFoundError"
sys.exit(0 if unchanged else 1)
PY
