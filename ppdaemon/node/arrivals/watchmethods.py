# SPDX-License-Identifier: BSD-3-Clause
"""Chooses how new files of a raw root are found, by the type of its filesystem.

inotify reports only writes through this host's kernel: not those of other hosts
to a network filesystem, nor those to a layer below an overlay or FUSE filesystem.
"""

from dataclasses import dataclass

from ppdaemon.mounts import LOCAL, REMOTE
from ppdaemon.raws.roots import WatchKind

__all__ = ("LOCAL", "WatchMethods", "methods_for")


@dataclass(frozen=True, slots=True)
class WatchMethods:
    """How raws of a root are found, in addition to the slow survey."""

    watch: bool
    """Whether inotify is used."""
    poll: bool
    """Whether the folders of open visits are polled."""


def methods_for(choice: WatchKind, kind: str) -> WatchMethods:
    """Return how raws are found on a type of filesystem, as the kernel names it: by both methods
    where other writers are possible, as on overlays, FUSE and unknown filesystems.
    """
    match choice:
        case "inotify":
            return WatchMethods(watch=True, poll=False)
        case "poll":
            return WatchMethods(watch=False, poll=True)
        case _:
            return WatchMethods(watch=kind not in REMOTE, poll=kind not in LOCAL)
