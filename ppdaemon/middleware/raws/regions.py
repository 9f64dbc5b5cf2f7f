# SPDX-License-Identifier: BSD-3-Clause
"""Where a detector, or a whole camera, looks: regions and times as the Butler takes them."""

import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import astropy.time
import astropy.units as u
from lsst.daf.butler import Timespan
from lsst.sphgeom import ConvexPolygon, LonLat, Region, UnitVector3d

from ppdaemon.camera import Camera, SkyPoint, padded
from ppdaemon.clock import day_obs
from ppdaemon.errors import ConfigError
from ppdaemon.pointing import Pointing, announced, expected_begin
from ppdaemon.visit import NextVisit

__all__ = (
    "CameraLoader",
    "Footprint",
    "camera_region",
    "corners_of",
    "detector_region",
    "find_camera",
    "footprint_of",
    "preload_corners",
)

_LOG = logging.getLogger(__name__)

EARLY_S = 60.0
"""How much earlier than announced an exposure may begin."""
UNKNOWN_DURATION_S = 60.0
"""Stands for a duration of 0, which means that it is not known."""

type CameraLoader = Callable[[str], Camera]
"""Returns the focal-plane table of an instrument or raises `ConfigError`."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where and when one detector will look, as announced."""

    region: ConvexPolygon | None
    """Padded footprint, if the place on the sky is known."""
    exposure: Timespan
    """When the exposure is expected."""
    validity: Timespan
    """When it may be taken at all: calibrations of all this time are needed."""
    day_obs: int
    """Observing day of the expected exposure, ``YYYYMMDD``."""
    pointing: Pointing | None
    """Boresight and rotation, if both are known on the sky."""


def footprint_of(
    visit: NextVisit,
    detector: int,
    camera: Camera | None,
    *,
    padding_arcsec: float,
    image_deadline_s: float,
    now_tai: float,
) -> Footprint:
    """Return where and when a detector will look.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    detector : `int`
        Id of the detector.
    camera : `~ppdaemon.camera.Camera` or `None`
        The focal-plane table, if there is one.
    padding_arcsec : `float`
        How far each edge of the footprint is moved outwards; where the regions
        of visits are wider, it is these.
    patience_s : `float`
        How long the image is waited for.
    now_tai : `float`
        Taken where the announcement tells no time; TAI seconds since 1970.

    Returns
    -------
    footprint : `Footprint`
        Without region, and with a warning in the log, where there is no
        footprint.
    """
    begin, _ = expected_begin(visit, now_tai)
    exposure_s = visit.duration_s or UNKNOWN_DURATION_S
    pointing = announced(visit, None if camera is None else camera.site)
    return Footprint(
        _padded_region(pointing, detector, camera, padding_arcsec),
        _timespan(begin, begin + exposure_s),
        _timespan(begin - EARLY_S, begin + image_deadline_s),
        day_obs(begin),
        pointing,
    )


def _padded_region(
    pointing: Pointing | None, detector: int, camera: Camera | None, padding_arcsec: float
) -> ConvexPolygon | None:
    if camera is None or pointing is None:
        return None
    try:
        return _polygon(preload_corners(camera, detector, pointing, padding_arcsec))
    except LookupError as error:
        _LOG.warning("no footprint: %s", error)
        return None


def preload_corners(
    camera: Camera, detector: int, pointing: Pointing, padding_arcsec: float
) -> tuple[SkyPoint, ...]:
    """Return the corners of the area for which a detector's inputs are preloaded.

    Parameters
    ----------
    camera : `~ppdaemon.camera.Camera`
        The focal-plane table.
    detector : `int`
        Id of the detector.
    pointing : `~ppdaemon.pointing.Pointing`
        Where the camera looks.
    padding_arcsec : `float`
        How far each edge of the sensitive area is moved outwards.

    Returns
    -------
    corners : `tuple` [`tuple` [`float`, `float`]]
        ICRS degrees. They contain `detector_region`, whatever the padding:
        what a visit's region overlaps is what its tasks ask for.

    Raises
    ------
    LookupError
        Raised if the table has no such detector.
    """
    corners = _corners(camera, detector, pointing)
    more_arcsec = padding_arcsec - camera.visit_padding_arcsec
    return padded(corners, more_arcsec) if more_arcsec > 0.0 else corners


def find_camera(load: CameraLoader, instrument: str) -> Camera | None:
    """Return an instrument's focal-plane table, if there is one.

    Parameters
    ----------
    load : `~collections.abc.Callable`
        `ppdaemon.camera.load_camera`, or a stand-in.
    instrument : `str`
        Short name.

    Returns
    -------
    camera : `~ppdaemon.camera.Camera` or `None`
        `None`, with a warning in the log, where there is no table.
    """
    try:
        return load(instrument)
    except ConfigError as error:
        _LOG.warning("no footprints: %s", error)
        return None


def detector_region(camera: Camera, detector: int, pointing: Pointing) -> ConvexPolygon:
    """Return the region that one detector has in a visit.

    Parameters
    ----------
    camera : `~ppdaemon.camera.Camera`
        The focal-plane table.
    detector : `int`
        Id of the detector.
    pointing : `~ppdaemon.pointing.Pointing`
        Where the camera looks.

    Returns
    -------
    region : `lsst.sphgeom.ConvexPolygon`
        Four corners: the sensitive area, and around it the padding with which
        ``lsst.obs.base`` defines this camera's visits.

    Raises
    ------
    LookupError
        Raised if the table has no such detector.
    """
    return _polygon(_corners(camera, detector, pointing))


def corners_of(region: Region | None) -> tuple[SkyPoint, ...] | None:
    """Return the corners of a polygon, ICRS degrees; `None` for other shapes."""
    if not isinstance(region, ConvexPolygon):
        return None
    corners = map(LonLat, region.getVertices())
    return tuple((corner.getLon().asDegrees(), corner.getLat().asDegrees()) for corner in corners)


def camera_region(camera: Camera, pointing: Pointing) -> ConvexPolygon:
    """Return the convex hull of all detectors' regions, the same for each of them.

    Parameters
    ----------
    camera : `~ppdaemon.camera.Camera`
        The focal-plane table.
    pointing : `~ppdaemon.pointing.Pointing`
        Where the camera looks.

    Returns
    -------
    region : `lsst.sphgeom.ConvexPolygon`
        The hull.
    """
    corners = (_corners(camera, detector, pointing) for detector in sorted(camera.detectors))
    return _polygon(itertools.chain.from_iterable(corners))


def _timespan(begin_tai: float, end_tai: float) -> Timespan:
    epoch = astropy.time.Time("1970-01-01T00:00:00", scale="tai")
    return Timespan(epoch + begin_tai * u.s, epoch + end_tai * u.s)


def _corners(camera: Camera, detector: int, pointing: Pointing) -> tuple[SkyPoint, ...]:
    return camera.footprint(
        detector,
        pointing.ra_deg,
        pointing.dec_deg,
        pointing.sky_angle_deg,
        margin_mm=camera.visit_padding_mm,
    )


def _polygon(corners: Iterable[SkyPoint]) -> ConvexPolygon:
    return ConvexPolygon.convexHull([UnitVector3d(LonLat.fromDegrees(ra, dec)) for ra, dec in corners])
