# SPDX-License-Identifier: BSD-3-Clause
"""Reads a raw's header from its sidecar or its FITS file, and checks it.

Whether a FITS file is complete is decided by `ppdaemon.raws.fitsblocks`.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.time
from astro_metadata_translator import ObservationInfo
from astropy.coordinates import angular_separation
from lsst.pipe.base import Instrument

from ppdaemon.camera import SkyPoint
from ppdaemon.config import ExposuresConfig
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.messages import Raw
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.raws.fitsblocks import read_detector_header, read_header, structure
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit, parent_group
from ppdaemon.wire import parse_json

__all__ = ("BadFits", "ExposureHeader", "contradictions", "read_checked_header")

_LOG = logging.getLogger(__name__)

SIDECAR_LIMIT = 1_048_576
"""Largest sidecar that is read, bytes; real ones have 3 to 4 kB."""

EARLIEST_TAI = 631_152_000.0
"""1990. A camera whose clock was not set writes MJD 0 (1858), 1970 or 1980."""
DAY_S = 86_400.0
"""Exposures are not longer; and clocks of cameras and hosts differ by less, even where one is in local
time."""

_IDENTITY = ("INSTRUME", "OBSID", "GROUPID", "DAYOBS", "SEQNUM", "DETECTOR", "RAFTBAY", "CCDSLOT")
"""Keywords that are compared between FITS file and sidecar where both have them."""


_PROPERTIES = frozenset(
    {
        "altaz_begin",
        "boresight_rotation_angle",
        "boresight_rotation_coord",
        "can_see_sky",
        "dark_time",
        "datetime_begin",
        "datetime_end",
        "detector_num",
        "exposure_group",
        "exposure_id",
        "exposure_time_requested",
        "group_counter_end",
        "group_counter_start",
        "has_simulated_content",
        "instrument",
        "object",
        "observation_counter",
        "observation_id",
        "observation_reason",
        "observation_type",
        "observing_day",
        "observing_day_offset",
        "physical_filter",
        "science_program",
        "tracking_radec",
    }
)
"""Properties that are translated; an error in any other one cannot fail an ingest."""


@dataclass(frozen=True, slots=True)
class ExposureHeader:
    """The checked header of an exposure, with the properties that every exposure must have."""

    instrument: str
    detector: int
    exposure: int
    group: str
    """Group of the visit; for a supplement its parent group, because the
    datasets made before the image belong to that."""
    obs_id: str
    physical_filter: str
    day_obs: int
    begin: astropy.time.Time
    end: astropy.time.Time
    """Not before `begin`, even if it is in the header."""
    info: ObservationInfo
    """Has the properties that may be missing."""

    @property
    def sees_sky(self) -> bool:
        """Whether it is an image of the sky (`bool`), from the header; without
        an entry there, whether it is a science image.
        """
        seen = self.info.can_see_sky
        return self.info.observation_type == "science" if seen is None else bool(seen)

    @property
    def has_visit(self) -> bool:
        """Whether a visit is defined for it (`bool`): as in ``lsst.obs.base``, if
        it may see the sky and its header has the pointing. A science image
        without it has a visit too, at the announced pointing.
        """
        has_pointing = self.boresight is not None and self.sky_angle is not None
        science = self.info.observation_type == "science"
        return self.info.can_see_sky is not False and (has_pointing or science)

    @property
    def boresight(self) -> SkyPoint | None:
        """Right ascension and declination in degrees, ICRS, or `None`."""
        if self.info.tracking_radec is None:
            return None
        icrs = self.info.tracking_radec.icrs
        ra, dec = float(icrs.ra.deg), float(icrs.dec.deg)
        return (ra, dec) if math.isfinite(ra) and math.isfinite(dec) else None

    @property
    def sky_angle(self) -> float | None:
        """Position angle of focal-plane +Y in degrees, north through east, or
        `None` where it is missing or not an angle on the sky.
        """
        angle = self.info.boresight_rotation_angle
        if angle is None or self.info.boresight_rotation_coord != "sky":
            return None
        return float(angle.deg) if math.isfinite(angle.deg) else None

    @property
    def shutter_close_tai(self) -> float:
        """End of the exposure, TAI seconds since 1970 (`float`)."""
        return float(self.end.unix_tai)


def read_checked_header(
    copy: Path, raw: Raw, instrument: Instrument, files: RawFiles, now_tai: float
) -> ExposureHeader:
    """Return a raw's checked header, from its sidecar if that is valid, else from the FITS file `copy`.

    `now_tai` is the present, or the time for which the exposure was announced if that is later.
    Raises `~ppdaemon.errors.VisitFailed` (``BAD_RAW``).
    """
    try:
        keyword = files.detector_keyword(raw.path)
        header = read_fits_header(copy, raw.path, keyword, raw.detector)
        if keyword is not None:  # a sidecar of the file has no values of the detector
            return _checked(header, raw, instrument, now_tai)
        found = _from_sidecar(header, raw, instrument, files, now_tai)
        return found or _checked(header, raw, instrument, now_tai)
    except (BadFits, VisitFailed) as error:
        raise VisitFailed(Outcome.BAD_RAW, f"raw {raw.path} is rejected: {error}") from error


def _from_sidecar(
    header: Mapping[str, Any], raw: Raw, instrument: Instrument, files: RawFiles, now_tai: float
) -> ExposureHeader | None:
    sidecar = read_sidecar(raw.sidecar, files)
    if sidecar is None:
        return None
    try:
        same_exposure(sidecar, header)
        return _checked(sidecar, raw, instrument, now_tai)
    except VisitFailed as error:
        _LOG.warning("sidecar %s is ignored, using the FITS header: %s", raw.sidecar, error)
        return None


def _checked(header: Mapping[str, Any], raw: Raw, instrument: Instrument, now_tai: float) -> ExposureHeader:
    info = translate(header, instrument, raw.path)
    # The base translator returns the exposure id where a header has no group.
    has_group = header.get("GROUPID") is not None or info.exposure_group != str(info.exposure_id)
    checked = check_expected(info, raw, has_group=has_group)
    if reason := impossible_dates(checked, now_tai):
        raise VisitFailed(Outcome.BAD_RAW, reason)
    return checked


class BadFits(ValueError):
    """The file is not a complete FITS file, for the reason in the message."""


def read_fits_header(
    path: Path, name: str, detector_keyword: str | None = None, detector: int = 0
) -> Mapping[str, Any]:
    """Check a file's structure and return its keywords; the file may be compressed by gzip.

    Cards that cannot be parsed are omitted. `name` is the path in messages. With `detector_keyword`,
    the file holds several detectors, and the keywords are those of one. Raises `BadFits` if the file is
    empty, truncated or not FITS, or has no data of the detector.
    """
    with path.open("rb") as stream:
        found = structure(stream)
        if not found.whole or not found.data_bytes:
            raise BadFits(f"it is not a complete FITS file: {found.problem or 'no data'}")
        if found.warning:
            _LOG.warning("raw %s is unusual and is processed: %s", name, found.warning)
        if detector_keyword is None:
            return read_header(stream)
        try:
            return read_detector_header(stream, detector_keyword, detector)
        except ValueError as error:
            raise BadFits(str(error)) from None


def read_sidecar(path: str | None, files: RawFiles) -> dict[str, Any] | None:
    """Read a JSON sidecar; log a warning and return `None` if it is missing or invalid."""
    if path is None:
        return None
    try:
        header = parse_json(files.read(path, SIDECAR_LIMIT), limit=SIDECAR_LIMIT)
    except (OSError, BadMessage) as error:
        _LOG.warning("sidecar %s is ignored, using the FITS header: %s", path, describe(error))
        return None
    if not isinstance(header, dict):
        _LOG.warning("sidecar %s is ignored, using the FITS header: not a JSON object", path)
        return None
    return header


def same_exposure(sidecar: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Raise `~ppdaemon.errors.VisitFailed` (``BAD_RAW``) if sidecar and FITS file contradict each other."""
    for key in _IDENTITY:
        other, own = sidecar.get(key), header.get(key)
        if other is not None and own is not None and str(other).strip() != str(own).strip():
            raise VisitFailed(
                Outcome.BAD_RAW, f"{key} is {own!r} in the FITS file and {other!r} in its sidecar"
            )


def translate(header: Mapping[str, Any], instrument: Instrument, path: str) -> ObservationInfo:
    """Translate a header; raise `~ppdaemon.errors.VisitFailed` (``BAD_RAW``) if that fails."""
    translator = getattr(instrument, "translatorClass", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            info = ObservationInfo(
                dict(header),
                filename=path,
                translator_class=translator,
                pedantic=False,
                quiet=True,
                subset=set(_PROPERTIES),
            )
        except Exception as error:  # the translator is code of the instrument: any exception
            raise VisitFailed(
                Outcome.BAD_RAW, f"the header cannot be translated: {describe(error)}"
            ) from error
    for warning in caught:
        _LOG.debug("header of %s: %s", path, warning.message)
    # Values of the wrong type are returned too: the number of a GROUPID without quotes,
    # or a unit instead of a time where the header has a text.
    with info.edit_copy() as converted:
        for name in _PROPERTIES:
            value, definition = getattr(info, name), info.all_properties[name]
            if not definition.is_value_conformant(value):
                setattr(converted, name, _converted(value, definition.py_type))
    return converted


def _converted(value: Any, kind: type) -> Any:
    """Return a value of another type as one of this type without loss, else `None`."""
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind is int and isinstance(value, str | float):
        with contextlib.suppress(ValueError):
            return int(value) if isinstance(value, str) or value.is_integer() else None
    return None


def check_expected(info: ObservationInfo, raw: Raw, *, has_group: bool = True) -> ExposureHeader:
    """Return the header; raise `~ppdaemon.errors.VisitFailed` (``BAD_RAW``) if it contradicts the raw's
    file name and path, or lacks a property.

    The group is compared only if the header has one: the path or a notice determine it otherwise.
    """
    pairs = [
        ("instrument", info.instrument, raw.instrument),
        ("detector", info.detector_num, raw.detector),
        ("exposure", info.exposure_id, raw.exposure),
    ]
    if has_group and info.exposure_group is not None:
        pairs.append(("group", parent_group(info.exposure_group.strip()), parent_group(raw.group)))
    wrong = [f"{what} {found!r} instead of {name!r}" for what, found, name in pairs if found != name]
    if wrong:
        raise VisitFailed(Outcome.BAD_RAW, f"the header contradicts the file name: {', '.join(wrong)}")
    needed: dict[str, Any] = {
        "obs_id": info.observation_id,
        "physical_filter": info.physical_filter,
        "day_obs": info.observing_day,
        "begin": info.datetime_begin,
        "end": info.datetime_end,
    }
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise VisitFailed(Outcome.BAD_RAW, f"the header has no {', '.join(missing)}")
    if needed["end"] < needed["begin"]:
        # An empty timespan would find no calibrations.
        _LOG.warning("exposure %s ends before it begins; its begin is also used as its end", raw.exposure)
        needed["end"] = needed["begin"]
    return ExposureHeader(
        instrument=raw.instrument,
        detector=raw.detector,
        exposure=raw.exposure,
        group=parent_group(raw.group),
        info=info,
        **needed,
    )


def impossible_dates(header: ExposureHeader, now_tai: float) -> str:
    """Return why an exposure cannot have been taken at the time in its header, or an empty text.

    `now_tai` is the present, or the time for which the exposure was announced if that is later: then it
    is simulated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ERFA: it has no leap seconds of such years
        begin, end = float(header.begin.unix_tai), header.shutter_close_tai
        dates = f"it begins at {header.begin.tai.isot} and ends at {header.end.tai.isot}"
    if begin < EARLIEST_TAI:
        return f"its dates are impossible: {dates}, before 1990"
    if begin > now_tai + DAY_S:
        return f"its dates are impossible: {dates}, more than a day in the future"
    if end - begin > DAY_S:
        return f"its dates are impossible: {dates}, more than a day later"
    return ""


def contradictions(header: ExposureHeader, visit: NextVisit, limits: ExposuresConfig) -> list[str]:
    """Return the differences between an image's header and its announcement that exceed the limits.

    Unknown values are not compared, nor are images that are not of the sky.
    """
    # Only ICRS positions and rotations on the sky are compared: an announced
    # azimuth and altitude is another point of the sky if the exposure begins a
    # few minutes late, which is no contradiction.
    if not header.sees_sky:
        return []
    reasons = []
    if visit.boresight is not None and header.boresight is not None:
        distance_deg = separation_deg(visit.boresight, header.boresight)
        if distance_deg > limits.pointing_deg:
            reasons.append(f"the boresight is {distance_deg:.3g} deg from the announced")
    if visit.sky_angle is not None and header.sky_angle is not None:
        rotation_deg = abs((header.sky_angle - visit.sky_angle + 180.0) % 360.0 - 180.0)
        if rotation_deg > limits.rotation_deg:
            reasons.append(f"the sky angle is {rotation_deg:.3g} deg from the announced")
    names = visit.filter_names
    if limits.filter == "exact" and names and header.physical_filter not in names:
        reasons.append(f"the filter is {header.physical_filter} instead of {' or '.join(names)}")
    return reasons


def separation_deg(one: SkyPoint, other: SkyPoint) -> float:
    """Return the great-circle distance of two points (RA, Dec in degrees) in degrees."""
    return math.degrees(angular_separation(*map(math.radians, (*one, *other))))
