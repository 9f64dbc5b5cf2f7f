# SPDX-License-Identifier: BSD-3-Clause
"""Stamps: squares cut out of an image around positions."""

from typing import NamedTuple

import numpy as np

__all__ = ("Stamps", "cut_stamps")


class Stamps(NamedTuple):
    """Squares cut out of an image around n positions."""

    values: np.ndarray
    """Pixels, (n, size, size)."""
    usable: np.ndarray
    """Which of them may be used, (n, size, size)."""
    dx: np.ndarray
    """Position relative to the central pixel in x, (n,), -0.5 to 0.5."""
    dy: np.ndarray
    """Position relative to the central pixel in y, (n,), -0.5 to 0.5."""


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
        Image of any type.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that may be used.
    x, y : `numpy.ndarray`, (n,)
        Centers, 0-based pixels.
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
