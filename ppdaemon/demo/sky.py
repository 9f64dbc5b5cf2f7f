# SPDX-License-Identifier: BSD-3-Clause
"""The sky that DemoCam observes, made from one seed and the same every time.

Covers the objects, their positions, and their brightness at a time and in a
band. `ppdaemon.demo.render` adds the effects of atmosphere and camera.

Densities follow a field at high galactic latitude: star counts rising as
10^(0.25 r), galaxy counts as 10^(0.35 r) [Yasuda et al. 2001, AJ 122, 1104],
exponential disks with smaller radii toward the faint end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC, tangent_wcs

__all__ = (
    "DEFAULT_DEC_DEG",
    "DEFAULT_RA_DEG",
    "DEFAULT_SEED",
    "FIELD_HALF_SIZE_ARCSEC",
    "SECOND_DEC_DEG",
    "SECOND_RA_DEG",
    "Galaxies",
    "Scene",
    "Sky",
    "Stars",
    "Transients",
    "Variables",
    "demo_skies",
    "magnitude_to_njy",
    "njy_to_magnitude",
    "sky_at",
)

DEFAULT_SEED = 20251121
DEFAULT_RA_DEG = 150.1
DEFAULT_DEC_DEG = 2.2
SECOND_RA_DEG, SECOND_DEC_DEG = 153.1, 2.2
"""Center of the second field, which has a reference catalog but no templates."""
FIELD_HALF_SIZE_ARCSEC = 535.0
"""Half the side of the square that the objects fill.

The camera at any rotation with a dither below 1 arcmin needs 506 arcsec; the
rest is a margin for stamps.
"""

_BANDS = ("g", "r", "i")
_STARS_PER_ARCMIN2, _STAR_BRIGHT, _STAR_FAINT, _STAR_SLOPE = 30.0, 15.8, 25.5, 0.25
_GALAXIES_PER_ARCMIN2, _GALAXY_BRIGHT, _GALAXY_FAINT, _GALAXY_SLOPE = 45.0, 18.0, 25.5, 0.35
_TRANSIENT_COUNT, _TRANSIENT_PEAK_R = 250, (18.8, 22.3)
_SEASON_DAYS = 90.0
# No transients within this distance of stars brighter than this: there the images are masked.
_BRIGHT_STAR_MARGIN_ARCSEC, _BRIGHT_STAR_R = 8.0, 17.8
_FIRST_GALAXY_ID, _FIRST_TRANSIENT_ID = 1_000_000, 2_000_000


def magnitude_to_njy(magnitude: npt.ArrayLike) -> np.ndarray:
    """Convert AB magnitudes to nJy (zero point 31.4 mag)."""
    return np.asarray(10.0 ** (-0.4 * (np.asarray(magnitude) - 31.4)))


def njy_to_magnitude(flux_njy: npt.ArrayLike) -> np.ndarray:
    """Convert nJy to AB magnitudes; fluxes must be positive."""
    return np.asarray(31.4 - 2.5 * np.log10(flux_njy))


@dataclass(frozen=True)
class Stars:
    """Point sources; all arrays have one entry per star."""

    id: np.ndarray
    ra_deg: np.ndarray
    dec_deg: np.ndarray
    magnitude: dict[str, np.ndarray]
    """Mean AB magnitude by band."""


@dataclass(frozen=True)
class Variables:
    """The pulsating stars: sinusoids in magnitude around the mean."""

    index: np.ndarray
    """Index into `Stars`."""
    amplitude_mag: np.ndarray
    period_days: np.ndarray
    phase: np.ndarray
    """Fraction of the period that has passed at MJD 0."""

    def offset_mag(self, mjd_tai: float) -> np.ndarray:
        """Return the difference from the mean magnitude; positive is fainter."""
        turns = mjd_tai / self.period_days + self.phase
        return np.asarray(self.amplitude_mag * np.sin(2.0 * np.pi * turns))


@dataclass(frozen=True)
class Galaxies:
    """Exponential disks."""

    id: np.ndarray
    ra_deg: np.ndarray
    dec_deg: np.ndarray
    magnitude: dict[str, np.ndarray]
    half_light_arcsec: np.ndarray
    """Half-light radius along the major axis."""
    axis_ratio: np.ndarray
    position_angle_deg: np.ndarray


@dataclass(frozen=True)
class Transients:
    """Explosions, most of them in galaxies, none in the template.

    Each one starts again every 90 days, so that the demo finds transients on
    any date: a linear rise, then an exponential decline.
    """

    id: np.ndarray
    ra_deg: np.ndarray
    dec_deg: np.ndarray
    peak_magnitude: dict[str, np.ndarray]
    rise_days: np.ndarray
    decline_days: np.ndarray
    """Time in which the flux falls to 1/e."""
    phase: np.ndarray
    """Fraction of the 90 days that has passed at MJD 0."""

    def flux_njy(self, mjd_tai: float, band: str) -> np.ndarray:
        """Return the fluxes at a time, nJy."""
        age_days = ((mjd_tai / _SEASON_DAYS + self.phase) % 1.0) * _SEASON_DAYS
        rise = age_days / self.rise_days
        shape = np.where(rise < 1.0, rise, np.exp((self.rise_days - age_days) / self.decline_days))
        return np.asarray(magnitude_to_njy(self.peak_magnitude[band]) * shape)


@dataclass(frozen=True)
class Scene:
    """The sources at one time in one band, ready to be rendered."""

    ra_deg: np.ndarray
    dec_deg: np.ndarray
    flux_njy: np.ndarray
    half_light_arcsec: np.ndarray
    """0 for point sources."""
    axis_ratio: np.ndarray
    position_angle_deg: np.ndarray

    @classmethod
    def points(cls, ra_deg: np.ndarray, dec_deg: np.ndarray, flux_njy: np.ndarray) -> Self:
        """Make a scene of point sources."""
        zeros = np.zeros(len(flux_njy))
        return cls(ra_deg, dec_deg, flux_njy, zeros, zeros + 1.0, zeros)

    def __add__(self, other: "Scene") -> "Scene":
        names = [each.name for each in fields(self)]
        return Scene(**{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})

    def __len__(self) -> int:
        return len(self.flux_njy)


class Sky:
    """All objects of one field around an ICRS center.

    The seed decides everything: the central repo and the raws must share it.
    """

    def __init__(
        self, seed: int = DEFAULT_SEED, ra_deg: float = DEFAULT_RA_DEG, dec_deg: float = DEFAULT_DEC_DEG
    ):
        self.seed = seed
        self.ra_deg = ra_deg
        self.dec_deg = dec_deg
        self._wcs = tangent_wcs(ra_deg, dec_deg, 0.0, 0.0, 0.0)
        self.stars = self._make_stars(self._random(1))
        self.variables = self._make_variables(self._random(2))
        self.galaxies = self._make_galaxies(self._random(3))
        self.transients = self._make_transients(self._random(4))

    def scene(self, band: str, mjd_tai: float | None = None) -> Scene:
        """Return the sources in a band at a TAI modified Julian date.

        Without a time: variables at their mean brightness and no transients,
        as in a template.
        """
        stars, galaxies = self.stars, self.galaxies
        magnitude = stars.magnitude[band].copy()
        if mjd_tai is not None:
            magnitude[self.variables.index] += self.variables.offset_mag(mjd_tai)
        scene = Scene.points(stars.ra_deg, stars.dec_deg, magnitude_to_njy(magnitude)) + Scene(
            galaxies.ra_deg,
            galaxies.dec_deg,
            magnitude_to_njy(galaxies.magnitude[band]),
            galaxies.half_light_arcsec,
            galaxies.axis_ratio,
            galaxies.position_angle_deg,
        )
        if mjd_tai is None:
            return scene
        new = self.transients
        return scene + Scene.points(new.ra_deg, new.dec_deg, new.flux_njy(mjd_tai, band))

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose])

    def _scatter(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw positions uniformly in the field."""
        return self._to_sky(*random.uniform(-FIELD_HALF_SIZE_ARCSEC, FIELD_HALF_SIZE_ARCSEC, (2, count)))

    def _to_sky(self, x_arcsec: np.ndarray, y_arcsec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ra_deg, dec_deg = self._wcs.all_pix2world(
            x_arcsec / PIXEL_SCALE_ARCSEC, y_arcsec / PIXEL_SCALE_ARCSEC, 0
        )
        return ra_deg, dec_deg

    def _to_plane(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return tangent-plane positions in arcsec, (n, 2)."""
        return np.stack(self._wcs.all_world2pix(ra_deg, dec_deg, 0), axis=1) * PIXEL_SCALE_ARCSEC

    def _make_stars(self, random: np.random.Generator) -> Stars:
        count = _count(_STARS_PER_ARCMIN2)
        ra_deg, dec_deg = self._scatter(random, count)
        r = _draw_magnitudes(random, count, _STAR_BRIGHT, _STAR_FAINT, _STAR_SLOPE)
        g_r = 0.3 + 1.1 * random.beta(1.5, 1.5, count)
        return Stars(np.arange(1, count + 1), ra_deg, dec_deg, _magnitudes(r, g_r, 0.1 + 0.45 * g_r))

    def _make_variables(self, random: np.random.Generator) -> Variables:
        r = self.stars.magnitude["r"]
        candidates = np.flatnonzero((r > 18.0) & (r < 22.0))
        index = np.sort(random.choice(candidates, size=max(1, len(candidates) // 25), replace=False))
        count = len(index)
        return Variables(
            index=index,
            amplitude_mag=random.uniform(0.2, 0.8, count),
            period_days=10.0 ** random.uniform(-0.6, 0.8, count),
            phase=random.random(count),
        )

    def _make_galaxies(self, random: np.random.Generator) -> Galaxies:
        count = _count(_GALAXIES_PER_ARCMIN2)
        ra_deg, dec_deg = self._scatter(random, count)
        r = _draw_magnitudes(random, count, _GALAXY_BRIGHT, _GALAXY_FAINT, _GALAXY_SLOPE)
        g_r = random.normal(0.6, 0.25, count).clip(0.0, 1.4)
        size = 0.8 * 10.0 ** (-0.1 * (r - 22.0)) * random.lognormal(0.0, 0.25, count)
        return Galaxies(
            np.arange(count) + _FIRST_GALAXY_ID,
            ra_deg,
            dec_deg,
            _magnitudes(r, g_r, 0.15 + 0.3 * g_r),
            size.clip(0.1, 3.0),
            random.uniform(0.3, 1.0, count),
            random.uniform(0.0, 180.0, count),
        )

    def _make_transients(self, random: np.random.Generator) -> Transients:
        ra_deg, dec_deg = self._transient_positions(random)
        count = len(ra_deg)
        r = random.uniform(*_TRANSIENT_PEAK_R, count)
        g_r = random.normal(0.1, 0.2, count)
        return Transients(
            np.arange(count) + _FIRST_TRANSIENT_ID,
            ra_deg,
            dec_deg,
            _magnitudes(r, g_r, random.normal(0.0, 0.15, count)),
            random.uniform(5.0, 18.0, count),
            random.uniform(25.0, 45.0, count),
            random.random(count),
        )

    def _transient_positions(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Put 70 % of the transients into galaxies, none where a bright star is masked."""
        galaxies = self.galaxies
        r = galaxies.magnitude["r"]
        hosts = random.choice(np.flatnonzero((r > 19.5) & (r < 23.5)), size=_TRANSIENT_COUNT, replace=False)
        size = galaxies.half_light_arcsec[hosts, np.newaxis]
        offsets = random.normal(0.0, 0.8, (_TRANSIENT_COUNT, 2)) * size
        in_host = self._to_plane(galaxies.ra_deg[hosts], galaxies.dec_deg[hosts]) + offsets
        in_field = random.uniform(-FIELD_HALF_SIZE_ARCSEC, FIELD_HALF_SIZE_ARCSEC, (_TRANSIENT_COUNT, 2))
        position = np.where(random.random((_TRANSIENT_COUNT, 1)) < 0.7, in_host, in_field)
        bright = self.stars.magnitude["r"] < _BRIGHT_STAR_R
        stars = self._to_plane(self.stars.ra_deg[bright], self.stars.dec_deg[bright])
        distance = np.hypot(*(position[:, np.newaxis, :] - stars[np.newaxis]).T).min(axis=0)
        position = position[distance > _BRIGHT_STAR_MARGIN_ARCSEC]
        return self._to_sky(position[:, 0], position[:, 1])


def demo_skies() -> tuple[Sky, Sky]:
    """Return the field with templates and alerts, and the field without."""
    return Sky(), Sky(DEFAULT_SEED + 1, SECOND_RA_DEG, SECOND_DEC_DEG)


def sky_at(skies: Sequence[Sky], ra_deg: float, dec_deg: float) -> Sky:
    """Return the sky with the nearest field; the fields must be far from the poles."""

    def distance(sky: Sky) -> float:
        east = (sky.ra_deg - ra_deg + 180.0) % 360.0 - 180.0
        return math.hypot(east * math.cos(math.radians(sky.dec_deg)), sky.dec_deg - dec_deg)

    return min(skies, key=distance)


def _count(per_arcmin2: float) -> int:
    return round(per_arcmin2 * (2.0 * FIELD_HALF_SIZE_ARCSEC / 60.0) ** 2)


def _draw_magnitudes(
    random: np.random.Generator, count: int, bright: float, faint: float, slope: float
) -> np.ndarray:
    """Draw from counts that rise as 10^(slope m) between two limits."""
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    return np.log10(random.uniform(low, high, count)) / slope


def _magnitudes(r: np.ndarray, g_r: np.ndarray, r_i: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(_BANDS, (r + g_r, r, r - r_i), strict=True))
