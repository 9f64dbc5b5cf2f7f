# SPDX-License-Identifier: BSD-3-Clause
"""Opens files below a raw root, and refuses links out of it.

The supervisor reads a raw, and later a worker copies it: each checks the file
that it has opened, because the path may have been replaced in between.
"""

import fcntl
import os
import signal
import stat
from typing import BinaryIO

from ppdaemon.errors import BadMessage

__all__ = ("is_open_for_writing", "open_raw", "raw_descriptor")

READ_AHEAD = 16_384
"""Bytes: the primary header of a raw, some 200 cards, in one call."""


def raw_descriptor(path: str, root: str) -> int:
    """Return an ``O_PATH`` descriptor of a regular file below its root; the caller closes it.

    The path is absolute; the root may be a symbolic link. Raises
    `~ppdaemon.errors.BadMessage` of the kind ``symlink`` or ``not_a_file``.
    """
    # O_PATH has no effect on a device or a FIFO, and the file that is checked is the
    # file that is opened, even if the path is renamed in between.
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        # If the real path is equal, it contains no links, and the root need not be resolved.
        if real != path and not real.startswith(os.path.join(os.path.realpath(root), "")):
            raise BadMessage(f"{path!r} is a link out of the raw root", "symlink")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadMessage(f"{path!r} is not a regular file", "not_a_file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_raw(path: str, root: str) -> BinaryIO:
    """Open a regular file below its root for reading; raises the errors of `raw_descriptor`."""
    descriptor = raw_descriptor(path, root)
    try:
        return _open_checked(descriptor)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def _open_checked(descriptor: int) -> BinaryIO:
    return open(f"/proc/self/fd/{descriptor}", "rb", READ_AHEAD)


def is_open_for_writing(descriptor: int) -> bool | None:
    """Return whether a process of this host has a file open for writing, or mapped; `None` if the kernel
    does not tell: of files of other users it does so only with ``CAP_LEASE``.
    """
    try:
        # A lease is given for reading only while nobody can write. Who opens the file meanwhile waits until
        # it is given back, and this process gets a signal: one that does nothing, the usual one would end it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
