# SPDX-License-Identifier: BSD-3-Clause
"""On what kind of filesystem a raw root lies, and how its new files are found.

The kernel reports what goes through it on this host. What another host
writes to a network filesystem, or what is written to a layer below an overlay
or a FUSE filesystem, raises no event here.
"""

from dataclasses import dataclass

from ppdaemon.raws.roots import WatchKind

__all__ = ("LOCAL", "WatchMethods", "methods_for")

# fmt: off
LOCAL = frozenset({
    "bcachefs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "msdos",
    "nilfs2", "ntfs", "ntfs3", "ramfs", "reiserfs", "rootfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs",
})
"""All that is written there goes through this host's kernel."""
REMOTE = frozenset({
    "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "wekafs",
})
"""Raws are written there by other hosts."""
# fmt: on


@dataclass(frozen=True, slots=True)
class WatchMethods:
    """How raws of a root are found, besides the slow survey."""

    watch: bool
    """Whether the kernel is asked for events."""
    poll: bool
    """Whether raws of open visits are looked for."""


def methods_for(choice: WatchKind, kind: str) -> WatchMethods:
    """Return how raws are found on a type of filesystem, as the kernel names it: both ways where it
    is in doubt who writes there, as on overlays, FUSE and unknown filesystems.
    """
    match choice:
        case "inotify":
            return WatchMethods(watch=True, poll=False)
        case "poll":
            return WatchMethods(watch=False, poll=True)
        case _:
            return WatchMethods(watch=kind not in REMOTE, poll=kind not in LOCAL)
