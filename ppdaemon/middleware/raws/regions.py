# SPDX-License-Identifier: BSD-3-Clause
"""Regions and times of detectors and cameras, as sphgeom regions and Butler timespans."""

import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import astropy.time
from lsst.daf.butler import DimensionUniverse, Timespan
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
    "regions_overlap",
)

_LOG = logging.getLogger(__name__)

EARLY_S = 60.0
"""An exposure may begin this much earlier than announced."""
UNKNOWN_DURATION_S = 60.0
"""Used if the announced duration is 0, which means unknown."""

type CameraLoader = Callable[[str], Camera]
"""Returns the focal-plane table of an instrument or raises `ConfigError`."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Region and time of one detector, as announced."""

    region: ConvexPolygon | None
    """Padded footprint; `None` if the position on the sky is unknown."""
    exposure: Timespan
    """Expected time of the exposure."""
    validity: Timespan
    """Possible time of the exposure: all calibrations valid within it are needed."""
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
    """Return the announced footprint of a detector.

    Each edge of the region is `padding_arcsec` outside of the sensitive area,
    or further where the camera's visits are defined with a wider padding.
    `image_deadline_s` limits how late the exposure may be. `now_tai` (TAI
    seconds since 1970) is the start if none is announced. Without a region, the
    reason is logged as a warning.
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
        _LOG.warning("no footprint, spatial datasets are not preloaded: %s", error)
        return None


def preload_corners(
    camera: Camera, detector: int, pointing: Pointing, padding_arcsec: float
) -> tuple[SkyPoint, ...]:
    """Return the corners (ICRS, degrees) of the area for which a detector's inputs are preloaded.

    Raises `LookupError` if the camera has no such detector.
    """
    # Never smaller than `detector_region`: tasks request what the visit's region overlaps.
    corners = _corners(camera, detector, pointing)
    more_arcsec = padding_arcsec - camera.visit_padding_arcsec
    return padded(corners, more_arcsec) if more_arcsec > 0.0 else corners


def find_camera(load: CameraLoader, instrument: str) -> Camera | None:
    """Return an instrument's focal-plane table; log a warning and return `None` if there is none."""
    try:
        return load(instrument)
    except ConfigError as error:
        _LOG.warning("no footprints, spatial datasets are not preloaded: %s", error)
        return None


def detector_region(camera: Camera, detector: int, pointing: Pointing) -> ConvexPolygon:
    """Return the region of a detector in a visit: the sensitive area, with the padding with which
    ``lsst.obs.base`` defines this camera's visits. Raises `LookupError` if the camera has no such detector.
    """
    return _polygon(_corners(camera, detector, pointing))


def corners_of(region: Region | None) -> tuple[SkyPoint, ...] | None:
    """Return the corners of a polygon, ICRS degrees; `None` for other shapes."""
    if not isinstance(region, ConvexPolygon):
        return None
    corners = map(LonLat, region.getVertices())
    return tuple((corner.getLon().asDegrees(), corner.getLat().asDegrees()) for corner in corners)


def camera_region(camera: Camera, pointing: Pointing) -> ConvexPolygon:
    """Return the convex hull of the regions of all detectors."""
    corners = (_corners(camera, detector, pointing) for detector in sorted(camera.detectors))
    return _polygon(itertools.chain.from_iterable(corners))


def regions_overlap(one: Region | None, other: Region | None, universe: DimensionUniverse) -> bool:
    """Return whether two regions overlap, as the registry decides it.

    Nothing overlaps a missing region. If the geometry cannot decide, regions
    overlap if both touch one pixel of the common sky pixelization.
    """
    if one is None or other is None:
        return False
    result = one.overlaps(other)
    if result is None:
        pixels = universe.commonSkyPix.pixelization
        return bool(pixels.envelope(one).intersects(pixels.envelope(other)))
    return bool(result)


def _timespan(begin_tai: float, end_tai: float) -> Timespan:
    return Timespan(*(astropy.time.Time(tai, format="unix_tai") for tai in (begin_tai, end_tai)))


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
