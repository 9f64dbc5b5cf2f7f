# SPDX-License-Identifier: BSD-3-Clause
"""Where a worker gets a raw from: a file below a raw root, or an object in a store.

What the supervisor has checked is checked again when it is opened here: a
symbolic link may have been put into its place since.
"""

import os
import shutil
from pathlib import Path

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.middleware.raws.remote import fetch
from ppdaemon.raws.files import open_raw, raw_descriptor

__all__ = ("RawFiles",)


class RawFiles:
    """Opens what lies below configured roots, and nothing else.

    Parameters
    ----------
    config : `~ppdaemon.config.ArrivalsConfig`
        The roots.
    """

    def __init__(self, config: ArrivalsConfig):
        # The innermost first: a link out of it into an outer one is one out of its root.
        self._roots = sorted((str(root.path) for root in config.roots), key=len, reverse=True)
        self._stores = tuple(f"{root.uri}/" for root in config.remote)

    def fetch(self, path: str, folder: Path) -> Path:
        """Copy a raw.

        Parameters
        ----------
        path : `str`
            Absolute, or the URI of an object.
        folder : `pathlib.Path`
            Where the copy goes.

        Returns
        -------
        copy : `pathlib.Path`
            Called as the raw is.

        Raises
        ------
        OSError
            Raised if it cannot be read, or not be written; there is no copy.
        ppdaemon.errors.BadMessage
            Raised if it is below no root, or a link leads out of its root.
        """
        copy = folder / path.rpartition("/")[2]
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
        """Read a small file.

        Parameters
        ----------
        path : `str`
            Absolute.
        limit : `int`
            One byte more than this is read at the most.

        Returns
        -------
        content : `bytes`
            Of the file.

        Raises
        ------
        OSError
            Raised if it cannot be read.
        ppdaemon.errors.BadMessage
            Raised as by `fetch`.
        """
        with open_raw(path, self._root_of(path)) as file:
            return file.read(limit + 1)

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
