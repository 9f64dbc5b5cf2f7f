# SPDX-License-Identifier: BSD-3-Clause
"""A server of S3 on this host: that of moto, in a process of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3

from ppdaemon.testing.waiting import wait_until


class Bucket:
    """A bucket, and how others reach its server."""

    def __init__(self, name: str, port: int):
        self.name = name
        self.environment = {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=self.environment["S3_ENDPOINT_URL"],
            aws_access_key_id="anybody",
            aws_secret_access_key="nothing",
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> dict[str, Any]:
        """Write an object; return the part ``s3`` of its notice."""
        answer = self._client.put_object(Bucket=self.name, Key=key, Body=content)
        object_ = {"key": key, "size": len(content), "eTag": answer["ETag"].strip('"')}
        return {"bucket": {"name": self.name, "arn": f"arn:aws:s3:::{self.name}"}, "object": object_}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


@contextmanager
def moto_bucket(name: str) -> Iterator[Bucket]:
    """Run a server with a bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "nothing"},
    )

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        wait_until(answers, story="moto's server does not listen")
        bucket = Bucket(name, port)
        try:
            yield bucket
        finally:
            bucket.close()
    finally:
        server.terminate()
        server.wait()
