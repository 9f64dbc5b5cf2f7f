# SPDX-License-Identifier: BSD-3-Clause
"""Render objects on the sky as pixels: atmosphere, optics, detector.

Covers the point-spread function, drawing sources, and one detector's raw
pixels. Sources are mixtures of Gaussians, which convolve exactly with a PSF
that is a mixture, too [Hogg & Lang 2013, PASP 125, 719]; the width of a pixel
is added to their second moments.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.wcs import WCS

from ppdaemon.demo.geometry import (
    AMPLIFIERS,
    DETECTOR_COUNT,
    DETECTOR_SIZE,
    FILTER_BANDS,
    PIXEL_SCALE_ARCSEC,
    RAW_SHAPE,
    detector_wcs,
)
from ppdaemon.demo.plan import ExposurePlan, ImageType
from ppdaemon.demo.signatures import Signature, epoch_at
from ppdaemon.demo.sky import DEFAULT_SEED, Scene, Sky, magnitude_to_njy

__all__ = (
    "ZERO_POINT_MAG",
    "Conditions",
    "Psf",
    "conditions_of",
    "draw_scene",
    "electrons_per_njy_s",
    "render_raw",
    "sky_electrons_per_s",
    "true_wcs",
)

ZERO_POINT_MAG = {"g": 28.2, "r": 28.1, "i": 27.8}
"""AB magnitude of a source that gives 1 electron/s on a clear night on the optical axis.

Close to the values of the Rubin telescope (SMTN-002).
"""

_SKY_MAG_ARCSEC2 = {"g": 22.0, "r": 21.0, "i": 20.2}
_FULL_WELL_ELECTRONS = 95_000.0
_ADU_MAX = 65535
_FLAT_ELECTRONS = 25_000.0
# Per detector; a 30 s exposure has a dozen tracks, enough to test their rejection.
_COSMIC_RAYS_PER_S = 0.4

_PSF_WEIGHTS = np.array([0.85, 0.12, 0.03])
_PSF_SIGMAS = np.array([1.0, 1.8, 3.6])
_FWHM_PER_CORE_SIGMA = 2.4036
"""Of the mixture above, computed from its half maximum."""
_DISK_WEIGHTS = np.array([0.0764, 0.4360, 0.4876])
_DISK_SIGMAS = np.array([0.2681, 0.6608, 1.2839])
"""Least-squares fit to an exponential disk of half-light radius 1 out to radius 6."""
# Variance of a uniform distribution over one pixel.
_PIXEL_VARIANCE = 1.0 / 12.0

# Sizes grow by about 1.4: stamps of one size are drawn as one array, little of which is empty.
_STAMP_HALF_SIZES = np.array([4, 6, 8, 11, 15, 20, 28, 40, 56, 80])
# Limits the memory of a batch to a few arrays of 4 MB (float32).
_STAMP_BATCH_PIXELS = 1_000_000


@dataclass(frozen=True)
class Psf:
    """A core and two wings, slightly elliptical."""

    fwhm_arcsec: float
    e1: float = 0.0
    """Ellipticity along the pixel axes, (a^2 - b^2) / (a^2 + b^2)."""
    e2: float = 0.0
    """Ellipticity along the diagonals."""

    def covariances(self) -> np.ndarray:
        """Return (xx, xy, yy) of each component, pixels squared, shape (3, 3)."""
        core = (self.fwhm_arcsec / PIXEL_SCALE_ARCSEC / _FWHM_PER_CORE_SIGMA) ** 2
        shape = np.array([1.0 + self.e1, self.e2, 1.0 - self.e1])
        return np.asarray(core * _PSF_SIGMAS[:, np.newaxis] ** 2 * shape)

    def weights(self) -> np.ndarray:
        """Return the fraction of the light in each component."""
        return _PSF_WEIGHTS


@dataclass(frozen=True)
class Conditions:
    """Effects of the atmosphere and the mount on one exposure."""

    psf: Psf
    transparency: float
    """Fraction of the light that arrives, relative to a clear night."""
    sky_mag_offset: float
    """Difference from the usual sky brightness, magnitudes; positive is fainter."""
    sky_slope: tuple[float, float]
    """Relative change of the sky over a detector, along x and y."""
    pointing_error_arcsec: tuple[float, float]
    """True minus announced boresight, toward east and north."""
    rotation_error_deg: float


def conditions_of(plan: ExposurePlan, sky_seed: int = DEFAULT_SEED) -> Conditions:
    """Return the conditions of an exposure, the same at every call."""
    random = np.random.default_rng([sky_seed, 10, plan.exposure_id])
    angle = random.uniform(0.0, 2.0 * np.pi)
    miss_arcsec = random.uniform(1.0, 2.0)
    return Conditions(
        Psf(random.uniform(0.72, 1.0), random.normal(0.0, 0.02), random.normal(0.0, 0.02)),
        random.uniform(0.9, 1.0),
        random.normal(0.0, 0.12),
        (random.normal(0.0, 0.015), random.normal(0.0, 0.015)),
        (float(miss_arcsec * np.cos(angle)), float(miss_arcsec * np.sin(angle))),
        random.normal(0.0, 0.004),
    )


def true_wcs(plan: ExposurePlan, detector: int, sky_seed: int = DEFAULT_SEED) -> WCS:
    """Return the projection of a detector with the pointing error.

    Raises `ValueError` if the plan has no position.
    """
    if plan.ra_deg is None or plan.dec_deg is None:
        raise ValueError(f"exposure {plan.obs_id} has no position on the sky")
    error = conditions_of(plan, sky_seed)
    east, north = error.pointing_error_arcsec
    dec_deg = plan.dec_deg + north / 3600.0
    ra_deg = plan.ra_deg + east / 3600.0 / np.cos(np.radians(dec_deg))
    return detector_wcs(ra_deg, dec_deg, (plan.rotpa_deg or 0.0) + error.rotation_error_deg, detector)


def electrons_per_njy_s(band: str) -> float:
    """Return the electrons per second from a source of 1 nJy on a clear night."""
    return 1.0 / float(magnitude_to_njy(ZERO_POINT_MAG[band]))


def sky_electrons_per_s(band: str) -> float:
    """Return the electrons per second and pixel from the usual sky."""
    sky_mag = _SKY_MAG_ARCSEC2[band]
    return float(PIXEL_SCALE_ARCSEC**2 * 10.0 ** (-0.4 * (sky_mag - ZERO_POINT_MAG[band])))


def draw_scene(scene: Scene, wcs: WCS, psf: Psf, shape: tuple[int, int], floor_njy: float) -> np.ndarray:
    """Draw sources on an empty image, nJy per pixel, float32.

    `shape` is (rows, columns). `floor_njy` is the surface brightness, nJy per
    pixel, below which the outskirts of a source are not drawn.
    """
    image = np.zeros(shape, dtype=np.float32)
    x, y = wcs.all_world2pix(scene.ra_deg, scene.dec_deg, 0)
    margin = _STAMP_HALF_SIZES[-1]
    near = (x > -margin) & (x < shape[1] + margin) & (y > -margin) & (y < shape[0] + margin)
    for extended in (False, True):
        chosen = np.flatnonzero(near & ((scene.half_light_arcsec > 0.0) == extended))
        if len(chosen):
            weights, covariances = _mixture(scene, chosen, psf, wcs, extended)
            _draw(image, x[chosen], y[chosen], scene.flux_njy[chosen], weights, covariances, floor_njy)
    return image


def _mixture(
    scene: Scene, chosen: np.ndarray, psf: Psf, wcs: WCS, extended: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return component weights (k,) and (xx, xy, yy) in pixels squared (n, k, 3)."""
    blur = psf.covariances() + np.array([_PIXEL_VARIANCE, 0.0, _PIXEL_VARIANCE])
    if not extended:
        return psf.weights(), np.broadcast_to(blur, (len(chosen), *blur.shape))
    major2 = (scene.half_light_arcsec[chosen] / PIXEL_SCALE_ARCSEC) ** 2
    minor2 = major2 * scene.axis_ratio[chosen] ** 2
    cd = wcs.wcs.cd * 3600.0 / PIXEL_SCALE_ARCSEC
    angle = np.radians(scene.position_angle_deg[chosen])
    # Sky to pixel: the inverse of an orthogonal matrix is its transpose.
    along_x, along_y = cd.T @ np.array([np.sin(angle), np.cos(angle)])
    disk = np.stack(
        [
            major2 * along_x**2 + minor2 * along_y**2,
            (major2 - minor2) * along_x * along_y,
            major2 * along_y**2 + minor2 * along_x**2,
        ],
        axis=1,
    )
    parts = disk[:, np.newaxis, :] * _DISK_SIGMAS[:, np.newaxis] ** 2
    covariances = parts[:, :, np.newaxis, :] + blur
    weights = np.outer(_DISK_WEIGHTS, psf.weights()).ravel()
    return weights, covariances.reshape(len(chosen), -1, 3)


def _draw(
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    weights: np.ndarray,
    covariances: np.ndarray,
    floor: float,
) -> None:
    """Add mixtures of Gaussians to an image, in batches of stamps of equal size."""
    determinant = covariances[..., 0] * covariances[..., 2] - covariances[..., 1] ** 2
    peak = flux[:, np.newaxis] * weights / (2.0 * np.pi * np.sqrt(determinant))
    widest = np.maximum(covariances[..., 0], covariances[..., 2])
    radius = np.sqrt(widest * 2.0 * np.log(np.maximum(peak / floor, 1.0))).max(axis=1)
    size_class = np.searchsorted(_STAMP_HALF_SIZES, radius).clip(max=len(_STAMP_HALF_SIZES) - 1)
    quadratic = (
        np.stack([covariances[..., 2], -covariances[..., 1], covariances[..., 0]], axis=-1)
        / determinant[..., np.newaxis]
    )
    for index in np.unique(size_class):
        members = np.flatnonzero(size_class == index)
        half = int(_STAMP_HALF_SIZES[index])
        step = max(1, _STAMP_BATCH_PIXELS // (2 * half + 1) ** 2)
        for start in range(0, len(members), step):
            some = members[start : start + step]
            corner_x, corner_y = np.rint(x[some]).astype(int) - half, np.rint(y[some]).astype(int) - half
            stamps = _stamps(x[some] - corner_x, y[some] - corner_y, peak[some], quadratic[some], half)
            _add_stamps(image, corner_x, corner_y, stamps)


def _stamps(x: np.ndarray, y: np.ndarray, peak: np.ndarray, quadratic: np.ndarray, half: int) -> np.ndarray:
    """Evaluate mixtures on stamps of 2 half + 1 pixels, (n, rows, columns) float32."""
    line = np.arange(2 * half + 1, dtype=np.float32)
    dx = line - x[:, np.newaxis].astype(np.float32)
    dy = line - y[:, np.newaxis].astype(np.float32)
    total = np.zeros((len(x), len(line), len(line)), dtype=np.float32)
    for component in range(peak.shape[1]):
        xx, xy, yy = quadratic[:, component].T.astype(np.float32)[:, :, np.newaxis]
        exponent = dy[:, :, np.newaxis] * (-xy * dx)[:, np.newaxis, :]
        exponent -= (0.5 * xx * dx**2)[:, np.newaxis, :]
        exponent -= (0.5 * yy * dy**2)[:, :, np.newaxis]
        np.exp(exponent, out=exponent)
        exponent *= peak[:, component].astype(np.float32)[:, np.newaxis, np.newaxis]
        total += exponent
    return total


def _add_stamps(image: np.ndarray, corner_x: np.ndarray, corner_y: np.ndarray, stamps: np.ndarray) -> None:
    """Add stamps to an image where they overlap it."""
    rows, columns = image.shape
    size = stamps.shape[1]
    for x, y, stamp in zip(corner_x.tolist(), corner_y.tolist(), stamps, strict=True):
        left, right = max(x, 0), min(x + size, columns)
        low, high = max(y, 0), min(y + size, rows)
        if left < right and low < high:
            image[low:high, left:right] += stamp[low - y : high - y, left - x : right - x]


def render_raw(plan: ExposurePlan, detector: int, sky: Sky) -> np.ndarray:
    """Simulate one detector's readout: ADU as uint16, (1024, 1088), with overscan.

    The seed of the sky also seeds the noise: the same plan, detector and sky
    give the same pixels.
    """
    random = np.random.default_rng([sky.seed, 11, plan.exposure_id, detector])
    signature = Signature(detector, epoch_at(plan.mid_mjd_tai))
    light = _incoming_electrons(plan, detector, sky)
    if plan.exposure_s > 0.0:
        electrons = light * _response(signature, plan.physical_filter) if light is not None else 0.0
        expected = electrons + _dark(signature) * np.float32(plan.exposure_s)
        electrons = random.poisson(expected).astype(np.float32)
        _add_cosmic_rays(electrons, random, plan.exposure_s)
    else:
        electrons = np.zeros((DETECTOR_SIZE, DETECTOR_SIZE), dtype=np.float32)
    np.minimum(electrons, _FULL_WELL_ELECTRONS, out=electrons)
    for column, hot in signature.bad_columns().items():
        electrons[:, column] = 0.6 * _FULL_WELL_ELECTRONS if hot else 0.0
    return _read_out(electrons, _bias(signature), signature.bias_level_adu(), random)


def _incoming_electrons(plan: ExposurePlan, detector: int, sky: Sky) -> np.ndarray | None:
    """Return expected electrons per pixel of a perfect detector; `None` for a closed shutter."""
    if plan.image_type is ImageType.FLAT:
        return np.full((DETECTOR_SIZE, DETECTOR_SIZE), _FLAT_ELECTRONS, dtype=np.float32)
    if plan.image_type is not ImageType.SCIENCE:
        return None
    band = FILTER_BANDS[plan.physical_filter]
    conditions = conditions_of(plan, sky.seed)
    electrons_per_njy = plan.exposure_s * electrons_per_njy_s(band) * conditions.transparency
    level = plan.exposure_s * sky_electrons_per_s(band) * 10.0 ** (-0.4 * conditions.sky_mag_offset)
    image = draw_scene(
        sky.scene(band, plan.mid_mjd_tai),
        true_wcs(plan, detector, sky.seed),
        conditions.psf,
        (DETECTOR_SIZE, DETECTOR_SIZE),
        floor_njy=0.02 * np.sqrt(level) / electrons_per_njy,
    )
    image *= np.float32(electrons_per_njy)
    line = np.linspace(-0.5, 0.5, DETECTOR_SIZE, dtype=np.float32)
    slope_x, slope_y = conditions.sky_slope
    slope = np.float32(slope_x) * line + np.float32(slope_y) * line[:, np.newaxis]
    image += np.float32(level) * (1.0 + slope)
    return image


def _add_cosmic_rays(electrons: np.ndarray, random: np.random.Generator, exposure_s: float) -> None:
    """Draw straight tracks, 1 to 40 pixels long and one pixel wide."""
    for _ in range(random.poisson(_COSMIC_RAYS_PER_S * exposure_s)):
        length = int(1 + random.exponential(8.0)) % 40 + 1
        angle = random.uniform(0.0, 2.0 * np.pi)
        steps = np.arange(length)
        x = np.rint(random.uniform(0, DETECTOR_SIZE) + steps * np.cos(angle)).astype(int)
        y = np.rint(random.uniform(0, DETECTOR_SIZE) + steps * np.sin(angle)).astype(int)
        inside = (x >= 0) & (x < DETECTOR_SIZE) & (y >= 0) & (y < DETECTOR_SIZE)
        np.add.at(electrons, (y[inside], x[inside]), random.uniform(1500.0, 6000.0))


def _read_out(
    electrons: np.ndarray, bias_adu: np.ndarray, levels_adu: tuple[float, ...], random: np.random.Generator
) -> np.ndarray:
    """Convert electrons to ADU with overscan, through both amplifiers."""
    raw = np.empty(RAW_SHAPE, dtype=np.float32)
    drift = np.cumsum(random.normal(0.0, 0.05, DETECTOR_SIZE)).astype(np.float32)[:, np.newaxis]
    noise = random.standard_normal(RAW_SHAPE, dtype=np.float32)
    for amplifier, level in zip(AMPLIFIERS, levels_adu, strict=True):
        raw[:, amplifier.overscan_columns] = 0.0
        raw[:, amplifier.data_columns] = (
            electrons[:, amplifier.columns] / np.float32(amplifier.gain) + bias_adu[:, amplifier.columns]
        )
        columns = amplifier.raw_columns
        raw[:, columns] += level + drift
        raw[:, columns] += noise[:, columns] * np.float32(amplifier.read_noise_electrons / amplifier.gain)
    np.rint(raw, out=raw)
    return raw.clip(0, _ADU_MAX).astype(np.uint16)


# A simulated camera reads the same nine detectors in each visit: their
# signatures, 4 MB each, are cached.
@lru_cache(maxsize=DETECTOR_COUNT)
def _bias(signature: Signature) -> np.ndarray:
    return signature.bias_adu()


@lru_cache(maxsize=DETECTOR_COUNT)
def _dark(signature: Signature) -> np.ndarray:
    return signature.dark_electrons_per_s()


@lru_cache(maxsize=DETECTOR_COUNT * len(FILTER_BANDS))
def _response(signature: Signature, physical_filter: str) -> np.ndarray:
    return signature.response(physical_filter)
