# SPDX-License-Identifier: BSD-3-Clause
"""Where a node keeps what: the names of its folders and files."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from ppdaemon.config import NodeConfig

__all__ = ("NodeFolders",)


@dataclass(frozen=True, slots=True)
class NodeFolders:
    """The folders of one node; nothing is made here."""

    ramdisk: Path
    """Everything of this node on the RAM disk."""
    state: Path
    """What outlives a restart."""

    @classmethod
    def of(cls, config: NodeConfig) -> "NodeFolders":
        """Return the folders that a configuration means.

        Parameters
        ----------
        config : `~ppdaemon.config.NodeConfig`
            The node's configuration.

        Returns
        -------
        folders : `NodeFolders`
            Their names.
        """
        return cls(config.node.ramdisk / f"ppdaemon-{config.node.name}", config.node.state_dir)

    @property
    def template(self) -> Path:
        """The template repo (`pathlib.Path`)."""
        return self.ramdisk / "template"

    @property
    def cache(self) -> Path:
        """Files shared between workers by hard link (`pathlib.Path`)."""
        return self.ramdisk / "cache"

    @property
    def slots(self) -> Path:
        """One folder per seat (`pathlib.Path`)."""
        return self.ramdisk / "slots"

    @property
    def marker(self) -> Path:
        """Says that the RAM-disk folder is a daemon's, and whose."""
        return self.ramdisk / "ppdaemon.json"

    @property
    def settings(self) -> Path:
        """The configuration as the zygote reads it (`pathlib.Path`)."""
        return self.ramdisk / "config.json"

    @property
    def journal(self) -> Path:
        """The journal's SQLite file (`pathlib.Path`)."""
        return self.state / "journal.sqlite"

    @property
    def spool(self) -> Path:
        """Outputs that wait for export (`pathlib.Path`)."""
        return self.state / "spool"

    def spooled(self, instrument: str, group: str, detector: int, attempt: int) -> Path:
        """Return where one attempt's outputs wait for export.

        Parameters
        ----------
        instrument, group : `str`
            The visit; the group is quoted.
        detector, attempt : `int`
            Which attempt at which detector.

        Returns
        -------
        folder : `pathlib.Path`
            Exists only when it is complete.
        """
        return self.spool / f"{instrument}~{quote(group, safe='')}~{detector}~{attempt}"

    @staticmethod
    def read_spooled(name: str) -> tuple[str, str, int, int] | None:
        """Return what `spooled` has made a name of.

        Parameters
        ----------
        name : `str`
            Last part of a folder's path.

        Returns
        -------
        key : `tuple` or `None`
            Instrument, group, detector and attempt; `None` for other names.
        """
        parts = name.split("~")
        if len(parts) != 4 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return parts[0], unquote(parts[1]), int(parts[2]), int(parts[3])

    @property
    def logs(self) -> Path:
        """Standard output and error of workers (`pathlib.Path`)."""
        return self.state / "logs"

    @property
    def lock(self) -> Path:
        """Locked by the running daemon (`pathlib.Path`)."""
        return self.state / "lock"
