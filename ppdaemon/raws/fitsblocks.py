# SPDX-License-Identifier: BSD-3-Clause
"""Checks whether a FITS file is complete, and reads its primary header.

Implements the FITS standard 4.0 for blocks (3.1), cards (4.1, 4.2) and the size
of data (4.4.1, 6.1), for plain, tile-compressed and gzipped files. Does not read
pixels, checksums, or strings that continue over several cards.
"""

import contextlib
import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ("Structure", "Value", "read_primary", "structure")

type Value = str | int | float | bool | None

BLOCK = 2880
CARD = 80
MAX_HEADER_BLOCKS = 1000
"""36,000 cards; real headers have a few hundred."""
MAX_HDUS = 1000
"""A raw has one for each amplifier: some 20."""
MAX_UNZIPPED = 2**31
"""Bytes: a gzipped file must be unpacked to find its end, but not further than this."""

_GZIP_MAGIC = b"\x1f\x8b"
_BITPIX = frozenset({8, 16, 32, 64, -32, -64})
_STRING = re.compile(r" *'((?:[^']|'')*)'")


class _NotFits(Exception):
    """The file is not FITS, or it is not complete."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The result of a walk over the header-data units of a file."""

    whole: bool
    """Whether the file is as long as its headers require."""
    hdus: int
    """Number of complete header-data units."""
    data_bytes: int = 0
    """Bytes of data in them, including padding."""
    problem: str = ""
    """Why the file is not complete; empty if it is."""


def structure(file: BinaryIO) -> Structure:
    """Check whether a FITS file is as long as its headers require.

    Parameters
    ----------
    file : binary file
        Seekable; read from its start.

    Returns
    -------
    structure : `Structure`
        Also for a file that is not FITS.

    Raises
    ------
    OSError
        Raised if the file cannot be read.
    """
    hdus = offset = total = 0
    try:
        with _unpacked(file) as stream:
            while hdus < MAX_HDUS:
                header_bytes, data_bytes = _sizes(stream, primary=hdus == 0)
                if header_bytes == 0:
                    return Structure(hdus > 0, hdus, total, "" if hdus else "the file is empty")
                offset += header_bytes + data_bytes
                if data_bytes:
                    _require_end(stream, offset)
                hdus += 1
                total += data_bytes
    except (_NotFits, EOFError, gzip.BadGzipFile, zlib.error) as error:
        return Structure(False, hdus, total, f"HDU {hdus + 1}: {error}")
    return Structure(False, hdus, total, f"more than {MAX_HDUS} HDUs")


def read_primary(file: BinaryIO) -> dict[str, Value]:
    """Read the primary header.

    Parameters
    ----------
    file : binary file
        Seekable; read from its start.

    Returns
    -------
    header : `dict` [`str`, `str` or `int` or `float` or `bool` or `None`]
        Values by keyword, without comments; the first value of a repeated
        keyword. Invalid values are omitted.

    Raises
    ------
    ValueError
        Raised if the file does not begin with a complete FITS header.
    OSError
        Raised if the file cannot be read.
    """
    header: dict[str, Value] = {}
    try:
        with _unpacked(file) as stream:
            for card in _cards(stream, primary=True):
                key = card[:8].rstrip().decode("ascii", "replace")
                if card[8:10] == b"= " and key not in header:
                    # One invalid card must not hide the others.
                    with contextlib.suppress(ValueError):
                        header[key] = _value(card[10:].decode("ascii", "replace"))
    except (_NotFits, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"not a FITS file: {error}") from None
    if not header:
        raise ValueError("not a FITS file: it is empty")
    return header


@contextlib.contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """Rewind the file, and yield it, or its uncompressed content if it is gzipped."""
    file.seek(0)
    zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(0)
    if zipped:
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream  # type: ignore[misc]  # a GzipFile reads and seeks as a binary file
    else:
        yield file


def _cards(stream: BinaryIO, *, primary: bool) -> Iterator[bytes]:
    """Yield the cards of the header at the position of the stream, including END; none at the end of
    the file. Afterwards the stream is at the end of the header.
    """
    for number in range(MAX_HEADER_BLOCKS):
        block = stream.read(BLOCK)
        if number == 0:
            if not block:
                return
            if not block.startswith(b"SIMPLE  =" if primary else b"XTENSION="):
                raise _NotFits("not a header" if primary else "bytes that belong to no HDU")
        if len(block) < BLOCK:
            raise _NotFits("the file ends within a header")
        for start in range(0, BLOCK, CARD):
            card = block[start : start + CARD]
            yield card
            if card.startswith(b"END") and not card[3:].strip():
                return
    raise _NotFits(f"no END card in {MAX_HEADER_BLOCKS} blocks")


def _sizes(stream: BinaryIO, *, primary: bool) -> tuple[int, int]:
    """Return the padded sizes of the next header and its data, bytes; both are 0 at the end of the file."""
    cards = 0
    sizes: dict[bytes, int] = {}
    groups = False
    for card in _cards(stream, primary=primary):
        cards += 1
        key = card[:8]
        if key.startswith(b"NAXIS") or key in (b"BITPIX  ", b"PCOUNT  ", b"GCOUNT  "):
            try:
                sizes.setdefault(key.rstrip(), int(card[10:].partition(b"/")[0]))
            except ValueError:
                raise _NotFits(f"{card.rstrip()!r} has no whole number") from None
        elif key == b"GROUPS  ":
            groups = card[10:].partition(b"/")[0].strip() == b"T"
    header_bytes = math.ceil(cards * CARD / BLOCK) * BLOCK
    return header_bytes, _data_bytes(sizes, groups) if cards else 0


def _data_bytes(sizes: dict[bytes, int], groups: bool) -> int:
    """Return the padded size, bytes, by equation 2 of the standard (4 for random groups)."""
    try:
        axes = [sizes[b"NAXIS%d" % n] for n in range(1, sizes[b"NAXIS"] + 1)]
        width = sizes[b"BITPIX"]
    except KeyError as error:
        raise _NotFits(f"a header without {error.args[0].decode()}") from None
    if width not in _BITPIX or any(axis < 0 for axis in axes) or len(axes) > 999:
        raise _NotFits("a header with impossible BITPIX or NAXIS")
    if not axes:
        return 0
    if groups and axes[0] == 0:
        axes = axes[1:]
    elements = sizes.get(b"GCOUNT", 1) * (sizes.get(b"PCOUNT", 0) + math.prod(axes))
    if elements < 0:
        raise _NotFits("a header with impossible PCOUNT or GCOUNT")
    return -(-elements * abs(width) // 8 // BLOCK) * BLOCK


def _require_end(stream: BinaryIO, offset: int) -> None:
    """Move the stream to an offset; raises _NotFits if the file ends before it."""
    if isinstance(stream, gzip.GzipFile):
        if offset > MAX_UNZIPPED:
            raise _NotFits(f"more than {MAX_UNZIPPED} bytes unpacked")
        end = stream.seek(offset)
    else:
        end = stream.seek(0, os.SEEK_END)
    if end < offset:
        raise _NotFits(f"the file ends at byte {end}, its data at {offset}")
    stream.seek(offset)


def _value(text: str) -> Value:
    """Parse the value field of a card; raises ValueError if it has none of the forms."""
    match = _STRING.match(text)
    if match is not None:
        return match[1].replace("''", "'").rstrip(" ")
    token = text.partition("/")[0].strip()
    if token in ("", "T", "F"):
        return {"": None, "T": True, "F": False}[token]
    try:
        return int(token)
    except ValueError:
        return float(token.replace("D", "E"))
