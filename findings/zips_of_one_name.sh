#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Of two zips of datasets, ingested one after the other, the second replaces the content of the first.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.retrieve_artifacts_zip, then Butler.ingest_zip in another repo, of datasets whose files
#           have the same name in different folders, as images that are ingested from a folder by exposure.
# Expected: zips of different datasets have different names ("unique name based on files in Zip"), since the
#           prefix of the files in them, a part of the dataset ID, "can be used to guarantee uniqueness".
# Seen:     the prefix is the first 8 digits of the ID. An ID of this release (UUID 7) begins with its time,
#           so that all datasets of about a minute have one prefix, and zips with the same files one name.
#           Two zips are written to one path in the same folder; and ingest_zip puts the second in the place
#           of the first, which the datastore has: get of the first datasets returns the content of the
#           others, without an error. With IDs made from the data ID (UUID 5) all is right. Ingest zips by
#           transfer="direct" from folders of their own, or put an exposure into the names of files.
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

from lsst.daf.butler import Butler, DatasetIdGenEnum, DatasetRef, DatasetType, FileDataset
from lsst.daf.butler.formatters.json import JsonFormatter

work = Path(sys.argv[1])
GROUPS = ("first", "second")


def new_repo(name: str) -> Butler:
    Butler.makeRepo(str(work / name))
    return Butler.from_config(str(work / name), writeable=True, run="run")


def ingested(butler: Butler, folder: Path, mode: DatasetIdGenEnum) -> dict[str, DatasetRef]:
    """Ingest a file of the same name for each group, from a folder of its own."""
    insert = butler.registry.insertDimensionData
    insert("instrument", {"name": "Cam", "detector_max": 9, "visit_max": 9, "exposure_max": 9})
    dataset_type = DatasetType("made", butler.dimensions.conform(["group"]), "StructuredDataDict")
    butler.registry.registerDatasetType(dataset_type)
    data_ids = {}
    for group in GROUPS:
        insert("group", {"instrument": "Cam", "name": group})
        data_ids[group] = butler.registry.expandDataId(instrument="Cam", group=group)
    while True:  # until both are of the same minute, or have IDs without a time
        refs = {
            group: DatasetRef(dataset_type, data_id, run="run", id_generation_mode=mode)
            for group, data_id in data_ids.items()
        }
        if mode is not DatasetIdGenEnum.UNIQUE or len({str(ref.id)[:8] for ref in refs.values()}) == 1:
            break
    for group, ref in refs.items():
        file = folder / group / "image.json"
        file.parent.mkdir(parents=True)
        file.write_text(f'{{"group": "{group}"}}')
        butler.ingest(FileDataset(str(file), ref, formatter=JsonFormatter), transfer="direct")
    return refs


def transferred(mode: DatasetIdGenEnum, transfer: str) -> tuple[int, list[str]]:
    """Return the number of zips in one folder, and what is read after the zips are ingested."""
    name = f"{mode.name}_{transfer}"
    source, target = new_repo(f"source_{name}"), new_repo(f"target_{name}")
    refs = ingested(source, work / f"images_{name}", mode)
    for ref in refs.values():
        source.retrieve_artifacts_zip([ref], str(work / f"folder_{name}"))
    for group, ref in refs.items():
        path = source.retrieve_artifacts_zip([ref], str(work / f"own_{name}" / group))
        target.ingest_zip(path, transfer=transfer, transfer_dimensions=True)
    zips = len(list((work / f"folder_{name}").glob("*.zip")))
    return zips, [target.get(ref)["group"] for ref in refs.values()]


cases = {
    (DatasetIdGenEnum.UNIQUE, "copy"): (1, ["second", "second"]),
    (DatasetIdGenEnum.UNIQUE, "direct"): (1, ["first", "second"]),
    (DatasetIdGenEnum.DATAID_TYPE_RUN, "copy"): (2, ["first", "second"]),
}
unchanged = True
for (mode, transfer), expected in cases.items():
    zips, contents = transferred(mode, transfer)
    print(f"{mode.name}, {transfer}: {zips} zips in one folder; read: {contents}")
    unchanged &= (zips, contents) == expected
sys.exit(0 if unchanged else 1)
PY
