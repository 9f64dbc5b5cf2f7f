# SPDX-License-Identifier: BSD-3-Clause
"""What a raw's header says, from its sidecar or its FITS file, checked against what was expected.

Whether a FITS file is whole is decided by `ppdaemon.raws.fitsblocks`.
"""

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
from astropy.io import fits
from lsst.pipe.base import Instrument

from ppdaemon.camera import SkyPoint
from ppdaemon.config import ExposuresConfig
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.messages import Raw
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.raws.fitsblocks import structure
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit, parent_group
from ppdaemon.wire import parse_json

__all__ = ("BadFits", "ExposureHeader", "contradictions", "understand")

_LOG = logging.getLogger(__name__)

SIDECAR_LIMIT = 1_048_576
"""Largest sidecar that is read, bytes; real ones have 3 to 4 kB."""

_IDENTITY = ("INSTRUME", "OBSID", "GROUPID", "DAYOBS", "SEQNUM", "DETECTOR", "RAFTBAY", "CCDSLOT")
"""Keywords that FITS file and sidecar must agree on where both have them."""


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
"""What is translated: the rest of a header cannot fail an ingest."""


@dataclass(frozen=True, slots=True)
class ExposureHeader:
    """What is known of every exposure that is ingested."""

    instrument: str
    detector: int
    exposure: int
    group: str
    """The visit's: that of a supplement is its parent, under which all that was
    made before the image is found."""
    obs_id: str
    physical_filter: str
    day_obs: int
    begin: astropy.time.Time
    end: astropy.time.Time
    """Not before it begins, whatever the header says."""
    info: ObservationInfo
    """For what may be missing."""

    @property
    def sees_sky(self) -> bool:
        """Whether it is an image of the sky (`bool`): what the header says, or
        else whether it is a science image.
        """
        seen = self.info.can_see_sky
        return self.info.observation_type == "science" if seen is None else bool(seen)

    @property
    def has_visit(self) -> bool:
        """Whether a visit is defined of it (`bool`): as ``lsst.obs.base`` does,
        if it may see the sky and tells its place. A science image that does not
        tell it has one too, at the announced place.
        """
        placed = self.boresight is not None and self.sky_angle is not None
        science = self.info.observation_type == "science"
        return self.info.can_see_sky is not False and (placed or science)

    @property
    def boresight(self) -> SkyPoint | None:
        """Right ascension and declination in degrees, ICRS, or `None`."""
        if self.info.tracking_radec is None:
            return None
        place = self.info.tracking_radec.icrs
        ra, dec = float(place.ra.deg), float(place.dec.deg)
        return (ra, dec) if math.isfinite(ra) and math.isfinite(dec) else None

    @property
    def sky_angle(self) -> float | None:
        """Position angle of focal-plane +Y in degrees, north through east, or
        `None` where it is missing or not given on the sky.
        """
        angle = self.info.boresight_rotation_angle
        if angle is None or self.info.boresight_rotation_coord != "sky":
            return None
        return float(angle.deg) if math.isfinite(angle.deg) else None

    @property
    def shutter_close_tai(self) -> float:
        """End of the exposure, TAI seconds since 1970 (`float`)."""
        return float(self.end.unix_tai)


def understand(copy: Path, raw: Raw, instrument: Instrument, files: RawFiles) -> ExposureHeader:
    """Return what a raw says of itself; its sidecar's word is taken if that is good and of the same exposure.

    Parameters
    ----------
    copy : `pathlib.Path`
        The FITS file.
    raw : `~ppdaemon.messages.Raw`
        Where it came from, and what was expected.
    instrument : `lsst.pipe.base.Instrument`
        As for `translate`.
    files : `~ppdaemon.middleware.raws.rawfiles.RawFiles`
        Opens the sidecar.

    Returns
    -------
    header : `ExposureHeader`
        Checked.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised with ``BAD_RAW``.
    """
    try:
        header = read_primary_header(copy)
        return _from_sidecar(header, raw, instrument, files) or _checked(header, raw, instrument)
    except (BadFits, VisitFailed) as error:
        raise VisitFailed(Outcome.BAD_RAW, f"{raw.path} cannot be used: {error}") from error


def _from_sidecar(
    header: fits.Header, raw: Raw, instrument: Instrument, files: RawFiles
) -> ExposureHeader | None:
    sidecar = read_sidecar(raw.sidecar, files)
    if sidecar is None:
        return None
    same_exposure(sidecar, header)
    try:
        return _checked(sidecar, raw, instrument)
    except VisitFailed as error:
        _LOG.warning("sidecar %s is not used: %s", raw.sidecar, error)
        return None


def _checked(header: Mapping[str, Any], raw: Raw, instrument: Instrument) -> ExposureHeader:
    return check_expected(translate(header, instrument, raw.path), raw)


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
        found = structure(stream)
    if not found.whole:
        raise BadFits(f"it is no whole FITS file: {found.problem}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a card that breaks the standard does not make a raw useless
        try:
            return fits.getheader(path)
        except (ValueError, TypeError, fits.VerifyError) as error:
            raise BadFits(f"its primary header cannot be read: {error}") from error


def read_sidecar(path: str | None, files: RawFiles) -> dict[str, Any] | None:
    """Read a sidecar, if it can be read.

    Parameters
    ----------
    path : `str` or `None`
        The JSON file.
    files : `~ppdaemon.middleware.raws.rawfiles.RawFiles`
        Opens it.

    Returns
    -------
    header : `dict` or `None`
        `None`, with the reason in the log, where it is missing or broken.
    """
    if path is None:
        return None
    try:
        header = parse_json(files.read(path, SIDECAR_LIMIT), limit=SIDECAR_LIMIT)
    except (OSError, BadMessage) as error:
        _LOG.warning("sidecar %s is not used: %s", path, describe(error))
        return None
    if not isinstance(header, dict):
        _LOG.warning("sidecar %s is not used: not a JSON object", path)
        return None
    return header


def same_exposure(sidecar: Mapping[str, Any], header: fits.Header) -> None:
    """Make sure that sidecar and FITS file belong together.

    Parameters
    ----------
    sidecar : `~collections.abc.Mapping`
        The header in JSON.
    header : `astropy.io.fits.Header`
        The primary header of the FITS file.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised with ``BAD_RAW``, naming the keyword that contradicts.
    """
    for key in _IDENTITY:
        there, here = sidecar.get(key), header.get(key)
        if there is not None and here is not None and str(there).strip() != str(here).strip():
            raise VisitFailed(
                Outcome.BAD_RAW, f"{key} is {here!r} in the FITS file and {there!r} in its sidecar"
            )


def translate(header: Mapping[str, Any], instrument: Instrument, path: str) -> ObservationInfo:
    """Make an ObservationInfo of a header.

    Parameters
    ----------
    header : `~collections.abc.Mapping`
        From the sidecar or the FITS file.
    instrument : `lsst.pipe.base.Instrument`
        Tells the translator, where it knows one.
    path : `str`
        Name for messages.

    Returns
    -------
    info : `astro_metadata_translator.ObservationInfo`
        What the header says.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised with ``BAD_RAW`` where it cannot be understood.
    """
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
        except Exception as error:  # a translator is the instrument's code: anything may come out
            raise VisitFailed(
                Outcome.BAD_RAW, f"the header cannot be understood: {describe(error)}"
            ) from error
    for warning in caught:
        _LOG.debug("header of %s: %s", path, warning.message)
    return info


def check_expected(info: ObservationInfo, raw: Raw) -> ExposureHeader:
    """Make sure that a raw is what its name and place say.

    Parameters
    ----------
    info : `astro_metadata_translator.ObservationInfo`
        What its header says.
    raw : `~ppdaemon.messages.Raw`
        What was expected.

    Returns
    -------
    header : `ExposureHeader`
        The same, complete.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised with ``BAD_RAW``, naming all that contradicts or is missing.
    """
    group = None if info.exposure_group is None else parent_group(info.exposure_group)
    pairs = (
        ("instrument", info.instrument, raw.instrument),
        ("detector", info.detector_num, raw.detector),
        ("exposure", info.exposure_id, raw.exposure),
        ("group", group, parent_group(raw.group)),
    )
    wrong = [f"{what} {found!r} instead of {wanted!r}" for what, found, wanted in pairs if found != wanted]
    if wrong:
        raise VisitFailed(Outcome.BAD_RAW, f"the header says {', '.join(wrong)}")
    needed: dict[str, Any] = {
        "obs_id": info.observation_id,
        "physical_filter": info.physical_filter,
        "day_obs": info.observing_day,
        "begin": info.datetime_begin,
        "end": info.datetime_end,
    }
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise VisitFailed(Outcome.BAD_RAW, f"the header tells no {', '.join(missing)}")
    if needed["end"] < needed["begin"]:
        # An empty timespan would find no calibrations.
        _LOG.warning("exposure %s ends before it begins, taken to end when it begins", raw.exposure)
        needed["end"] = needed["begin"]
    return ExposureHeader(
        instrument=raw.instrument,
        detector=raw.detector,
        exposure=raw.exposure,
        group=parent_group(raw.group),
        info=info,
        **needed,
    )


def contradictions(header: ExposureHeader, visit: NextVisit, limits: ExposuresConfig) -> list[str]:
    """Return what an image's header and its announcement disagree in.

    Parameters
    ----------
    header : `~ppdaemon.middleware.raws.header.ExposureHeader`
        What the header says.
    visit : `~ppdaemon.visit.NextVisit`
        What was announced.
    limits : `~ppdaemon.config.ExposuresConfig`
        How far they may differ.

    Returns
    -------
    reasons : `list` [`str`]
        Empty where nothing contradicts, as where nothing is known, and for
        images that are not of the sky.

    Notes
    -----
    Only positions in ICRS and rotations on the sky are compared. What was
    announced in azimuth and altitude is somewhere else on the sky when the
    exposure begins a few minutes late, and no contradiction.
    """
    if not header.sees_sky:
        return []
    reasons = []
    if visit.boresight is not None and header.boresight is not None:
        apart = separation_deg(visit.boresight, header.boresight)
        if apart > limits.pointing_deg:
            reasons.append(f"the boresight is {apart:.3g} deg from the announced")
    if visit.sky_angle is not None and header.sky_angle is not None:
        turned = abs((header.sky_angle - visit.sky_angle + 180.0) % 360.0 - 180.0)
        if turned > limits.rotation_deg:
            reasons.append(f"the sky angle is {turned:.3g} deg from the announced")
    names = visit.filter_names
    if limits.filter == "exact" and names and header.physical_filter not in names:
        reasons.append(f"the filter is {header.physical_filter} instead of {' or '.join(names)}")
    return reasons


def separation_deg(one: SkyPoint, other: SkyPoint) -> float:
    """Return the distance of two points on the sky.

    Parameters
    ----------
    one, other : `tuple` [`float`, `float`]
        Right ascension and declination, degrees.

    Returns
    -------
    apart : `float`
        Degrees along the great circle.
    """
    return math.degrees(angular_separation(*map(math.radians, (*one, *other))))
