# SPDX-License-Identifier: BSD-3-Clause
"""Whether a FITS file is whole, without reading its data.

The FITS standard (version 4.0, sections 3 and 4) makes a file of blocks of
2880 bytes: each header ends with an ``END`` card, and its keywords give the
length of the data that follow.
"""

import gzip
from pathlib import Path
from typing import BinaryIO

from astropy.io import fits

__all__ = ("BadFits", "read_primary_header")

BLOCK = 2880
"""Bytes of a FITS block."""
MAX_HEADER_BLOCKS = 2000
"""A header longer than this (72,000 cards) is no header."""

_CARD = 80
_GZIP_MAGIC = b"\x1f\x8b"


class BadFits(ValueError):
    """The file is not a complete FITS file; the text says why."""


def read_primary_header(path: Path) -> fits.Header:
    """Check a file's structure and return its first header.

    Parameters
    ----------
    path : `pathlib.Path`
        A FITS file, possibly compressed as a whole by gzip.

    Returns
    -------
    header : `astropy.io.fits.Header`
        The primary header.

    Raises
    ------
    BadFits
        Raised if the file is empty, truncated or not FITS.
    OSError
        Raised if it cannot be read.
    """
    with path.open("rb") as stream:
        magic = stream.read(2)
        stream.seek(0)
        if magic != _GZIP_MAGIC:
            return _check(stream, path.stat().st_size)
        try:
            with gzip.open(stream) as expanded:
                size = expanded.seek(0, 2)
                expanded.seek(0)
                return _check(expanded, size)
        except (EOFError, gzip.BadGzipFile) as error:
            raise BadFits(f"its gzip data are damaged: {error}") from error


def _check(stream: BinaryIO | gzip.GzipFile, size: int) -> fits.Header:
    if size == 0:
        raise BadFits("it is empty")
    if not stream.read(BLOCK).startswith(b"SIMPLE  ="):
        raise BadFits("it does not begin with SIMPLE, so it is not FITS")
    primary, position, number = None, 0, 0
    while position < size:
        stream.seek(position)
        header = _read_header(stream, number)
        primary = header if primary is None else primary
        end = stream.tell() + _data_length(header, number)
        if end > size:
            raise BadFits(f"it is truncated: HDU {number} ends at byte {end}, the file at byte {size}")
        position, number = end, number + 1
    assert primary is not None  # size > 0
    return primary


def _read_header(stream: BinaryIO | gzip.GzipFile, number: int) -> fits.Header:
    blocks: list[bytes] = []
    while len(blocks) < MAX_HEADER_BLOCKS:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise BadFits(f"it is truncated: the header of HDU {number} has no end")
        if not blocks and number and not block.startswith(b"XTENSION="):
            raise BadFits(f"what follows HDU {number - 1} is no extension")
        blocks.append(block)
        if _has_end(block):
            try:
                return fits.Header.fromstring(b"".join(blocks).decode("ascii"))
            except UnicodeDecodeError as error:
                raise BadFits(f"the header of HDU {number} is not ASCII at byte {error.start}") from error
    raise BadFits(f"the header of HDU {number} has no end within {MAX_HEADER_BLOCKS} blocks")


def _has_end(block: bytes) -> bool:
    return any(block[at : at + _CARD].rstrip() == b"END" for at in range(0, BLOCK, _CARD))


def _data_length(header: fits.Header, number: int) -> int:
    """Return the bytes of an HDU's data, padding included (FITS 4.0, eq. 1 and 2)."""
    try:
        axes = [int(header[f"NAXIS{k}"]) for k in range(1, int(header["NAXIS"]) + 1)]
        bits = abs(int(header["BITPIX"]))
    except (KeyError, TypeError, ValueError, fits.VerifyError) as error:
        raise BadFits(f"the header of HDU {number} has no valid BITPIX, NAXIS, NAXISn: {error}") from error
    if not axes:
        return 0
    if axes[0] == 0 and header.get("GROUPS"):
        axes = axes[1:]
    elements = 1
    for length in axes:
        elements *= length
    count = bits // 8 * int(header.get("GCOUNT", 1)) * (int(header.get("PCOUNT", 0)) + elements)
    return -(-count // BLOCK) * BLOCK
