# SPDX-License-Identifier: BSD-3-Clause
"""The mount that a folder lies on, as the kernel names it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Mount", "is_ramdisk", "mount_of", "read_mounts")

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
        """What changes when another filesystem is mounted (`tuple`)."""
        return self.point, self.kind, self.source


def read_mounts(text: str) -> dict[int, Mount]:
    """Read the kernel's table of mounts.

    Parameters
    ----------
    text : `str`
        What is in ``/proc/self/mountinfo``; see proc_pid_mountinfo(5).

    Returns
    -------
    mounts : `dict` [`int`, `Mount`]
        By the number that the kernel gives them.
    """
    mounts = {}
    for line in filter(None, text.split("\n")):
        first, _, last = line.partition(" - ")
        fields, (kind, source, options) = first.split(" "), last.split(" ", 2)
        read_only = "ro" in fields[5].split(",") or "ro" in options.split(",")
        mounts[int(fields[0])] = Mount(_unescaped(fields[4]), kind, _unescaped(source), read_only)
    return mounts


def mount_of(path: str) -> Mount:
    """Find the mount that a folder is on. Blocks as the filesystem does.

    Parameters
    ----------
    path : `str`
        A folder.

    Returns
    -------
    mount : `Mount`
        That which is really used, whatever is mounted over what.

    Raises
    ------
    OSError
        Raised if the folder is not there or cannot be opened.
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


def is_ramdisk(folder: Path) -> bool:
    """Return whether an existing folder lies on a tmpfs or ramfs."""
    return mount_of(str(folder)).kind in ("tmpfs", "ramfs")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
