# SPDX-License-Identifier: BSD-3-Clause
"""Taking possession of a node's folders, and cleaning what a former life left."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.errors import PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.processes import bearers
from ppdaemon.states import ExitCode

__all__ = ("OWNER", "Claim", "FolderTaken", "claim", "is_ramdisk")

_LOG = logging.getLogger(__name__)

OWNER = "PPDAEMON_OWNER"
"""Environment variable of all processes that a daemon has: its state folder."""


class FolderTaken(PPDaemonError):
    """A folder cannot be had: another daemon has it, or it is not writable."""

    exit_code = ExitCode.CANNOT_CREATE


@dataclass(slots=True)
class Claim:
    """The folders are this process's."""

    lock: int
    """Descriptor of the locked file; the lock goes with the process."""
    removed: int
    """RAM-disk repos of former lives that were deleted."""
    unknown: tuple[Path, ...]
    """What lay in the RAM-disk folder and is nobody's; it is kept."""

    def release(self, folders: NodeFolders) -> None:
        """Delete everything on the RAM disk and unlock.

        Parameters
        ----------
        folders : `~ppdaemon.folders.NodeFolders`
            The node's folders.
        """
        _remove_ours(folders)
        if not any(folders.ramdisk.iterdir()):
            folders.ramdisk.rmdir()
        os.close(self.lock)


def claim(folders: NodeFolders, life: str) -> Claim:
    """Make the folders of a node, lock them, delete a former life's repos.

    Parameters
    ----------
    folders : `~ppdaemon.folders.NodeFolders`
        The node's folders.
    life : `str`
        Nonce of this life.

    Returns
    -------
    claim : `Claim`
        Hold it while the daemon runs.

    Raises
    ------
    FolderTaken
        Raised if a daemon with these folders runs, or they cannot be made.
    """
    try:
        for folder in (folders.state, folders.spool, folders.no_return, folders.logs, folders.ramdisk):
            folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folders.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise FolderTaken(f"{error.filename}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
        os.close(lock)
        text = f"{folders.state} belongs to a running ppdaemon (process {holder or '?'})"
        raise FolderTaken(text) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    _end_survivors(folders)
    try:
        # The lock says that the former life is dead, and its workers die with
        # it; the marker says that the folder is a daemon's at all.
        removed = _remove_ours(folders) if folders.marker.exists() else 0
        unknown = tuple(folders.ramdisk.iterdir())
        for path in {folders.slots, folders.cache, folders.runs} & set(unknown):
            os.close(lock)
            raise FolderTaken(f"{path} exists and no ppdaemon has made it: move it away")
        for path in (*folders.spool.glob("*.part"), *folders.spool.glob("*.done")):
            shutil.rmtree(path)  # half written, or half deleted, when its process died
        folders.marker.write_text(json.dumps({"life": life, "pid": os.getpid()}))
        for folder in (folders.slots, folders.cache, folders.runs):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        os.close(lock)
        raise FolderTaken(f"{error.filename}: {error.strerror}") from None
    for path in unknown:
        _LOG.warning("%s is nobody's; it is kept", path)
    return Claim(lock, removed, unknown)


def _end_survivors(folders: NodeFolders) -> None:
    """Kill what a former life has left running.

    Workers die with their supervisor, but not what a pipeline has detached
    from them if supervisor and zygote were killed together.
    """
    survivors = bearers(OWNER, str(folders.state)) - {os.getpid()}
    for pid in survivors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if survivors:
        _LOG.warning("killed %d processes of a former life", len(survivors))


def _remove_ours(folders: NodeFolders) -> int:
    """Delete what daemons make on the RAM disk; return the number of repos."""
    repos = sum(1 for _ in folders.slots.iterdir()) if folders.slots.is_dir() else 0
    for folder in (
        folders.slots,
        folders.cache,
        folders.runs,
        folders.canaries,
        *folders.ramdisk.glob("template-*"),
    ):
        if folder.exists():
            shutil.rmtree(folder)
    for settings in folders.ramdisk.glob("config-*.json"):
        settings.unlink()
    folders.marker.unlink(missing_ok=True)
    return repos


def is_ramdisk(folder: Path) -> bool:
    """Tell whether a folder lies on a tmpfs or ramfs.

    Parameters
    ----------
    folder : `pathlib.Path`
        An existing folder.

    Returns
    -------
    ramdisk : `bool`
        By the longest mount point above it.
    """
    place = str(folder.resolve())
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, filesystem, *_ = line.split(" ")
        mount = mount.encode().decode("unicode_escape")
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, filesystem
    return kind in ("tmpfs", "ramfs")
