# SPDX-License-Identifier: BSD-3-Clause
"""Names of raw files: what they say, and which are not to be opened.

Pure: looks at names only, never at files. How paths are built and read is
`ppdaemon.raws.layout`'s.
"""

import datetime
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from ppdaemon.errors import BadMessage
from ppdaemon.visit import parent_group

__all__ = (
    "EXPECTED_SENSORS",
    "FITS_ENDINGS",
    "Expected",
    "Kind",
    "RawName",
    "checked_parts",
    "folder_names",
    "instrument_of_folder",
    "is_day_folder",
    "read_ending",
    "refuse_control",
    "sidecar_path",
)

MAX_PATH = 1024
FITS_ENDINGS = (".fits", ".fits.fz", ".fits.gz")
EXPECTED_SENSORS = "_expectedSensors.json"

_ALIASES = {"ComCam": "LSSTComCam", "TS8": "LSST-TS8"}
_ENDING = re.compile(r"(?P<stem>.+?)(?P<guider>_guider)?(?:(?P<fits>\.fits(?:\.fz|\.gz)?)|\.json)")
_DAY = re.compile(r"\d{8}", re.ASCII)


class Kind(StrEnum):
    """What a file is."""

    IMAGE = "image"
    """A raw image of a science detector, wavefront half or guider."""
    GUIDER = "guider"
    """A guider's stamps, taken during the exposure: no raw image."""
    SIDECAR = "sidecar"
    """The header of an image as JSON."""
    EXPECTED = "expected"
    """The list of an exposure's detectors."""


@dataclass(frozen=True, slots=True)
class RawName:
    """What a path below a raw root says."""

    kind: Kind
    instrument: str
    """Short name; aliases such as ``ComCam`` are resolved."""
    exposure: int
    """Exposure id."""
    day_obs: int
    """``YYYYMMDD``."""
    detector: int | None
    """Id; `None` for what is about a whole exposure."""
    obsid: str | None = None
    """Such as ``MC_O_20251121_000156``; this and all below as far as the
    layout has it."""
    group: str | None = None
    snap: int | None = None
    """As the layout counts it."""
    detector_name: str | None = None
    """As in the file's name, such as ``R22_S11``."""
    filter: str | None = None
    label: str | None = None
    """What else is in the file's name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Raws that are waited for."""

    instrument: str
    detectors: frozenset[int]
    group: str | None = None
    """The visit's; `None` for any."""
    days: frozenset[int] = frozenset()
    """Observing days on which the exposure may be taken; empty for any."""

    def wants(self, name: RawName) -> bool:
        """Return whether a file is one of these, or a sidecar of one.

        A group that the path does not name counts as right. Guiders' stamps are
        never wanted.
        """
        return (
            name.kind is not Kind.GUIDER
            and name.instrument == self.instrument
            and (name.detector is None or name.detector in self.detectors)
            and (not self.days or name.day_obs in self.days)
            and (self.group is None or name.group is None or parent_group(name.group) == self.group)
        )


def checked_parts(relative_path: str) -> list[str]:
    """Split a path relative to a raw root at its slashes; parts may be empty or ``.``.

    Raise `~ppdaemon.errors.BadMessage` for one that is not to be opened, with
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
    """Raise `~ppdaemon.errors.BadMessage` of the kind ``control`` for control
    characters, surrogates, and the like.
    """
    if not text.isprintable() and any(unicodedata.category(character).startswith("C") for character in text):
        raise BadMessage(f"{text[:200]!r} has control characters", "control")


def read_ending(file: str) -> tuple[Kind, str] | None:
    """Return what a file is by the ending of its name, and the name without it.

    `None` for hidden files and other endings.
    """
    match = None if file.startswith(".") else _ENDING.fullmatch(file)
    if match is None:
        return None
    if match["fits"] is None:
        # A guider's sidecar tells the exposure's group as well as any other.
        return Kind.SIDECAR, match["stem"]
    return (Kind.GUIDER if match["guider"] else Kind.IMAGE), match["stem"]


def sidecar_path(path: str) -> str:
    """Return the path of the sidecar beside an image: ``.json`` instead of its ending.

    Raise `ValueError` if the path does not end like an image's.
    """
    for ending in FITS_ENDINGS:
        if path.endswith(ending):
            return path.removesuffix(ending) + ".json"
    raise ValueError(f"{path!r} does not end in .fits, .fits.fz or .fits.gz")


def folder_names(instrument: str) -> tuple[str, ...]:
    """Return how an instrument's folder may be called: the short name, then its aliases."""
    return instrument, *(alias for alias, name in _ALIASES.items() if name == instrument)


def instrument_of_folder(folder: str) -> str:
    """Return the short name of the instrument that a folder is called after."""
    return _ALIASES.get(folder, folder)


def is_day_folder(name: str) -> bool:
    """Return whether a folder's name is an observing day, such as ``20251121``."""
    if not _DAY.fullmatch(name):
        return False
    try:
        datetime.date(int(name[:4]), int(name[4:6]), int(name[6:]))
    except ValueError:
        return False
    return True
