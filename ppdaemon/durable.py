# SPDX-License-Identifier: BSD-3-Clause
"""Files that survive the machine."""

import os
from pathlib import Path

__all__ = ("sync", "write_durably")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises `OSError` if it cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Write a small file into an existing folder, for good."""
    path.write_text(text)
    sync(path)
    sync(path.parent)
