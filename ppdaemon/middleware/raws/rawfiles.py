# SPDX-License-Identifier: BSD-3-Clause
"""Reads raws of a worker: files below a raw root, or objects in a store.

Paths that the supervisor has checked are checked again when they are opened:
a file may have been replaced by a symbolic link in the meantime.
"""

import os
import shutil
from pathlib import Path

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.middleware.raws.remote import fetch
from ppdaemon.raws.files import open_raw, raw_descriptor
from ppdaemon.raws.path import plain_name
from ppdaemon.raws.roots import escaped

__all__ = ("RawFiles",)


class RawFiles:
    """Opens files and objects below the configured roots, and no others."""

    def __init__(self, config: ArrivalsConfig):
        # The innermost root first: a link from it into an outer root leaves its root.
        self._roots = sorted((str(root.path) for root in config.roots), key=len, reverse=True)
        self._stores = tuple(escaped(f"{root.uri}/") for root in config.remote)
        self._detector_keywords = config.detector_keywords

    def fetch(self, path: str, folder: Path) -> Path:
        """Copy a raw, an absolute path or the URI of an object, into a folder; return the copy.

        Raises `OSError` if it cannot be read or written, and
        `~ppdaemon.errors.BadMessage` if it is below no root or a link leads out
        of its root; there is no copy then.
        """
        # Readers decide by the ending: the copy has a common one.
        copy = folder / plain_name(path.rpartition("/")[2])
        try:
            if path.startswith("/"):
                self._copy(path, copy)
            elif path.startswith(self._stores):
                fetch(path, copy)
            else:
                raise BadMessage(f"{path} is not below a root of arrivals.remote", "outside")
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        return copy

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a file, at most `limit` + 1 bytes; raises as `fetch`."""
        with open_raw(path, self._root_of(path)) as file:
            return file.read(limit + 1)

    def detector_keyword(self, path: str) -> str | None:
        """Return the keyword that distinguishes the detectors in a file that holds several; `None` for a
        file of one detector. See `~ppdaemon.raws.layout.CustomLayout`.
        """
        roots = [root for root in self._detector_keywords if path.startswith(root)]
        return self._detector_keywords[max(roots, key=len)]

    def _copy(self, path: str, copy: Path) -> None:
        descriptor = raw_descriptor(path, self._root_of(path))
        try:
            shutil.copyfile(f"/proc/self/fd/{descriptor}", copy)
        finally:
            os.close(descriptor)

    def _root_of(self, path: str) -> str:
        for root in self._roots:
            if path.startswith(f"{root}/"):
                return root
        raise BadMessage(f"{path} is not below a raw root", "outside")
