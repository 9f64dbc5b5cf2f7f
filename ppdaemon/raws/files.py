# SPDX-License-Identifier: BSD-3-Clause
"""Opening a file below a raw root, and none that a link leads to elsewhere.

The supervisor looks at a raw, and later a worker copies it: each checks what
it has opened, for a path may lead elsewhere by then.
"""

import os
import stat
from typing import BinaryIO

from ppdaemon.errors import BadMessage

__all__ = ("open_raw", "raw_descriptor")


def raw_descriptor(path: str, root: str) -> int:
    """Return a descriptor of a regular file below its root, not opened yet. The caller closes it.

    The path is absolute; the root may be a symbolic link. Raise
    `~ppdaemon.errors.BadMessage` of the kind ``symlink`` or ``not_a_file``.
    """
    # With O_PATH nothing happens to what a path leads to, be it a device or a FIFO,
    # and what is checked is what is opened, whatever is renamed meanwhile.
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        # The same path means that there are no links on it, nor above the root.
        if real != path and not real.startswith(os.path.join(os.path.realpath(root), "")):
            raise BadMessage(f"{path!r} is a link out of the raw root", "symlink")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadMessage(f"{path!r} is not a regular file", "not_a_file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_raw(path: str, root: str) -> BinaryIO:
    """Open a regular file below its root for reading; raise as `raw_descriptor` does."""
    descriptor = raw_descriptor(path, root)
    try:
        return _open_checked(descriptor)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def _open_checked(descriptor: int) -> BinaryIO:
    return open(f"/proc/self/fd/{descriptor}", "rb")
