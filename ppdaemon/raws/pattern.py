# SPDX-License-Identifier: BSD-3-Clause
"""Patterns of paths of raws: a regular expression to read them, a format to write them.

A pattern is split at its slashes, and each part is matched with one folder's
name, the last with the file's name without its ending. So it is known how deep
files lie, a folder can be judged before anything is in it, and a match costs
little: names have 255 characters at the most, and what could try more than
`MAX_WAYS` ways to match such a name is refused.
"""

import re
import string
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ("FIELDS", "PathFormat", "PathPattern")

FIELDS = frozenset(
    {
        "instrument",
        "day_obs",
        "obsid",
        "exposure",
        "detector",
        "detector_name",
        "raft",
        "slot",
        "group",
        "snap",
        "filter",
        "label",
    }
)
"""What a path can say. ``detector`` is the number, ``detector_name`` such as
``R22_S11``, ``label`` whatever else is in a name."""
NUMBERS = frozenset({"day_obs", "exposure", "detector", "snap"})

MAX_NAME = 255
"""Bytes in the name of a file or folder on Linux."""
MAX_LEVELS = 16
MAX_WAYS = 70_000
"""Three repeats in a row that match the same have 255 x 255 / 2 ways to divide
a name among them: 15 ms. Four have 2.7 million."""

_TOKEN = re.compile(
    r"""(?P<open>\((?:\?P<(?P<name>\w+)>|\?:|(?!\?)))
    |(?P<close>\))
    |(?P<bar>\|)
    |(?P<repeat>(?:[*+?]|\{(?P<least>\d{1,3})(?P<range>,(?P<most>\d{0,3}))?\})[?+]?)
    |(?P<slash>/)
    |(?P<item>\[\^?\]?(?:\\.|[^\]\\])*\]|\\[dDwWsS\W]|[^\\\[\](){}*+?|/^$])
    """,
    re.VERBOSE | re.ASCII,
)
_ENDING = re.compile(r"\\?\.(?:fits|fz|gz|json)\b")
_ASCII = "".join(map(chr, range(32, 127)))


@dataclass(slots=True)
class _Item:
    """One character of a pattern, with its repeat."""

    characters: frozenset[str]
    least: int = 1
    most: int = 1


@dataclass(slots=True)
class _Group:
    first_item: int
    branches: int = 1


class PathPattern:
    """Reads paths below a raw root.

    Parameters
    ----------
    text : `str`
        A regular expression for a whole path relative to the root, without
        its ending. Named groups are of `FIELDS`; one that occurs in several
        folders must say the same in each.

    Raises
    ------
    ValueError
        Raised if the text is no such pattern, if a needed group is missing,
        or if matching could take too long; says what to write instead.
    """

    def __init__(self, text: str):
        if _ENDING.search(text):
            raise ValueError("leave the ending away: .fits, .fits.fz and .fits.gz are all taken")
        self.text = text
        parts = _split(text)
        if len(parts) > MAX_LEVELS:
            raise ValueError(f"more than {MAX_LEVELS} folders deep")
        self._parts = tuple(_compile(part) for part in parts)
        self.levels = tuple(frozenset(part.groupindex) for part in self._parts)
        """Fields named by each folder, the last by the file
        (`tuple` [`frozenset` [`str`]])."""
        self.fields = frozenset().union(*self.levels)
        """All fields (`frozenset` [`str`])."""
        _check_fields(self.fields)

    def match(self, parts: list[str]) -> dict[str, str] | None:
        """Read the first parts of a path.

        Parameters
        ----------
        parts : `list` [`str`]
            Names of folders from the root on; the file's without its ending.

        Returns
        -------
        values : `dict` [`str`, `str`] or `None`
            By field; `None` if the parts do not match or contradict.
        """
        values: dict[str, str] = {}
        if len(parts) > len(self._parts):
            return None
        for pattern, part in zip(self._parts, parts, strict=False):
            match = pattern.fullmatch(part) if len(part) <= MAX_NAME else None
            if match is None:
                return None
            for field, value in match.groupdict().items():
                if value is not None and values.setdefault(field, value) != value:
                    return None
        return values


class PathFormat:
    """Writes paths below a raw root.

    Parameters
    ----------
    text : `str`
        A format string such as ``{instrument}/{day_obs}/{detector:03d}``, of
        `FIELDS`, without an ending.

    Raises
    ------
    ValueError
        Raised if the text is no such format.
    """

    def __init__(self, text: str):
        if _ENDING.search(text):
            raise ValueError("leave the ending away: .fits, .fits.fz and .fits.gz are all tried")
        self.parts = tuple(text.split("/"))
        self.levels = tuple(frozenset(_format_fields(part)) for part in self.parts)
        """Fields in each folder's name, the last in the file's
        (`tuple` [`frozenset` [`str`]])."""
        unknown = frozenset().union(*self.levels) - FIELDS
        if unknown:
            raise ValueError(f"unknown name {_listed(unknown)}; known are {_listed(FIELDS)}")
        sample: dict[str, str | int] = {field: 1 if field in NUMBERS else "x" for field in FIELDS}
        if not all(self.write(sample).split("/")):
            raise ValueError("a path is relative to the root and has no empty part")

    def write(self, values: Mapping[str, str | int], levels: int | None = None) -> str:
        """Write a path, or its first levels.

        Parameters
        ----------
        values : `~collections.abc.Mapping`
            By field; numbers for ``day_obs``, ``exposure``, ``detector`` and
            ``snap``.
        levels : `int`, optional
            How many folders; all and the file by default.

        Returns
        -------
        path : `str`
            Relative to the root.

        Raises
        ------
        KeyError
            Raised if a value is missing.
        """
        return "/".join(part.format_map(values) for part in self.parts[:levels])


def _check_fields(fields: frozenset[str]) -> None:
    unknown = fields - FIELDS
    if unknown:
        raise ValueError(f"unknown group {_listed(unknown)}; known are {_listed(FIELDS)}")
    if not fields & {"exposure", "obsid"}:
        raise ValueError("no group tells the exposure: name one of exposure, obsid")
    if not fields & {"detector", "detector_name"} and not {"raft", "slot"} <= fields:
        raise ValueError("no group tells the detector: name detector, detector_name, or raft and slot")


def _listed(fields: frozenset[str]) -> str:
    return ", ".join(sorted(fields))


def _format_fields(text: str) -> Iterator[str]:
    try:
        for _, field, spec, conversion in string.Formatter().parse(text):
            if field is None:
                continue
            if not field.isidentifier() or conversion or "{" in (spec or ""):
                raise ValueError(f"{text!r}: write {{name}} or {{name:03d}}")
            format(1 if field in NUMBERS else "x", spec or "")
            yield field
    except ValueError as error:
        raise ValueError(f"{text!r} is not a format: {error}") from None


# --- the regular expression ---


def _tokens(text: str) -> Iterator[re.Match[str]]:
    end = 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise ValueError(
                f"{text[end : end + 12]!r} at character {end + 1} cannot be used here: there may be "
                "characters, classes, (?P<name>...), (?:...), | in groups, and repeats"
            )
        end = match.end()
        yield match


def _split(text: str) -> list[str]:
    """Split at slashes; those in groups and classes do not count."""
    parts, depth = [""], 0
    for token in _tokens(text):
        if token.lastgroup == "slash" and depth:
            raise ValueError("a group must not span a slash")
        depth += (token["open"] is not None) - (token["close"] is not None)
        if token["slash"]:
            parts.append("")
        else:
            parts[-1] += token[0]
    return parts


def _compile(part: str) -> re.Pattern[str]:
    if not part:
        raise ValueError("a path is relative to the root and has no empty part")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a class that a later Python reads otherwise
            pattern = re.compile(part, re.ASCII)
            ways = _ways(part)
    except (re.error, FutureWarning) as error:
        raise ValueError(f"{part!r} is not a regular expression: {error}") from None
    if ways > MAX_WAYS:
        raise ValueError(
            f"{part!r} could take too long: some {ways:.0e} ways to match a name. Say what stands between "
            "its repeats, such as [^_]+_ instead of .+"
        )
    return pattern


def _ways(part: str) -> int:
    """Return in how many ways a name could be divided among the repeats.

    A repeat whose next character it cannot match itself has but one way.
    """
    items: list[_Item] = []
    groups: list[_Group] = []
    ways, closed = 1, None
    for token in _tokens(part):
        before, closed = closed, None
        match token.lastgroup:
            case "open" | "name":
                groups.append(_Group(len(items)))
            case "close":
                closed = groups.pop()
                ways *= closed.branches
                if closed.branches > 1:
                    _may_be_absent(items, closed.first_item)
            case "bar":
                if not groups:
                    raise ValueError(f"{part!r}: put alternatives in (?:...)")
                groups[-1].branches += 1
            case "item":
                # Any other character beyond ASCII is treated alike by all items.
                items.append(_Item(_characters(token[0], f"{_ASCII}{part}\uffff")))
            case _ if before is not None:
                if not token[0].startswith("?"):
                    raise ValueError(f"{part!r}: a group must not be repeated, only be optional")
                ways *= 2
                _may_be_absent(items, before.first_item)
            case _:
                items[-1].least, items[-1].most = _bounds(token)
    for number, item in enumerate(items):
        if item.most > item.least and item.characters & _following(items[number + 1 :]):
            ways *= item.most - item.least + 1
    return ways


def _may_be_absent(items: list[_Item], first: int) -> None:
    for item in items[first:]:
        item.least = 0


def _bounds(token: re.Match[str]) -> tuple[int, int]:
    if token["least"] is None:
        return {"*": (0, MAX_NAME), "+": (1, MAX_NAME), "?": (0, 1)}[token[0][0]]
    least = int(token["least"])
    most = (int(token["most"]) if token["most"] else MAX_NAME) if token["range"] else least
    return least, most


def _characters(item: str, candidates: str) -> frozenset[str]:
    pattern = re.compile(item, re.ASCII)
    return frozenset(filter(pattern.fullmatch, candidates))


def _following(items: list[_Item]) -> frozenset[str]:
    """Return what may come next, up to the first item that must come."""
    found: frozenset[str] = frozenset()
    for item in items:
        found |= item.characters
        if item.least:
            break
    return found
