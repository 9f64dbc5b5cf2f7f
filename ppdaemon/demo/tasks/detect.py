# SPDX-License-Identifier: BSD-3-Clause
"""Find changes: point sources, brighter or fainter, in a difference image."""

from collections.abc import Mapping
from typing import Any

import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import sep
from astropy.table import Table
from lsst.images import MaskedImage
from scipy import ndimage

from ppdaemon.demo.tasks.calibrate import psf_of
from ppdaemon.demo.tasks.matching import convolve
from ppdaemon.demo.tasks.photometry import point_fluxes
from ppdaemon.demo.tasks.planes import plane, projection_of, unusable
from ppdaemon.demo.tasks.psf import Moffat
from ppdaemon.demo.tasks.stamps import cut_stamps

__all__ = ("DetectConfig", "DetectConnections", "DetectTask", "significance_image")


def significance_image(
    difference: np.ndarray,
    variance: np.ndarray,
    usable: np.ndarray,
    psf: Moffat,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the significance of a point source at each pixel.

    This is the matched filter for noise that differs from pixel to pixel: the
    flux of the best-fitting point source over its standard deviation.

    Parameters
    ----------
    difference, variance : `numpy.ndarray`, (rows, columns)
        Image and its variance.
    usable : `numpy.ndarray` of `bool`, (rows, columns)
        Pixels that are used; the others have weight 0.
    psf : `~ppdaemon.demo.tasks.psf.Moffat`
        Profile of a point source.

    Returns
    -------
    significance : `numpy.ndarray`, (rows, columns)
        Flux over error, negative for sources that became fainter.
    seen : `numpy.ndarray`, (rows, columns)
        Fraction of the PSF's information in usable pixels, 0 to 1.
    """
    profile = psf.stamp(psf.half_width_px)
    weight = np.where(usable, 1.0 / np.maximum(variance, 1e-30), 0.0).astype(np.float32)
    # Float32 transforms lose precision where values differ by many orders.
    scale = np.float32(1.0 / np.median(weight[usable])) if usable.any() else np.float32(1.0)
    signal = convolve(difference * weight * scale, profile)
    information = np.maximum(convolve(weight * scale, profile**2), 1e-12)
    seen = convolve(usable.astype(np.float32), profile**2) / np.float32((profile**2).sum())
    return signal / np.sqrt(information * scale), seen


class DetectConnections(pipeBase.PipelineTaskConnections, dimensions=("instrument", "visit", "detector")):
    """A difference image as input, a table of changed sources as output."""

    science = cT.Input(
        name="preliminary_visit_image",
        doc="Calibrated image, nJy.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )
    difference_image = cT.Input(
        name="difference_image",
        doc="Image minus matched template, nJy.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )
    dia_source_detector = cT.Output(
        name="dia_source_detector",
        doc="Candidates with their measurements; `rejected` is the reason for a rejection.",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
    )


class DetectConfig(pipeBase.PipelineTaskConfig, pipelineConnections=DetectConnections):
    """Configuration of `DetectTask`."""

    threshold_sigma = pexConfig.Field[float](doc="Least significance of a candidate.", default=6.0)
    matching_error = pexConfig.Field[float](
        doc="Error of the matched template relative to its brightness; added to the noise.", default=0.03
    )
    edge_px = pexConfig.RangeField(
        dtype=int, doc="Rows and columns at the edge that are not searched.", default=1, min=1
    )
    seen_min = pexConfig.Field[float](doc="Least share of the PSF in usable pixels.", default=0.5)
    dipole_max = pexConfig.Field[float](
        doc="Largest flux of the other sign within two PSF widths, relative to the candidate's.", default=0.5
    )
    sharpness_range = pexConfig.ListField[float](
        doc="Central to total light relative to the PSF's, beyond twice its error.", default=[0.6, 1.5]
    )
    misfit_max = pexConfig.Field[float](
        doc="Largest residual of the PSF fit relative to its core, beyond three times its noise.",
        default=0.25,
    )


class DetectTask(pipeBase.PipelineTask):
    """Detect point sources in a difference image and reject artifacts."""

    ConfigClass = DetectConfig
    _DefaultName = "detect"
    config: DetectConfig

    def run(self, science: MaskedImage, difference_image: MaskedImage) -> pipeBase.Struct:
        """Find and measure candidates.

        Parameters
        ----------
        science, difference_image : `lsst.images.MaskedImage`
            Image and difference, nJy, on one pixel grid.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``dia_source_detector``: `astropy.table.Table`, fluxes in nJy,
            positions in 0-based pixels and degrees; ``rejected`` is empty for
            accepted candidates.
        """
        psf = psf_of(difference_image)
        difference = difference_image.image.array
        template = science.image.array - difference
        variance = difference_image.variance.array + (self.config.matching_error * template) ** 2
        usable = ~unusable(difference_image)
        significance, seen = significance_image(difference, variance, usable, psf)
        x, y = self._peaks(significance, seen)
        table = self._measure(difference_image, science, variance, usable, x, y, psf)
        peaks = significance[np.rint(table["y"]).astype(int), np.rint(table["x"]).astype(int)]
        table["snr"] = np.abs(peaks)
        table["rejected"] = self._rejection_reasons(table, difference_image)
        self.metadata["candidate_count"] = len(table)
        for reason in np.unique(table["rejected"]) if len(table) else ():
            self.metadata[f"rejected_{reason}" if reason else "dia_source_count"] = int(
                (table["rejected"] == reason).sum()
            )
        for name, value in _observation(difference_image.metadata).items():
            table[name] = np.full(len(table), value)
        return pipeBase.Struct(dia_source_detector=table)

    def _peaks(self, significance: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the significance's peaks, positive and negative."""
        edge = np.ones(seen.shape, dtype=bool)
        inner = slice(self.config.edge_px, -self.config.edge_px)
        edge[inner, inner] = False
        hidden = edge | (seen < self.config.seen_min)
        objects = sep.extract(
            np.abs(significance), self.config.threshold_sigma, mask=hidden, minarea=1, filter_kernel=None
        )
        return _refine(np.abs(significance), objects["xcpeak"], objects["ycpeak"])

    def _measure(
        self,
        difference_image: MaskedImage,
        science: MaskedImage,
        variance: np.ndarray,
        usable: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        psf: Moffat,
    ) -> Table:
        """Measure fluxes and shapes at the peaks."""
        difference = difference_image.image.array
        fluxes = point_fluxes(difference, difference_image.variance.array, usable, x, y, psf)
        science_fluxes = point_fluxes(science.image.array, science.variance.array, usable, x, y, psf)
        ra_deg, dec_deg = projection_of(difference_image).all_pix2world(x, y, 0)
        snr = np.abs(fluxes.flux) / fluxes.error
        table = Table(
            {
                "x": x,
                "y": y,
                # Centroid error of a point source under white noise, King (1983).
                "xy_err": psf.fwhm_px / 2.3548 / np.maximum(snr, 1.0),
                "ra": ra_deg,
                "dec": dec_deg,
                "flux": fluxes.flux,
                "flux_err": fluxes.error,
                "chi2": fluxes.chi2,
                "pixel_count": fluxes.pixel_count,
                "science_flux": science_fluxes.flux,
                "science_flux_err": science_fluxes.error,
            }
        )
        shapes = _shapes(difference, variance, usable, table, psf)
        for name, values in shapes.items():
            table[name] = values
        return table[np.isfinite(table["flux"])]

    def _rejection_reasons(self, table: Table, difference_image: MaskedImage) -> np.ndarray:
        """Return the reason for rejecting each candidate; the empty string for accepted ones."""
        saturated = ndimage.maximum_filter(plane(difference_image, "SATURATED"), 13)
        near_saturated = saturated[np.rint(table["y"]).astype(int), np.rint(table["x"]).astype(int)]
        low, high = self.config.sharpness_range
        height, width = difference_image.image.array.shape
        edge = self.config.edge_px
        # A source outside the searched area has its peak on the border of the area.
        beyond = (table["x"] < edge + 0.5) | (table["x"] > width - edge - 1.5)
        beyond |= (table["y"] < edge + 0.5) | (table["y"] > height - edge - 1.5)
        sharpness, error = table["sharpness"], table["sharpness_err"]
        reasons = {
            "edge": beyond,
            "saturated": near_saturated,
            "dipole": table["other_sign"] > self.config.dipole_max,
            "sharpness": (sharpness + 2.0 * error < low) | (sharpness - 2.0 * error > high),
            "misfit": table["misfit"] > self.config.misfit_max,
        }
        return np.select(list(reasons.values()), list(reasons), default="").astype("U16")


def _observation(metadata: Mapping[str, Any]) -> dict[str, float | str]:
    """Return image metadata for each row: tables in the Butler have no metadata."""
    return {
        "band": str(metadata["band"]),
        "midpoint_mjd_tai": (float(metadata["mjd_begin_tai"]) + float(metadata["mjd_end_tai"])) / 2.0,
        "exposure_time_s": float(metadata["exposure_time_s"]),
        "psf_fwhm_px": float(metadata["psf_fwhm_px"]),
    }


def _refine(image: np.ndarray, column: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move peaks to the maxima of parabolas through them and their neighbors."""
    height, width = image.shape
    column, row = column.clip(1, width - 2), row.clip(1, height - 2)
    middle = image[row, column]
    shifts = []
    for before, after in (
        (image[row, column - 1], image[row, column + 1]),
        (image[row - 1, column], image[row + 1, column]),
    ):
        curvature = before - 2.0 * middle + after
        shift = np.where(curvature < 0, 0.5 * (before - after) / np.where(curvature < 0, curvature, 1.0), 0.0)
        shifts.append(np.clip(shift, -0.5, 0.5))
    return column + shifts[0], row + shifts[1]


def _shapes(
    difference: np.ndarray,
    variance: np.ndarray,
    usable: np.ndarray,
    table: Table,
    psf: Moffat,
) -> dict[str, np.ndarray]:
    """Compare candidates with the PSF: sharpness, light of the other sign, residual."""
    half_width = psf.half_width_px
    x, y = np.asarray(table["x"]), np.asarray(table["y"])
    sign = np.sign(np.asarray(table["flux"]))[:, None, None]
    flux = np.maximum(np.abs(np.asarray(table["flux"])), 1e-30)
    values, inside, dx, dy = cut_stamps(difference, usable, x, y, half_width)
    noise = cut_stamps(variance, usable, x, y, half_width).values
    values = np.where(inside, sign * values, 0.0)
    profile = psf.stamps(dx, dy, half_width)
    offset = np.arange(-half_width, half_width + 1)
    radius = np.hypot(offset[:, None] - dy[:, None, None], offset[None, :] - dx[:, None, None])
    core = inside & (radius < 0.5 * psf.fwhm_px)
    ring = inside & (radius < 2.0 * psf.fwhm_px)

    def total(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(where, pixels, 0.0).sum(axis=(1, 2)))

    center = inside & (radius < 1.0)
    central = np.maximum(total(profile, center), 1e-30) * flux
    opposite = np.where(values < -3.0 * np.sqrt(noise), -values, 0.0)
    residual = values - flux[:, None, None] * profile
    misfit2 = total(residual**2, core) - total(noise, core) - 3.0 * np.sqrt(2.0 * total(noise**2, core))
    expected2 = np.maximum(total(profile**2, core), 1e-30) * flux**2
    return {
        "sharpness": np.where(center.any(axis=(1, 2)), total(values, center) / central, 1.0),
        "sharpness_err": np.sqrt(total(noise, center)) / central,
        "other_sign": total(opposite, ring) / flux,
        "misfit": np.sqrt(np.maximum(misfit2, 0.0) / expected2),
    }
