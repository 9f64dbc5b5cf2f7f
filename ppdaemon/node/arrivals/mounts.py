# SPDX-License-Identifier: BSD-3-Clause
"""On what kind of filesystem a raw root lies, and how its new files are found.

The kernel reports what goes through it on this host. What another host
writes to a network filesystem, or what is written to a layer below an overlay
or a FUSE filesystem, raises no event here.
"""

import os
import re
from dataclasses import dataclass

from ppdaemon.rawroots import WatchKind

__all__ = ("LOCAL", "WatchMethods", "Mount", "methods_for", "mount_of", "read_mounts")

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

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """What a line of ``/proc/self/mountinfo`` says."""

    point: str
    """Where it is mounted."""
    kind: str
    """Type of the filesystem, such as ``ext4`` or ``fuse.sshfs``."""
    source: str
    read_only: bool

    @property
    def filesystem(self) -> tuple[str, str, str]:
        """What changes when another filesystem is mounted."""
        return self.point, self.kind, self.source


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


def read_mounts(text: str) -> dict[int, Mount]:
    """Read the text of ``/proc/self/mountinfo``, see proc_pid_mountinfo(5), by the kernel's number."""
    mounts = {}
    for line in filter(None, text.split("\n")):
        first, _, last = line.partition(" - ")
        fields, (kind, source, options) = first.split(" "), last.split(" ", 2)
        read_only = "ro" in fields[5].split(",") or "ro" in options.split(",")
        mounts[int(fields[0])] = Mount(_unescaped(fields[4]), kind, _unescaped(source), read_only)
    return mounts


def mount_of(path: str) -> Mount:
    """Return the mount that a folder is really on, whatever is mounted over what.

    Blocks as the filesystem does; raises OSError if the folder is not there or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            information = dict(line.split(":", 1) for line in file)
        # Any bytes can be the name of a folder, and some that end a line elsewhere.
        with open("/proc/self/mountinfo", errors="backslashreplace", newline="\n") as file:
            mounts = read_mounts(file.read())
    finally:
        os.close(descriptor)
    # A mount that was detached while it was in use is in no table.
    return mounts.get(int(information["mnt_id"]), Mount("", "detached", "", read_only=False))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
