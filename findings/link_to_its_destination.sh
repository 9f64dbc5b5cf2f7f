#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The ingest of a link to a file that is at the new dataset's place already destroys the file.
#
# Package:  lsst-daf-butler 30.2026.4300, lsst-resources 30.2026.4200, with Python 3.13. Date: 2026-11-30.
# Where:    Butler.ingest with transfer="auto", its default, or a kind of link, of a folder of links to raws that are
#           in the datastore: the registry was lost or made anew, and the files stayed where they were. It calls
#           ResourcePath.transfer_from(..., overwrite=True), which anybody else may call, too.
# Expected: the file stays: a transfer of a file onto itself does nothing, also by another name (a hard link, a path
#           through a linked folder), and copy and move of this link leave it; or an error before it is removed.
# Seen:     the destination, the only file, is removed first, since its name differs from the link's. Then a link to
#           itself is made in its place: ingest returns without an error, and get fails with "Too many levels of
#           symbolic links". "hardlink" raises FileNotFoundError when the file is gone. Resolve links before, or use
#           transfer=None for files in their places.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-daf-butler==30.2026.4300 lsst-resources==30.2026.4200
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import os
import sys
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset
from lsst.resources import ResourcePath

WORK = Path(sys.argv[1])
LINKS = ("auto", "link", "symlink", "relsymlink", "hardlink")


def make_repo(root: Path) -> tuple[Butler, DatasetType]:
    Butler.makeRepo(str(root))
    butler = Butler.from_config(str(root), writeable=True)
    butler.registry.insertDimensionData("instrument", {"name": "Cam"})
    dataset_type = DatasetType("raw", ("instrument",), "StructuredDataDict", universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register("raws")
    return butler, dataset_type


def ingested_again(transfer: str) -> tuple[str, bool]:
    """Ingest a link into a new repo around old files; return the result and whether the file is there."""
    root = WORK / transfer
    with make_repo(root)[0] as butler:
        file = Path(butler.getURI(butler.put({"a": 1}, "raw", instrument="Cam", run="raws")).ospath)
    for lost in ("gen3.sqlite3", "butler.yaml"):
        (root / lost).unlink()
    link = WORK / f"{transfer}.yaml"
    link.symlink_to(file)
    butler, dataset_type = make_repo(root)
    ref = DatasetRef(dataset_type, butler.registry.expandDataId(instrument="Cam"), "raws")
    try:
        butler.ingest(FileDataset(str(link), [ref]), transfer=transfer)
        result = "ingested" if butler.get(ref) == {"a": 1} else "other content"
    except (OSError, ValueError) as error:  # of ingest, or of get
        result = type(error).__name__
    return result, file.exists()


def moved(kind: str, transfer: str) -> tuple[str, bool]:
    """Transfer a file onto itself by another name; return the result and whether the file is there."""
    folder = WORK / f"{kind}-{transfer}"
    folder.mkdir()
    file, other = folder / "file", folder / "other"
    file.write_text("data")
    match kind:
        case "link":
            other.symlink_to(file)
        case "hard link":
            os.link(file, other)
        case "folder":
            (WORK / f"{kind}-{transfer}-link").symlink_to(folder)
            other = WORK / f"{kind}-{transfer}-link" / "file"
    try:
        ResourcePath(str(file)).transfer_from(ResourcePath(str(other)), transfer=transfer, overwrite=True)
        result = "done"
    except OSError as error:
        result = type(error).__name__
    return result, file.exists() and file.read_text() == "data"


seen = {f"ingest, {transfer}": ingested_again(transfer) for transfer in (*LINKS, "copy")}
for kind in ("link", "hard link", "folder"):
    for transfer in (*LINKS, "copy", "move"):
        seen[f"{kind}, {transfer}"] = moved(kind, transfer)
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {f"ingest, {transfer}": ("ValueError", False) for transfer in LINKS}
expected |= {"ingest, hardlink": ("FileNotFoundError", False), "ingest, copy": ("ingested", True)}
for kind in ("link", "hard link", "folder"):
    for transfer in (*LINKS, "copy", "move"):
        expected[f"{kind}, {transfer}"] = "done", kind != "link" or transfer not in LINKS
expected["link, hardlink"] = "FileNotFoundError", False
sys.exit(0 if seen == expected else 1)
PY
