# SPDX-License-Identifier: BSD-3-Clause
"""Where a visit will look: announced positions and rotations in ICRS.

Covers positions on the sky, azimuth and altitude, and rotations counted from
north or from the zenith. Does not cover pointing models: positions of the
mount are taken as observed ones, and mount rotations as unknown.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ppdaemon.angles import full_turn
from ppdaemon.camera import Site, SkyPoint
from ppdaemon.visit import CoordinateSystem, NextVisit, RotationSystem

__all__ = (
    "BeginField",
    "Pointing",
    "announced",
    "boresight",
    "expected_begin",
    "keep_astropy_offline",
    "needs_astropy",
)

type BeginField = Literal["startTime", "private_sndStamp", "now"]
"""What tells when an exposure is expected to begin."""

_LOG = logging.getLogger(__name__)

EARLIEST_TAI, LATEST_TAI = 315532800.0, 4102444800.0
"""1980 and 2100: outside of these years the Earth's rotation is not known, and
no visit is begun."""
SEA_LEVEL_HPA = 1013.25
SCALE_HEIGHT_M = 8400.0
"""Of the atmosphere; with it refraction is good to a few percent."""
STEP_DEG = 0.1
"""How far apart two points are whose connection tells a direction."""

_HORIZONTAL = (CoordinateSystem.OBSERVED, CoordinateSystem.MOUNT)


@dataclass(frozen=True, slots=True)
class Pointing:
    """Boresight and rotation of an exposure."""

    ra_deg: float
    dec_deg: float
    sky_angle_deg: float
    """Position angle of focal-plane +Y, north through east."""


def needs_astropy(visit: NextVisit) -> bool:
    """Tell whether `boresight` or `announced` would take long: the first time
    about a second for astropy's import, later some 20 ms.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.

    Returns
    -------
    needed : `bool`
        `False` for positions and rotations on the sky, and where there are
        none.
    """
    horizontal = visit.coordinate_system in _HORIZONTAL
    return horizontal or (visit.boresight is not None and visit.rotation_system == RotationSystem.HORIZON)


def boresight(visit: NextVisit, site: Site | None) -> SkyPoint | None:
    """Return where the telescope will point.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    site : `~ppdaemon.camera.Site` or `None`
        Where the telescope stands, if that is known.

    Returns
    -------
    ra, dec : `float`
        ICRS, degrees; `None`, with a line in the log, where the visit has no
        position, or one that cannot be converted.
    """
    if visit.coordinate_system == CoordinateSystem.ICRS:
        if visit.boresight is None:
            _LOG.warning("visit %s: no place on the sky: declination %g", visit.group, visit.position[1])
        return visit.boresight
    if visit.coordinate_system == CoordinateSystem.NONE:
        _LOG.info("visit %s: announced without a place on the sky", visit.group)
        return None
    problem = _unconvertible(visit, site)
    if problem or site is None:
        _LOG.warning(
            "visit %s: no place on the sky: %s position and %s",
            visit.group,
            visit.coordinate_system.name,
            problem,
        )
        return None
    azimuth, altitude = visit.position
    with _without_doubts():
        return _Horizon(site, _when_tai(visit)).to_icrs(azimuth % 360.0, altitude)


def announced(visit: NextVisit, site: Site | None) -> Pointing | None:
    """Return where the telescope will point and how the camera is turned.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    site : `~ppdaemon.camera.Site` or `None`
        Where the telescope stands, if that is known.

    Returns
    -------
    pointing : `Pointing` or `None`
        `None`, with a line in the log, where position or rotation are not
        known on the sky; `boresight` may still tell the position.
    """
    place = boresight(visit, site)
    if place is None:
        return None
    angle = visit.sky_angle
    if visit.rotation_system == RotationSystem.HORIZON:
        problem = _unconvertible(visit, site)
        if problem or site is None:
            _LOG.warning("visit %s: HORIZON rotation and %s: no footprint", visit.group, problem)
            return None
        with _without_doubts():
            angle = _Horizon(site, _when_tai(visit)).sky_angle(place, visit.camera_angle)
    elif angle is None:
        _LOG.warning("visit %s: %s rotation: no footprint", visit.group, visit.rotation_system.name)
        return None
    return Pointing(*place, angle)


def keep_astropy_offline() -> None:
    """Have astropy use the tables of the Earth's rotation that come with it.

    Nobody may wait for a network, nor fail because the installed tables are
    old: the error is below a second of time.
    """
    from astropy.utils import iers

    iers.conf.auto_download = False
    iers.conf.auto_max_age = None
    iers.conf.iers_degraded_accuracy = "ignore"


def expected_begin(visit: NextVisit, now_tai: float) -> tuple[float, BeginField]:
    """Return when the exposure of a visit is expected to begin.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    now_tai : `float`
        Taken where the announcement tells no time that can be one.

    Returns
    -------
    begin_tai : `float`
        TAI seconds since 1970.
    field : `str`
        What tells it.
    """
    if EARLIEST_TAI < visit.start_time_tai < LATEST_TAI:
        return visit.start_time_tai, "startTime"
    if visit.published_tai is not None and EARLIEST_TAI < visit.published_tai < LATEST_TAI:
        return visit.published_tai, "private_sndStamp"
    return now_tai, "now"


def _when_tai(visit: NextVisit) -> float:
    """Return the time of the conversion, 0 if the announcement tells none."""
    return expected_begin(visit, 0.0)[0]


def _unconvertible(visit: NextVisit, site: Site | None) -> str:
    """Say why directions cannot be converted; blank if they can."""
    if site is None:
        return f"no site of {visit.instrument!r}"
    if not _when_tai(visit):
        return "no time"
    if visit.coordinate_system in _HORIZONTAL and not -90.0 <= visit.position[1] <= 90.0:
        return f"altitude {visit.position[1]:g}"
    return ""


@contextlib.contextmanager
def _without_doubts() -> Iterator[None]:
    """Silence doubts about leap seconds and polar motion of future years,
    which are a few arcsec at most.
    """
    from astropy.utils.exceptions import AstropyWarning
    from erfa import ErfaWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", ErfaWarning)
        yield


class _Horizon:
    """Directions at one place and time, by astropy.

    Air as it usually is at that height; where it differs, observed altitudes
    are off by a few percent of the refraction (40 arcsec at 45 degrees).
    """

    def __init__(self, site: Site, when_tai: float):
        keep_astropy_offline()
        import astropy.units as u
        from astropy.coordinates import AltAz, EarthLocation
        from astropy.time import Time

        place = EarthLocation.from_geodetic(site.longitude_deg, site.latitude_deg, site.height_m)
        self._frame = AltAz(
            obstime=Time(40587.0, when_tai / 86400.0, format="mjd", scale="tai"),
            location=place,
            pressure=SEA_LEVEL_HPA * math.exp(-site.height_m / SCALE_HEIGHT_M) * u.hPa,
            temperature=10.0 * u.deg_C,
            relative_humidity=0.2,
            obswl=0.6 * u.micron,
        )

    def to_icrs(self, azimuth_deg: float, altitude_deg: float) -> SkyPoint:
        place = self._horizontal(azimuth_deg, altitude_deg).icrs
        return full_turn(float(place.ra.deg)), float(place.dec.deg)

    def sky_angle(self, place: SkyPoint, angle_deg: float) -> float:
        """Return the position angle of what lies `angle_deg` from the direction
        to the zenith, in the sense of north through east.
        """
        from astropy.coordinates import SkyCoord

        there = SkyCoord(*place, unit="deg")
        seen = there.transform_to(self._frame)
        # Away from the zenith, because a step towards it may pass it.
        below = self._horizontal(float(seen.az.deg), float(seen.alt.deg) - STEP_DEG).icrs
        parallactic_deg = float(there.position_angle(below).deg) + 180.0
        return full_turn(parallactic_deg + angle_deg)

    def _horizontal(self, azimuth_deg: float, altitude_deg: float) -> Any:
        from astropy.coordinates import SkyCoord

        return SkyCoord(azimuth_deg, altitude_deg, unit="deg", frame=self._frame)
