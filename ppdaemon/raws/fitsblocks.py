# SPDX-License-Identifier: BSD-3-Clause
"""Checks whether a FITS file is complete, and reads its keywords.

Implements the FITS standard 4.0 for blocks (3.1), special records (3.5), cards
(4.1, 4.2) with strings that continue over several cards (4.2.1.2), and the size of
data (4.4.1, 6.1), for plain, tile-compressed and gzipped files. Does not read pixels
or checksums.
"""

import contextlib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

__all__ = ("Structure", "Value", "read_detector_header", "read_header", "structure")

type Value = str | int | float | bool | None

BLOCK = 2880
CARD = 80
MAX_HEADER_BLOCKS = 1000
"""36,000 cards; real headers have a few hundred."""
MAX_HDUS = 1000
"""A raw has one for each amplifier: some 20."""
MAX_UNZIPPED = 2**31
"""Bytes: a gzipped file must be unpacked to find its end, but not further than this."""

MAX_EXTRA = 2**26
"""Bytes after the last HDU that are searched for another one; special records are rare and short."""

_GZIP_MAGIC = b"\x1f\x8b"
_BITPIX = frozenset({8, 16, 32, 64, -32, -64})
_EXTENSION = b"XTENSION="
_END = b"END     "
_KEYS = struct.Struct("8s72x" * (BLOCK // CARD))
"""The keywords of a block."""
_STRING = re.compile(r" *'((?:[^'\x00-\x1f\x7f]|'')*)'(?=[ /]|$)")
"""Control characters, such as the zeros that C programs leave, are not text (4.2.1.1).
astropy divides a doubled quote at the end of a card: then the text counts as missing, not as shorter."""
_LAST_DIGITS = re.compile(r"[0-9]{1,9}$")
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[ED][+-]?[0-9]{1,4})?", re.IGNORECASE)
_STRUCTURAL = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|INHERIT|PCOUNT|GCOUNT|GROUPS|TFIELDS|THEAP|END|EXTNAME|EXTVER"
    r"|EXTLEVEL|CHECKSUM|DATASUM|BSCALE|BZERO|BLANK|ZHECKSUM|ZDATASUM|Z(?:IMAGE|TENSION|SIMPLE|EXTEND|BITPIX"
    r"|NAXIS\d*|PCOUNT|GCOUNT|CMPTYPE|TILE\d+|NAME\d+|VAL\d+|QUANTIZ|DITHER0|BLANK|MASKCMP|BLOCKED)"
    r"|T(?:TYPE|FORM|UNIT|SCAL|ZERO|NULL|DISP|DIM|BCOL)\d+|COMMENT|HISTORY|CONTINUE"
)
"""Keywords that describe an extension and not the exposure."""


class _NotFits(Exception):
    """The file is not FITS, or it is not complete."""


class _ExtraBytes(_NotFits):
    """Bytes that are not a header follow an HDU."""


@dataclass(frozen=True, slots=True)
class _Header:
    """The cards of one header."""

    blocks: bytes
    keys: tuple[bytes, ...]
    """Of each card up to END, eight bytes. Taken from whole blocks: a raw has a thousand cards."""

    def card(self, number: int) -> bytes:
        """Return a card."""
        return self.blocks[number * CARD : (number + 1) * CARD]

    def field(self, key: bytes) -> bytes | None:
        """Return the value of the first card of a keyword, without its comment; `None` without a card."""
        return self.card(self.keys.index(key))[10:].partition(b"/")[0] if key in self.keys else None

    def number(self, key: bytes, default: int | None = None) -> int:
        """Return the number that a keyword has; raises _NotFits if it has none."""
        field = self.field(key)
        if field is None and default is not None:
            return default
        if field is None:
            raise _NotFits(f"a header without {key.decode().rstrip()}")
        try:
            return int(field)
        except ValueError:
            raise _NotFits(f"{self.card(self.keys.index(key)).rstrip()!r} has no whole number") from None


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
    warning: str = ""
    """What is unusual in a complete file: bytes after the last HDU, or a last block that is
    too short; empty if nothing is."""
    header: dict[str, Value] = field(default_factory=dict)
    """Values of the requested keywords, from the first header that has the first of them."""


def structure(file: BinaryIO, keywords: Sequence[str] = ()) -> Structure:
    """Check whether a FITS file is as long as its headers require.

    Parameters
    ----------
    file : binary file
        Seekable; read from its start.
    keywords : `~collections.abc.Sequence` [`str`], optional
        Keywords whose values are returned, of at most eight characters.

    Returns
    -------
    structure : `Structure`
        Also for a file that is not FITS.

    Raises
    ------
    OSError
        Raised if the file cannot be read.
    """
    values: dict[str, Value] = {}
    hdus = offset = total = 0
    warning = ""

    def found(whole: bool, problem: str = "") -> Structure:
        return Structure(whole, hdus, total, problem, warning, values)

    try:
        with _unpacked(file) as (stream, end):
            while hdus < MAX_HDUS:
                if offset == end and hdus:
                    return found(True)
                try:
                    header = _read_header(stream, primary=hdus == 0)
                except _ExtraBytes:
                    warning = f"{_extra_bytes(stream, offset)} bytes after the last HDU"
                    return found(True)
                except gzip.BadGzipFile as error:
                    # gzip itself ignores what follows its data; a wrong checksum is another error.
                    if hdus == 0 or not str(error).startswith("Not a gzipped file"):
                        raise
                    warning = "bytes after the gzipped data"
                    return found(True)
                if header is None:
                    return found(hdus > 0, "" if hdus else "the file is empty")
                data_bytes = _data_bytes(header)
                if keywords and keywords[0] not in values:
                    own = _values(_selected(header, keywords))
                    if hdus == 0 or _is_image(own):
                        values |= {key: value for key, value in own.items() if key in keywords}
                offset += len(header.blocks)
                missing = _missing_bytes(stream, offset, data_bytes, end)
                offset += _padded(data_bytes)
                if missing:
                    warning = f"the last block is {missing} bytes too short"
                hdus += 1
                total += _padded(data_bytes)
    except (_NotFits, EOFError, gzip.BadGzipFile, zlib.error) as error:
        warning = ""
        return found(False, f"HDU {hdus + 1}: {error}")
    return found(False, f"more than {MAX_HDUS} HDUs")


def read_header(file: BinaryIO, until: str | None = None) -> dict[str, Value]:
    """Read the keywords of the primary header, then those that it lacks from the first image that has them.

    Parameters
    ----------
    file : binary file
        Seekable; read from its start.
    until : `str`, optional
        Keyword: no further extension is read once it is known. `None` reads all.

    Returns
    -------
    header : `dict` [`str`, `str` or `int` or `float` or `bool` or `None`]
        Values by keyword, without comments; the first value of a repeated
        keyword. Invalid values are omitted. Extensions add only keywords that do
        not describe their own structure, and only if they are images.

    Raises
    ------
    ValueError
        Raised if the file does not begin with a complete FITS header.
    OSError
        Raised if the file cannot be read.
    """
    header: dict[str, Value] = {}
    try:
        with _unpacked(file) as (stream, _):
            for number, (values, _) in enumerate(_headers(stream)):
                if number == 0:
                    header = values
                elif _is_image(values):
                    header |= {
                        key: value
                        for key, value in values.items()
                        if header.get(key) is None and not _STRUCTURAL.fullmatch(key)
                    }
                if until is not None and header.get(until) is not None:
                    break
    except (_NotFits, EOFError, gzip.BadGzipFile, zlib.error) as error:
        # A file that ends within an extension has the keywords that were read.
        if not header:
            raise ValueError(f"not a FITS file: {error}") from None
    if not header:
        raise ValueError("not a FITS file: it is empty")
    return header


def read_detector_header(file: BinaryIO, keyword: str, detector: int) -> dict[str, Value]:
    """Read the keywords of one detector in a file that holds several.

    Parameters
    ----------
    file : binary file
        Seekable; read from its start.
    keyword : `str`
        Keyword of the detectors' image HDUs with a number, or a text that ends in it.
    detector : `int`
        The number.

    Returns
    -------
    header : `dict` [`str`, `str` or `int` or `float` or `bool` or `None`]
        Values by keyword: those of the primary header, replaced by those of the first image HDU of
        this detector, except keywords that describe the structure of that HDU.

    Raises
    ------
    ValueError
        Raised if the file is not FITS, or has no image with data of this detector.
    OSError
        Raised if the file cannot be read.
    """
    primary: dict[str, Value] = {}
    try:
        with _unpacked(file) as (stream, _):
            for number, (values, header) in enumerate(_headers(stream)):
                if number == 0:
                    primary = values
                elif _is_image(values) and _number(values.get(keyword)) == detector:
                    if not _data_bytes(header):
                        raise ValueError(f"HDU {number + 1}, with {keyword} {detector}, has no data")
                    return primary | {
                        key: value
                        for key, value in values.items()
                        if key == keyword or not _STRUCTURAL.fullmatch(key)
                    }
    except _ExtraBytes:
        pass  # special records after the last HDU
    except (_NotFits, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"not a complete FITS file: {error}") from None
    raise ValueError(f"no image HDU has {keyword} {detector}")


def _headers(stream: BinaryIO) -> Iterator[tuple[dict[str, Value], _Header]]:
    """Yield each header, with its values."""
    hdus = offset = 0
    while hdus < MAX_HDUS:
        header = _read_header(stream, primary=hdus == 0)
        if header is None:
            return
        yield _values(map(header.card, range(len(header.keys)))), header
        hdus += 1
        offset += len(header.blocks) + _padded(_data_bytes(header))
        if isinstance(stream, gzip.GzipFile) and offset > MAX_UNZIPPED:
            return
        stream.seek(offset)


def _is_image(values: Mapping[str, Value]) -> bool:
    return values.get("XTENSION") == "IMAGE" or values.get("ZIMAGE") is True


def _number(value: Value) -> int | None:
    """Return a number, or the one at the end of a text such as ``ccd07``."""
    if isinstance(value, str):
        digits = _LAST_DIGITS.search(value)
        return int(digits[0]) if digits else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@contextlib.contextmanager
def _unpacked(file: BinaryIO) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yield the file, rewound, and its size in bytes; if it is gzipped, its unpacked content and `None`."""
    # The end first: each move to it discards what was read ahead.
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(0)
    if zipped:
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream, None  # type: ignore[misc]  # a GzipFile reads and seeks as a binary file
    else:
        yield file, end


def _read_header(stream: BinaryIO, *, primary: bool) -> _Header | None:
    """Return the header at the position of the stream; `None` at the end of the file. Afterwards the stream
    is at the end of the header.
    """
    blocks: list[bytes] = []
    keys: list[bytes] = []
    while len(blocks) < MAX_HEADER_BLOCKS:
        block = stream.read(BLOCK)
        if not blocks:
            if not block:
                return None
            if not block.startswith(b"SIMPLE  =" if primary else _EXTENSION):
                if primary:
                    raise _NotFits("not a header")
                if not _EXTENSION.startswith(block):
                    raise _ExtraBytes("bytes that belong to no HDU")
        # A cut END card is complete only if the file ends within its blanks.
        blocks.append(block.ljust(BLOCK))
        found = _KEYS.unpack(blocks[-1])
        if (end := _end(blocks[-1], found)) is not None:
            return _Header(b"".join(blocks), (*keys, *found[: end + 1]))
        if len(block) < BLOCK:
            raise _NotFits("the file ends within a header")
        keys += found
    raise _NotFits(f"no END card in {MAX_HEADER_BLOCKS} blocks")


def _end(block: bytes, keys: Sequence[bytes]) -> int | None:
    """Return the number of the END card in a block."""
    if _END in keys:
        for number, key in enumerate(keys):
            if key == _END and not block[number * CARD + len(key) : (number + 1) * CARD].strip():
                return number
    return None


def _data_bytes(header: _Header) -> int:
    """Return the size of the data after a header, bytes without padding, by equation 2 of the standard (4 for
    random groups).
    """
    axes = [header.number(b"NAXIS%-3d" % axis) for axis in range(1, header.number(b"NAXIS   ") + 1)]
    width = header.number(b"BITPIX  ")
    groups, parameters = header.number(b"GCOUNT  ", 1), header.number(b"PCOUNT  ", 0)
    if width not in _BITPIX or any(axis < 0 for axis in axes) or len(axes) > 999:
        raise _NotFits("a header with impossible BITPIX or NAXIS")
    if not axes:
        return 0
    if axes[0] == 0 and (header.field(b"GROUPS  ") or b"").strip() == b"T":
        axes = axes[1:]
    elements = groups * (parameters + math.prod(axes))
    if elements < 0:
        raise _NotFits("a header with impossible PCOUNT or GCOUNT")
    return elements * abs(width) // 8


def _padded(size: int) -> int:
    """Return a size rounded up to whole blocks, bytes."""
    return -(-size // BLOCK) * BLOCK


def _missing_bytes(stream: BinaryIO, offset: int, data_bytes: int, end: int | None) -> int:
    """Move the stream over the data at an offset; return how many bytes of padding are missing. `end` is the
    size of the file, `None` if it is gzipped.

    Raises _NotFits if data are missing.
    """
    end_of_data = offset + data_bytes
    offset = _padded(end_of_data)
    if end is None:
        if offset > MAX_UNZIPPED:
            raise _NotFits(f"more than {MAX_UNZIPPED} bytes unpacked")
        end = stream.seek(offset)
    if data_bytes and end < end_of_data:
        raise _NotFits(f"the file ends at byte {end}, its data at {end_of_data}")
    stream.seek(offset)
    return max(0, offset - end)


def _extra_bytes(stream: BinaryIO, offset: int) -> int:
    """Return the number of bytes from an offset on; raises _NotFits if there is a header among them.

    Then they are not special records, but an HDU is damaged.
    """
    stream.seek(offset)
    size, last = 0, b""
    while more := stream.read(2**20):
        if _EXTENSION + b" '" in last + more:
            raise _NotFits("bytes that belong to no HDU, and another HDU after them")
        size, last = size + len(more), more[-len(_EXTENSION) - 1 :]
        if size > MAX_EXTRA:
            raise _NotFits(f"more than {MAX_EXTRA} bytes that belong to no HDU")
    return size


def _selected(header: _Header, keywords: Iterable[str]) -> Iterator[bytes]:
    """Yield the cards of some keywords, if there are any, and of the kind of extension: parsing all takes
    0.5 ms.
    """
    wanted = {keyword.ljust(8).encode() for keyword in keywords}
    if wanted.isdisjoint(header.keys):
        return
    wanted |= {b"XTENSION", b"ZIMAGE  "}
    continues = False
    for number, key in enumerate(header.keys):
        continues = key in wanted or (continues and key == b"CONTINUE")
        if continues:
            yield header.card(number)


def _values(cards: Iterable[bytes]) -> dict[str, Value]:
    """Return the values of a header; the first one of a repeated keyword."""
    values: dict[str, Value] = {}
    continued = ""
    for card in cards:
        text = card.decode("ascii", "replace")
        key = text[:8].rstrip().upper()
        if key == "CONTINUE" and continued:
            part = _STRING.match(text[8:])
            before = values[continued]
            # A value without its continuation is another value: it counts as missing.
            if part is None or not isinstance(before, str):
                del values[continued]
                continued = ""
                continue
            values[continued] = before.removesuffix("&") + _unquoted(part)
            if not _unquoted(part).endswith("&"):
                continued = ""
            continue
        continued = ""
        if key == "HIERARCH" and "=" in text:
            key, _, text = text[8:].partition("=")
            key = key.strip().upper()
        elif text[8:10] == "= ":
            text = text[10:]
        else:
            continue
        if key in values:
            continue
        # One invalid card must not hide the others.
        with contextlib.suppress(ValueError):
            value = values[key] = _value(text)
            if isinstance(value, str) and value.endswith("&"):
                continued = key
    return values


def _unquoted(match: re.Match[str]) -> str:
    return match[1].replace("''", "'").rstrip(" ")


def _value(text: str) -> Value:
    """Parse the value field of a card; raises ValueError if it has none of the forms.

    Numbers that are not finite have no form.
    """
    match = _STRING.match(text)
    if match is not None:
        return _unquoted(match)
    token = text.partition("/")[0].strip()
    if token in ("", "T", "F"):
        return {"": None, "T": True, "F": False}[token]
    if _INTEGER.fullmatch(token):
        return int(token)
    if _REAL.fullmatch(token) and math.isfinite(number := float(token.upper().replace("D", "E"))):
        return number
    raise ValueError(f"{token!r} is not a value of a FITS card")
