# SPDX-License-Identifier: BSD-3-Clause
"""Writes files that survive a crash of the host."""

import ctypes
import errno
import os
from pathlib import Path

__all__ = ("begin_sync_of", "sync", "wait_until_written", "write_durably")

_LIBC = ctypes.CDLL(None, use_errno=True)
_BEGIN, _WAIT = 2, 1 | 2 | 4
"""Flags of `sync_file_range` (``linux/fs.h``): begin to write all dirty pages; and wait for them, too."""
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESPIPE)
"""Errors of a kernel or a filesystem without it."""


def sync(path: Path | str) -> None:
    """Wait until a file, or the names in a folder, are on the disk; raises OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_sync_of(descriptor: int) -> None:
    """Let the kernel write an open file to the disk now, without waiting. No promise: `sync` makes it."""
    _sync_file_range(descriptor, _BEGIN)


def wait_until_written(descriptor: int) -> None:
    """Wait until the disk has the content of an open file; raises OSError if it cannot be written.

    Size and place of the content are not on the disk for that, nor has the disk's cache been flushed: `sync`
    makes it durable. What changes names afterwards is on the disk only together with it, where the
    filesystem's journal keeps the order.
    """
    error = _sync_file_range(descriptor, _WAIT)
    if error in _CANNOT:
        os.fsync(descriptor)
    elif error:
        raise OSError(error, os.strerror(error))


def _sync_file_range(descriptor: int, flags: int) -> int:
    """Return the error number, or 0."""
    if _LIBC.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), flags) == 0:
        return 0
    return ctypes.get_errno()


def write_durably(path: Path, text: str) -> None:
    """Write a small file into an existing folder, and wait until it is on the disk."""
    path.write_text(text)
    sync(path)
    sync(path.parent)  # the name of a new file is a part of its folder
