# SPDX-License-Identifier: BSD-3-Clause
"""The lock of a state directory: one running program per directory."""

import fcntl
import os
from pathlib import Path

from ppdaemon.errors import Refused, StateUnusable
from ppdaemon.privatefiles import make_folder, open_private

__all__ = ("LockHeld", "StateLock", "lock_state")


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


def lock_state(folder: Path, program: str) -> StateLock:
    """Create the state directory and lock it against a second run of the program.

    Raises `~ppdaemon.errors.Refused` if another one uses it, and
    `~ppdaemon.errors.StateUnusable` if it cannot be created, or if other users could change it.
    """
    path = folder / "lock"
    try:
        make_folder(folder)
        return StateLock(path)
    except LockHeld as error:
        pid = error.holder or "unknown"
        raise Refused(f"another {program} (pid {pid}) uses state_dir {folder}; stop it first") from None
    except OSError as error:
        raise StateUnusable(f"state_dir: {path}: {error.strerror}") from None
