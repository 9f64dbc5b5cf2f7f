# SPDX-License-Identifier: BSD-3-Clause
"""Where a bench works."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Ground", "Places")


@dataclass(frozen=True, slots=True)
class Places:
    """Empty folders of one measurement, deleted after it."""

    scratch: Path
    """On a disk."""
    ramdisk: Path
    """On a tmpfs; its path is short, sockets are in it."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the folders of measurements are made."""

    disk: Path
    ramdisk: Path

    @contextmanager
    def places(self) -> Iterator[Places]:
        """Give empty folders, and delete them.

        Yields
        ------
        places : `Places`
            The folders.
        """
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=self.disk) as scratch,
            tempfile.TemporaryDirectory(prefix="bench-", dir=self.ramdisk) as ramdisk,
        ):
            yield Places(Path(scratch), Path(ramdisk))
