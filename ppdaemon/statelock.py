# SPDX-License-Identifier: BSD-3-Clause
"""The lock of a state directory: one running program per directory."""

import fcntl
import os
from pathlib import Path

from ppdaemon.privatefiles import open_private

__all__ = ("LockHeld", "StateLock")


class LockHeld(Exception):
    """Another process has the lock."""

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder
        """Process id in the lock file; empty if it has not been written yet."""


class StateLock:
    """Holds the lock of a file; the kernel releases it when the process ends.

    Raises LockHeld if another process has the lock, and OSError if the file cannot be created.
    """

    def __init__(self, path: Path):
        self._fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise LockHeld(holder) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)
