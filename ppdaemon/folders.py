# SPDX-License-Identifier: BSD-3-Clause
"""Where a node keeps what: the names of its folders and files."""

import shutil
from pathlib import Path
from urllib.parse import quote, unquote

from ppdaemon.config import NodeConfig

__all__ = ("REFUSAL", "NodeFolders", "remove_spool")

REFUSAL = "refused.txt"
"""Says in a spool why it cannot be exported; it stays there when an operator
moves the spool back."""


class NodeFolders:
    """The folders of one node; nothing is made here."""

    def __init__(self, ramdisk: Path, state: Path):
        self.ramdisk = ramdisk
        """Everything of this node on the RAM disk (`pathlib.Path`)."""
        self.cache = ramdisk / "cache"
        """Files shared between workers by hard link (`pathlib.Path`)."""
        self.runs = ramdisk / "runs"
        """What each output run has once, for all workers (`pathlib.Path`)."""
        self.canaries = ramdisk / "canaries"
        """Files whose changes the kernel must tell of (`pathlib.Path`)."""
        self.slots = ramdisk / "slots"
        """One folder per slot (`pathlib.Path`)."""
        self.marker = ramdisk / "ppdaemon.json"
        """Says that the RAM-disk folder is a daemon's, and whose."""
        self.state = state
        """What outlives a restart (`pathlib.Path`)."""
        self.journal = state / "journal.sqlite"
        """The journal's SQLite file (`pathlib.Path`)."""
        self.spool = state / "spool"
        """Outputs that wait for export (`pathlib.Path`)."""
        self.refused = state / "refused"
        """Outputs that cannot be exported, with the reasons (`pathlib.Path`)."""
        self.no_return = state / "no_return"
        """Marks of workers that went past the point of no return."""
        self.logs = state / "logs"
        """Standard output and error of workers (`pathlib.Path`)."""
        self.lock = state / "lock"
        """Locked by the running daemon (`pathlib.Path`)."""

    @classmethod
    def of(cls, config: NodeConfig) -> "NodeFolders":
        """Return the folders that a configuration means."""
        return cls(config.node.ramdisk / f"ppdaemon-{config.node.name}", config.node.state_dir)

    def template(self, generation: int) -> Path:
        """Return the template repo of a generation."""
        return self.ramdisk / f"template-{generation}"

    def repo(self, slot: int) -> Path:
        """Return a slot's own folder."""
        return self.slots / f"{slot:04d}"

    def settings(self, generation: int) -> Path:
        """Return the configuration of a generation as its processes read it."""
        return self.ramdisk / f"config-{generation}.json"

    def count_refused(self) -> int:
        """Return how many spools cannot be exported."""
        return sum(1 for _ in self.refused.glob("*"))

    def moved_back(self) -> list[Path]:
        """Return the spools that an operator has moved back from `refused`."""
        return sorted(note.parent for note in self.spool.glob(f"*/{REFUSAL}"))

    def spooled(self, instrument: str, group: str, detector: int, attempt: int) -> Path:
        """Return where one attempt's outputs wait for export."""
        quoted = quote(group, safe="").replace("~", "%7E")
        return self.spool / f"{instrument}~{quoted}~{detector}~{attempt}"

    def mark(self, instrument: str, group: str, detector: int, attempt: int) -> Path:
        """Return the mark that an attempt may have done something permanent.

        The worker makes it before it does; it outlives worker and supervisor.
        """
        return self.no_return / self.spooled(instrument, group, detector, attempt).name

    @staticmethod
    def read_spooled(name: str) -> tuple[str, str, int, int] | None:
        """Return what `spooled` has made a name of."""
        parts = name.split("~")
        if len(parts) != 4 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return parts[0], unquote(parts[1]), int(parts[2]), int(parts[3])


def remove_spool(spool: Path) -> None:
    """Delete a spool in such a way that half of one is never taken for one.

    Of one that is gone, what is left is deleted: whoever deleted it may have
    been killed meanwhile.
    """
    present, doomed = spool.exists(), spool.with_name(f"{spool.name}.done")
    if present:
        shutil.rmtree(doomed, ignore_errors=True)
        spool.rename(doomed)
    # What is gone counts as exported: no error may have it tried for ever.
    shutil.rmtree(doomed, ignore_errors=not present)
