# SPDX-License-Identifier: BSD-3-Clause
"""Finds the mount that a folder is on, in the kernel's table."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ("LOCAL", "RAMDISKS", "REMOTE", "Mount", "is_ramdisk", "mount_of", "read_mounts")

RAMDISKS = frozenset({"tmpfs", "ramfs"})
"""Types of filesystems in memory."""
# fmt: off
LOCAL = frozenset({
    "bcachefs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "msdos",
    "nilfs2", "ntfs", "ntfs3", "ramfs", "reiserfs", "rootfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs",
})
"""All writes go through this host's kernel."""
REMOTE = frozenset({
    "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "wekafs",
})
"""Other hosts write raws there."""
# fmt: on

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/self/mountinfo``."""

    point: str
    """Where it is mounted."""
    kind: str
    """Type of the filesystem, such as ``ext4`` or ``fuse.sshfs``."""
    source: str
    read_only: bool
    device: int = field(default=0, compare=False)
    """Device of its files, as in `os.stat_result.st_dev`; 0 if it is unknown."""

    @property
    def filesystem(self) -> tuple[str, str, str]:
        """Values that change when another filesystem is mounted."""
        return self.point, self.kind, self.source


def read_mounts(text: str) -> dict[int, Mount]:
    """Parse the text of ``/proc/self/mountinfo``, see proc_pid_mountinfo(5); return mounts by mount ID."""
    mounts = {}
    for line in filter(None, text.split("\n")):
        first, _, last = line.partition(" - ")
        fields, (kind, source, options) = first.split(" "), last.split(" ", 2)
        read_only = "ro" in fields[5].split(",") or "ro" in options.split(",")
        device = os.makedev(*map(int, fields[2].split(":")))
        mounts[int(fields[0])] = Mount(_unescaped(fields[4]), kind, _unescaped(source), read_only, device)
    return mounts


def mount_of(path: str) -> Mount:
    """Return the mount that a folder is on, also where mounts hide others.

    Blocks while the filesystem hangs; raises OSError if the folder cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            information = dict(line.split(":", 1) for line in file)
        # Folder names may contain any bytes, such as other line separators.
        with open("/proc/self/mountinfo", errors="backslashreplace", newline="\n") as file:
            mounts = read_mounts(file.read())
    finally:
        os.close(descriptor)
    # A mount that was detached while in use is not in the table.
    return mounts.get(int(information["mnt_id"]), Mount("", "detached", "", read_only=False))


def is_ramdisk(folder: Path) -> bool:
    """Return whether an existing folder is on a tmpfs or ramfs."""
    return mount_of(str(folder)).kind in RAMDISKS


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
