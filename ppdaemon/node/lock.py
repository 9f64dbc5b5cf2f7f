# SPDX-License-Identifier: BSD-3-Clause
"""Locks a node's folders and deletes the leftovers of the previous run."""

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.errors import StateUnusable
from ppdaemon.folders import NodeFolders, folder_size, save_spools
from ppdaemon.privatefiles import check_shared_folder, make_folder, write_private
from ppdaemon.processes import processes_with_variable
from ppdaemon.statelock import LockHeld, StateLock

__all__ = ("OWNER_VARIABLE", "NodeLock", "lock_node")

_LOG = logging.getLogger(__name__)

KILL_S = 5.0
"""A killed process ends in milliseconds, unless a filesystem hangs."""
OWNER_VARIABLE = "PPDAEMON_OWNER"
"""Environment variable that marks all processes of a daemon with its state folder."""


@dataclass(slots=True)
class NodeLock:
    """The lock of this process on a node's folders."""

    locks: tuple[StateLock, StateLock]
    """Of the RAM-disk folder and of the state folder."""
    removed: int
    """RAM-disk repos of previous runs that were deleted."""
    unknown: tuple[Path, ...]
    """Paths in the RAM-disk folder that do not belong to ppdaemon; left in place."""
    away: tuple[Path, ...]
    """Spill folders of earlier starts that are not there, or read-only."""

    @staticmethod
    def unsaved_bytes(folders: NodeFolders) -> int:
        """Return the size of the spools that `release` moves."""
        return sum(folder_size(spool) for spool in folders.ramdisk_spool.glob("*"))

    def release(self, folders: NodeFolders) -> None:
        """Move spools to the state disk, delete everything on the RAM disk and unlock."""
        try:
            save_spools(folders.ramdisk_spool, folders.spool)
        except OSError as error:
            _LOG.error("spools stay on the RAM disk, the next start moves them: %s", error)
            self.unlock()
            return
        _remove_ramdisk_files(folders)
        folders.ramdisk_lock.unlink(missing_ok=True)
        if not any(folders.ramdisk.iterdir()):
            folders.ramdisk.rmdir()
        self.unlock()

    def unlock(self) -> None:
        """Release the locks, as the kernel does when the process ends."""
        for lock in self.locks:
            lock.close()


def lock_node(folders: NodeFolders, incarnation: str) -> NodeLock:
    """Create the folders of a node, lock them, delete the previous run's repos.

    Raises `~ppdaemon.errors.StateUnusable` if a daemon with these folders is
    running, or if they cannot be created, and `~ppdaemon.privatefiles.UnsafePath`
    if other users could change them.
    """
    locked = folders.state
    try:
        disks = (folders.state, *folders.disk_spools)
        for folder in (*disks, folders.no_return, folders.logs, folders.temporary, folders.ramdisk):
            make_folder(folder)
        # Its owner could put a folder of his own in the place of the one that is deleted and used.
        check_shared_folder(folders.ramdisk.parent)
        lock = StateLock(folders.lock)
        try:
            # Another daemon may have the same name, and with it the same folder, but another state folder.
            locked = folders.ramdisk
            ramdisk_lock = StateLock(folders.ramdisk_lock)
        except BaseException:
            lock.close()
            raise
        try:
            removed, unknown = _clear(folders)
            # Before the folders: after a crash they are recognized by the marker.
            write_private(folders.marker, json.dumps({"life": incarnation, "pid": os.getpid()}))
            for folder in _of_run(folders):
                make_folder(folder)
            try:
                folders.note_spills()
            except OSError as error:  # a full disk: what waits there must be exported all the same
                _LOG.error("%s cannot be written: %s", folders.spills, error)
        except BaseException:
            ramdisk_lock.close()
            lock.close()
            raise
    except LockHeld as held:
        text = f"{locked} belongs to a running ppdaemon (process {held.holder or '?'})"
        raise StateUnusable(text) from None
    except OSError as error:
        raise StateUnusable(f"{error.filename}: {error.strerror}") from None
    for path in unknown:
        _LOG.warning("%s does not belong to ppdaemon; left in place", path)
    return NodeLock((ramdisk_lock, lock), removed, unknown, folders.away_spools)


def _clear(folders: NodeFolders) -> tuple[int, tuple[Path, ...]]:
    """Delete the leftovers of the previous run; return the number of repos and
    the paths on the RAM disk that do not belong to ppdaemon.
    """
    _kill_survivors(folders)
    # The lock proves that the previous run has ended, with its workers; the
    # marker proves that a daemon has created these folders.
    removed = 0
    if folders.marker.exists():
        if saved := save_spools(folders.ramdisk_spool, folders.spool):
            _LOG.warning("%d spools of the previous run were moved from the RAM disk", len(saved))
        removed = _remove_ramdisk_files(folders)
    unknown = tuple(path for path in folders.ramdisk.iterdir() if path != folders.ramdisk_lock)
    for path in set(_of_run(folders)) & set(unknown):
        raise StateUnusable(f"{path} exists and no ppdaemon has created it: move it away")
    for folder in folders.disk_spools:
        for path in (*folder.glob("*.part"), *folder.glob("*.done")):
            shutil.rmtree(path)  # its process died while it wrote or deleted the spool
    for path in folders.publish.glob("*.part"):
        path.unlink()  # the same, of metrics
    for path in folders.temporary.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # a killed process has left it: of a Butler's cache, say
        else:
            path.unlink()
    return removed, unknown


def _kill_survivors(folders: NodeFolders) -> None:
    """Kill processes of the previous run that are still running.

    Workers die with their supervisor. Processes that a pipeline has detached
    from them do not, if supervisor and zygote were killed together. They have ended before their files
    are deleted, which they could write again.
    """
    survivors = processes_with_variable(OWNER_VARIABLE, str(folders.state)) - {os.getpid()}
    left = _kill_and_wait(survivors, KILL_S)
    if survivors:
        _LOG.warning("killed %d processes of the previous run", len(survivors))
    if left:
        _LOG.error(
            "processes of the previous run do not end, and may still write: %s; check whether a filesystem"
            " hangs",
            sorted(left),
        )


def _kill_and_wait(pids: Collection[int], limit_s: float) -> set[int]:
    """Kill processes, which need not be children, and wait for their ends; return those that have not
    ended within the limit.
    """
    descriptors: dict[int, int] = {}
    waiting = select.poll()
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                descriptors[descriptor] = pid
                waiting.register(descriptor, select.POLLIN)
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        left = dict(descriptors)
        until = time.monotonic() + limit_s
        while left and (remaining := until - time.monotonic()) > 0:
            for descriptor, _ in waiting.poll(1000 * remaining):
                waiting.unregister(descriptor)
                del left[descriptor]
        return set(left.values())
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _of_run(folders: NodeFolders) -> tuple[Path, ...]:
    """Return the folders on the RAM disk that each run of a daemon has."""
    return folders.slots, folders.cache, folders.runs, folders.ramdisk_spool, folders.uncompressed


def _remove_ramdisk_files(folders: NodeFolders) -> int:
    """Delete all files of daemons on the RAM disk; return the number of repos."""
    repos = sum(1 for _ in folders.slots.iterdir()) if folders.slots.is_dir() else 0
    for folder in (
        *_of_run(folders),
        folders.canaries,
        *folders.ramdisk.glob("template-*"),
        *folders.ramdisk.glob("warmup-*"),  # a zygote that was killed has left it
    ):
        if folder.is_symlink():
            folder.unlink()  # what is behind it is not the daemon's
        elif folder.exists():
            shutil.rmtree(folder)
    for settings in folders.ramdisk.glob("config-*.json"):
        settings.unlink()
    # Last: if a deletion fails, the next start still has the marker.
    folders.marker.unlink(missing_ok=True)
    return repos
