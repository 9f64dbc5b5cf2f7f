# SPDX-License-Identifier: BSD-3-Clause
"""What the path of a raw file says: instrument, exposure, detector, group.

Pure: looks at names only, never at files. Covers the layouts below a raw root
that the observatory's writers use:

    lsst      <Inst>/<YYYYMMDD>/<obsid>/<obsid>_Rxx_Syy.fits
    imsim     <Inst>/<YYYYMMDD>/<expid>/<expid>_<filter>_<detector>_Rxx_Syy.fits
    generic   <Inst>/<detector>/<group>/<snap>/<expid>/<filter>/<name>.fits

each with ``.fits``, ``.fits.fz`` or ``.fits.gz``, and ``.json`` for sidecars.
"""

import datetime
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal
from urllib.parse import unquote

from ppdaemon.camera import Camera
from ppdaemon.errors import BadMessage

__all__ = ("Kind", "Layout", "RawName", "folder_names", "is_day_folder", "parse", "sidecar_path")

type Layout = Literal["lsst", "imsim", "generic"]

MAX_PATH = 1024
SEQUENCE_LIMIT = 100_000
"""Exposure id = day_obs * 100000 + sequence number."""

_ALIASES = {"ComCam": "LSSTComCam", "TS8": "LSST-TS8"}
_FITS = re.compile(r"(?P<stem>.+?)(?P<guider>_guider)?\.fits(?:\.fz|\.gz)?")
_SIDECAR = re.compile(r"(?P<stem>.+?)(?P<guider>_guider)?\.json")
_OBSID = re.compile(r"[A-Z]{2}_[A-Z]_(?P<day>\d{8})_(?P<sequence>\d{6})", re.ASCII)
_DETECTOR_NAME = r"R[0-9X]{2}_S[0-9GW][0-9]"
_LSST_STEM = re.compile(rf"(?P<obsid>{_OBSID.pattern})_(?P<name>{_DETECTOR_NAME})", re.ASCII)
_IMSIM_STEM = re.compile(
    rf"(?P<exposure>\d{{1,18}})_(?P<filter>.+)_(?P<detector>\d{{1,4}})_(?P<name>{_DETECTOR_NAME})", re.ASCII
)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


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
    """Such as ``MC_O_20251121_000156``, in the lsst layout."""
    group: str | None = None
    """In the generic layout."""
    snap: int | None = None
    """As the generic layout counts it."""


def parse(relative_path: str, layout: Layout, cameras: Mapping[str, Camera]) -> RawName | None:
    """Read a path below a raw root.

    Parameters
    ----------
    relative_path : `str`
        Relative to the root, with ``/`` between folders.
    layout : `str`
        ``lsst``, ``imsim`` or ``generic``.
    cameras : `~collections.abc.Mapping` [`str`, `~ppdaemon.camera.Camera`]
        By instrument; the lsst layout needs them for detectors' names. Paths
        of instruments that are not here are not recognised in that layout.

    Returns
    -------
    name : `RawName` or `None`
        `None` for any other file.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if the path is not one to be opened in any case; its kind is
        ``absolute``, ``escape``, ``control`` or ``size``.
    """
    parts = _parts(relative_path)
    if "" in parts or "." in parts:
        return None
    match layout:
        case "lsst":
            return _parse_lsst(parts, cameras)
        case "imsim":
            return _parse_imsim(parts, cameras)
        case "generic":
            return _parse_generic(parts)
        case unexpected:
            raise AssertionError(unexpected)


def sidecar_path(path: str) -> str:
    """Return the path of the sidecar beside an image.

    Parameters
    ----------
    path : `str`
        A path that ends in ``.fits``, ``.fits.fz`` or ``.fits.gz``.

    Returns
    -------
    sidecar : `str`
        The same with ``.json`` instead.

    Raises
    ------
    ValueError
        Raised if the path has another ending.
    """
    for suffix in (".fits", ".fits.fz", ".fits.gz"):
        if path.endswith(suffix):
            return path.removesuffix(suffix) + ".json"
    raise ValueError(f"{path!r} does not end in .fits, .fits.fz or .fits.gz")


def folder_names(instrument: str) -> tuple[str, ...]:
    """Return how an instrument's folder below a raw root may be called.

    Parameters
    ----------
    instrument : `str`
        Short name.

    Returns
    -------
    names : `tuple` [`str`]
        The short name, then its aliases.
    """
    return instrument, *(alias for alias, name in _ALIASES.items() if name == instrument)


def is_day_folder(name: str) -> bool:
    """Tell whether a folder's name is an observing day.

    Parameters
    ----------
    name : `str`
        Such as ``20251121``.

    Returns
    -------
    is_day : `bool`
        Whether it is a date.
    """
    return _day_obs(name) is not None


def _parts(relative_path: str) -> list[str]:
    if len(relative_path) > MAX_PATH:
        raise BadMessage(f"a path of {len(relative_path)} characters is longer than {MAX_PATH}", "size")
    _refuse_control(relative_path)
    if relative_path.startswith("/"):
        raise BadMessage(f"{relative_path[:200]!r} is not relative to a raw root", "absolute")
    parts = relative_path.split("/")
    if ".." in parts:
        raise BadMessage(f"{relative_path[:200]!r} leads out of the raw root", "escape")
    return parts


def _refuse_control(text: str) -> None:
    if any(unicodedata.category(character).startswith("C") for character in text):
        raise BadMessage(f"{text[:200]!r} has control characters", "control")


def _day_obs(text: str) -> int | None:
    if len(text) != 8 or not _NUMBER.fullmatch(text):
        return None
    try:
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None
    return int(text)


def _parse_lsst(parts: list[str], cameras: Mapping[str, Camera]) -> RawName | None:
    if len(parts) != 4:
        return None
    folder, day, obsid, file = parts
    instrument = _ALIASES.get(folder, folder)
    camera = cameras.get(instrument)
    match = _OBSID.fullmatch(obsid)
    day_obs = _day_obs(day)
    if camera is None or match is None or day_obs is None or match["day"] != day:
        return None
    sequence = int(match["sequence"])
    if sequence >= SEQUENCE_LIMIT:
        return None
    exposure = day_obs * SEQUENCE_LIMIT + sequence
    if file == f"{obsid}_expectedSensors.json":
        return RawName(Kind.EXPECTED, instrument, exposure, day_obs, None, obsid)
    kind, stem = _kind(file)
    name = _LSST_STEM.fullmatch(stem)
    if kind is None or name is None or name["obsid"] != obsid:
        return None
    detector = _detector(camera, name["name"])
    if detector is None:
        return None
    return RawName(kind, instrument, exposure, day_obs, detector, obsid)


def _parse_imsim(parts: list[str], cameras: Mapping[str, Camera]) -> RawName | None:
    if len(parts) != 4:
        return None
    folder, day, exposure, file = parts
    instrument, day_obs = _ALIASES.get(folder, folder), _day_obs(day)
    kind, stem = _kind(file)
    match = _IMSIM_STEM.fullmatch(stem)
    if day_obs is None or kind is None or match is None or match["exposure"] != exposure:
        return None
    detector = int(match["detector"])
    if instrument in cameras and _detector(cameras[instrument], match["name"]) != detector:
        return None
    return RawName(kind, instrument, int(exposure), day_obs, detector)


def _parse_generic(parts: list[str]) -> RawName | None:
    if len(parts) != 7:
        return None
    folder, detector, quoted_group, snap, exposure, _, file = parts
    kind, _ = _kind(file)
    # Writers that cannot have ":" and "#" in names quote the group.
    group = unquote(quoted_group)
    _refuse_control(group)
    numbers = (detector, snap, exposure)
    if kind is None or not group or not all(_NUMBER.fullmatch(number) for number in numbers):
        return None
    return RawName(
        kind,
        _ALIASES.get(folder, folder),
        int(exposure),
        int(exposure) // SEQUENCE_LIMIT,
        int(detector),
        group=group,
        snap=int(snap),
    )


def _kind(file: str) -> tuple[Kind | None, str]:
    """Return what a file is by its ending, and its name without it."""
    if file.startswith("."):
        return None, ""
    match = _FITS.fullmatch(file)
    if match is not None:
        return (Kind.GUIDER if match["guider"] else Kind.IMAGE), match["stem"]
    match = _SIDECAR.fullmatch(file)
    if match is not None:
        # A guider's sidecar tells the exposure's group as well as any other.
        return Kind.SIDECAR, match["stem"]
    return None, ""


def _detector(camera: Camera, name: str) -> int | None:
    """Return the id of a detector by its name in files.

    A camera of one detector without a raft calls it ``RXX_S00`` in its table
    and ``R00_S00`` in files.
    """
    for known in (name, name.replace("R00_", "RXX_", 1)):
        try:
            return camera.by_name(known).id
        except LookupError:
            continue
    return None
