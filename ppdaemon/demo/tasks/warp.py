# SPDX-License-Identifier: BSD-3-Clause
"""Resample template patches to the pixel grid of an image."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from lsst.images import MaskedImage
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline

from ppdaemon.demo.tasks.planes import plane, projection_of, unusable

__all__ = ("Warped", "warp_patches")

_KNOT_SPACING_PX = 32
"""Positions are computed at this spacing and interpolated: exact to 1e-4 pixels in fields below a degree."""
_SPLINE_REACH_PX = 2
"""A cubic spline at a pixel needs this many pixels beyond it."""


@dataclass(frozen=True, slots=True)
class Warped:
    """Template patches resampled to one pixel grid."""

    pixels: np.ndarray
    """Flux per pixel of the new grid, 0 where there are no data."""
    variance: np.ndarray
    """Variance of ``pixels``."""
    no_data: np.ndarray
    """Pixels outside all patches."""
    saturated: np.ndarray
    """Pixels at which the template was saturated."""
    patch_count: int
    """Number of patches that contributed pixels."""

    @property
    def coverage(self) -> float:
        """Fraction of the grid with data."""
        return 1.0 - float(self.no_data.mean())

    def cropped(self, margin_px: int) -> "Warped":
        """Return the mosaic without a margin on all sides.

        Parameters
        ----------
        margin_px : `int`
            Rows and columns to cut off at each edge, above 0.
        """
        inner = slice(margin_px, -margin_px), slice(margin_px, -margin_px)
        return Warped(
            np.ascontiguousarray(self.pixels[inner]),
            np.ascontiguousarray(self.variance[inner]),
            np.ascontiguousarray(self.no_data[inner]),
            np.ascontiguousarray(self.saturated[inner]),
            self.patch_count,
        )


def warp_patches(patches: Iterable[MaskedImage], wcs: WCS, shape: tuple[int, int]) -> Warped:
    """Resample patches with a cubic spline; where they overlap, the first one is used.

    Parameters
    ----------
    patches : `~collections.abc.Iterable` [`lsst.images.MaskedImage`]
        Patches with a sky projection; only one at a time is in memory.
    wcs : `astropy.wcs.WCS`
        The new grid's projection, 0-based.
    shape : `tuple` [`int`, `int`]
        Rows and columns of the new grid.

    Returns
    -------
    warped : `Warped`
        The mosaic. Fluxes are scaled by the ratio of the pixels' areas.
    """
    pixels = np.zeros(shape, dtype=np.float32)
    variance = np.zeros(shape, dtype=np.float32)
    saturated = np.zeros(shape, dtype=bool)
    no_data = np.ones(shape, dtype=bool)
    patch_count = 0
    for patch in patches:
        if _add_patch(patch, wcs, pixels, variance, saturated, no_data):
            patch_count += 1
    return Warped(pixels, variance, no_data, saturated, patch_count)


def _add_patch(
    patch: MaskedImage,
    wcs: WCS,
    pixels: np.ndarray,
    variance: np.ndarray,
    saturated: np.ndarray,
    no_data: np.ndarray,
) -> bool:
    """Fill the pixels without data that one patch covers; return whether there are any."""
    source_wcs = projection_of(patch)
    height, width = patch.image.array.shape
    rows, columns = _source_positions(wcs, source_wcs, pixels.shape)
    reach = _SPLINE_REACH_PX
    covered = (
        no_data
        & (columns >= reach)
        & (columns < width - 1 - reach)
        & (rows >= reach)
        & (rows < height - 1 - reach)
    )
    if not covered.any():
        return False
    at = np.stack([rows[covered], columns[covered]])
    # The spline's filter runs over its complete input: only the needed part is cut out.
    low, high = at.min(axis=1).astype(int) - reach, at.max(axis=1).astype(int) + reach + 2
    cut = slice(low[0], high[0]), slice(low[1], high[1])
    at -= low[:, None]
    nearest = tuple(np.rint(at).astype(np.intp))
    values = patch.image.array[cut]
    in_saturation = plane(patch, "SATURATED")[cut]
    unknown = (unusable(patch)[cut] & ~in_saturation) | ~np.isfinite(values)
    known = ~unknown[nearest]
    area = proj_plane_pixel_area(wcs) / proj_plane_pixel_area(source_wcs)
    clean = np.where(unknown, np.float32(0.0), values)
    found = ndimage.map_coordinates(clean, at, order=3, mode="nearest", output=np.float32)
    target = np.flatnonzero(covered)[known]
    pixels.ravel()[target] = found[known] * area
    variance.ravel()[target] = patch.variance.array[cut][nearest][known] * area**2
    saturated.ravel()[target] = in_saturation[nearest][known]
    no_data.ravel()[target] = False
    return bool(target.size)


def _source_positions(wcs: WCS, source_wcs: WCS, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the row and column in the source of each pixel of the new grid."""
    knot_rows = np.linspace(0, shape[0] - 1, shape[0] // _KNOT_SPACING_PX + 1)
    knot_columns = np.linspace(0, shape[1] - 1, shape[1] // _KNOT_SPACING_PX + 1)
    grid_columns, grid_rows = np.meshgrid(knot_columns, knot_rows)
    sky = wcs.all_pix2world(grid_columns.ravel(), grid_rows.ravel(), 0)
    # Patches are near the image; a tangent plane does not cover the other half of the sky.
    source_x, source_y = source_wcs.all_world2pix(*sky, 0)
    fine_rows, fine_columns = np.arange(shape[0]), np.arange(shape[1])
    found = [
        RectBivariateSpline(knot_rows, knot_columns, values.reshape(grid_rows.shape), kx=3, ky=3)(
            fine_rows, fine_columns
        )
        for values in (source_y, source_x)
    ]
    return found[0], found[1]
