# SPDX-License-Identifier: BSD-3-Clause
"""Which methods find new files on which filesystems."""

import pytest

from ppdaemon.node.arrivals.watchmethods import WatchMethods, methods_for


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
def test_the_configuration_decides(kind):
    assert methods_for("inotify", kind) == WatchMethods(watch=True, poll=False)
    assert methods_for("poll", kind) == WatchMethods(watch=False, poll=True)
