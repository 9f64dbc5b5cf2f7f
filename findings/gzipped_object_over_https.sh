#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A gzipped object with Content-Encoding has other bytes over http than over S3, and not its size().
#
# Package:  lsst-resources 30.2026.4200, lsst-daf-butler 30.2026.4300, moto 5.2.5, with Python 3.13.
#           Date: 2026-11-30.
# Where:    raw.fits.gz in an object store, uploaded with "Content-Encoding: gzip", as some clients and web
#           servers set it for .gz; read by s3:// on one host and by an http URL, such as one that
#           generate_presigned_get_url returns, on another; ingested with transfer="direct" or "copy".
# Expected: both have the bytes that are stored, as size() counts them: HttpResourcePath asks for "identity"
#           or does not decode, as the package does for davs://.
# Seen:     read, as_local, open and transfer_from over http unpack the object. size() is the packed one. A
#           local copy is named .fits.gz and is no gzip file, whose checksum is not that of the store. A
#           dataset that is ingested "direct" can never be read: FileIntegrityError, the size does not match;
#           with s3:// it can. With "copy" the repo's file is the unpacked one, by its name a packed one.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    "lsst-resources[s3,https]==30.2026.4200" lsst-daf-butler==30.2026.4300 "moto[s3,server]==5.2.5"
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import gzip
import logging
import os
import sys
from pathlib import Path

import boto3
from astropy.io import fits
from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset, FormatterV2
from lsst.resources import ResourcePath
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
work = Path(sys.argv[1])
fits.PrimaryHDU().writeto(work / "raw.fits")
plain = (work / "raw.fits").read_bytes()
packed = gzip.compress(plain)


class RawFormatter(FormatterV2):
    can_read_from_local_file = True
    supported_extensions = frozenset({".fits.gz"})

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> object:
        return {"simple": fits.getheader(path)["SIMPLE"]}


server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ["S3_ENDPOINT_URL"] = f"http://{host}:{port}"
client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
client.create_bucket(Bucket="raws")
client.put_object(Bucket="raws", Key="raw.fits.gz", Body=packed, ContentEncoding="gzip")
stored = ResourcePath("s3://raws/raw.fits.gz")
signed = ResourcePath(stored.generate_presigned_get_url(expiration_time_seconds=600))

Butler.makeRepo(str(work / "repo"))
butler = Butler.from_config(str(work / "repo"), writeable=True)
kind = DatasetType("raw", butler.dimensions.empty, "StructuredDataDict")
butler.registry.registerDatasetType(kind)


def ingested(uri: ResourcePath, run: str, transfer: str) -> tuple[object, bytes]:
    """Return what get returns or raises, and the content that the repo has."""
    butler.collections.register(run)
    ref = DatasetRef(kind, butler.registry.expandDataId({}), run=run)
    butler.ingest(FileDataset(uri, [ref], formatter=RawFormatter), transfer=transfer)
    try:
        result = butler.get(ref)
    except Exception as error:
        result = type(error).__name__
    return result, butler.getURI(ref).read()


seen = {}
names = {plain: "unpacked", packed: "as stored"}
for uri in (stored, signed):
    with uri.as_local() as local, uri.open("rb") as stream:
        contents = uri.read(), Path(local.ospath).read_bytes(), stream.read()
    size = "as stored" if uri.size() == len(packed) else "another"
    found = [(get, names[content]) for get, content in (
        ingested(uri, f"{uri.scheme}-{transfer}", transfer) for transfer in ("direct", "copy")
    )]
    seen[uri.scheme] = size, *(names[each] for each in contents), *found
    print(uri.scheme, *seen[uri.scheme], sep=", ")
server.stop()
read = {"simple": True}
right = "as stored", "as stored", "as stored", "as stored", (read, "as stored"), (read, "as stored")
wrong = "as stored", "unpacked", "unpacked", "unpacked", ("FileIntegrityError", "unpacked"), (read, "unpacked")
sys.exit(0 if seen == {"s3": right, "http": wrong} else 1)
PY
