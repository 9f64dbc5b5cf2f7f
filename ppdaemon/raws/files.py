# SPDX-License-Identifier: BSD-3-Clause
"""Opens files below a raw root, and refuses links out of it.

The supervisor reads a raw, and later a worker copies it: each checks the file
that it has opened, because the path may have been replaced in between.
"""

import fcntl
import io
import os
import signal
import stat
from collections.abc import Buffer
from typing import BinaryIO

from ppdaemon.errors import BadMessage

__all__ = ("is_open_for_writing", "open_raw", "open_with_status", "raw_descriptor", "read_raw")

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
    return open_with_status(path, root)[0]


def open_with_status(path: str, root: str) -> tuple[BinaryIO, os.stat_result]:
    """Open a file as `open_raw` does; return its status, too, read before its content."""
    descriptor, status = _opened(path, root)
    return io.BufferedReader(_File(descriptor, status.st_size), READ_AHEAD), status


def read_raw(path: str, root: str, limit: int) -> bytes:
    """Return the content of a file that `open_raw` would open; of one with more than `limit` bytes one byte
    more than that.
    """
    descriptor, status = _opened(path, root)
    try:
        # Not more than there is: for a megabyte the system would map memory, and unmap it again.
        size = min(status.st_size, limit + 1)
        content = os.read(descriptor, size)
        while len(content) < size and (more := os.read(descriptor, size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


def _opened(path: str, root: str) -> tuple[int, os.stat_result]:
    """Return a descriptor to read from, and the status of the file."""
    checked = raw_descriptor(path, root)
    try:
        descriptor = _open_checked(checked)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(checked)
    try:
        # Of the descriptor that was opened: only for that NFS asks its server how long the file is now.
        return descriptor, os.fstat(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _open_checked(descriptor: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


class _File(io.RawIOBase):
    """A file that is read by position. One of `open` asks for its own by system calls, after each of which
    a thread waits for the interpreter.
    """

    def __init__(self, descriptor: int, size: int):
        self._descriptor = descriptor
        self._size = size
        self._position = 0

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        )
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        size = os.preadv(self._descriptor, [buffer], self._position)
        self._position += size
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            # Last: also after an error, such as of NFS, its number may be that of another file now.
            os.close(self._descriptor)


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
