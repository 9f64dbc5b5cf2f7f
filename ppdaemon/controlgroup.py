# SPDX-License-Identifier: BSD-3-Clause
"""The control group of this process, version 2, and what the kernel counts in a group.

See Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

import contextlib
from pathlib import Path, PurePosixPath

from ppdaemon.errors import PPDaemonError

__all__ = ("PROC", "NoControlGroup", "memory_kills", "own_group", "own_memory_kills")

PROC = Path("/proc/self")


class NoControlGroup(PPDaemonError):
    """This process has no control group of version 2, or none that it may divide."""


def own_group(proc: Path = PROC) -> Path:
    """Return the folder of this process's control group. `proc` is the folder of ``cgroup`` and
    ``mountinfo``. Raise `NoControlGroup` with the reason if there is none.
    """
    groups = (line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines())
    group = next((PurePosixPath(path) for number, _, path in groups if number == "0"), None)
    if group is None:
        raise NoControlGroup("this host has no control groups of version 2")
    for line in (proc / "mountinfo").read_text().splitlines():
        # proc(5): id, parent, device, root, mount point, options, optional
        # fields, "-", type, ...
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            root, mount = before.split(" ")[3:5]
            if group.is_relative_to(root) and ".." not in group.parts:  # outside of the namespace
                return Path(mount) / group.relative_to(root)
    raise NoControlGroup("no control groups of version 2 are mounted")


def memory_kills(group: Path) -> int:
    """Return how many processes of a group the kernel has killed for lack of memory, of the group or of
    the host; 0 where it does not count.
    """
    try:
        events = (group / "memory.events").read_text()
    except FileNotFoundError:
        return 0
    return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))


def own_memory_kills(proc: Path = PROC) -> int:
    """Return `memory_kills` of this process's control group; 0 if it has none."""
    with contextlib.suppress(NoControlGroup, OSError):
        return memory_kills(own_group(proc))
    return 0
