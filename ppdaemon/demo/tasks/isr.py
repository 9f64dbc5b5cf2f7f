# SPDX-License-Identifier: BSD-3-Clause
"""Instrument signature removal: convert ADU with overscan to electrons per pixel."""

from collections.abc import Mapping
from typing import Any

import astropy.units as u
import lsst.pex.config as pexConfig  # noqa: N812 -- its usual name
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import sep
from lsst.images import Image, MaskedImage
from scipy import ndimage

from ppdaemon.demo.geometry import AMPLIFIERS, DETECTOR_SIZE, RAW_SHAPE
from ppdaemon.demo.tasks.cosmics import find_cosmic_rays
from ppdaemon.demo.tasks.errors import BadRawError
from ppdaemon.demo.tasks.planes import make_image, plane

__all__ = (
    "CalibratedRawConnections",
    "IsrConfig",
    "IsrConnections",
    "IsrTask",
    "fill_from_sides",
    "subtract_overscan",
)

_HEADER_KEYS = {
    "OBSID": "obs_id",
    "GROUPID": "group",
    "DETECTOR": "detector",
    "IMGTYPE": "image_type",
    "FILTER": "physical_filter",
    "FILTBAND": "band",
    "EXPTIME": "exposure_time_s",
    "MJD-BEG": "mjd_begin_tai",
    "MJD-END": "mjd_end_tai",
    "RA": "boresight_ra_deg",
    "DEC": "boresight_dec_deg",
    "ROTPA": "rotpa_deg",
    "REASON": "observation_reason",
    "OBJECT": "target_name",
}
"""Header keywords that later tasks need, and their names in the image's metadata."""


def subtract_overscan(raw: np.ndarray, smooth_rows: int) -> tuple[np.ndarray, float]:
    """Subtract each amplifier's overscan and cut it off.

    Parameters
    ----------
    raw : `numpy.ndarray`, (1024, 1088)
        ADU, in the layout of `~ppdaemon.demo.geometry.AMPLIFIERS`.
    smooth_rows : `int`
        Rows over which the overscan's row averages are smoothed.

    Returns
    -------
    pixels : `numpy.ndarray`, (1024, 1024)
        ADU above the pedestal.
    pedestal_adu : `float`
        Mean pedestal of the amplifiers.
    """
    pixels = np.empty((DETECTOR_SIZE, DETECTOR_SIZE), dtype=np.float32)
    pedestals = []
    for amplifier in AMPLIFIERS:
        by_row = np.median(raw[:, amplifier.overscan_columns], axis=1)
        smooth = ndimage.uniform_filter1d(by_row, smooth_rows, mode="nearest")
        pixels[:, amplifier.columns] = raw[:, amplifier.data_columns] - smooth[:, None]
        pedestals.append(float(smooth.mean()))
    return pixels, float(np.mean(pedestals))


def fill_from_sides(pixels: np.ndarray, bad: np.ndarray) -> None:
    """Replace bad pixels, in column_numbers, by interpolation between good ones left and right.

    Parameters
    ----------
    pixels : `numpy.ndarray`, (rows, columns)
        Image, changed in column_numbers.
    bad : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels to replace; a row without a good pixel is not changed.
    """
    column_numbers = np.arange(pixels.shape[1])
    for row in np.flatnonzero(bad.any(axis=1)):
        good = ~bad[row]
        if good.any():
            pixels[row, bad[row]] = np.interp(
                column_numbers[bad[row]], column_numbers[good], pixels[row, good]
            )


class CalibratedRawConnections(
    pipeBase.PipelineTaskConnections, dimensions=("instrument", "exposure", "detector")
):
    """A raw and its calibrations as inputs."""

    raw = cT.Input(
        name="raw",
        doc="Raw image, both amplifiers with overscan, ADU.",
        storageClass="ImageV2",
        dimensions=("instrument", "exposure", "detector"),
    )
    bias = cT.PrerequisiteInput(
        name="bias",
        doc="Master bias, ADU above the overscan; its mask marks the defects.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    dark = cT.PrerequisiteInput(
        name="dark",
        doc="Master dark, electrons per second.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    flat = cT.PrerequisiteInput(
        name="flat",
        doc="Master flat with a mean of 1.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "detector", "physical_filter"),
        isCalibration=True,
    )


class IsrConnections(CalibratedRawConnections, dimensions=("instrument", "exposure", "detector")):
    """An image in electrons as output."""

    post_isr_image = cT.Output(
        name="post_isr_image",
        doc="Image in electrons with variance and mask.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "exposure", "detector"),
    )


class IsrConfig(pipeBase.PipelineTaskConfig, pipelineConnections=IsrConnections):
    """Configuration of `IsrTask`."""

    overscan_smooth_rows = pexConfig.RangeField(
        dtype=int,
        doc="Rows over which the overscan is smoothed: its read noise averages out, its drift does not.",
        default=21,
        min=1,
    )
    saturation_electrons = pexConfig.Field[float](
        doc="Pixels at or above are saturated (full well is 95000).", default=93_000.0
    )
    cosmic_ray_sigma = pexConfig.Field[float](doc="Significance of a cosmic ray's first pixel.", default=6.0)
    sharpest_fwhm_px = pexConfig.Field[float](
        doc="FWHM in pixels below which a star would be rejected as a cosmic ray.", default=3.0
    )
    vignetted_below = pexConfig.Field[float](doc="Flat response below which pixels are flagged.", default=0.5)


class IsrTask(pipeBase.PipelineTask):
    """Subtract overscan, bias and dark, divide by the flat, and mask unusable pixels."""

    ConfigClass = IsrConfig
    _DefaultName = "isr"
    config: IsrConfig

    def run(self, raw: Image, bias: MaskedImage, dark: MaskedImage, flat: MaskedImage) -> pipeBase.Struct:
        """Reduce one raw.

        Parameters
        ----------
        raw : `lsst.images.Image`
            ADU, (1024, 1088) pixels, with the header in its metadata.
        bias, dark, flat : `lsst.images.MaskedImage`
            Masters in ADU, electrons per second, and relative to 1.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``post_isr_image``: `lsst.images.MaskedImage` in electrons.

        Raises
        ------
        BadRawError
            Raised if the raw has another shape or is constant.
        """
        header: dict[str, Any] = dict(raw.metadata)
        electrons, read_variance = self._to_electrons(raw, bias.image.array)
        exposure_s = float(header["DARKTIME"] if header.get("DARKTIME") is not None else header["EXPTIME"])
        saturated = electrons >= self.config.saturation_electrons
        variance = np.maximum(electrons, 0.0) + read_variance
        electrons -= np.float32(exposure_s) * dark.image.array
        response = flat.image.array
        usable = np.isfinite(response) & (response > 0.05)
        response = np.where(usable, response, np.float32(1.0))
        electrons /= response
        variance /= response**2
        bad = plane(bias, "BAD") | plane(dark, "BAD") | plane(flat, "BAD") | ~usable
        fill_from_sides(electrons, bad)
        cosmic = self._find_cosmic_rays(electrons, variance, bad | saturated)
        fill_from_sides(electrons, cosmic | bad)
        planes = {
            "BAD": bad,
            "SATURATED": saturated,
            "COSMIC_RAY": cosmic,
            "VIGNETTED": response < self.config.vignetted_below,
        }
        for name, pixels in planes.items():
            self.metadata[f"{name.lower()}_pixels"] = int(pixels.sum())
        image = make_image(electrons, variance, planes, u.electron, metadata=_metadata_from(header))
        return pipeBase.Struct(post_isr_image=image)

    def _to_electrons(self, raw: Image, bias_adu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return electrons above overscan and bias, and the variance of the read noise."""
        pixels = raw.array
        if pixels.shape != RAW_SHAPE:
            raise BadRawError(
                f"the raw has shape {pixels.shape}, a DemoCam raw has {RAW_SHAPE}",
                rows=pixels.shape[0],
                columns=pixels.shape[1],
            )
        if not np.ptp(pixels):
            raise BadRawError(f"all pixels of the raw are {pixels.flat[0]}: nothing was read out")
        electrons, pedestal_adu = subtract_overscan(
            pixels.astype(np.float32, copy=False), self.config.overscan_smooth_rows
        )
        self.metadata["overscan_pedestal_adu"] = pedestal_adu
        electrons -= bias_adu
        read_variance = np.empty_like(electrons)
        for amplifier in AMPLIFIERS:
            electrons[:, amplifier.columns] *= np.float32(amplifier.gain)
            read_variance[:, amplifier.columns] = amplifier.read_noise_electrons**2
        return electrons, read_variance

    def _find_cosmic_rays(
        self, electrons: np.ndarray, variance: np.ndarray, ignore: np.ndarray
    ) -> np.ndarray:
        sky = sep.Background(electrons, mask=ignore, bw=64, bh=64)
        return find_cosmic_rays(
            electrons - sky.back(),
            variance,
            ignore,
            sharpest_fwhm_px=self.config.sharpest_fwhm_px,
            threshold_sigma=self.config.cosmic_ray_sigma,
        )


def _metadata_from(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: header[key] for key, name in _HEADER_KEYS.items() if header.get(key) is not None}
