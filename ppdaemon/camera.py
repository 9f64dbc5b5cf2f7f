# SPDX-License-Identifier: BSD-3-Clause
"""Focal-plane tables, and the positions of detectors on the sky.

Covers centers and footprints of detectors for a given boresight. Does not cover
pixels, refraction or the offsets of a pointing model: callers that need a margin
use `padded`.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any

import pydantic
import yaml

from ppdaemon.angles import wrap_degrees
from ppdaemon.errors import ConfigError
from ppdaemon.wire import Model

__all__ = ("Camera", "DetectorGeometry", "Site", "SkyPoint", "camera_names", "load_camera", "padded")

type SkyPoint = tuple[float, float]
"""Right ascension in [0, 360) and declination, both in degrees."""

type _Vector = tuple[float, float, float]

_ARCSEC = math.pi / 648000.0


class DetectorGeometry(Model):
    """Position and size of a detector in the focal plane."""

    id: int
    name: str
    """Raft and slot, such as ``R22_S11``."""
    purpose: str
    """``SCIENCE``, ``GUIDER`` or ``WAVEFRONT``."""
    type: str
    x_mm: float = pydantic.Field(alias="x")
    """Center in the focal plane."""
    y_mm: float = pydantic.Field(alias="y")
    width_mm: float = pydantic.Field(alias="width", gt=0)
    """Sensitive area along focal-plane x, after the rotation by yaw."""
    height_mm: float = pydantic.Field(alias="height", gt=0)
    """Sensitive area along focal-plane y, after the rotation by yaw."""
    yaw_deg: float = pydantic.Field(alias="yaw")

    @property
    def slot(self) -> str:
        """Second part of the name, such as ``S11`` (`str`)."""
        return self.name.partition("_")[2]


class _Radial(Model):
    c1: float
    c3: float
    c5: float


class Site(Model):
    """Location of a telescope, WGS 84."""

    longitude_deg: Annotated[float, pydantic.Field(ge=-180, le=360)]
    """East is positive."""
    latitude_deg: Annotated[float, pydantic.Field(ge=-90, le=90)]
    height_m: Annotated[float, pydantic.Field(ge=-500, le=9000)]


def _by_id(value: Any) -> Any:
    """Turn the table's list of detectors into a mapping by id."""
    if isinstance(value, list):
        detectors = [DetectorGeometry.model_validate(item) for item in value]
        for what, unique in (("id", {d.id for d in detectors}), ("name", {d.name for d in detectors})):
            if len(unique) != len(detectors):
                raise ValueError(f"two detectors have the same {what}")
        return {detector.id: detector for detector in detectors}
    return value


class Camera(Model):
    """The detectors of one instrument and the mapping from focal plane to sky.

    Notes
    -----
    A point (x, y) of the focal plane, at r = sqrt(x^2 + y^2) mm from the
    optical axis, is projected to the tangent plane of the sky at the boresight,
    at the distance

        rho(r) = plate scale * r * (c1 + c3 r^2 + c5 r^4)

    from the boresight: its angular distance is arctan(rho). This is the gnomonic
    projection (FITS ``TAN``), which LSST's ``makeSkyWcs`` (afw) uses for a
    camera's field angles. At camera rotation 0, focal-plane +Y points north and
    +X west (east where `focal_plane_parity` is true); the rotation is the
    position angle of +Y, counted from north through east. The position angle of
    the point is therefore ``rotation + atan2(s x, y)`` with s = -1 (+1 with
    parity). Spherical trigonometry, which is also valid at the poles, gives its
    position on the sky.
    """

    instrument: str
    focal_plane_parity: bool
    plate_scale_arcsec_per_mm: float = pydantic.Field(gt=0)
    radial_coefficients: _Radial
    site: Site | None = None
    """Location of its telescope; needed for positions in azimuth and altitude."""
    pixel_mm: float = pydantic.Field(default=0.01, gt=0)
    """Size of a pixel."""
    visit_padding_pixels: int = pydantic.Field(default=250, ge=0)
    """Margin of a detector's region in a visit beyond its sensitive area: the
    ``padding`` with which ``lsst.obs.base`` defines this camera's visits."""
    detectors: Annotated[Mapping[int, DetectorGeometry], pydantic.BeforeValidator(_by_id)]
    """By id."""

    @functools.cached_property
    def _names(self) -> dict[str, DetectorGeometry]:
        return {detector.name: detector for detector in self.detectors.values()}

    def by_name(self, name: str) -> DetectorGeometry:
        """Return the detector with a name.

        Parameters
        ----------
        name : `str`
            Name as in file names, such as ``R22_S11``.

        Returns
        -------
        detector : `DetectorGeometry`
            Its position and size in the focal plane, mm.

        Raises
        ------
        LookupError
            Raised if the camera has no such detector.
        """
        try:
            return self._names[name]
        except KeyError:
            raise LookupError(f"{self.instrument} has no detector called {name!r}") from None

    def center(self, detector: int, ra_deg: float, dec_deg: float, sky_angle_deg: float) -> SkyPoint:
        """Return the position of a detector's center on the sky.

        Parameters
        ----------
        detector : `int`
            Id in the focal-plane table; others raise LookupError.
        ra_deg, dec_deg : `float`
            ICRS position of the boresight, degrees.
        sky_angle_deg : `float`
            Position angle of focal-plane +Y, north through east, degrees.

        Returns
        -------
        ra, dec : `float`
            ICRS, degrees.

        Raises
        ------
        LookupError
            Raised if the camera has no such detector.
        ValueError
            Raised if the declination is not within [-90, 90] degrees.
        """
        geometry = self._detector(detector)
        return self._to_sky(geometry.x_mm, geometry.y_mm, ra_deg, dec_deg, sky_angle_deg)

    @property
    def visit_padding_mm(self) -> float:
        """`visit_padding_pixels` in the focal plane (`float`)."""
        return self.visit_padding_pixels * self.pixel_mm

    @property
    def visit_padding_arcsec(self) -> float:
        """`visit_padding_pixels` on the sky, near the axis (`float`)."""
        return self.visit_padding_mm * self.plate_scale_arcsec_per_mm * self.radial_coefficients.c1

    def footprint(
        self,
        detector: int,
        ra_deg: float,
        dec_deg: float,
        sky_angle_deg: float,
        *,
        margin_mm: float = 0.0,
    ) -> tuple[SkyPoint, SkyPoint, SkyPoint, SkyPoint]:
        """Return the corners of a detector's sensitive area on the sky.

        Parameters
        ----------
        detector : `int`
            Id in the focal-plane table; others raise LookupError.
        ra_deg, dec_deg : `float`
            ICRS position of the boresight, degrees.
        sky_angle_deg : `float`
            Position angle of focal-plane +Y, north through east, degrees.
        margin_mm : `float`, optional
            How far the area is widened on each side, in the focal plane.

        Returns
        -------
        corners : `tuple` [`tuple` [`float`, `float`]]
            ICRS (ra, dec) in degrees of the corners at low x and low y, high
            x and low y, high x and high y, low x and high y.

        Raises
        ------
        LookupError
            Raised if the camera has no such detector.
        ValueError
            Raised if the declination is not within [-90, 90] degrees.
        """
        geometry = self._detector(detector)
        half_x, half_y = geometry.width_mm / 2.0 + margin_mm, geometry.height_mm / 2.0 + margin_mm

        def corner(x_sign: float, y_sign: float) -> SkyPoint:
            x_mm, y_mm = geometry.x_mm + x_sign * half_x, geometry.y_mm + y_sign * half_y
            return self._to_sky(x_mm, y_mm, ra_deg, dec_deg, sky_angle_deg)

        return corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)

    def _detector(self, detector: int) -> DetectorGeometry:
        try:
            return self.detectors[detector]
        except KeyError:
            raise LookupError(
                f"{self.instrument} has no detector {detector}, it has {len(self.detectors)} "
                f"from {min(self.detectors)} to {max(self.detectors)}"
            ) from None

    def _to_sky(
        self, x_mm: float, y_mm: float, ra_deg: float, dec_deg: float, sky_angle_deg: float
    ) -> SkyPoint:
        """Return the position on the sky of a point of the focal plane."""
        if not -90.0 <= dec_deg <= 90.0:
            raise ValueError(f"declination {dec_deg} is not within -90 to 90 degrees")
        r2 = x_mm * x_mm + y_mm * y_mm
        radial = self.radial_coefficients
        scale = self.plate_scale_arcsec_per_mm * _ARCSEC
        rho = scale * math.sqrt(r2) * (radial.c1 + r2 * (radial.c3 + r2 * radial.c5))
        theta = math.atan(rho)
        sign = 1.0 if self.focal_plane_parity else -1.0
        angle = math.radians(sky_angle_deg) + math.atan2(sign * x_mm, y_mm)

        # The boresight and the directions east and north form a basis that exists
        # also at the poles, where the right ascension defines its orientation.
        ra, dec = math.radians(ra_deg), math.radians(dec_deg)
        axis = (math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec))
        east = (-math.sin(ra), math.cos(ra), 0.0)
        north = (-math.sin(dec) * math.cos(ra), -math.sin(dec) * math.sin(ra), math.cos(dec))
        weights = (math.cos(theta), math.sin(theta) * math.sin(angle), math.sin(theta) * math.cos(angle))
        return _to_point(_sum(weights, (axis, east, north)))


def padded(corners: Sequence[SkyPoint], padding_arcsec: float) -> tuple[SkyPoint, ...]:
    """Move the edges of a convex polygon on the sky outward.

    Parameters
    ----------
    corners : `~collections.abc.Sequence` [`tuple` [`float`, `float`]]
        At least three (ra, dec) in degrees, clockwise or counterclockwise,
        within a hemisphere.
    padding_arcsec : `float`
        Distance of the new edges from the old ones, at least 0, measured at the
        middle of each edge; at the ends of an edge of length L it is smaller by
        the factor cos(L/2).

    Returns
    -------
    corners : `tuple` [`tuple` [`float`, `float`]]
        The corners of the larger polygon in the same order, degrees.

    Raises
    ------
    ValueError
        Raised if two corners coincide, if they are not within a hemisphere, or
        if the padding is negative.

    Notes
    -----
    An edge lies on the great circle with the pole n and has the middle m. Points
    v on the inner side have ``n . v >= 0``. The great circle with the pole
    ``n cos p + m sin p`` passes at the distance p outside of m. The new corners
    are the intersections of adjacent circles.
    """
    if padding_arcsec < 0.0:
        raise ValueError(f"padding of {padding_arcsec} arcsec is negative")
    vertices = [_to_vector(corner) for corner in corners]
    inside = _unit(_sum((1.0,) * len(vertices), vertices))
    padding = padding_arcsec * _ARCSEC
    poles = []
    for first, second in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        pole = _unit(_cross(first, second))
        if _dot(pole, inside) < 0.0:
            pole = _sum((-1.0,), (pole,))
        middle = _unit(_sum((1.0, 1.0), (first, second)))
        poles.append(_sum((math.cos(padding), math.sin(padding)), (pole, middle)))
    result = []
    for before, after in zip([poles[-1], *poles[:-1]], poles, strict=True):
        corner = _unit(_cross(before, after))
        if _dot(corner, inside) < 0.0:
            corner = _sum((-1.0,), (corner,))
        result.append(_to_point(corner))
    return tuple(result)


def camera_names() -> tuple[str, ...]:
    """Return the instruments that have a focal-plane table.

    Returns
    -------
    names : `tuple` [`str`]
        Short names of instruments, sorted.
    """
    files = resources.files("ppdaemon").joinpath("cameras").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


@functools.cache
def load_camera(instrument: str) -> Camera:
    """Return the camera of an instrument.

    Parameters
    ----------
    instrument : `str`
        Short name, such as ``LSSTCam``.

    Returns
    -------
    camera : `Camera`
        Read from the package data once; later calls return the same object.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised if there is no table for this instrument; lists the known ones.
    """
    known = camera_names()
    if instrument not in known:
        raise ConfigError(
            [f"no focal-plane table for {instrument!r}; there are tables for {', '.join(known)}"]
        )
    file = resources.files("ppdaemon").joinpath("cameras", f"{instrument}.yaml")
    table = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    if "same_as" in table:
        return load_camera(table["same_as"]).model_copy(update={"instrument": table["instrument"]})
    return Camera.model_validate(table)


def _to_vector(point: SkyPoint) -> _Vector:
    ra, dec = math.radians(point[0]), math.radians(point[1])
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)


def _to_point(vector: _Vector) -> SkyPoint:
    x, y, z = vector
    return wrap_degrees(math.degrees(math.atan2(y, x))), math.degrees(math.atan2(z, math.hypot(x, y)))


def _sum(weights: Sequence[float], vectors: Sequence[_Vector]) -> _Vector:
    x, y, z = (math.sumprod(weights, axis) for axis in zip(*vectors, strict=True))
    return x, y, z


def _dot(a: _Vector, b: _Vector) -> float:
    return math.sumprod(a, b)


def _cross(a: _Vector, b: _Vector) -> _Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _unit(vector: _Vector) -> _Vector:
    length = math.hypot(*vector)
    if length < 1e-12:
        raise ValueError(
            "the corners are not a polygon: two of them coincide, or they are not within a hemisphere"
        )
    return vector[0] / length, vector[1] / length, vector[2] / length
