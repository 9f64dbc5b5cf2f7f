# SPDX-License-Identifier: BSD-3-Clause
"""The announced position and rotation of a visit, converted to ICRS.

Covers positions on the sky, azimuth and altitude, and rotations counted from
north or from the zenith. Does not cover pointing models: mount positions are
used as observed positions, and mount rotations are treated as unknown.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ppdaemon.angles import wrap_degrees
from ppdaemon.camera import Site, SkyPoint
from ppdaemon.visit import CoordinateSystem, NextVisit, RotationSystem

__all__ = (
    "BeginField",
    "Pointing",
    "announced",
    "boresight",
    "expected_begin",
    "disable_astropy_downloads",
    "needs_astropy",
)

type BeginField = Literal["startTime", "private_sndStamp", "now"]
"""The source of the expected begin of an exposure: a field of the event, or the clock."""

_LOG = logging.getLogger(__name__)

EARLIEST_TAI, LATEST_TAI = 315532800.0, 4102444800.0
"""1980 and 2100. Times outside this range are treated as missing: the Earth's rotation
is not tabulated for them, and no visit is announced for them."""
SEA_LEVEL_HPA = 1013.25
"""Pressure of the standard atmosphere."""
SCALE_HEIGHT_M = 8400.0
"""Scale height of the atmosphere; the refraction is then accurate to a few percent."""
STEP_DEG = 0.1
"""Distance of the two points that define the direction to the zenith: small against
the curvature of the sky, large against rounding."""

_HORIZONTAL = (CoordinateSystem.OBSERVED, CoordinateSystem.MOUNT)


@dataclass(frozen=True, slots=True)
class Pointing:
    """Boresight (ICRS, degrees) and rotation of an exposure."""

    ra_deg: float
    dec_deg: float
    sky_angle_deg: float
    """Position angle of focal-plane +Y, north through east, degrees."""


def needs_astropy(visit: NextVisit) -> bool:
    """Return whether `boresight` or `announced` need astropy: about 1 s for its
    import at the first call, about 20 ms at later calls.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        Announcement; its coordinate and rotation systems decide.

    Returns
    -------
    needed : `bool`
        `False` if position and rotation are on the sky already, or missing.
    """
    horizontal = visit.coordinate_system in _HORIZONTAL
    return horizontal or (visit.boresight is not None and visit.rotation_system == RotationSystem.HORIZON)


def boresight(visit: NextVisit, site: Site | None) -> SkyPoint | None:
    """Return the announced boresight of a visit.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        Announcement; its position may be ICRS or horizontal.
    site : `~ppdaemon.camera.Site` or `None`
        Location of the telescope; `None` if it is not known.

    Returns
    -------
    ra, dec : `float`
        ICRS, degrees; `None`, with a message in the log, if the visit has no
        position, or one that cannot be converted.
    """
    if visit.coordinate_system == CoordinateSystem.ICRS:
        if visit.boresight is None:
            _LOG.warning(
                "visit %s: position on the sky unknown: declination %g", visit.group, visit.position[1]
            )
        return visit.boresight
    if visit.coordinate_system == CoordinateSystem.NONE:
        _LOG.info("visit %s: announced without a position on the sky", visit.group)
        return None
    problem = _unconvertible(visit, site)
    if problem or site is None:
        _LOG.warning(
            "visit %s: position on the sky unknown: %s position and %s",
            visit.group,
            visit.coordinate_system.name,
            problem,
        )
        return None
    azimuth, altitude = visit.position
    with _without_astropy_warnings():
        return _HorizonFrame(site, _when_tai(visit)).to_icrs(azimuth % 360.0, altitude)


def announced(visit: NextVisit, site: Site | None) -> Pointing | None:
    """Return the announced boresight and camera rotation of a visit.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        Announcement; its position and rotation may be horizontal.
    site : `~ppdaemon.camera.Site` or `None`
        Location of the telescope; `None` if it is not known.

    Returns
    -------
    pointing : `Pointing` or `None`
        `None`, with a message in the log, if position or rotation on the sky are
        not known; `boresight` may still return the position.
    """
    point = boresight(visit, site)
    if point is None:
        return None
    angle = visit.sky_angle
    if visit.rotation_system == RotationSystem.HORIZON:
        problem = _unconvertible(visit, site)
        if problem or site is None:
            _LOG.warning(
                "visit %s: footprint unknown, spatial datasets are not preloaded: HORIZON rotation and %s",
                visit.group,
                problem,
            )
            return None
        with _without_astropy_warnings():
            angle = _HorizonFrame(site, _when_tai(visit)).sky_angle(point, visit.camera_angle)
    elif angle is None:
        _LOG.warning(
            "visit %s: footprint unknown, spatial datasets are not preloaded: %s rotation",
            visit.group,
            visit.rotation_system.name,
        )
        return None
    return Pointing(*point, angle)


def disable_astropy_downloads() -> None:
    """Let astropy use only its installed tables of the Earth's rotation.

    No process may wait for a download, or fail because the installed tables are
    old: the error of old tables is below 1 s of time (15 arcsec).
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
        Announcement with ``startTime`` and ``private_sndStamp``, either of
        which may be missing.
    now_tai : `float`
        Time that is returned if the announcement has no valid time, TAI seconds
        since 1970.

    Returns
    -------
    begin_tai : `float`
        Expected begin of the exposure, TAI seconds since 1970.
    field : `str`
        The field that the time is from, or ``now``.
    """
    if EARLIEST_TAI < visit.start_time_tai < LATEST_TAI:
        return visit.start_time_tai, "startTime"
    if visit.published_tai is not None and EARLIEST_TAI < visit.published_tai < LATEST_TAI:
        return visit.published_tai, "private_sndStamp"
    return now_tai, "now"


def _when_tai(visit: NextVisit) -> float:
    """Return the time of the conversion, 0 if the announcement has none."""
    return expected_begin(visit, 0.0)[0]


def _unconvertible(visit: NextVisit, site: Site | None) -> str:
    """Return why directions cannot be converted; blank if they can."""
    if site is None:
        return f"no site for {visit.instrument!r}"
    if not _when_tai(visit):
        return "no time"
    if visit.coordinate_system in _HORIZONTAL and not -90.0 <= visit.position[1] <= 90.0:
        return f"altitude {visit.position[1]:g}"
    return ""


@contextlib.contextmanager
def _without_astropy_warnings() -> Iterator[None]:
    """Suppress warnings about leap seconds and polar motion of future years, whose
    effect is a few arcsec at most.
    """
    from astropy.utils.exceptions import AstropyWarning
    from erfa import ErfaWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", ErfaWarning)
        yield


class _HorizonFrame:
    """Conversion of directions at one location and time, by astropy.

    Uses the usual air at that height. In other weather, observed altitudes are wrong
    by a few percent of the refraction (40 arcsec at 45 degrees).
    """

    def __init__(self, site: Site, when_tai: float):
        disable_astropy_downloads()
        import astropy.units as u
        from astropy.coordinates import AltAz, EarthLocation
        from astropy.time import Time

        location = EarthLocation.from_geodetic(site.longitude_deg, site.latitude_deg, site.height_m)
        self._frame = AltAz(
            obstime=Time(40587.0, when_tai / 86400.0, format="mjd", scale="tai"),
            location=location,
            pressure=SEA_LEVEL_HPA * math.exp(-site.height_m / SCALE_HEIGHT_M) * u.hPa,
            temperature=10.0 * u.deg_C,
            relative_humidity=0.2,
            obswl=0.6 * u.micron,
        )

    def to_icrs(self, azimuth_deg: float, altitude_deg: float) -> SkyPoint:
        point = self._horizontal(azimuth_deg, altitude_deg).icrs
        return wrap_degrees(float(point.ra.deg)), float(point.dec.deg)

    def sky_angle(self, point: SkyPoint, angle_deg: float) -> float:
        """Return the position angle of the direction that is `angle_deg` from the
        zenith direction, counted as from north through east.
        """
        from astropy.coordinates import SkyCoord

        target = SkyCoord(*point, unit="deg")
        horizontal = target.transform_to(self._frame)
        # The step goes away from the zenith, because a step toward it may pass it.
        below = self._horizontal(float(horizontal.az.deg), float(horizontal.alt.deg) - STEP_DEG).icrs
        parallactic_deg = float(target.position_angle(below).deg) + 180.0
        return wrap_degrees(parallactic_deg + angle_deg)

    def _horizontal(self, azimuth_deg: float, altitude_deg: float) -> Any:
        from astropy.coordinates import SkyCoord

        return SkyCoord(azimuth_deg, altitude_deg, unit="deg", frame=self._frame)
