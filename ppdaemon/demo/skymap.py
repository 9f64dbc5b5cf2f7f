# SPDX-License-Identifier: BSD-3-Clause
"""The demo's sky map: one tract around the field, 5 x 5 patches on one pixel grid."""

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from lsst.images import Box, SkyProjection, TractFrame
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC, tangent_wcs
from ppdaemon.demo.sky import Sky

__all__ = (
    "PATCH_COUNT",
    "PATCH_SIDE",
    "SKYMAP_NAME",
    "TRACT",
    "TRACT_SIZE",
    "TractMap",
    "polygon_from_degrees",
)

SKYMAP_NAME = "demo"
TRACT = 0
PATCH_SIDE = 5
"""Patches along each side of the tract."""
PATCH_COUNT = PATCH_SIDE**2
_PATCH_INNER = 1024
_PATCH_BORDER = 32
"""Neighboring patches overlap by twice this number of pixels."""
TRACT_SIZE = PATCH_SIDE * _PATCH_INNER + 2 * _PATCH_BORDER
"""Rows and columns of the tract, 17.3 arcmin.

The camera at any rotation, dithered by up to 1 arcmin, is inside.
"""


def polygon_from_degrees(corners: np.ndarray) -> ConvexPolygon:
    """Make a sky region from corners (n, 2) in degrees, listed once around."""
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(ra % 360.0, dec)) for ra, dec in corners])


@dataclass(frozen=True)
class TractMap:
    """The tract's pixel grid around a center."""

    ra_deg: float
    dec_deg: float

    @classmethod
    def around(cls, sky: Sky) -> "TractMap":
        """Return the tract that covers a sky's field."""
        return cls(sky.ra_deg, sky.dec_deg)

    @property
    def wcs(self) -> WCS:
        """Projection of the tract's pixels, north up, the first one at (0, 0)."""
        middle = (TRACT_SIZE - 1) / 2.0
        return tangent_wcs(self.ra_deg, self.dec_deg, 0.0, middle, middle)

    @property
    def projection(self) -> SkyProjection[TractFrame]:
        """The same projection for `lsst.images`: patches share the tract's coordinates."""
        frame = TractFrame(skymap=SKYMAP_NAME, tract=TRACT, bbox=Box.from_shape((TRACT_SIZE, TRACT_SIZE)))
        return SkyProjection.from_fits_wcs(self.wcs, frame)

    def patch_box(self, patch: int) -> Box:
        """Return a patch's pixels with its border, in tract coordinates."""
        row, column = self.patch_cell(patch)
        size = _PATCH_INNER + 2 * _PATCH_BORDER
        return Box.from_shape((size, size), start=(row * _PATCH_INNER, column * _PATCH_INNER))

    def patch_cell(self, patch: int) -> tuple[int, int]:
        """Return a patch's row and column."""
        if not 0 <= patch < PATCH_COUNT:
            raise ValueError(f"the tract has patches 0 to {PATCH_COUNT - 1}, not {patch}")
        return divmod(patch, PATCH_SIDE)

    def region(self, box: Box) -> ConvexPolygon:
        """Return the part of the sky that a box of tract pixels covers."""
        left, right = box.x.start - 0.5, box.x.stop - 0.5
        low, high = box.y.start - 0.5, box.y.stop - 0.5
        corners = [(left, low), (right, low), (right, high), (left, high)]
        return polygon_from_degrees(self.wcs.all_pix2world(corners, 0))

    @property
    def description(self) -> dict[str, float | int | str]:
        """All values that define the map, as stored in the ``skyMap`` dataset."""
        return {
            "name": SKYMAP_NAME,
            "ra_deg": self.ra_deg,
            "dec_deg": self.dec_deg,
            "pixel_scale_arcsec": PIXEL_SCALE_ARCSEC,
            "patches_per_side": PATCH_SIDE,
            "patch_inner_pixels": _PATCH_INNER,
            "patch_border_pixels": _PATCH_BORDER,
        }
