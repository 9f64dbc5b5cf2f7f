# SPDX-License-Identifier: BSD-3-Clause
"""Check a new bias, dark or flat against the masters in use."""

from typing import Any

import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from lsst.images import Image, MaskedImage
from scipy import ndimage

from ppdaemon.demo.geometry import AMPLIFIERS, RAW_SHAPE
from ppdaemon.demo.tasks.errors import BadRawError
from ppdaemon.demo.tasks.isr import CalibratedRawConnections, subtract_overscan
from ppdaemon.demo.tasks.planes import plane

__all__ = ("CheckCalibConfig", "CheckCalibConnections", "CheckCalibTask")


class CheckCalibConnections(CalibratedRawConnections, dimensions=("instrument", "exposure", "detector")):
    """Residual statistics as output."""

    calibration_residuals = cT.Output(
        name="calibration_residuals",
        doc="Statistics of the frame minus the prediction from the masters.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "exposure", "detector"),
    )


class CheckCalibConfig(pipeBase.PipelineTaskConfig, pipelineConnections=CheckCalibConnections):
    """Configuration of `CheckCalibTask`."""

    overscan_smooth_rows = pexConfig.RangeField(
        dtype=int, doc="Rows over which the overscan is smoothed.", default=21, min=1
    )
    structure_box_px = pexConfig.RangeField(
        dtype=int,
        doc="Residuals are averaged over squares of this size to measure structure below the noise.",
        default=16,
        min=2,
    )
    noise_ratio_max = pexConfig.Field[float](
        doc="Largest scatter of single pixels relative to the expected noise.", default=1.2
    )
    structure_ratio_max = pexConfig.Field[float](
        doc="Largest scatter of the averages relative to that of noise alone.", default=3.0
    )


class CheckCalibTask(pipeBase.PipelineTask):
    """Compare a calibration frame with the masters that are valid at its time."""

    ConfigClass = CheckCalibConfig
    _DefaultName = "checkCalib"
    config: CheckCalibConfig

    def run(self, raw: Image, bias: MaskedImage, dark: MaskedImage, flat: MaskedImage) -> pipeBase.Struct:
        """Check one frame.

        Parameters
        ----------
        raw : `lsst.images.Image`
            Bias, dark or flat, ADU, with overscan.
        bias, dark, flat : `lsst.images.MaskedImage`
            Masters in ADU, electrons per second, and relative to 1.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``calibration_residuals``: `dict` with ``image_type``, ``passed``,
            ``reasons`` and the statistics, in electrons for biases and darks and
            relative to the mean for flats.

        Raises
        ------
        BadRawError
            Raised for an image of the sky or an image of another shape.
        """
        header: dict[str, Any] = dict(raw.metadata)
        image_type = str(header["IMGTYPE"]).strip().lower()
        if image_type not in ("bias", "dark", "flat"):
            raise BadRawError(f"a {image_type} image is not a calibration frame", image_type=image_type)
        if raw.array.shape != RAW_SHAPE:
            raise BadRawError(f"the raw has shape {raw.array.shape}, a DemoCam raw has {RAW_SHAPE}")
        residual, sigma, level = self._residual(raw, image_type, bias, dark, flat)
        good = ~(plane(bias, "BAD") | plane(dark, "BAD") | plane(flat, "BAD"))
        numbers = self._statistics(residual, sigma, good)
        reasons = [
            f"{name} is {numbers[name]:.2f}, above {limit:g}"
            for name, limit in (
                ("noise_ratio", self.config.noise_ratio_max),
                ("structure_ratio", self.config.structure_ratio_max),
            )
            if numbers[name] > limit
        ]
        if reasons:
            self.log.warning("%s differs from the master: %s", raw.metadata.get("OBSID"), "; ".join(reasons))
        for name, value in numbers.items():
            self.metadata[name] = value
        result: dict[str, Any] = {
            "image_type": image_type,
            "passed": not reasons,
            "reasons": reasons,
            "level": level,
        }
        return pipeBase.Struct(calibration_residuals=result | numbers)

    def _residual(
        self, raw: Image, image_type: str, bias: MaskedImage, dark: MaskedImage, flat: MaskedImage
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return frame minus prediction, its expected standard deviation, and the frame's level."""
        pixels, _ = subtract_overscan(
            raw.array.astype(np.float32, copy=False), self.config.overscan_smooth_rows
        )
        pixels -= bias.image.array
        variance = bias.variance.array.copy()
        for amplifier in AMPLIFIERS:
            pixels[:, amplifier.columns] *= np.float32(amplifier.gain)
            variance[:, amplifier.columns] *= np.float32(amplifier.gain**2)
            variance[:, amplifier.columns] += np.float32(amplifier.read_noise_electrons**2)
        if image_type == "bias":
            return pixels, np.sqrt(variance), float(np.median(pixels))
        header: dict[str, Any] = dict(raw.metadata)
        exposure_s = np.float32(header["EXPTIME"])
        variance += np.maximum(pixels, 0.0)
        pixels -= exposure_s * dark.image.array
        if image_type == "dark":
            return pixels, np.sqrt(variance), float(np.median(pixels))
        response = np.maximum(flat.image.array, np.float32(0.05))
        pixels /= response
        level = float(np.median(pixels))
        if level <= 0.0:
            raise BadRawError(
                f"the flat has a level of {level:.1f} electrons: it received no light", level_electrons=level
            )
        variance /= response**2
        relative_variance = variance / level**2 + flat.variance.array / response**2
        return pixels / np.float32(level) - 1.0, np.sqrt(relative_variance), level

    def _statistics(self, residual: np.ndarray, sigma: np.ndarray, good: np.ndarray) -> dict[str, float]:
        """Compare single pixels and averages over squares with the noise."""
        scaled = np.where(good, residual / sigma, np.float32(0.0)).clip(-8.0, 8.0)
        box = self.config.structure_box_px
        share = ndimage.uniform_filter(good.astype(np.float32), box)
        averages = ndimage.uniform_filter(scaled, box) / np.maximum(share, np.float32(0.1))
        averages = averages[box // 2 :: box, box // 2 :: box]
        return {
            "mean": float(residual[good].mean()),
            "median": float(np.median(residual[good])),
            "robust_sigma": float(1.4826 * np.median(np.abs(residual[good] - np.median(residual[good])))),
            "expected_sigma": float(np.median(sigma[good])),
            "noise_ratio": float(np.std(scaled[good])),
            "structure_ratio": float(np.std(averages) * box),
        }
