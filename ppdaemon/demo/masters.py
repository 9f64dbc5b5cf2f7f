# SPDX-License-Identifier: BSD-3-Clause
"""Make master calibrations and templates as files for the central repo.

These functions run in separate processes: they take and return plain values
and do not use the Butler.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from lsst.images import Image, MaskedImage, MaskPlane, MaskSchema
from lsst.images.fits import FitsCompressionOptions, FitsQuantizationOptions

from ppdaemon.demo.geometry import AMPLIFIERS, FILTER_BANDS
from ppdaemon.demo.render import Psf, draw_scene, electrons_per_njy_s, sky_electrons_per_s
from ppdaemon.demo.signatures import EPOCHS, Signature
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.skymap import PATCH_COUNT, SKYMAP_NAME, TRACT, TRACT_SIZE, TractMap

__all__ = ("TEMPLATE_FWHM_ARCSEC", "MasterFile", "make_calibrations", "make_templates")

TEMPLATE_FWHM_ARCSEC = 0.62
"""Seeing of the templates: sharper than any visit, as that of selected images."""
_TEMPLATE_EXPOSURE_S = 20 * 30.0
_MASTER_FRAMES = 25
"""Number of exposures averaged in a master."""
_FLAT_NOISE = 0.001
# Large tiles are faster to read; 128 rows still allow reading a part of an image.
_TILE_ROWS = 128
_BAD_PLANES = MaskSchema([MaskPlane("BAD", "Dead or hot column.")])
_TEMPLATE_PLANES = MaskSchema([MaskPlane("NO_DATA", "No input image covers this pixel.")])


@dataclass(frozen=True)
class MasterFile:
    """A file to be ingested."""

    path: str
    dataset_type: str
    data_id: dict[str, Any]
    epoch: int | None = None
    """Number of the epoch in which it is valid; `None` for templates."""


def make_calibrations(folder: str, detector: int, epoch: int) -> list[MasterFile]:
    """Write bias (ADU), dark (electron/s) and three flats (mean 1) of one detector.

    `epoch` is an index into `~ppdaemon.demo.signatures.EPOCHS`.
    """
    signature = Signature(detector, EPOCHS[epoch])
    written = []
    for name, physical_filter, image in _calibrations(signature):
        data_id: dict[str, Any] = {"detector": detector}
        if physical_filter is not None:
            data_id["physical_filter"] = physical_filter
        path = str(Path(folder) / "-".join([name, physical_filter or "any", str(detector), f"{epoch}.fits"]))
        _write(image, path, seed=1 + detector)
        written.append(MasterFile(path, name, data_id, epoch))
    return written


def _calibrations(signature: Signature) -> Iterator[tuple[str, str | None, MaskedImage]]:
    random = np.random.default_rng([20, signature.detector, signature.epoch.number])
    read_noise_adu = max(amplifier.read_noise_electrons / amplifier.gain for amplifier in AMPLIFIERS)
    bias = _noisy(signature.bias_adu(), read_noise_adu / np.sqrt(_MASTER_FRAMES), random, u.adu)
    bad = np.zeros(bias.image.array.shape, dtype=bool)
    bad[:, list(signature.bad_columns())] = True
    bias.mask.set("BAD", bad)
    yield "bias", None, bias
    yield "dark", None, _noisy(signature.dark_electrons_per_s(), 0.002, random, u.electron / u.s)
    for physical_filter in FILTER_BANDS:
        response = signature.response(physical_filter)
        yield "flat", physical_filter, _noisy(response / response.mean(), _FLAT_NOISE, random, None)


def _noisy(pixels: np.ndarray, noise: float, random: np.random.Generator, unit: Any) -> MaskedImage:
    """Make a masked image from noiseless pixels plus noise of a standard deviation."""
    noisy = pixels + np.float32(noise) * random.standard_normal(pixels.shape, dtype=np.float32)
    image = Image(noisy, unit=unit)
    variance = Image(float(noise**2), dtype=np.float32, bbox=image.bbox)
    return MaskedImage(image, mask_schema=_BAD_PLANES, variance=variance)


def make_templates(folder: str, sky: Sky, band: str) -> list[MasterFile]:
    """Write the templates of all patches in one band, one file per patch, in nJy.

    The background is subtracted and the noise is that of ten minutes. Variable
    stars are at their mean, there are no transients. Two overlapping patches
    have the same pixels in their overlap.
    """
    tract = TractMap.around(sky)
    pixels, variance = _coadd(sky, tract, band)
    projection = tract.projection
    metadata: dict[str, Any] = {"PSF_FWHM_ARCSEC": TEMPLATE_FWHM_ARCSEC, "BAND": band}
    written = []
    for patch in range(PATCH_COUNT):
        box = tract.patch_box(patch)
        cut = (slice(box.y.start, box.y.stop), slice(box.x.start, box.x.stop))
        template = MaskedImage(
            Image(pixels[cut], bbox=box, unit=u.nJy),
            variance=Image(variance[cut], bbox=box),
            mask_schema=_TEMPLATE_PLANES,
            sky_projection=projection,
            metadata=dict(metadata),
        )
        path = str(Path(folder) / f"template-{band}-{patch}.fits")
        _write(template, path, seed=1 + patch)
        data_id = {"skymap": SKYMAP_NAME, "tract": TRACT, "patch": patch, "band": band}
        written.append(MasterFile(path, "template", data_id))
    return written


def _coadd(sky: Sky, tract: TractMap, band: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the tract's pixels (nJy) and their variance."""
    random = np.random.default_rng([sky.seed, 21, sorted(FILTER_BANDS.values()).index(band)])
    electrons_per_njy = electrons_per_njy_s(band) * _TEMPLATE_EXPOSURE_S
    sky_electrons = sky_electrons_per_s(band) * _TEMPLATE_EXPOSURE_S
    pixels = draw_scene(
        sky.scene(band),
        tract.wcs,
        Psf(TEMPLATE_FWHM_ARCSEC),
        (TRACT_SIZE, TRACT_SIZE),
        floor_njy=0.02 * np.sqrt(sky_electrons) / electrons_per_njy,
    )
    variance = pixels / np.float32(electrons_per_njy) + np.float32(sky_electrons / electrons_per_njy**2)
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    noise *= np.sqrt(variance)
    pixels += noise
    return pixels, variance


def _write(image: MaskedImage, path: str, seed: int) -> None:
    """Write with Rice compression in large tiles: four times faster to read than the default.

    Pixels are quantized to 1/16 of their noise, the smooth variance to 1
    percent of its median.
    """
    tile = (_TILE_ROWS, image.bbox.x.size)
    dither = {"dither": "SUBTRACTIVE_DITHER_2"}
    variance_step = 0.01 * float(np.median(image.variance.array))
    image.write(
        path,
        compression_seed=seed,
        compression_options={
            "image": _options(tile, FitsQuantizationOptions(level=16.0, **dither)),
            "variance": _options(tile, FitsQuantizationOptions(level=-variance_step, **dither)),
            "mask": _options(tile, None),
        },
    )


def _options(tile: tuple[int, int], quantization: FitsQuantizationOptions | None) -> FitsCompressionOptions:
    return FitsCompressionOptions(algorithm="RICE_1", tile_shape=tile, quantization=quantization)
