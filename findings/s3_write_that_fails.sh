#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A write to an object store that ends in an exception replaces the object with what was written so far.
#
# Package:  lsst-resources 30.2026.4200, moto 5.2.5, with Python 3.13. Date: 2026-11-30.
# Where:    `with ResourcePath("s3://...").open("wb") as file`, in which a serializer fails, or a signal
#           handler raises, as when a worker is told to stop.
# Expected: objects are replaced as a whole: nothing is uploaded, the former object stays; as it is with
#           the class's own default for remote schemes, which writes after a block that ended well.
# Seen:     leaving the block for whatever reason uploads the buffer, or completes the multipart upload,
#           so that readers find a part of a dataset in place of the whole. A new object is made, too,
#           and of an existing one in mode "a" the part is appended. Mode "ab+" overwrites the begin
#           of the object, where a local file is appended to. Write to memory or a local file first.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    "lsst-resources[s3]==30.2026.4200" "moto[s3,server]==5.2.5"
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

import boto3
from lsst.resources import ResourcePath
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
MIB = 2**20
Opener = Callable[[ResourcePath, str], AbstractContextManager[IO[bytes]]]


class StoppedError(Exception):
    """The task that writes is told to stop."""


@contextmanager
def object_store() -> Iterator[None]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        os.environ["S3_ENDPOINT_URL"] = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"]).create_bucket(Bucket="bucket")
        yield
    finally:
        server.stop()


def failed_write(path: ResourcePath, mode: str, part: bytes, opened: Opener = ResourcePath.open) -> bytes:
    with suppress(StoppedError), opened(path, mode) as file:
        file.write(part)
        raise StoppedError
    return path.read()


with object_store():
    folder = ResourcePath("s3://bucket/run/", forceDirectory=True)
    seen = {}
    cases = (("small", "wb", b"part"), ("large", "wb", 6 * MIB * b"p"), ("append", "ab", b"part"))
    for name, mode, part in cases:
        path = folder.join(name)
        path.write(b"complete")
        content = failed_write(path, mode, part)
        seen[name] = content if len(content) < MIB else f"{len(content) // MIB} MiB"
    path = folder.join("default")
    path.write(b"complete")
    seen["default of the class"] = failed_write(path, "wb", b"part", ResourcePath._openImpl)
    seen["new"] = failed_write(folder.join("new"), "wb", b"part")
    local = ResourcePath((Path(sys.argv[1]) / "file").as_uri())
    for name, path in (("s3, ab+", folder.join("both")), ("file, ab+", local)):
        path.write(b"complete")
        with path.open("ab+") as file:
            file.write(b"part")
        seen[name] = path.read()
for name, content in seen.items():
    print(f"{name}: {content}")
expected = {"small": b"part", "large": "6 MiB", "append": b"completepart", "new": b"part"}
expected |= {"default of the class": b"complete", "s3, ab+": b"partlete", "file, ab+": b"completepart"}
sys.exit(0 if seen == expected else 1)
PY
