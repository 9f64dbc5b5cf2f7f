# SPDX-License-Identifier: BSD-3-Clause
"""Files that all workers of a host share: fetched once, then hard-linked."""

import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsst.resources import ResourcePath

__all__ = ("SharedCache",)

_LOG = logging.getLogger(__name__)
_LOCKS = 64
"""Lock files: few enough to keep, enough that workers seldom meet."""


class SharedCache:
    """Immutable files by name, in one folder of the RAM disk.

    Parameters
    ----------
    folder : `pathlib.Path`
        The folder; made if it is not there.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def fetch(self, name: str, source: ResourcePath) -> tuple[Path, bool]:
        """Return a shared copy of a file.

        Parameters
        ----------
        name : `str`
            Stands for the content, for ever.
        source : `lsst.resources.ResourcePath`
            Where it is copied from if it is not there yet.

        Returns
        -------
        path : `pathlib.Path`
            The copy; not to be changed.
        fetched : `bool`
            Whether it was copied now.

        Raises
        ------
        OSError
            Raised if the file cannot be read or written.
        """
        path = self._folder / name
        if path.exists():
            return path, False
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked(name):
            if path.exists():
                return path, False
            try:
                self._copy(source, path)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self.drop_unused():
                    raise
                self._copy(source, path)
        return path, True

    def drop_unused(self) -> int:
        """Remove the files that no repo links to.

        Returns
        -------
        dropped : `int`
            How many bytes that gave back.
        """
        dropped = 0
        for entry in os.scandir(self._folder):
            try:
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink == 1 and status.st_size and not entry.name.startswith("."):
                    os.unlink(entry.path)
                    dropped += status.st_size
            except FileNotFoundError:
                pass  # another worker was quicker
        _LOG.info("dropped %d bytes of shared files that nobody uses", dropped)
        return dropped

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Let one worker at a time copy; the lock ends with its holder."""
        lock = self._folder / f".lock-{zlib.crc32(name.encode()) % _LOCKS:02d}"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _copy(self, source: ResourcePath, path: Path) -> None:
        partial = path.with_name(f".part-{path.name}")
        try:
            ResourcePath(partial.as_uri()).transfer_from(source, transfer="copy", overwrite=True)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
