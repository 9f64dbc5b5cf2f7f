#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A removal of runs that is refused, because one of them is in a chain, has deleted the datasets of all.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.removeRuns of old output runs, as a clean-up after some nights calls it; a chain, such as
#           that of all outputs of a day, has one of them.
# Expected: nothing is removed: unlink_from_chains is false by default, and with it "the removal will fail if any
#           chains still refer to the RUN", as collections.x_remove fails and removes nothing.
# Seen:     datasets are pruned first, with their files, and their own transaction is committed. Then the
#           removal of the empty runs fails: IntegrityError "FOREIGN KEY constraint failed", without the name of
#           a run or a chain. Both runs stay, without datasets, also the one that no chain has. Query the parents
#           first (collections.query_info(..., include_parents=True)).
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
from pathlib import Path

from lsst.daf.butler import Butler, CollectionType, DatasetType

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
butler.registry.registerDatasetType(
    DatasetType("table", (), "StructuredDataDict", universe=butler.dimensions)
)
refs = {}
for run in ("free", "chained"):
    butler.collections.register(run)
    refs[run] = butler.put({"run": run}, "table", run=run)
butler.collections.register("chain", CollectionType.CHAINED)
butler.collections.redefine_chain("chain", ["chained"])
files = {run: Path(butler.getURI(ref).ospath) for run, ref in refs.items()}


def result(action: Callable[[], object]) -> object:
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def left() -> list[tuple[str, bool, bool]]:
    """Return for each run whether its dataset is registered, and whether its file exists."""
    found = butler.collections.query(["free", "chained"])
    return [(run, butler.get_dataset(refs[run].id) is not None, files[run].exists()) for run in sorted(found)]


seen = {
    "x_remove": result(lambda: butler.collections.x_remove("chained")),
    "after x_remove": left(),
    "removeRuns": result(lambda: butler.removeRuns(["free", "chained"])),
    "after removeRuns": left(),
    "chain": butler.collections.get_info("chain").children,
}
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "x_remove": "OrphanedRecordError",
    "after x_remove": [("chained", True, True), ("free", True, True)],
    "removeRuns": "IntegrityError",
    "after removeRuns": [("chained", False, False), ("free", False, False)],
    "chain": ("chained",),
}
sys.exit(0 if seen == expected else 1)
PY
