#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# An export with a record whose timespan is empty cannot be imported, with all its datasets.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.export of datasets of an exposure whose header ends before it begins:
#           Timespan(begin, end) is empty then, and the registry stores it. Butler.import_ of the file.
# Expected: the record comes back, as a Timespan by itself does through YAML ("EMPTY", which the code
#           provides for), or the export is refused.
# Seen:     the export succeeds. It writes the bounds of a record one by one, these as objects of
#           Python (_SpecialTimespanBound). The import reads safe YAML only: ConstructorError, and
#           nothing of the file is imported, neither other exposures nor their datasets.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys
from pathlib import Path

import yaml
from astropy.time import Time
from lsst.daf.butler import Butler, DatasetType, Timespan

work = Path(sys.argv[1])
Butler.makeRepo(str(work / "repo"))
butler = Butler.from_config(str(work / "repo"), run="run", writeable=True)
insert = butler.registry.insertDimensionData
insert("instrument", {"name": "Cam", "detector_max": 1, "visit_max": 9, "exposure_max": 9})
insert("physical_filter", {"instrument": "Cam", "name": "r", "band": "r"})
insert("day_obs", {"instrument": "Cam", "id": 20260101})
insert("group", {"instrument": "Cam", "name": "g"})
butler.registry.registerDatasetType(
    DatasetType("made", butler.dimensions.conform(("instrument", "exposure")), "StructuredDataDict")
)
begin = Time("2026-01-01T03:00:30", scale="tai")
for number, end in ((1, "2026-01-01T03:01:00"), (2, "2026-01-01T03:00:29.999")):
    keys = {"instrument": "Cam", "id": number, "obs_id": f"o{number}", "group": "g"}
    keys |= {"physical_filter": "r", "day_obs": 20260101, "timespan": Timespan(begin, Time(end, scale="tai"))}
    insert("exposure", keys)
    butler.put({}, "made", instrument="Cam", exposure=number)


def imported(name: str, where: str) -> int | str:
    """Return how many datasets are in a new repo after an export to a file and an import."""
    folder = work / name
    folder.mkdir()
    file = str(folder / "export.yaml")
    with butler.export(filename=file, directory=str(folder), transfer="copy") as export:
        export.saveDatasets(butler.query_datasets("made", where=where, instrument="Cam"))
    Butler.makeRepo(str(folder / "repo"))
    target = Butler.from_config(str(folder / "repo"), writeable=True)
    try:
        target.import_(directory=str(folder), filename=file, transfer="copy")
    except Exception as error:
        return f"{type(error).__name__}, collections: {list(target.collections.query('*'))}"
    return len(target.query_datasets("made", "run"))


empty = Timespan.makeEmpty()
alone = yaml.safe_load(yaml.dump(empty)) == empty
seen = imported("one", "exposure = 1"), imported("both", "exposure IN (1, 2)")
print("an empty timespan alone comes back:", alone)
print("one exposure:", seen[0])
print("with one that ends before it begins:", seen[1])
sys.exit(0 if alone and seen == (1, "ConstructorError, collections: []") else 1)
PY
