# SPDX-License-Identifier: BSD-3-Clause
"""An object gateway of Ceph on this machine: its real programs, from Debian's packages.

One monitor, one daemon that keeps objects in memory, and the gateway; no manager. All files are below one
folder, all connections on the loopback interface.
"""

import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from debian import DebianPrograms, running_program, unpacked
from ports import free_ports

from ppdaemon.testing.waiting import wait_until

START_S = 90.0
COMMAND_S = 60.0
CONFIGURATION = """\
[global]
fsid = {cluster}
mon_host = v2:127.0.0.1:{ports[0]}
mon_initial_members = a
keyring = {folder}/keyring
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
osd_objectstore = memstore
memstore_device_bytes = 1073741824
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.asok
crash_dir = {folder}
plugin_dir = {libraries}/ceph
erasure_code_dir = {libraries}/ceph/erasure-code
osd_class_dir = {libraries}/rados-classes
[mon]
mon_data = {folder}/mon
[osd]
osd_data = {folder}/osd
[client]
rgw_frontends = beast endpoint=127.0.0.1:{ports[1]}
rgw_data = {folder}
"""
CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}
# The command "ceph" needs Debian's own Python.
ASK_MONITOR = """\
import ctypes, sys
rados, cluster = ctypes.CDLL("librados.so.2"), ctypes.c_void_p()
assert rados.rados_create(ctypes.byref(cluster), b"admin") == 0
assert rados.rados_conf_read_file(cluster, sys.argv[1].encode()) == 0
assert rados.rados_connect(cluster) == 0
words, size = (ctypes.c_char_p * 1)(sys.argv[2].encode()), ctypes.c_size_t()
answer, message = ctypes.c_void_p(), ctypes.c_char_p()
status = rados.rados_mon_command(cluster, words, 1, None, 0, ctypes.byref(answer), ctypes.byref(size),
                                 ctypes.byref(message), None)
sys.exit(f"{status}: {message.value}" if status else 0)
"""


class CephGateway:
    """A gateway that runs.

    `environment` is what clients of S3 need to reach it.
    """

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        uri, self.secret = f"http://127.0.0.1:{port}", secrets.token_hex(10)
        self.environment = {
            "S3_ENDPOINT_URL": uri,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "default",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        options = {
            "endpoint_url": uri,
            "aws_access_key_id": "tests",
            "aws_secret_access_key": self.secret,
            "region_name": "default",
            "config": Config(retries={"max_attempts": 0}),
        }
        self._s3: Any = boto3.client("s3", **options)
        self._sns: Any = boto3.client("sns", **options)

    def answers(self) -> bool:
        """Return whether it serves."""
        try:
            self._s3.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def make_topic(self, name: str, endpoint: str, *, persistent: bool) -> str:
        """Make a topic whose notices are posted to an endpoint; return its ARN."""
        attributes = {"push-endpoint": endpoint, "persistent": str(persistent).lower()}
        topic: str = self._sns.create_topic(Name=name, Attributes=attributes)["TopicArn"]
        return topic

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self._s3.create_bucket(Bucket=name)

    def notify(self, bucket: str, *topics: str) -> None:
        """Let creations of objects be told to topics."""
        configurations = [
            {"Id": topic.rpartition(":")[2], "TopicArn": topic, "Events": ["s3:ObjectCreated:*"]}
            for topic in topics
        ]
        self._s3.put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={"TopicConfigurations": configurations}
        )

    def notified(self, bucket: str) -> set[str]:
        """Return the names of the topics of a bucket."""
        found = self._s3.get_bucket_notification_configuration(Bucket=bucket)
        return {each["TopicArn"].rpartition(":")[2] for each in found["TopicConfigurations"]}

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object."""
        self._s3.put_object(Bucket=bucket, Key=key, Body=content)

    def close(self) -> None:
        """Close the connections; others are opened when they are needed."""
        self._s3.close()
        self._sns.close()

    def story(self) -> str:
        """Return the logs of its programs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)


@contextmanager
def ceph_gateway(folder: Path) -> Iterator[CephGateway]:
    """Run a gateway in an empty folder with a short path; skip where Debian's packages cannot be had."""
    programs = unpacked("ceph-mon", "ceph-osd", "radosgw")
    (classes,) = programs.root.glob("usr/lib/*/rados-classes")
    ports = free_ports(2)
    configuration, cluster = folder / "ceph.conf", str(uuid.uuid4())
    configuration.write_text(
        CONFIGURATION.format(folder=folder, cluster=cluster, ports=ports, libraries=classes.parent)
    )
    command = _Commands(folder, programs, configuration)
    for name, allowed in CAPABILITIES.items():
        keyring = ["--create-keyring"] if name == "mon." else []
        words = [word for area, what in allowed.items() for word in ("--cap", area, what)]
        command("ceph-authtool", *keyring, folder / "keyring", "--gen-key", "-n", name, *words)
    command(
        "monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v2:127.0.0.1:{ports[0]}]", "monmap"
    )
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    command("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
    with ExitStack() as running:
        running.enter_context(command.running("ceph-mon", "-i", "a"))
        device = str(uuid.uuid4())
        command.ask_monitor(f'{{"prefix": "osd new", "uuid": "{device}", "id": 0}}')
        command("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", device)
        running.enter_context(command.running("ceph-osd", "-i", "0"))
        gateway = CephGateway(folder, ports[1])
        running.callback(gateway.close)
        user = ("--uid=tests", "--display-name=tests", "--access-key=tests", f"--secret-key={gateway.secret}")
        command("radosgw-admin", "user", "create", *user)
        running.enter_context(command.running("radosgw", "-n", "client.admin"))
        wait_until(gateway.answers, START_S, gateway.story)
        yield gateway


class _Commands:
    """Runs the programs of a cluster."""

    def __init__(self, folder: Path, programs: DebianPrograms, configuration: Path):
        self.folder = folder
        self.environment: Mapping[str, str] = programs.environment
        self._programs = programs
        self._configuration = configuration

    def of(self, program: str, *arguments: object) -> list[str]:
        """Return a command with the configuration."""
        return [self._programs.program(program), *map(str, arguments), "-c", str(self._configuration)]

    def __call__(self, program: str, *arguments: object) -> None:
        self._run(self.of(program, *arguments))

    def running(self, program: str, *arguments: str) -> AbstractContextManager[None]:
        """Run a program in the foreground."""
        log = self.folder / f"{program}.out.log"
        return running_program(self.of(program, "-f", *arguments), log, self.environment)

    def ask_monitor(self, request: str) -> None:
        """Send the monitor a request in JSON."""
        self._run([sys.executable, "-c", ASK_MONITOR, str(self._configuration), request])

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=dict(self.environment),
            timeout=COMMAND_S,
            cwd=self.folder,
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
