# SPDX-License-Identifier: BSD-3-Clause
"""Checksums of spooled files: computed by the worker, compared while the exporter copies."""

import zlib
from pathlib import Path
from typing import BinaryIO

from ppdaemon.durable import begin_sync_of
from ppdaemon.errors import BadMessage

__all__ = ("checksum_of", "copy_checked")

# CRC-32 and not a hash of cryptography: it has to find damage, and the worker is
# held while it is computed. It takes a fifth of the time of BLAKE2b.
_KIND = "crc32"
_CHUNK = 1 << 17
"""Bytes read at a time: they stay in the cache of the core between reading, checksum and writing."""


def checksum_of(path: Path) -> str:
    """Return the checksum of a file's content, such as ``crc32:0a1b2c3d``."""
    with path.open("rb", buffering=0) as stream:
        return _copy(stream, None)


def copy_checked(source: Path, target: Path | None, checksum: str) -> None:
    """Copy a file while its content is compared with a checksum; without a target, compare only.

    Raises `~ppdaemon.errors.BadMessage` if the source cannot be read or has another
    content. `OSError` is about the target, of which nothing is left then. A blank
    checksum, of a spool of an earlier version, is not compared.
    """
    try:
        stream = source.open("rb", buffering=0)
    except OSError as error:
        raise BadMessage(f"{source} cannot be read: {error.strerror}") from error
    with stream:
        if target is None:
            found = _copy(stream, None)
        else:
            try:
                with target.open("xb", buffering=0) as copy:
                    found = _copy(stream, copy)
                    begin_sync_of(copy.fileno())  # the caller waits for it
            except BaseException:
                target.unlink(missing_ok=True)
                raise
    if checksum and found != checksum:
        if target is not None:
            target.unlink()
        raise BadMessage(f"{source} was changed in the spool: its checksum is {found}, not {checksum}")


def _copy(source: BinaryIO, target: BinaryIO | None) -> str:
    buffer = memoryview(bytearray(_CHUNK))
    crc = 0
    while True:
        try:
            count = source.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as error:
            raise BadMessage(f"{source.name} cannot be read: {error.strerror}") from error
        if not count:
            return f"{_KIND}:{crc:08x}"
        crc = zlib.crc32(buffer[:count], crc)
        if target is not None:
            _write_all(target, buffer[:count])


def _write_all(target: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[target.write(data) :]
