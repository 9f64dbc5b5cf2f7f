# SPDX-License-Identifier: BSD-3-Clause
"""Opens files below a raw root, and refuses links out of it.

The supervisor reads a raw, and later a worker copies it: each checks the file
that it has opened, because the path may have been replaced in between.
"""

import errno
import fcntl
import io
import os
import signal
import stat
from collections.abc import Buffer
from types import TracebackType
from typing import BinaryIO, Self

from ppdaemon.errors import BadMessage

__all__ = (
    "OpenFolders",
    "is_open_for_writing",
    "is_regular",
    "open_raw",
    "open_with_status",
    "raw_descriptor",
    "read_raw",
)

READ_AHEAD = 16_384
"""Bytes: the primary header of a raw, some 200 cards, in one call."""


class OpenFolders:
    """The folders of files that are opened one after another. Each is checked once, and most files in it are
    then opened with three system calls instead of six: after each of them a thread waits for the interpreter.

    A folder that is replaced is found after `close` only.
    """

    def __init__(self) -> None:
        self._descriptors: dict[str, int | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all folders."""
        while self._descriptors:
            _, descriptor = self._descriptors.popitem()
            if descriptor is not None:
                os.close(descriptor)

    def of(self, path: str) -> int | None:
        """Return a descriptor of the folder of a file; `None` if the file has to be opened by its path: there
        is no such folder, or its path has a link, which may lead out of the raw root.
        """
        folder = path.rpartition("/")[0]
        if folder not in self._descriptors:
            self._descriptors[folder] = _folder_descriptor(folder)
        return self._descriptors[folder]


def _folder_descriptor(folder: str) -> int | None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.readlink(f"/proc/self/fd/{descriptor}") == folder:
        return descriptor
    os.close(descriptor)
    return None


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
            raise _not_a_file(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_raw(path: str, root: str) -> BinaryIO:
    """Open a regular file below its root for reading; raises the errors of `raw_descriptor`."""
    with OpenFolders() as folders:
        return open_with_status(path, root, folders)[0]


def open_with_status(path: str, root: str, folders: OpenFolders) -> tuple[BinaryIO, os.stat_result]:
    """Open a file as `open_raw` does; return its status, too, read before its content."""
    descriptor, status = _opened(path, root, folders)
    return io.BufferedReader(_File(descriptor, status.st_size), READ_AHEAD), status


def is_regular(path: str, root: str, folders: OpenFolders) -> bool:
    """Return whether `open_raw` would open a file."""
    folder = folders.of(path)
    try:
        if folder is None or not _is_regular_in(folder, path):
            os.close(raw_descriptor(path, root))
    except (OSError, BadMessage):
        return False
    return True


def read_raw(path: str, root: str, limit: int, folders: OpenFolders) -> bytes:
    """Return the content of a file that `open_raw` would open; of one with more than `limit` bytes one byte
    more than that.
    """
    descriptor, status = _opened(path, root, folders)
    try:
        # Not more than there is: for a megabyte the system would map memory, and unmap it again.
        size = min(status.st_size, limit + 1)
        content = os.read(descriptor, size)
        while len(content) < size and (more := os.read(descriptor, size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


def _opened(path: str, root: str, folders: OpenFolders) -> tuple[int, os.stat_result]:
    """Return a descriptor to read from, and the status of the file."""
    folder = folders.of(path)
    descriptor = None if folder is None else _open_in(folder, path)
    if descriptor is None:
        descriptor = _open_by_path(path, root)
    try:
        # Of the descriptor that was opened: only for that NFS asks its server how long the file is now.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(path)
        return descriptor, status
    except BaseException:
        os.close(descriptor)
        raise


def _open_in(folder: int, path: str) -> int | None:
    """Open a file in its folder, which was checked; return `None` if it is a link, no regular file, or has to
    be waited for.
    """
    try:
        if not _is_regular_in(folder, path):
            return None
        # Should it be another file since: a link is not followed, and a FIFO is not waited for.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(path.rpartition("/")[2], flags, dir_fd=folder)
    except OSError as error:
        # EWOULDBLOCK: a server of files, such as Samba, has a lease until its client has written all.
        if error.errno in (errno.ELOOP, errno.EWOULDBLOCK):
            return None
        error.filename = path
        raise


def _is_regular_in(folder: int, path: str) -> bool:
    name = path.rpartition("/")[2]
    return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _open_by_path(path: str, root: str) -> int:
    checked = raw_descriptor(path, root)
    try:
        return _open_checked(checked)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(checked)


def _not_a_file(path: str) -> BadMessage:
    return BadMessage(f"{path!r} is not a regular file", "not_a_file")


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
