# SPDX-License-Identifier: BSD-3-Clause
"""The signature of each DemoCam detector: bias structure, dark current, response, defects.

There are two epochs with different signatures: a raw that is reduced with the
masters of the other epoch has residuals far above the read noise.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ppdaemon.demo.geometry import (
    AMPLIFIERS,
    DETECTOR_COUNT,
    DETECTOR_SIZE,
    FILTER_BANDS,
    detector_offset_pixels,
)

__all__ = ("EPOCHS", "Epoch", "Signature", "epoch_at")


@dataclass(frozen=True)
class Epoch:
    """A period with constant signatures."""

    number: int
    begin_mjd_tai: float
    end_mjd_tai: float | None
    """`None` for the current epoch."""


EPOCHS = (Epoch(0, 58849.0, 61041.0), Epoch(1, 61041.0, None))
"""2020-01-01 to 2026-01-01, and since then."""

_CORNER_RADIUS = 1.5 * 1064.0 * np.sqrt(2.0)
_VIGNETTING_STARTS, _VIGNETTING_DEPTH = 0.62, 0.35


def epoch_at(mjd_tai: float) -> Epoch:
    """Return the epoch of a time; the first one for times before all epochs."""
    return next((epoch for epoch in reversed(EPOCHS) if mjd_tai >= epoch.begin_mjd_tai), EPOCHS[0])


@dataclass(frozen=True)
class Signature:
    """The signatures of one detector in one epoch; arrays are 1024 x 1024 float32."""

    detector: int
    epoch: Epoch

    def bias_adu(self) -> np.ndarray:
        """Return the structure that remains after overscan subtraction, ADU.

        Columns, a ramp along the rows and amplifier glow in a corner; the
        second epoch has diagonal pick-up stripes, too.
        """
        random = self._random(1)
        y, x = _grid()
        columns = random.normal(0.0, 2.5, DETECTOR_SIZE)
        ramp = random.uniform(-8.0, 8.0) * (y / DETECTOR_SIZE - 0.5)
        glow = 35.0 * np.exp(-np.hypot(x, y - DETECTOR_SIZE * (self.epoch.number % 2)) / 90.0)
        stripes = 6.0 * self.epoch.number * np.sin((x + 2.0 * y) / 11.0)
        return np.asarray(columns + ramp + glow + stripes, dtype=np.float32)

    def dark_electrons_per_s(self) -> np.ndarray:
        """Return the dark current with its hot pixels, electrons per second."""
        random = self._random(2)
        dark = random.gamma(9.0, 0.03 / 9.0, (DETECTOR_SIZE, DETECTOR_SIZE)).astype(np.float32)
        hot = random.integers(0, DETECTOR_SIZE, (2, 40))
        dark[hot[0], hot[1]] += random.uniform(5.0, 40.0, hot.shape[1])
        return dark

    def response(self, physical_filter: str) -> np.ndarray:
        """Return the response to uniform light relative to the optical axis.

        Vignetting, pixel-to-pixel response, the shadows of dust (which moves
        between the epochs) and a slope of the filter.
        """
        y, _ = _grid()
        filter_index = list(FILTER_BANDS).index(physical_filter)
        pixels, shadows = _gray_response(self)
        slope = 0.01 * (filter_index - 1) * (y / DETECTOR_SIZE - 0.5)
        return np.asarray((pixels + slope) * shadows, dtype=np.float32)

    def bad_columns(self) -> dict[int, bool]:
        """Return the defective columns: number to True for hot, False for dead."""
        random = np.random.default_rng([5, self.detector])
        columns = random.choice(np.arange(20, DETECTOR_SIZE - 20), size=3, replace=False)
        return {int(column): index == 2 for index, column in enumerate(columns)}

    def bias_level_adu(self) -> tuple[float, ...]:
        """Return the electronic pedestal of each amplifier, ADU."""
        return tuple(float(level) for level in self._random(6).uniform(980.0, 1060.0, len(AMPLIFIERS)))

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.detector, self.epoch.number])


# The detectors of a simulated camera in all filters, one after the other or in turn.
@lru_cache(maxsize=DETECTOR_COUNT)
def _gray_response(signature: Signature) -> tuple[np.ndarray, np.ndarray]:
    """Return what the responses in all filters have in common: pixels, and the shadows on them."""
    y, x = _grid()
    random = np.random.default_rng([3, signature.detector])
    pixels = 1.0 + random.normal(0.0, 0.008, (DETECTOR_SIZE, DETECTOR_SIZE)).astype(np.float32)
    shadows = _vignetting(signature.detector, x, y)
    dust = signature._random(4)
    for _ in range(5):
        center_x, center_y = dust.uniform(0, DETECTOR_SIZE, 2)
        radius = np.hypot(x - center_x, y - center_y)
        shadows *= 1.0 - 0.04 * np.exp(-(((radius - dust.uniform(18, 34)) / 7.0) ** 2))
    return pixels, shadows.astype(np.float32)


def _vignetting(detector: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    center_x, center_y = detector_offset_pixels(detector)
    middle = (DETECTOR_SIZE - 1) / 2.0
    radius = np.hypot(x - middle + center_x, y - middle + center_y) / _CORNER_RADIUS
    beyond = np.maximum(radius - _VIGNETTING_STARTS, 0.0) / (1.0 - _VIGNETTING_STARTS)
    return np.asarray(1.0 - _VIGNETTING_DEPTH * beyond**2)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Return row and column numbers as float32 arrays that broadcast with each other."""
    line = np.arange(DETECTOR_SIZE, dtype=np.float32)
    return line[:, np.newaxis], line[np.newaxis, :]
