# SPDX-License-Identifier: BSD-3-Clause
"""Formats of paths below a raw root, used to read and to write them.

A format is split at its slashes, and each part is read separately, the last as
the file name without its ending. So the depth of files is known, and a folder
can be evaluated while it is empty.
"""

import functools
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ppdaemon.raws.path import instrument_of_folder, is_day_folder, read_ending, refuse_control

__all__ = ("OBSID", "PathFormat", "Values", "read_number")

type Values = dict[str, Any]
"""Values in a path, by field."""
type _Reader = tuple[list[str], re.Pattern[str]]
"""The fields of a name, and an expression with a group for each."""

OBSID = r"[A-Z]{2}_([A-Z])_([0-9]{8})_0([0-9]{5})"
"""Its groups are controller, day and sequence number."""

_SHAPES = {
    "day_obs": "[0-9]{8}",
    "obsid": OBSID.replace("(", "").replace(")", ""),
    "raft": "R[0-9X]{2}",
    "slot": "S[0-9GW][0-9]",
}
_NUMBERS = frozenset({"exposure", "detector", "snap"})
_TEXTS = frozenset({"instrument", "group", "filter", "label"})
_FIELDS = _NUMBERS | _TEXTS | _SHAPES.keys() | {"detector_name"}

FOLDERS = 64
"""Paths of folders whose values are remembered."""
_DIGITS = re.compile(r"(?:0([1-9]|1[0-8])d?)?", re.ASCII)
"""Numbers have at most 18 digits, so that they fit into 64 bits."""


class _Padded(int):
    """A number that a name contains with leading zeros; it is written as it was read."""

    digits: str

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else self.digits


def read_number(text: str) -> int:
    """Return the number in a name, which keeps its leading zeros when it is formatted."""
    if not text.startswith("0") or text == "0":
        return int(text)
    number = _Padded(text)
    number.digits = text
    return number


@dataclass(frozen=True, slots=True)
class _Piece:
    """A field of a name, or the text between two fields."""

    field: str
    """Empty for text between fields."""
    pattern: str
    begins_in_digit: bool
    """Whether it can begin, or below end, in a digit."""
    ends_in_digit: bool
    any_length: bool = False
    any_character: bool = False


class PathFormat:
    """Reads and writes paths below a raw root.

    Parameters
    ----------
    text : `str`
        A path relative to the root without its ending, with fields such as
        ``{instrument}/{day_obs}/{exposure}_{detector:03d}``.

    all_detectors : `bool`, optional
        Whether a file holds all detectors of an exposure: then the path names none.

    Raises
    ------
    ValueError
        Raised if the format is invalid, has no exposure or no detector, or is
        ambiguous.
    """

    def __init__(self, text: str, *, all_detectors: bool = False):
        self._parts = text.replace("{detector_name}", "{raft}_{slot}").split("/")
        if not {"", ".", ".."}.isdisjoint(self._parts):
            raise ValueError("a path is relative to the root and has no empty part")
        if read_ending(self._parts[-1]) is not None:
            raise ValueError("omit the ending: .fits, .fit, .fts, .fz and .gz are all accepted")
        # If the exposure has a number too, an obsid may have any form.
        texts = _TEXTS | {"obsid"} if "{exposure" in text else _TEXTS
        pieces = [list(_pieces(part, texts)) for part in self._parts]
        self.levels = tuple(frozenset(piece.field for piece in each if piece.field) for each in pieces)
        """Fields in each folder's name, the last in the file's; ``raft`` and
        ``slot`` for ``detector_name`` (`tuple` [`frozenset` [`str`]])."""
        self.fields = frozenset().union(*self.levels)
        """All fields (`frozenset` [`str`])."""
        if self.fields.isdisjoint({"exposure", "obsid"}):
            raise ValueError("nothing names the exposure: write {exposure} or {obsid}")
        names_detector = "detector" in self.fields or {"raft", "slot"} <= self.fields
        if all_detectors and names_detector:
            raise ValueError("the path names a detector, and detector_keyword is for files of all detectors")
        if not all_detectors and not names_detector:
            raise ValueError(
                "nothing names the detector: write {detector}, {detector_name}, or {raft} and {slot}; for "
                "files that hold all detectors set detector_keyword"
            )
        self._readers = [_reader(part, each) for part, each in zip(self._parts, pieces, strict=True)]
        # All files of an exposure are in the same folders.
        self._in_folders = functools.lru_cache(FOLDERS)(self._read_folders)

    def read(self, names: Sequence[str]) -> Values | None:
        """Parse the names of folders, from the root on, and of a file without its ending.

        Returns the values by field, with numbers converted, aliases of the
        instrument resolved and the group unquoted; `None` if the names do not match
        or a repeated field has two values. Raises `~ppdaemon.errors.BadMessage` for
        a quoted control character.
        """
        if len(names) > len(self._readers) or "." in names:
            return None
        *folders, file = self._readers
        values = self._in_folders(*names[: len(folders)])
        if values is None or len(names) <= len(folders):
            return None if values is None else dict(values)
        return _added(values, file, names[-1])

    def _read_folders(self, *names: str) -> Values | None:
        values: Values | None = {}
        for reader, name in zip(self._readers, names, strict=False):
            if values is not None:
                values = _added(values, reader, name)
        return values

    def write(self, values: Mapping[str, Any], levels: int | None = None) -> str:
        """Return a path, or its first levels; raises `KeyError` if a value is missing.

        Instrument and group are written unchanged, without aliases or quoting.
        """
        return "/".join(part.format_map(values) for part in self._parts[:levels])


def _pieces(part: str, texts: Collection[str]) -> Iterator[_Piece]:
    try:
        parsed = list(string.Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"{part!r} is not a format: {error}") from None
    for between, field, spec, conversion in parsed:
        if between:
            yield _Piece("", re.escape(between), between[0].isdigit(), between[-1].isdigit())
        if field is None:
            continue
        if field not in _FIELDS:
            raise ValueError(f"unknown name {field!r}; known are {', '.join(sorted(_FIELDS))}")
        digits = _DIGITS.fullmatch(spec or "")
        if conversion or digits is None or (spec and field not in _NUMBERS):
            raise ValueError(f"{part!r}: write {{name}}, or for a number {{name:03d}}")
        if field in texts:
            yield _Piece(field, "(.+)", True, True, any_length=True, any_character=True)
        elif field in _NUMBERS:
            yield _Piece(field, f"([0-9]{{{digits[1] or 1},18}})", True, True, any_length=True)
        else:
            yield _Piece(field, f"({_SHAPES[field]})", field == "day_obs", True)


def _reader(part: str, pieces: Sequence[_Piece]) -> _Reader:
    """Return the fields of a name, and an unambiguous expression that parses it in linear time.

    A field of any length ends before a character that it cannot contain. One field
    is exempt: it is the text between the fields before and after it, which then
    must also begin after such a character.
    """
    remainder = ""
    for before, piece, after in zip([None, *pieces], pieces, [*pieces[1:], None], strict=False):
        if not piece.any_length:
            continue
        begins = before is None or not (piece.any_character or before.ends_in_digit)
        ends = after is None or not (piece.any_character or after.begins_in_digit)
        if remainder and not (begins and ends):
            first, second = (piece.field, after.field) if begins and after else (remainder, piece.field)
            raise ValueError(
                f"{part!r}: nothing shows where {first} ends and {second or 'what follows'} begins. Numbers "
                "end where no digit follows; a name can have one of instrument, group, filter and label"
            )
        if not ends:
            remainder = piece.field
    pattern = re.compile("".join(piece.pattern for piece in pieces))
    return [piece.field for piece in pieces if piece.field], pattern


def _added(values: Values, reader: _Reader, name: str) -> Values | None:
    """Return values with those of a name; `None` if it does not match, or contradicts them."""
    fields, pattern = reader
    match = pattern.fullmatch(name)
    if match is None:
        return None
    values = dict(values)
    for field, text in zip(fields, match.groups(), strict=True):
        value = _value(field, text)
        if value is None or (values.setdefault(field, value) != value and field != "label"):
            return None
    return values


def _value(field: str, text: str) -> Any:
    """Return the value of a text; `None` for an invalid day."""
    match field:
        case "exposure" | "detector" | "snap":
            return read_number(text)
        case "day_obs":
            return int(text) if is_day_folder(text) else None
        case "instrument":
            return instrument_of_folder(text)
        case "group":
            # Some writers cannot use ":" and "#" in names, and quote the group.
            group = unquote(text)
            refuse_control(group)
            return group
        case _:
            return text
