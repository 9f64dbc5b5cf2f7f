# SPDX-License-Identifier: BSD-3-Clause
"""Measure fluxes at fixed positions by fitting the PSF."""

from typing import NamedTuple

import numpy as np

from ppdaemon.demo.tasks.psf import Moffat
from ppdaemon.demo.tasks.stamps import cut_stamps

__all__ = ("PointFluxes", "point_fluxes")


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


def point_fluxes(
    pixels: np.ndarray,
    variance: np.ndarray,
    usable: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    psf: Moffat,
) -> PointFluxes:
    """Fit the PSF at fixed positions.

    All usable pixels have the same weight: weights by the variance of bright
    stars would make the zero point depend on the flux if the PSF is not
    perfect.

    Parameters
    ----------
    pixels, variance : `numpy.ndarray`, (rows, columns)
        Sky-subtracted image and its variance.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that may be used.
    x, y : `numpy.ndarray`, (n,)
        Positions, 0-based pixels.
    psf : `~ppdaemon.demo.tasks.psf.Moffat`
        Profile of a point source.

    Returns
    -------
    fluxes : `PointFluxes`
        Flux and error are NaN if less than half of the profile is usable.
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
