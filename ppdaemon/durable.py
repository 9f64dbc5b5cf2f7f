# SPDX-License-Identifier: BSD-3-Clause
"""Writes files that survive a crash of the host."""

import os
from pathlib import Path

__all__ = ("sync", "write_durably")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; raises OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Write a small file into an existing folder, and wait until it is on the disk."""
    path.write_text(text)
    sync(path)
    sync(path.parent)  # the name of a new file is a part of its folder
