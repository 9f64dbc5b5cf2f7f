# SPDX-License-Identifier: BSD-3-Clause
"""Match sources to a reference catalog and fit a tangent-plane projection.

The initial projection must have the right rotation and scale and be within
some arcseconds in position, as the pointing in the header is.
"""

from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

__all__ = ("AstrometricFit", "fit_tangent_plane", "match_catalogs", "vote_for_offset")

_CELL_PX = 1.5
"""Size of a cell of the plane of differences."""
_CLIP_SIGMA = 3.0
"""Pairs with larger residuals, in robust standard deviations, are removed."""
_ROUNDS = 4
"""Maximum number of fits, each without the outliers of the one before."""


class AstrometricFit(NamedTuple):
    """A projection and the quality of its fit."""

    wcs: WCS
    """The fitted TAN projection."""
    used: np.ndarray
    """Which of the n pairs were used in the fit, (n,) booleans."""
    scatter_arcsec: float
    """Robust standard deviation of the residuals per axis."""


def vote_for_offset(
    source_xy: np.ndarray, reference_xy: np.ndarray, search_px: float
) -> tuple[np.ndarray, int]:
    """Find the common shift of two sets of positions.

    Every pair closer than ``search_px`` votes for its difference; the cell of
    the plane of differences with the most votes wins.

    Parameters
    ----------
    source_xy, reference_xy : `numpy.ndarray`, (n, 2) and (m, 2)
        Positions, pixels.
    search_px : `float`
        Largest shift considered along each axis, pixels.

    Returns
    -------
    offset : `numpy.ndarray`, (2,)
        Shift to be added to ``reference_xy``, pixels.
    votes : `int`
        Pairs in the winning cell; 0 if no pair is close enough.
    """
    differences = (source_xy[:, None, :] - reference_xy[None, :, :]).reshape(-1, 2)
    differences = differences[(np.abs(differences) < search_px).all(axis=1)]
    if not len(differences):
        return np.zeros(2), 0
    edges = np.arange(-search_px, search_px + _CELL_PX, _CELL_PX)
    votes, _, _ = np.histogram2d(differences[:, 0], differences[:, 1], bins=(edges, edges))
    column, row = np.unravel_index(int(votes.argmax()), votes.shape)
    middle = np.array([edges[column], edges[row]]) + _CELL_PX / 2.0
    near = (np.abs(differences - middle) < _CELL_PX).all(axis=1)
    return np.median(differences[near], axis=0), int(votes.max())


def match_catalogs(
    source_xy: np.ndarray, reference_xy: np.ndarray, radius_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pair mutual nearest neighbors.

    Parameters
    ----------
    source_xy, reference_xy : `numpy.ndarray`, (n, 2) and (m, 2)
        Positions, pixels.
    radius_px : `float`
        Largest distance of a pair, pixels.

    Returns
    -------
    sources, references : `numpy.ndarray` of `int`
        Row numbers of the pairs, of equal length.
    """
    if not len(source_xy) or not len(reference_xy):
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    distance, nearest = cKDTree(reference_xy).query(source_xy, distance_upper_bound=radius_px)
    _, back = cKDTree(source_xy).query(reference_xy, distance_upper_bound=radius_px)
    sources = np.flatnonzero(np.isfinite(distance))
    sources = sources[back[nearest[sources]] == sources]
    return sources, nearest[sources]


def fit_tangent_plane(
    x: np.ndarray,
    y: np.ndarray,
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    error_px: np.ndarray,
    guess: WCS,
) -> AstrometricFit:
    """Fit position, scale, rotation and shear of a TAN projection.

    Parameters
    ----------
    x, y : `numpy.ndarray`, (n,)
        Centroids, 0-based pixels.
    ra_deg, dec_deg : `numpy.ndarray`, (n,)
        Reference positions, degrees; n at least 3.
    error_px : `numpy.ndarray`, (n,)
        Standard deviation of each pair's distance per axis, pixels; only the
        ratios matter.
    guess : `astropy.wcs.WCS`
        Initial projection; its tangent point is not changed.

    Returns
    -------
    fit : `AstrometricFit`
        Its projection maps 0-based pixels.
    """
    plane = guess.deepcopy()
    plane.wcs.crpix = [1.0, 1.0]
    plane.wcs.cd = np.identity(2)
    plane.wcs.set()
    # With this projection 0-based "pixels" are degrees in the tangent plane.
    target = np.column_stack(plane.all_world2pix(ra_deg, dec_deg, 0))
    design = np.column_stack([x, y, np.ones_like(x)])
    weight = (1.0 / np.asarray(error_px))[:, None]
    used = np.ones(len(x), dtype=bool)
    for fit_number in range(1, _ROUNDS + 1):
        solution, *_ = np.linalg.lstsq((design * weight)[used], (target * weight)[used], rcond=None)
        residual = target - design @ solution
        scaled = residual * weight
        sigma = 1.4826 * np.median(np.abs(scaled[used]))
        inside = np.hypot(scaled[:, 0], scaled[:, 1]) < _CLIP_SIGMA * np.sqrt(2.0) * max(sigma, 1e-12)
        if fit_number == _ROUNDS or inside.sum() < 3 or np.array_equal(inside, used):
            break
        used = inside
    matrix = solution[:2].T
    wcs = guess.deepcopy()
    wcs.wcs.cd = matrix
    wcs.wcs.crpix = np.linalg.solve(matrix, -solution[2]) + 1.0
    wcs.wcs.set()
    scatter_deg = 1.4826 * np.median(np.abs(residual[used]))
    return AstrometricFit(wcs, used, float(scatter_deg * 3600.0))
