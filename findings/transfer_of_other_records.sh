#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Datasets come into another repo with that repo's record of their exposure, however it differs.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.transfer_from(..., transfer_dimensions=True), Butler.import_ and
#           transfer_dimension_records_from, if both repos have the exposure with other times, filters
#           or targets, as from an announcement and from a header.
# Expected: a conflict is refused, as syncDimensionData refuses it (DatabaseConflictError), or logged.
# Seen:     the record of the target stays and nothing is logged. The datasets are joined with it: the
#           same query by time or filter that finds them in one repo does not find them in the other,
#           and another calibration is valid for them. A caller has to compare the records first.
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
from collections.abc import Callable
from pathlib import Path

from astropy.time import Time
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan

work = Path(sys.argv[1])
logged: list[str] = []
handler = logging.Handler(logging.INFO)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger().addHandler(handler)


def hour(number: int) -> Time:
    return Time(f"2026-01-01T{number:02d}:00:00", scale="tai")


def exposure(begin: int, band: str) -> dict[str, object]:
    keys = {"instrument": "Cam", "id": 1, "obs_id": "o1", "group": "g", "day_obs": 20260101}
    return keys | {"physical_filter": band, "timespan": Timespan(hour(begin), hour(begin + 1))}


def repo(name: str, begin: int, band: str) -> Butler:
    Butler.makeRepo(str(work / name))
    butler = Butler.from_config(str(work / name), writeable=True, run="run")
    insert = butler.registry.insertDimensionData
    insert("instrument", {"name": "Cam", "detector_max": 1, "visit_max": 9, "exposure_max": 9})
    insert("physical_filter", *({"instrument": "Cam", "name": each, "band": each} for each in "gr"))
    insert("day_obs", {"instrument": "Cam", "id": 20260101})
    insert("group", {"instrument": "Cam", "name": "g"})
    insert("exposure", exposure(begin, band))
    for dataset_type, dimensions in (("made", ("instrument", "exposure")), ("bias", ("instrument",))):
        group, calibration = butler.dimensions.conform(dimensions), dataset_type == "bias"
        butler.registry.registerDatasetType(
            DatasetType(dataset_type, group, "StructuredDataDict", isCalibration=calibration)
        )
    butler.collections.register("calib", CollectionType.CALIBRATION)
    for number, text in ((0, "early"), (12, "late")):
        butler.collections.register(text)
        bias = butler.put({"bias": text}, "bias", instrument="Cam", run=text)
        butler.registry.certify("calib", [bias], Timespan(hour(number), hour(number + 11)))
    return butler


source = repo("source", 3, "r")
ref = source.put({}, "made", instrument="Cam", exposure=1)
folder = work / "exported"
folder.mkdir()
FILE = {"filename": str(folder / "export.yaml"), "directory": str(folder), "transfer": "copy"}
with source.export(**FILE) as export:
    export.saveDatasets([ref])


def transfer(target: Butler) -> None:
    target.transfer_from(source, [ref], transfer="copy", transfer_dimensions=True)


def import_file(target: Butler) -> None:
    target.import_(**FILE)


def transfer_records(target: Butler) -> None:
    target.transfer_dimension_records_from(source, [ref])
    transfer(target)


def sync(target: Butler) -> None:
    target.registry.syncDimensionData("exposure", exposure(3, "r"))


def found(butler: Butler) -> tuple[int, str]:
    """Return how many datasets a query by time and filter finds, and which bias is valid."""
    where = "instrument = 'Cam' AND exposure.timespan OVERLAPS t AND band = 'r'"
    refs = butler.query_datasets("made", "run", where=where, bind={"t": hour(3)}, explain=False)
    return len(refs), butler.get("bias", instrument="Cam", exposure=1, collections="calib")["bias"]


def outcome(number: int, change: Callable[[Butler], None]) -> object:
    target = repo(f"target{number}", 15, "g")
    logged.clear()
    try:
        change(target)
    except Exception as error:
        return type(error).__name__
    assert target.get_dataset(ref.id) is not None
    return found(target), [text for text in logged if "exposure" in text]


changes = (sync, transfer, transfer_records, import_file)
seen = [outcome(number, change) for number, change in enumerate(changes)]
print("source:", found(source))
for name, result in zip(("sync", "transfer_from", "with records first", "import_"), seen, strict=True):
    print(f"{name}: {result}")
unchanged = found(source) == (1, "early") and seen[1:] == 3 * [((0, "late"), [])]
unchanged &= seen[0] == "DatabaseConflictError"
sys.exit(0 if unchanged else 1)
PY
