# SPDX-License-Identifier: BSD-3-Clause
"""Writes files that survive a crash of the host."""

import ctypes
import os
from pathlib import Path

__all__ = ("begin_sync_of", "sync", "write_durably")

_LIBC = ctypes.CDLL(None)
_SYNC_FILE_RANGE_WRITE = 2
"""Begin to write all dirty pages and do not wait (``linux/fs.h``)."""


def sync(path: Path | str) -> None:
    """Wait until a file, or the names in a folder, are on the disk; raises OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_sync_of(descriptor: int) -> None:
    """Let the kernel write an open file to the disk now, without waiting. No promise: `sync` makes it."""
    _LIBC.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def write_durably(path: Path, text: str) -> None:
    """Write a small file into an existing folder, and wait until it is on the disk."""
    path.write_text(text)
    sync(path)
    sync(path.parent)  # the name of a new file is a part of its folder
