# SPDX-License-Identifier: BSD-3-Clause
"""The point-spread function: a circular Moffat profile fitted to stars."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from ppdaemon.demo.tasks.stamps import cut_stamps

__all__ = ("Moffat", "fit_moffat")


@dataclass(frozen=True, slots=True)
class Moffat:
    """A circular Moffat (1969) profile of unit flux.

    The profile is sampled at pixel centers. Its flux is normalized to
    infinity, so that a stamp contains slightly less than 1.
    """

    fwhm_px: float
    """Full width at half maximum, pixels."""
    beta: float
    """Exponent of the wings, above 1; atmospheric seeing has 3 to 5."""

    @property
    def alpha_px(self) -> float:
        """Core radius, pixels."""
        return self.fwhm_px / (2.0 * float(np.sqrt(2.0 ** (1.0 / self.beta) - 1.0)))

    @property
    def half_width_px(self) -> int:
        """Half of the size of a stamp that is large enough for photometry, pixels."""
        return int(np.ceil(2.5 * self.fwhm_px))

    def at(self, radius_squared: np.ndarray) -> np.ndarray:
        """Evaluate the profile.

        Parameters
        ----------
        radius_squared : `numpy.ndarray`
            Squared distances from the center, square pixels.

        Returns
        -------
        density : `numpy.ndarray`
            Flux per pixel, same shape.
        """
        alpha_squared = self.alpha_px**2
        peak = (self.beta - 1.0) / (np.pi * alpha_squared)
        return np.asarray(peak * (1.0 + radius_squared / alpha_squared) ** -self.beta)

    def stamps(self, dx: np.ndarray, dy: np.ndarray, half_width_px: int) -> np.ndarray:
        """Draw stars at offsets from the centers of their stamps.

        Parameters
        ----------
        dx, dy : `numpy.ndarray`, (n,)
            Position of each star relative to the central pixel, pixels.
        half_width_px : `int`
            The stamps have 2 * half_width_px + 1 rows and columns.

        Returns
        -------
        stamps : `numpy.ndarray`, (n, size, size)
            Flux per pixel.
        """
        offsets = np.arange(-half_width_px, half_width_px + 1)
        along_x = (offsets[None, :] - np.asarray(dx)[:, None]) ** 2
        along_y = (offsets[None, :] - np.asarray(dy)[:, None]) ** 2
        return self.at(along_y[:, :, None] + along_x[:, None, :])

    def stamp(self, half_width_px: int) -> np.ndarray:
        """Draw one centerd star; see `stamps`."""
        return np.asarray(self.stamps(np.zeros(1), np.zeros(1), half_width_px)[0])


def fit_moffat(
    pixels: np.ndarray,
    usable: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    guess: Moffat,
) -> Moffat:
    """Fit one profile to all stars.

    Width and exponent are common. Each star has its own flux (solved linearly
    for each trial) and the same weight, independent of its brightness. The
    loss is soft so that neighbors of a star do not widen the profile.

    Parameters
    ----------
    pixels : `numpy.ndarray`, (rows, columns)
        Sky-subtracted image.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that may be fitted.
    x, y : `numpy.ndarray`, (n,)
        Centroids of the stars, pixels; n at least 1.
    guess : `Moffat`
        Initial profile; it also sets the size of the stamps.

    Returns
    -------
    psf : `Moffat`
        The profile with a FWHM of 1 to 20 pixels and an exponent of 1.5 to 30;
        a Gaussian is the limit of large exponents.
    """
    half_width = guess.half_width_px
    stamps, inside, dx, dy = cut_stamps(pixels, usable, x, y, half_width)
    scale = np.maximum(np.where(inside, stamps, 0.0).max(axis=(1, 2)), 1e-30)[:, None, None]
    stamps = np.where(inside, stamps / scale, 0.0)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        model = Moffat(float(parameters[0]), float(parameters[1])).stamps(dx, dy, half_width) * inside
        flux = (model * stamps).sum(axis=(1, 2)) / np.maximum((model * model).sum(axis=(1, 2)), 1e-30)
        return np.asarray(((stamps - flux[:, None, None] * model) * inside).ravel())

    fit = least_squares(
        residuals,
        (guess.fwhm_px, guess.beta),
        bounds=((1.0, 1.5), (20.0, 30.0)),
        loss="soft_l1",
        f_scale=0.02,
    )
    return Moffat(float(fit.x[0]), float(fit.x[1]))
