# SPDX-License-Identifier: BSD-3-Clause
"""The folders in which a bench works."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BenchFolders:
    """Empty folders of one measurement, deleted after it."""

    scratch: Path
    """On a disk."""
    ramdisk: Path
    """On a tmpfs; the path is short because sockets are in it."""


@dataclass(frozen=True, slots=True)
class FolderRoots:
    """The parent folders of the measurements' folders."""

    disk: Path
    ramdisk: Path

    @contextmanager
    def temporary(self) -> Iterator[BenchFolders]:
        """Make empty folders for one measurement and delete them at the end."""
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=self.disk) as scratch,
            tempfile.TemporaryDirectory(prefix="bench-", dir=self.ramdisk) as ramdisk,
        ):
            yield BenchFolders(Path(scratch), Path(ramdisk))
