# SPDX-License-Identifier: BSD-3-Clause
"""Which filesystems tell of what is written to them."""

import builtins
import io
from typing import Any

import pytest

from ppdaemon.node.arrivals import mounts
from ppdaemon.node.arrivals.mounts import Mount, WatchMethods, methods_for, mount_of, read_mounts

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


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "f2fs", "bcachefs", "vfat", "fuseblk"]
)
def test_where_only_this_host_writes_the_kernel_is_asked(kind):
    assert methods_for("auto", kind) == WatchMethods(watch=True, poll=False)


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "lustre", "gpfs", "ceph", "cifs", "smb3", "afs", "beegfs", "orangefs", "glusterfs"],
)
def test_where_other_hosts_write_raws_are_polled_for(kind):
    assert methods_for("auto", kind) == WatchMethods(watch=False, poll=True)


@pytest.mark.parametrize(
    "kind",
    ["overlay", "fuse", "fuse.sshfs", "fuse.bindfs", "9p", "virtiofs", "gfs2", "ocfs2", "autofs", "new", ""],
)
def test_where_it_is_in_doubt_both_are_done(kind):
    assert methods_for("auto", kind) == WatchMethods(watch=True, poll=True)


@pytest.mark.parametrize("kind", ["ext4", "nfs4", "overlay"])
def test_the_configuration_has_the_last_word(kind):
    assert methods_for("inotify", kind) == WatchMethods(watch=True, poll=False)
    assert methods_for("poll", kind) == WatchMethods(watch=False, poll=True)


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
