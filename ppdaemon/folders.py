# SPDX-License-Identifier: BSD-3-Clause
"""The paths of a node's folders and files."""

import errno
import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from ppdaemon.config import NodeConfig
from ppdaemon.durable import sync, write_durably
from ppdaemon.reports import JOURNAL_NAME

__all__ = ("REFUSAL", "NodeFolders", "folder_size", "move_spool", "remove_spool", "save_spools")

REFUSAL = "refused.txt"
"""File in a quarantined spool with the reason why it cannot be exported; it is still
there when an operator moves the spool back."""


class NodeFolders:
    """The folders of one node; creates nothing.

    In shadow mode outputs wait in other folders than those of the present service: each mode exports and
    publishes only its own, whatever a run of the other one has left.
    """

    def __init__(self, ramdisk: Path, state: Path, spill: Path | None = None, *, shadow: bool = False):
        outputs = state / "shadow" if shadow else state
        self.ramdisk = ramdisk
        """Everything of this node on the RAM disk."""
        self.cache = ramdisk / "cache"
        """Files shared between workers by hard links."""
        self.runs = ramdisk / "runs"
        """Datasets that each output run has once, shared by all workers."""
        self.canaries = ramdisk / "canaries"
        """Files that are changed on purpose to check that inotify works."""
        self.uncompressed = ramdisk / "uncompressed"
        """Which images wait for packers; see `ppdaemon.uncompressed`."""
        self.slots = ramdisk / "slots"
        """One folder per slot."""
        self.marker = ramdisk / "ppdaemon.json"
        """Identifies the RAM-disk folder as a daemon's, with the node's name."""
        self.state = state
        """Files that must survive a reboot."""
        self.journal = state / JOURNAL_NAME
        """The journal's SQLite file."""
        self.spool = spill or outputs / "spool"
        """Outputs that wait for export."""
        self.spills = outputs / "spills.txt"
        """The spill folders that may have outputs, one a line: of this configuration, and of earlier ones."""
        earlier = self._read_spills()
        # One that the service may only read (systemd's `ProtectSystem`) would end the start, and each export.
        self.away_spools = tuple(each for each in earlier if not os.access(each, os.W_OK | os.X_OK))
        """Spill folders of earlier runs that are read-only, or not there: they may not be mounted."""
        present = (folder for folder in earlier if folder not in self.away_spools)
        self.disk_spools = tuple(dict.fromkeys((self.spool, outputs / "spool", *present)))
        """Folders on disks with such outputs: all but the first have those of runs with another
        configuration, the second one also those that an operator has moved back from `refused`."""
        self.ramdisk_spool = ramdisk / "spool"
        """Outputs that wait for the next export, while exports succeed."""
        self.publish = outputs / "publish"
        """Metrics that wait to be published."""
        self.refused = outputs / "refused"
        """Quarantined spools: outputs that cannot be exported, with the reasons."""
        self.no_return = state / "no_return"
        """Marker files of workers that passed the point of no return."""
        self.logs = state / "logs"
        """Standard output and error of workers."""
        self.temporary = state / "tmp"
        """Temporary files of the processes that serve no visit; each start empties it."""
        self.lock = state / "lock"
        """Locked by the running daemon."""
        self.ramdisk_lock = ramdisk / "lock"
        """Also locked: two daemons of the same name may have different state folders."""
        self.bridges = state / "bridges.json"
        """The last notice that was taken from each bridge."""
        self.drained = state / "drained"
        """Exists while an operator has drained the node; it has the TAI time in seconds since 1970."""

    @classmethod
    def of(cls, config: NodeConfig) -> "NodeFolders":
        """Return the folders of a configuration."""
        shadow, spill = config.shadow.enabled, config.export.spill
        # No node.name makes one of the other: it begins after the hyphen.
        name = f"ppdaemon{'.shadow' if shadow else ''}-{config.node.name}"
        ramdisk, state = config.node.ramdisk / name, config.node.state_dir
        return cls(ramdisk, state, None if spill is None else spill / name, shadow=shadow)

    def note_spills(self) -> None:
        """Remember the spill folder for the next starts, and those of earlier ones in which outputs are, or
        which are not there.
        """
        earlier = (folder for folder in self.disk_spools if any(folder.iterdir()))
        used = dict.fromkeys((self.spool, *self.away_spools, *earlier))
        used.pop(self.spills.with_name("spool"), None)  # always looked at
        if list(used) != self._read_spills():
            partial = self.spills.with_suffix(".new")
            text = "".join(f"{folder}\n" for folder in used)
            write_durably(partial, text)  # before the rename: a full disk must not empty the file
            partial.rename(self.spills)
            sync(self.spills.parent)

    def _read_spills(self) -> list[Path]:
        with suppress(OSError):  # there is none yet, or another user asks
            lines = self.spills.read_text(errors="replace").splitlines()
            return [Path(line) for line in lines if line.startswith("/")]  # a person may have left blank ones
        return []

    def template(self, generation: int) -> Path:
        """Return the template repo of a configuration generation, on the RAM disk."""
        return self.ramdisk / f"template-{generation}"

    def questions(self, generation: int) -> Path:
        """Return the folder of what the workers of a generation ask the asker and each other."""
        return self.cache / f".questions-{self.template(generation).name}"

    def repo(self, slot: int) -> Path:
        """Return the folder of a slot; it exists while the slot has a worker."""
        return self.slots / f"{slot:04d}"

    def settings(self, generation: int) -> Path:
        """Return the configuration file that the processes of a generation read."""
        return self.ramdisk / f"config-{generation}.json"

    def set_drained(self, since_tai: float | None) -> None:
        """Note on the disk that the node is drained since then, or that it is not."""
        if since_tai is None:
            self.drained.unlink(missing_ok=True)
            sync(self.state)
        else:
            write_durably(self.drained, f"{since_tai:.3f}\n")

    def drained_since(self) -> float | None:
        """Return since when the node is drained; `None` if it is not."""
        try:
            return float(self.drained.read_text())
        except FileNotFoundError:
            return None
        except ValueError:  # cut by a full disk: an operator wanted it all the same
            return self.drained.stat().st_mtime

    def count_quarantined(self) -> int:
        """Return the number of quarantined spools."""
        return sum(1 for _ in self.refused.glob("*"))

    def is_lost(self, instrument: str, group: str, detector: int, attempt: int) -> bool:
        """Return whether there is no spool of an attempt, quarantined ones included."""
        spool = self.find_spool(instrument, group, detector, attempt)
        return not (spool.exists() or (self.refused / spool.name).exists())

    def returned_spools(self) -> list[Path]:
        """Return the spools that an operator has moved back from `refused` for another export."""
        return sorted(note.parent for folder in self.disk_spools for note in folder.glob(f"*/{REFUSAL}"))

    def spooled(self, instrument: str, group: str, detector: int, attempt: int) -> Path:
        """Return the spool of an attempt; the folder exists only when it is complete."""
        quoted = quote(group, safe="").replace("~", "%7E")
        return self.spool / f"{instrument}~{quoted}~{detector}~{attempt}"

    def find_spool(self, instrument: str, group: str, detector: int, attempt: int) -> Path:
        """Return where the spool of an attempt is; if it is nowhere, where `spooled` expects it."""
        spool = self.spooled(instrument, group, detector, attempt)
        found = (folder / spool.name for folder in (self.ramdisk_spool, *self.disk_spools))
        return next((path for path in found if path.exists()), spool)

    def mark(self, instrument: str, group: str, detector: int, attempt: int) -> Path:
        """Return the marker file of an attempt that may have written something permanent.

        The worker creates it before it passes the point of no return, on the state
        disk, so that it exists even if worker and supervisor crash.
        """
        return self.no_return / self.spooled(instrument, group, detector, attempt).name

    @staticmethod
    def parse_spool_name(name: str) -> tuple[str, str, int, int] | None:
        """Return the instrument, group, detector and attempt of a folder named by `spooled`.

        `None` for other names.
        """
        parts = name.split("~")
        if len(parts) != 4 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return parts[0], unquote(parts[1]), int(parts[2]), int(parts[3])


def remove_spool(spool: Path) -> None:
    """Delete a spool; a crash never leaves half a spool under its name.

    If the spool does not exist, delete what an interrupted deletion has left.
    """
    # As texts, and one name after the other: `Path` and `shutil.rmtree` take longer than the kernel.
    present, doomed = os.path.exists(spool), f"{spool}.done"
    if present:
        # Renaming is atomic; deleting is not. The target must not have files for it.
        try:
            os.rename(spool, doomed)
        except OSError:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(spool, doomed)
    # A missing spool counts as exported. An error must not raise then, or the
    # deletion would be repeated without end.
    with nullcontext() if present else suppress(OSError):
        _remove_folder(doomed)


def _remove_folder(folder: str) -> None:
    try:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:  # a folder in it, which packing has left, or another process deletes it, too
        shutil.rmtree(folder)


def folder_size(folder: Path) -> int:
    """Return the size of the files in a folder, not of its folders; 0 if it is gone."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:  # exported meanwhile
        return 0


def save_spools(source: Path, target: Path) -> list[Path]:
    """Move complete spools from the RAM disk to a folder on a disk; return their new paths.

    A crash never leaves half a spool under its name. Raises `OSError` if one cannot be moved; it stays.
    """
    saved = []
    for spool in sorted(source.iterdir()) if source.is_dir() else ():
        if spool.suffix in (".part", ".done"):
            shutil.rmtree(spool)
            continue
        saved.append(move_spool(spool, target))
    return saved


def move_spool(spool: Path, parent: Path) -> Path:
    """Move a spool to a folder on another disk; return its new path. It stays if `OSError` is raised."""
    partial, moved = parent / f"{spool.name}.part", parent / spool.name
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(spool, partial)
        for path in (*partial.iterdir(), partial):
            sync(path)
        shutil.rmtree(moved, ignore_errors=True)
        partial.rename(moved)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, shutil.Error):  # has a list of files instead of an error number
            raise OSError(errno.EIO, error.args[0][0][2], str(spool)) from error
        raise
    sync(parent)
    # Not half of it: that would replace the moved one, when both are found after a crash.
    remove_spool(spool)
    return moved
