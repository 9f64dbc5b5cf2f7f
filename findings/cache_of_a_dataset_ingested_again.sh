#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A raw that is removed and ingested again is read from a shared cache as it was before.
#
# Package:  lsst-daf-butler 30.2026.4300, lsst-resources 30.2026.4200, moto 5.2.5, with Python 3.13.
#           Date: 2026-11-30.
# Where:    a datastore in an object store, DAF_BUTLER_CACHE_DIRECTORY for several processes, and
#           DatasetIdGenEnum.DATAID_TYPE_RUN, as raws are ingested: the new dataset has the old ID.
# Expected: removal clears the cache, or a cached file is compared with the datastore's record.
# Seen:     pruneDatasets leaves the file that another client has cached in the same directory.
#           If the new file has the same size, as uncompressed raws of one detector have, each
#           client, also a new one, gets the old content without a word. With another size the get
#           fails: FileIntegrityError names the file in the object store, whose size is right.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    "lsst-daf-butler[s3]==30.2026.4300" lsst-resources==30.2026.4200 "moto[s3,server]==5.2.5"
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1
export DAF_BUTLER_CACHE_DIRECTORY="$work/cache"
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import logging
import os
import sys
from pathlib import Path

import boto3
from lsst.daf.butler import (
    Butler,
    Config,
    DataCoordinate,
    DatasetIdGenEnum,
    DatasetRef,
    DatasetType,
    FileDataset,
)
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
work = Path(sys.argv[1])
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ["S3_ENDPOINT_URL"] = f"http://{host}:{port}"
boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"]).create_bucket(Bucket="bucket")

config = Config(
    {"datastore": {"root": "s3://bucket/repo"}, "registry": {"db": f"sqlite:///{work}/gen3.sqlite3"}}
)
Butler.makeRepo(str(work / "repo"), config=config, forceConfigRoot=False)


def client() -> Butler:
    return Butler.from_config(str(work / "repo"), writeable=True, run="raws")


def ingest(butler: Butler, text: str) -> DatasetRef:
    file = work / "raw.yaml"
    file.write_text(f"pixels: {text}\n")
    dataset_type = butler.get_dataset_type("raw_file")
    data_id = DataCoordinate.make_empty(butler.dimensions)
    mode = DatasetIdGenEnum.DATAID_TYPE_RUN
    ref = DatasetRef(dataset_type, data_id, run="raws", id_generation_mode=mode)
    butler.ingest(FileDataset(path=str(file), refs=ref), transfer="copy")
    return ref


def read(butler: Butler) -> str:
    try:
        return butler.get("raw_file")["pixels"]
    except Exception as error:
        return type(error.__cause__ or error).__name__


try:
    owner = client()
    owner.registry.registerDatasetType(DatasetType("raw_file", owner.dimensions.empty, "StructuredDataDict"))
    first = ingest(owner, "bad")
    reader = client()
    seen = [read(reader)]
    for text in ("new", "longer"):
        owner.pruneDatasets([first], disassociate=True, unstore=True, purge=True)
        again = ingest(owner, text)
        assert again.id == first.id
        seen += [read(reader), read(client())]
finally:
    server.stop()
print("ingested: bad; read:", seen[0])
print("ingested again: new; read by the same client, by a new client:", seen[1:3])
print("ingested again: longer; read:", seen[3:])
sys.exit(0 if seen == ["bad", "bad", "bad", "FileIntegrityError", "FileIntegrityError"] else 1)
PY
