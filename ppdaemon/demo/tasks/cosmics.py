# SPDX-License-Identifier: BSD-3-Clause
"""Find cosmic rays in a single exposure by their sharpness.

The test is that of the SDSS photometric pipeline: no image of a point source
falls off faster than the point-spread function. A pixel that exceeds the mean
of two opposite neighbors by more than the sharpest possible star would is
therefore a cosmic ray.
"""

import numpy as np
from scipy import ndimage

__all__ = ("find_cosmic_rays",)

_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
_ROUNDS = 4
"""Each round removes one pixel from the ends and sides of a track."""
_CONTRAST = 0.75
"""Fraction of the sharpest star's contrast up to which a pixel may still be part of a star; below 1 to
allow for errors of the PSF's shape."""


def find_cosmic_rays(
    signal: np.ndarray,
    variance: np.ndarray,
    ignore: np.ndarray,
    *,
    sharpest_fwhm_px: float = 3.0,
    threshold_sigma: float = 6.0,
) -> np.ndarray:
    """Find the pixels hit by cosmic rays.

    Parameters
    ----------
    signal : `numpy.ndarray`, (rows, columns)
        Sky-subtracted image.
    variance : `numpy.ndarray`, (rows, columns)
        Variance of ``signal``.
    ignore : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that are never marked as cosmic rays (defects, saturation).
    sharpest_fwhm_px : `float`, optional
        Best seeing expected, pixels.
    threshold_sigma : `float`, optional
        Least significance of a track's brightest pixels.

    Returns
    -------
    hit : `numpy.ndarray` of `bool`, (rows, columns)
        The tracks, grown by one pixel on all sides.
    """
    image = signal.astype(np.float32, copy=True)
    sigma = np.sqrt(variance)
    # Opposite neighbors of a pixel outside a defect may lie in the defect.
    eligible = ~ndimage.binary_dilation(ignore, iterations=1)
    hit = np.zeros(image.shape, dtype=bool)
    for round_number in range(_ROUNDS):
        significant = eligible & (
            image > (threshold_sigma if round_number == 0 else threshold_sigma / 2.0) * sigma
        )
        if round_number:
            significant &= ndimage.binary_dilation(hit, structure=np.ones((3, 3), dtype=bool))
        rows, columns = np.nonzero(significant & ~hit)
        sharp, fill = _sharper_than_a_star(image, sigma, rows, columns, sharpest_fwhm_px)
        if not sharp.any():
            break
        hit[rows[sharp], columns[sharp]] = True
        image[rows[sharp], columns[sharp]] = fill[sharp]
    return np.asarray(ndimage.binary_dilation(hit, structure=np.ones((3, 3), dtype=bool)))


def _sharper_than_a_star(
    image: np.ndarray, sigma: np.ndarray, rows: np.ndarray, columns: np.ndarray, fwhm_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Test pixels in four directions; also return values to replace them."""
    height, width = image.shape
    psf_sigma = fwhm_px / 2.3548
    sharp = np.zeros(rows.shape, dtype=bool)
    fill = np.full(rows.shape, np.inf, dtype=np.float32)
    for down, right in _DIRECTIONS:
        first = np.clip(rows - down, 0, height - 1), np.clip(columns - right, 0, width - 1)
        second = np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)
        mean = (image[first] + image[second]) / 2.0
        noise = np.hypot(sigma[first], sigma[second]) / 2.0
        least = _CONTRAST * np.exp(-0.5 * (down**2 + right**2) / psf_sigma**2)
        sharp |= mean + 3.0 * noise < least * image[rows, columns]
        fill = np.minimum(fill, mean)
    return sharp, fill
