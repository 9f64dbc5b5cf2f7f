# SPDX-License-Identifier: BSD-3-Clause
"""Stamps around positions, and fluxes from them."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ppdaemon.demo.tasks.psf import Moffat

__all__ = ("PointFluxes", "Stamps", "cut_stamps", "point_fluxes")


class Stamps(NamedTuple):
    """Squares cut out of an image around n positions."""

    values: np.ndarray
    """Pixels, (n, size, size)."""
    usable: np.ndarray
    """Which of them may be used, (n, size, size)."""
    dx: np.ndarray
    """Position from the central pixel in x, (n,), -0.5 to 0.5."""
    dy: np.ndarray
    """Position from the central pixel in y, (n,)."""


class PointFluxes(NamedTuple):
    """Fluxes of n point sources in the unit of the image."""

    flux: np.ndarray
    """Flux, (n,)."""
    error: np.ndarray
    """Standard deviation, (n,)."""
    chi2: np.ndarray
    """Chi-squared of the fit, (n,)."""
    pixel_count: np.ndarray
    """Pixels in the fit, (n,)."""


def cut_stamps(
    pixels: np.ndarray,
    usable: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    half_width_px: int,
) -> Stamps:
    """Cut squares out of an image.

    Parameters
    ----------
    pixels : `numpy.ndarray`, (rows, columns)
        Image.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that may be used.
    x, y : `numpy.ndarray`, (n,)
        Centres, pixels.
    half_width_px : `int`
        The stamps have 2 * half_width_px + 1 rows and columns.

    Returns
    -------
    stamps : `Stamps`
        Pixels beyond the edge repeat the edge and are not usable.
    """
    middle_x, middle_y = np.rint(x).astype(int), np.rint(y).astype(int)
    offsets = np.arange(-half_width_px, half_width_px + 1)
    rows = middle_y[:, None, None] + offsets[None, :, None]
    columns = middle_x[:, None, None] + offsets[None, None, :]
    height, width = pixels.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    return Stamps(pixels[rows, columns], inside & usable[rows, columns], x - middle_x, y - middle_y)


def point_fluxes(
    pixels: np.ndarray,
    variance: np.ndarray,
    usable: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    psf: "Moffat",
) -> PointFluxes:
    """Fit the PSF at fixed positions.

    All usable pixels have the same weight: weights by the variance of bright
    stars would make the zero point depend on the flux where the PSF is not
    perfect.

    Parameters
    ----------
    pixels, variance : `numpy.ndarray`, (rows, columns)
        Sky-subtracted image and its variance.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that may be used.
    x, y : `numpy.ndarray`, (n,)
        Positions, pixels.
    psf : `~ppdaemon.demo.tasks.psf.Moffat`
        The profile.

    Returns
    -------
    fluxes : `PointFluxes`
        Flux and error are NaN where less than half of the profile is usable.
    """
    half_width = psf.half_width_px
    values, inside, dx, dy = cut_stamps(pixels, usable, x, y, half_width)
    noise = cut_stamps(variance, usable, x, y, half_width).values
    profile = psf.stamps(dx, dy, half_width)
    seen = np.where(inside, profile, 0.0)
    values = np.where(inside, values, 0.0)
    norm = (seen * seen).sum(axis=(1, 2))
    enough = seen.sum(axis=(1, 2)) > 0.5 * profile.sum(axis=(1, 2))
    norm = np.where(enough, norm, np.nan)
    flux = (seen * values).sum(axis=(1, 2)) / norm
    error = np.sqrt((seen * seen * np.where(inside, noise, 0.0)).sum(axis=(1, 2))) / norm
    residual = values - np.nan_to_num(flux)[:, None, None] * seen
    chi2 = np.where(inside, residual**2 / np.maximum(noise, 1e-30), 0.0).sum(axis=(1, 2))
    return PointFluxes(flux, error, chi2, inside.sum(axis=(1, 2)))
