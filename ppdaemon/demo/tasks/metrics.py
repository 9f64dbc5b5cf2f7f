# SPDX-License-Identifier: BSD-3-Clause
"""Quality of a calibrated image in a few numbers, for commissioning."""

from typing import Any

import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astropy.table import Table
from lsst.images import MaskedImage

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC
from ppdaemon.demo.tasks.calibrate import NJY_ZERO_POINT_MAG, psf_of
from ppdaemon.demo.tasks.planes import plane, unusable

__all__ = ("MetricsConfig", "MetricsConnections", "MetricsTask")


class MetricsConnections(pipeBase.PipelineTaskConnections, dimensions=("instrument", "visit", "detector")):
    """A calibrated image and its sources as inputs, quality numbers as output."""

    science = cT.Input(
        name="preliminary_visit_image",
        doc="Calibrated image, nJy.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )
    stars = cT.Input(
        name="initial_stars",
        doc="Its sources.",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
    )
    visit_metrics = cT.Output(
        name="visit_metrics",
        doc="Seeing, depth, sky, astrometric and photometric scatter.",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "visit", "detector"),
    )


class MetricsConfig(pipeBase.PipelineTaskConfig, pipelineConnections=MetricsConnections):
    """Configuration of `MetricsTask`."""

    depth_sigma = pexConfig.Field[float](
        doc="Significance of a source at the limiting magnitude.", default=5.0
    )


class MetricsTask(pipeBase.PipelineTask):
    """Measure seeing, depth and sky, and collect the results of the calibration."""

    ConfigClass = MetricsConfig
    _DefaultName = "metrics"
    config: MetricsConfig

    def run(self, science: MaskedImage, stars: Table) -> pipeBase.Struct:
        """Summarize one image.

        Parameters
        ----------
        science : `lsst.images.MaskedImage`
            Calibrated image, nJy, with the metadata of `CalibrateTask`.
        stars : `astropy.table.Table`
            Sources in the image; only their number is used.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``visit_metrics``: `dict` of plain numbers.
        """
        calibration: dict[str, Any] = dict(science.metadata)
        psf = psf_of(science)
        # Noise-equivalent area of a fit with uniform weights, King (1983, PASP 95, 163).
        area_px = 1.0 / float((psf.stamp(psf.half_width_px) ** 2).sum())
        background = ~unusable(science) & ~plane(science, "DETECTED")
        noise_njy = float(np.sqrt(np.median(science.variance.array[background])))
        limit_njy = self.config.depth_sigma * noise_njy * np.sqrt(area_px)
        sky_njy_arcsec2 = (
            calibration["sky_electrons"] * calibration["njy_per_electron"] / PIXEL_SCALE_ARCSEC**2
        )
        metrics: dict[str, Any] = {
            "seeing_arcsec": calibration["psf_fwhm_arcsec"],
            "depth_mag": NJY_ZERO_POINT_MAG - 2.5 * float(np.log10(limit_njy)),
            "depth_sigma": self.config.depth_sigma,
            "sky_mag_arcsec2": NJY_ZERO_POINT_MAG - 2.5 * float(np.log10(sky_njy_arcsec2)),
            "sky_electrons": calibration["sky_electrons"],
            "zero_point_mag": calibration["zero_point_mag"],
            "zero_point_scatter_mag": calibration["zero_point_scatter_mag"],
            "astrometric_scatter_arcsec": calibration["astrometric_scatter_arcsec"],
            "pointing_error_arcsec": calibration["pointing_error_arcsec"],
            "source_count": len(stars),
            "psf_star_count": int(calibration["psf_star_count"]),
            "matched_count": int(calibration["matched_count"]),
            "cosmic_ray_pixels": int(plane(science, "COSMIC_RAY").sum()),
            "saturated_pixels": int(plane(science, "SATURATED").sum()),
            "unusable_fraction": float(unusable(science).mean()),
        }
        for name, value in metrics.items():
            self.metadata[name] = value
        return pipeBase.Struct(visit_metrics=metrics)
