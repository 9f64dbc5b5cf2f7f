# SPDX-License-Identifier: BSD-3-Clause
"""Positions of DemoCam's pixels: on the detector, in the focal plane, on the sky.

The tangent-plane maps are exact for DemoCam, whose optics have no distortion.
`ppdaemon.camera` reads the tables of other cameras.
"""

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

__all__ = (
    "AMPLIFIERS",
    "CAMERA_NAME",
    "DETECTOR_COUNT",
    "DETECTOR_SIZE",
    "FILTER_BANDS",
    "OVERSCAN_WIDTH",
    "PIXEL_SCALE_ARCSEC",
    "RAFT",
    "RAW_SHAPE",
    "Amplifier",
    "detector_corners",
    "detector_name",
    "detector_offset_pixels",
    "detector_slot",
    "detector_wcs",
    "tangent_wcs",
)

CAMERA_NAME = "DemoCam"
RAFT = "R22"
DETECTOR_COUNT = 9
DETECTOR_SIZE = 1024
"""Rows and columns of imaging pixels of a detector."""
PIXEL_SCALE_ARCSEC = 0.2
OVERSCAN_WIDTH = 32
"""Serial overscan columns of each amplifier."""
RAW_SHAPE = (DETECTOR_SIZE, DETECTOR_SIZE + 2 * OVERSCAN_WIDTH)
"""Shape (rows, columns) of both amplifiers side by side with their overscan."""
FILTER_BANDS = {"g_01": "g", "r_03": "r", "i_06": "i"}
"""Physical filter to band."""

# Gaps of 40 pixels between the detectors.
_PITCH_PIXELS = DETECTOR_SIZE + 40
_HALF = DETECTOR_SIZE // 2


@dataclass(frozen=True)
class Amplifier:
    """One of the two readouts of a detector.

    The left one is read to the left with its overscan on the right, the right
    one is mirrored: in the assembled raw the two overscans lie side by side in
    the middle.
    """

    name: str
    """``C00`` or ``C01``; also the name of the FITS extension."""
    columns: slice
    """Columns of the amplifier's share of the 1024 x 1024 image."""
    raw_columns: slice
    """Columns of all its pixels in the assembled raw."""
    data_columns: slice
    """Columns of its imaging pixels in the assembled raw."""
    overscan_columns: slice
    """Columns of its overscan in the assembled raw."""
    gain: float
    """Electrons per ADU."""
    read_noise_electrons: float
    """Standard deviation of one read."""


AMPLIFIERS = (
    Amplifier(
        "C00",
        slice(0, _HALF),
        slice(0, _HALF + OVERSCAN_WIDTH),
        slice(0, _HALF),
        slice(_HALF, _HALF + OVERSCAN_WIDTH),
        1.70,
        5.8,
    ),
    Amplifier(
        "C01",
        slice(_HALF, DETECTOR_SIZE),
        slice(_HALF + OVERSCAN_WIDTH, RAW_SHAPE[1]),
        slice(_HALF + 2 * OVERSCAN_WIDTH, RAW_SHAPE[1]),
        slice(_HALF + OVERSCAN_WIDTH, _HALF + 2 * OVERSCAN_WIDTH),
        1.62,
        6.3,
    ),
)


def _require_detector(detector: int) -> None:
    if not 0 <= detector < DETECTOR_COUNT:
        raise ValueError(f"{CAMERA_NAME} has detectors 0 to {DETECTOR_COUNT - 1}, not {detector}")


def detector_slot(detector: int) -> str:
    """Return the name of a detector in its raft, such as ``S12``."""
    _require_detector(detector)
    return f"S{detector // 3}{detector % 3}"


def detector_name(detector: int) -> str:
    """Return the full name of a detector, such as ``R22_S12``."""
    return f"{RAFT}_{detector_slot(detector)}"


def detector_offset_pixels(detector: int) -> tuple[float, float]:
    """Return a detector's center relative to the optical axis, in focal-plane pixels."""
    _require_detector(detector)
    return (detector % 3 - 1) * float(_PITCH_PIXELS), (detector // 3 - 1) * float(_PITCH_PIXELS)


def tangent_wcs(ra_deg: float, dec_deg: float, rotpa_deg: float, axis_x: float, axis_y: float) -> WCS:
    """Make the gnomonic projection of a pixel grid around an optical axis.

    `ra_deg`, `dec_deg` is the ICRS position of the optical axis, `rotpa_deg`
    the position angle of the grid's +Y, north through east, and `axis_x`,
    `axis_y` the optical axis in pixels of the grid, whose first pixel has its
    center at 0. At rotation 0 +Y points north and +X west.
    """
    # With the position angle p of +Y, +Y points to (east, north) = (sin p, cos p)
    # and +X, 90 degrees clockwise of it on the sky, to (-cos p, sin p).
    angle = np.radians(rotpa_deg)
    sine, cosine = np.sin(angle), np.cos(angle)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = [ra_deg % 360.0, dec_deg]
    wcs.wcs.crpix = [axis_x + 1.0, axis_y + 1.0]
    wcs.wcs.cd = np.array([[-cosine, sine], [sine, cosine]]) * (PIXEL_SCALE_ARCSEC / 3600.0)
    wcs.wcs.set()
    return wcs


def detector_wcs(ra_deg: float, dec_deg: float, rotpa_deg: float, detector: int) -> WCS:
    """Make the projection of one detector's 1024 x 1024 image, without overscan.

    `rotpa_deg` is the position angle of focal-plane +Y, north through east.
    The center of the lower left pixel is (0, 0) in astropy's 0-based calls.
    """
    center_x, center_y = detector_offset_pixels(detector)
    middle = (DETECTOR_SIZE - 1) / 2.0
    wcs = tangent_wcs(ra_deg, dec_deg, rotpa_deg, middle - center_x, middle - center_y)
    wcs.array_shape = (DETECTOR_SIZE, DETECTOR_SIZE)
    return wcs


def detector_corners(ra_deg: float, dec_deg: float, rotpa_deg: float, detector: int) -> np.ndarray:
    """Return the corners of a detector's sensitive area, ICRS degrees, shape (4, 2)."""
    low, high = -0.5, DETECTOR_SIZE - 0.5
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return np.asarray(detector_wcs(ra_deg, dec_deg, rotpa_deg, detector).all_pix2world(corners, 0))
