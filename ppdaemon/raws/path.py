# SPDX-License-Identifier: BSD-3-Clause
"""Parsed names of raw files, and checks for paths that must not be opened.

Pure: reads names, never files. `ppdaemon.raws.layout` builds and reads paths.
"""

import datetime
import functools
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from ppdaemon.errors import BadMessage
from ppdaemon.visit import parent_group

__all__ = (
    "COMPRESSED_ENDINGS",
    "EXPECTED_SENSORS",
    "FITS_ENDINGS",
    "ExpectedRaws",
    "RawFileKind",
    "RawName",
    "checked_parts",
    "folder_names",
    "instrument_of_folder",
    "is_day_folder",
    "plain_name",
    "read_ending",
    "refuse_control",
    "sidecar_path",
)

MAX_PATH = 1024
"""Characters of a path relative to a raw root; real ones have some 100."""
FITS_ENDINGS = (".fits", ".fit", ".fts")
"""Each may be followed by one of `COMPRESSED_ENDINGS`, in capital letters, too."""
COMPRESSED_ENDINGS = (".fz", ".gz")
"""Also complete endings, unless they follow the ending of another kind of file, such as ``.tar``."""
EXPECTED_SENSORS = "_expectedSensors.json"

_ALIASES = {"ComCam": "LSSTComCam", "TS8": "LSST-TS8"}
_FITS = (
    r"(?i:\.(?:fits|fit|fts)(?:\.fz|\.gz)?|(?<!\.tar)(?<!\.json)(?<!\.txt)(?<!\.log)(?<!\.csv)\.(?:fz|gz))"
)
_ENDING = re.compile(rf"(?P<stem>.+?)(?P<guider>_guider)?(?:(?P<fits>{_FITS})|\.json)")
_FITS_AT_END = re.compile(rf".+?(?P<fits>{_FITS})", re.DOTALL)
_DAY = re.compile(r"\d{8}", re.ASCII)


class RawFileKind(StrEnum):
    """Kinds of files below a raw root."""

    IMAGE = "image"
    """A raw image of a science detector, wavefront half or guider."""
    GUIDER = "guider"
    """A guider's stamps, taken during the exposure: not a raw image."""
    SIDECAR = "sidecar"
    """The header of an image as JSON."""
    EXPECTED = "expected"
    """The list of an exposure's detectors."""


@dataclass(frozen=True, slots=True)
class RawName:
    """The values in a path below a raw root."""

    kind: RawFileKind
    instrument: str
    """Short name; aliases such as ``ComCam`` are resolved."""
    exposure: int
    """Exposure id."""
    day_obs: int
    """``YYYYMMDD``."""
    detector: int | None
    """Detector id; `None` for a list of detectors, and where files hold all detectors of an exposure."""
    obsid: str | None = None
    """Such as ``MC_O_20251121_000156``; this and the fields below are `None` if the
    layout does not contain them."""
    group: str | None = None
    snap: int | None = None
    """As the layout counts it."""
    detector_name: str | None = None
    """As in the file name, such as ``R22_S11``."""
    filter: str | None = None
    label: str | None = None
    """Other text in the file name."""


@dataclass(frozen=True, slots=True)
class ExpectedRaws:
    """The raws of a visit, or of a day, that have not arrived."""

    instrument: str
    detectors: frozenset[int]
    group: str | None = None
    """Group of the visit; `None` for any."""
    days: frozenset[int] = frozenset()
    """Observing days on which the exposure may be taken; empty for any."""

    def matches(self, name: RawName) -> bool:
        """Return whether a file is one of these raws, or a sidecar of one.

        A path without a group matches any group. Guiders' stamps never match.
        """
        return (
            name.kind is not RawFileKind.GUIDER
            and name.instrument == self.instrument
            and (name.detector is None or name.detector in self.detectors)
            and (not self.days or name.day_obs in self.days)
            and (self.group is None or name.group is None or parent_group(name.group) == self.group)
        )


def checked_parts(relative_path: str) -> list[str]:
    """Split a path relative to a raw root at its slashes; parts may be empty or ``.``.

    Raises `~ppdaemon.errors.BadMessage` for a path that must not be opened, with
    the kind ``absolute``, ``escape``, ``control`` or ``size``.
    """
    if len(relative_path) > MAX_PATH:
        raise BadMessage(f"a path of {len(relative_path)} characters is longer than {MAX_PATH}", "size")
    refuse_control(relative_path)
    if relative_path.startswith("/"):
        raise BadMessage(f"{relative_path[:200]!r} is not relative to a raw root", "absolute")
    parts = relative_path.split("/")
    if ".." in parts:
        raise BadMessage(f"{relative_path[:200]!r} leads out of the raw root", "escape")
    return parts


def refuse_control(text: str) -> None:
    """Raise `~ppdaemon.errors.BadMessage` of the kind ``control`` for text with control characters or
    surrogates.
    """
    if not text.isprintable() and any(unicodedata.category(character).startswith("C") for character in text):
        raise BadMessage(f"{text[:200]!r} has control characters", "control")


def read_ending(file: str) -> tuple[RawFileKind, str] | None:
    """Return the kind of a file by the ending of its name, and the name without the ending.

    `None` for hidden files and other endings.
    """
    match = None if file.startswith(".") else _ENDING.fullmatch(file)
    if match is None:
        return None
    if match["fits"] is None:
        # A guider's sidecar contains the exposure's group as any other does.
        return RawFileKind.SIDECAR, match["stem"]
    return (RawFileKind.GUIDER if match["guider"] else RawFileKind.IMAGE), match["stem"]


def sidecar_path(path: str) -> str:
    """Return the path of the sidecar beside an image: ``.json`` instead of its ending.

    Raises `ValueError` if the path does not end like an image.
    """
    return path.removesuffix(_fits_ending(path)) + ".json"


def plain_name(file: str) -> str:
    """Return the name of a raw with the ending ``.fits``, ``.fits.fz`` or ``.fits.gz``, which every
    reader accepts. Raises `ValueError` if the name does not end like an image.
    """
    ending = _fits_ending(file)
    compressed = [each for each in COMPRESSED_ENDINGS if ending.lower().endswith(each)]
    return f"{file.removesuffix(ending)}.fits{''.join(compressed)}"


def _fits_ending(path: str) -> str:
    match = _FITS_AT_END.fullmatch(path.rpartition("/")[2])
    if match is None:
        raise ValueError(f"{path!r} does not end in .fits, .fit, .fts, .fz or .gz")
    return match["fits"]


def folder_names(instrument: str) -> tuple[str, ...]:
    """Return the possible names of an instrument's folder: the short name, then its aliases."""
    return instrument, *(alias for alias, name in _ALIASES.items() if name == instrument)


def instrument_of_folder(folder: str) -> str:
    """Return the short name of the instrument of a folder name, which may be an alias."""
    return _ALIASES.get(folder, folder)


@functools.lru_cache(maxsize=64)
def is_day_folder(name: str) -> bool:
    """Return whether a folder's name is an observing day, such as ``20251121``."""
    if not _DAY.fullmatch(name):
        return False
    try:
        datetime.date(int(name[:4]), int(name[4:6]), int(name[6:]))
    except ValueError:
        return False
    return True
