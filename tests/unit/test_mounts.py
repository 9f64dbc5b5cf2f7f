# SPDX-License-Identifier: BSD-3-Clause
"""On which mount a folder is."""

import builtins
import io
from pathlib import Path
from typing import Any

import pytest

from ppdaemon import mounts
from ppdaemon.mounts import Mount, is_ramdisk, mount_of, read_mounts

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
24 22 0:5 / /proc rw,relatime - proc proc rw
36 22 0:40 / /data/raw\\040here rw,noatime master:1 shared:7 - nfs4 server:/raw rw,vers=4.2
37 22 0:41 /sub /data/ro ro,nosuid - fuse.sshfs user@host:/ rw
38 22 0:42 / /data/broken rw - ext4 /dev/vdb ro,errors=remount-ro
"""


def test_the_table_of_mounts_is_read():
    assert read_mounts(MOUNTINFO) == {
        22: Mount("/", "ext4", "/dev/vda", read_only=False),
        24: Mount("/proc", "proc", "proc", read_only=False),
        36: Mount("/data/raw here", "nfs4", "server:/raw", read_only=False),
        37: Mount("/data/ro", "fuse.sshfs", "user@host:/", read_only=True),
        38: Mount("/data/broken", "ext4", "/dev/vdb", read_only=True),
    }


def test_the_mount_of_a_folder_is_found(tmp_path):
    mount = mount_of(str(tmp_path))
    assert mount.kind
    assert str(tmp_path).startswith(mount.point)
    assert mount_of("/proc").kind == "proc"
    with pytest.raises(FileNotFoundError):
        mount_of(str(tmp_path / "gone"))


def test_other_mounts_may_be_called_as_they_like(tmp_path, monkeypatch):
    table = "7 1 254:0 / / rw - ext4 /dev/vda rw\n8 7 0:5 / /mnt/a\r\u2028b rw - tmpfs none rw\n".encode()
    latin = b"9 7 0:6 / /mnt/Donn\xe9es rw - tmpfs none rw\n"

    def opened(path: str, **keys: Any) -> Any:
        if path == "/proc/self/mountinfo":
            return io.TextIOWrapper(io.BytesIO(table + latin), encoding="utf-8", **keys)
        return io.StringIO("mnt_id:\t7\n") if "fdinfo" in path else builtins.open(path, **keys)

    monkeypatch.setattr(mounts, "open", opened, raising=False)
    assert mount_of(str(tmp_path)) == Mount("/", "ext4", "/dev/vda", read_only=False)


def test_a_ram_disk_is_distinguished_from_a_disk():
    assert not is_ramdisk(Path("/proc/self"))
    if Path("/dev/shm").is_dir():
        assert is_ramdisk(Path("/dev/shm"))
