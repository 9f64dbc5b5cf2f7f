# SPDX-License-Identifier: BSD-3-Clause
"""Find the kernel that converts one image's PSF to another's.

The method of Alard & Lupton (1998, ApJ 503, 325) with Gaussians times
polynomials as the basis, constant over the image, fitted to stamps around
stars. Stamps that do not fit (variable stars, blends at the edge) are
excluded.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from ppdaemon.demo.tasks.stamps import cut_stamps

__all__ = ("MatchingKernel", "convolve", "fit_matching_kernel")

_DEGREES = (4, 2, 2)
"""Degree of the polynomials on the narrow, the middle and the wide Gaussian."""
_WIDTHS = (0.6, 1.2, 3.5)
"""Widths of the Gaussians in units of the expected width."""
_ROUNDS = 3
"""Maximum number of fits, each without the outliers of the one before."""


@dataclass(frozen=True, slots=True)
class MatchingKernel:
    """A convolution kernel and the results of its fit."""

    pixels: np.ndarray
    """The kernel, (size, size), with an odd size."""
    background: float
    """Constant difference between the images."""
    stamp_count: int
    """Stamps in the final fit."""
    chi2_per_pixel: float
    """Median over those stamps of the reduced chi-squared."""

    @property
    def flux_ratio(self) -> float:
        """Sum of the kernel: flux in the target per flux in the source."""
        return float(self.pixels.sum())


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve with zeros beyond the edge; the shape is that of the image."""
    convolved = fftconvolve(image.astype(np.float32, copy=False), kernel.astype(np.float32), mode="same")
    return np.asarray(convolved)


def fit_matching_kernel(
    source: np.ndarray,
    target: np.ndarray,
    variance: np.ndarray,
    usable: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    width_px: float,
    half_width_px: int,
    stamp_half_width_px: int,
) -> MatchingKernel:
    """Fit the kernel on stamps around stars.

    Parameters
    ----------
    source, target : `numpy.ndarray`, (rows, columns)
        The sharper image, and the image to be reproduced from it.
    variance : `numpy.ndarray`, (rows, columns)
        Variance of ``target``.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that are good in both images.
    x, y : `numpy.ndarray`, (n,)
        Centers of the stamps, 0-based pixels.
    width_px : `float`
        Expected standard deviation of the kernel, pixels.
    half_width_px : `int`
        The kernel has 2 * half_width_px + 1 rows and columns.
    stamp_half_width_px : `int`
        Stamps have 2 * stamp_half_width_px + 1 rows and columns.

    Returns
    -------
    kernel : `MatchingKernel`
        target = source convolved with the kernel + background.

    Raises
    ------
    ValueError
        Raised if fewer than three stamps are usable.
    """
    basis = _basis(width_px, half_width_px)
    wide = cut_stamps(source, usable, x, y, stamp_half_width_px + half_width_px)
    narrow = cut_stamps(target, usable, x, y, stamp_half_width_px)
    noise = cut_stamps(variance, usable, x, y, stamp_half_width_px).values
    # A few bad pixels are masked; with more the convolution would miss light.
    usable_stamps = wide.usable.mean(axis=(1, 2)) > 0.97
    weights = np.where(narrow.usable, 1.0 / np.sqrt(np.maximum(noise, 1e-30)), 0.0)
    designs = _designs(wide.values * wide.usable, basis, half_width_px) * weights[..., None]
    data = narrow.values * weights
    good = usable_stamps
    chi2 = np.full(len(x), np.inf)
    for _ in range(_ROUNDS):
        if good.sum() < 3:
            raise ValueError(f"only {int(good.sum())} of {len(x)} stamps can be used for a matching kernel")
        coefficients = _solve(designs[good], data[good])
        residual = data - designs @ coefficients
        chi2 = (residual**2).sum(axis=(1, 2)) / np.maximum((weights > 0).sum(axis=(1, 2)), 1)
        middle = float(np.median(chi2[good]))
        spread = 1.4826 * float(np.median(np.abs(chi2[good] - middle)))
        selected = usable_stamps & (chi2 < middle + 4.0 * max(spread, 0.1 * middle))
        if np.array_equal(selected, good):
            break
        good = selected
    kernel = np.tensordot(coefficients[:-1], np.stack([np.outer(down, across) for down, across in basis]), 1)
    return MatchingKernel(kernel, float(coefficients[-1]), int(good.sum()), float(np.median(chi2[good])))


def _basis(width_px: float, half_width_px: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the separable basis as pairs of a column and a row."""
    offset = np.arange(-half_width_px, half_width_px + 1, dtype=float)
    basis = []
    for factor, degree in zip(_WIDTHS, _DEGREES, strict=True):
        sigma = factor * width_px
        gaussian = np.exp(-0.5 * (offset / sigma) ** 2)
        profiles = [gaussian * (offset / sigma) ** power for power in range(degree + 1)]
        profiles = [profile / np.abs(profile).sum() for profile in profiles]
        basis += [(profiles[j], profiles[i]) for j in range(degree + 1) for i in range(degree + 1 - j)]
    return basis


def _designs(
    stamps: np.ndarray,
    basis: list[tuple[np.ndarray, np.ndarray]],
    half_width_px: int,
) -> np.ndarray:
    """Convolve each stamp with each basis function: (n, rows, columns, terms + 1)."""
    inner = slice(half_width_px, -half_width_px)
    across_once = {row.tobytes(): ndimage.convolve1d(stamps, row, axis=2)[:, :, inner] for _, row in basis}
    terms = [
        ndimage.convolve1d(across_once[row.tobytes()], column, axis=1)[:, inner, :] for column, row in basis
    ]
    return np.stack([*terms, np.ones_like(terms[0])], axis=-1)


def _solve(designs: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Solve the normal equations; a small ridge term regularizes the nearly parallel wide terms."""
    rows = designs.reshape(-1, designs.shape[-1]).astype(float)
    normal = rows.T @ rows
    scale = np.sqrt(np.diag(normal)) + 1e-30
    scaled = normal / np.outer(scale, scale) + 1e-9 * np.identity(len(scale))
    return np.linalg.solve(scaled, (rows.T @ data.ravel()) / scale) / scale
