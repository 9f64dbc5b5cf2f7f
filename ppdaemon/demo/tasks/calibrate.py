# SPDX-License-Identifier: BSD-3-Clause
"""Single-image calibration: sky, sources, PSF, astrometry and photometry."""

from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import sep
from astropy.table import Table, vstack
from astropy.wcs import WCS
from lsst.daf.butler import DeferredDatasetHandle
from lsst.images import MaskedImage
from scipy import ndimage

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC, detector_wcs
from ppdaemon.demo.tasks.astrometry import (
    AstrometricFit,
    fit_tangent_plane,
    match_catalogs,
    vote_for_offset,
)
from ppdaemon.demo.tasks.errors import TooFewStarsError, UncalibratedPointingError
from ppdaemon.demo.tasks.photometry import point_fluxes
from ppdaemon.demo.tasks.planes import make_image, plane, sky_projection, unusable
from ppdaemon.demo.tasks.psf import Moffat, fit_moffat

__all__ = ("NJY_ZERO_POINT_MAG", "CalibrateConfig", "CalibrateConnections", "CalibrateTask", "psf_of")

NJY_ZERO_POINT_MAG = 31.4
"""AB magnitude of 1 nJy."""


_COPIED_METADATA = (
    "astrometric_scatter_arcsec",
    "matched_count",
    "pointing_error_arcsec",
    "psf_fwhm_arcsec",
    "psf_star_count",
    "sky_electrons",
    "zero_point_mag",
    "zero_point_scatter_mag",
)
"""Task metadata that are copied to the image's metadata."""


def psf_of(image: MaskedImage) -> Moffat:
    """Return the PSF that is stored in a calibrated image's metadata."""
    metadata: dict[str, Any] = dict(image.metadata)
    return Moffat(float(metadata["psf_fwhm_px"]), float(metadata["psf_beta"]))


def _clipped(values: np.ndarray) -> tuple[float, float, int]:
    """Return median, robust standard deviation and number of the values left after clipping."""
    clipped = values[np.isfinite(values)]
    for _ in range(4):
        middle = np.median(clipped)
        spread = 1.4826 * np.median(np.abs(clipped - middle))
        inside = np.abs(clipped - middle) <= 3.0 * max(spread, 1e-9)
        if inside.all():
            break
        clipped = clipped[inside]
    return float(middle), float(spread), len(clipped)


class CalibrateConnections(pipeBase.PipelineTaskConnections, dimensions=("instrument", "visit", "detector")):
    """An image in electrons and reference stars as inputs, an image in nJy and its sources as outputs."""

    post_isr_image = cT.Input(
        name="post_isr_image",
        doc="Image in electrons.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "exposure", "detector"),
    )
    reference_catalog = cT.PrerequisiteInput(
        name="demo_refcat",
        doc="Reference stars: id, ra, dec in degrees, AB magnitudes by band.",
        storageClass="ArrowAstropy",
        dimensions=("htm7",),
        multiple=True,
        deferLoad=True,
    )
    preliminary_visit_image = cT.Output(
        name="preliminary_visit_image",
        doc="Sky-subtracted image in nJy with its projection.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )
    initial_stars = cT.Output(
        name="initial_stars",
        doc="Sources, with those used for the PSF and the references they match.",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
    )


class CalibrateConfig(pipeBase.PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    """Configuration of `CalibrateTask`."""

    sky_mesh_px = pexConfig.Field[int](doc="Size of the sky model's cells, pixels.", default=128)
    detection_sigma = pexConfig.Field[float](doc="Threshold of source detection.", default=5.0)
    psf_star_snr = pexConfig.Field[float](doc="Least signal to noise of a PSF star.", default=50.0)
    psf_star_max = pexConfig.Field[int](doc="Largest number of stars used for the PSF.", default=60)
    psf_star_min = pexConfig.Field[int](
        doc="Least number of PSF stars; with fewer the task fails.", default=5
    )
    match_snr = pexConfig.Field[float](doc="Least signal to noise of a matched source.", default=15.0)
    search_arcsec = pexConfig.Field[float](doc="Largest pointing error that can be corrected.", default=8.0)
    match_arcsec = pexConfig.Field[float](doc="Largest distance of a matched pair.", default=0.4)
    reference_error_arcsec = pexConfig.Field[float](
        doc="Error of the reference positions: the weight of the brightest stars.", default=0.005
    )
    match_min = pexConfig.Field[int](
        doc="Least number of matched stars; with fewer the task fails.", default=8
    )


class CalibrateTask(pipeBase.PipelineTask):
    """Measure sky and sources, fit the PSF, the projection and the zero point."""

    ConfigClass = CalibrateConfig
    _DefaultName = "calibrate"
    config: CalibrateConfig

    def run(
        self, post_isr_image: MaskedImage, reference_catalog: Sequence[DeferredDatasetHandle]
    ) -> pipeBase.Struct:
        """Calibrate one image.

        Parameters
        ----------
        post_isr_image : `lsst.images.MaskedImage`
            Image in electrons; pointing, band and detector are in its metadata.
        reference_catalog : `~collections.abc.Sequence`
            Handles of `astropy.table.Table`.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``preliminary_visit_image`` (`lsst.images.MaskedImage`, nJy) and
            ``initial_stars`` (`astropy.table.Table`).

        Raises
        ------
        TooFewStarsError
            Raised if there are too few stars for the PSF or the match.
        UncalibratedPointingError
            Raised if the header has no pointing.
        """
        guess = _header_wcs(post_isr_image.metadata)
        bad, variance = unusable(post_isr_image), post_isr_image.variance.array
        pixels, sky, segments, objects = self._find_sources(post_isr_image, bad)
        psf, sources = self._measure(pixels, variance, bad, objects)
        references = self._references(reference_catalog, guess)
        fit, matched = self._fit_astrometry(sources, references, guess)
        sources["ra"], sources["dec"] = fit.wcs.all_pix2world(sources["x"], sources["y"], 0)
        sources["ref_id"] = 0
        sources["ref_id"][matched[0]] = references["id"][matched[1]]
        reference_mag = references[f"{post_isr_image.metadata['band']}_mag"]
        zero_point_mag = self._zero_point(sources, reference_mag, matched)
        njy_per_electron = 10.0 ** (0.4 * (NJY_ZERO_POINT_MAG - zero_point_mag))
        self.metadata["sky_electrons"] = float(sky.globalback)
        self.metadata["psf_fwhm_arcsec"] = psf.fwhm_px * PIXEL_SCALE_ARCSEC
        self.metadata["source_count"] = len(sources)
        sources["flux"] *= njy_per_electron
        sources["flux_err"] *= njy_per_electron
        metadata: dict[str, Any] = dict(post_isr_image.metadata)
        metadata |= {key: self.metadata[key] for key in _COPIED_METADATA}
        metadata |= {"psf_fwhm_px": psf.fwhm_px, "psf_beta": psf.beta, "njy_per_electron": njy_per_electron}
        planes = {name: plane(post_isr_image, name) for name in post_isr_image.mask.schema.names}
        return pipeBase.Struct(
            preliminary_visit_image=make_image(
                pixels * np.float32(njy_per_electron),
                variance * np.float32(njy_per_electron**2),
                planes | {"DETECTED": segments > 0},
                u.nJy,
                projection=sky_projection(fit.wcs),
                metadata=metadata,
            ),
            initial_stars=sources,
        )

    def _find_sources(
        self, image: MaskedImage, bad: np.ndarray
    ) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray]:
        """Subtract the sky twice, the second time with the sources of the first pass masked."""
        electrons, error = image.image.array, np.sqrt(image.variance.array)
        mesh = self.config.sky_mesh_px
        first = sep.Background(electrons, mask=bad, bw=mesh, bh=mesh)
        rough = electrons - first.back()
        _, segments = sep.extract(
            rough, 3.0, err=error, mask=bad, minarea=5, deblend_cont=1.0, clean=False, segmentation_map=True
        )
        sources = ndimage.binary_dilation(segments > 0, iterations=3)
        sky = sep.Background(electrons, mask=bad | sources, bw=mesh, bh=mesh)
        pixels = electrons - sky.back()
        objects, segments = sep.extract(
            pixels, self.config.detection_sigma, err=error, mask=bad, minarea=5, segmentation_map=True
        )
        return pixels, sky, segments, objects

    def _measure(
        self,
        pixels: np.ndarray,
        variance: np.ndarray,
        bad: np.ndarray,
        objects: np.ndarray,
    ) -> tuple[Moffat, Table]:
        """Fit the PSF to the stars and measure all sources with it."""
        usable = ~bad
        radius, _ = sep.flux_radius(
            pixels, objects["x"], objects["y"], np.maximum(6.0 * objects["a"], 4.0), 0.5, mask=bad
        )
        chosen = self._psf_stars(objects, radius, variance, bad)
        guess = Moffat(2.0 * float(np.median(radius[chosen])), 3.0)
        x, y = _recenter(pixels, bad, objects["x"], objects["y"], guess.fwhm_px)
        psf = fit_moffat(pixels, usable, x[chosen], y[chosen], guess)
        x, y = _recenter(pixels, bad, objects["x"], objects["y"], psf.fwhm_px)
        fluxes = point_fluxes(pixels, variance, usable, x, y, psf)
        self.metadata["psf_star_count"] = int(chosen.sum())
        sources = Table(
            {
                "id": np.arange(len(x), dtype=np.int64),
                "x": x,
                "y": y,
                "flux": fluxes.flux,
                "flux_err": fluxes.error,
                # Of a point source under white noise, King (1983, PASP 95, 163).
                "xy_err": psf.fwhm_px / 2.3548 * fluxes.error / np.maximum(np.abs(fluxes.flux), fluxes.error),
                "half_light_px": radius,
                "flags": objects["flag"].astype(np.int32),
                "near_bad": _near(bad, objects["x"], objects["y"]),
                "psf_star": chosen,
            }
        )
        return psf, sources[np.isfinite(sources["flux"])]

    def _psf_stars(
        self,
        objects: np.ndarray,
        radius: np.ndarray,
        variance: np.ndarray,
        bad: np.ndarray,
    ) -> np.ndarray:
        """Select bright, clean, round sources of the most common small size."""
        height, width = bad.shape
        column, row = np.rint(objects["x"]).astype(int), np.rint(objects["y"]).astype(int)
        noise = np.sqrt(np.median(variance) * np.maximum(objects["npix"], 1))
        clean = (
            (objects["flag"] == 0)
            & ~_near(bad, objects["x"], objects["y"])
            & (objects["flux"] > self.config.psf_star_snr * noise)
        )
        clean &= (objects["b"] > 0.8 * objects["a"]) & (radius > 0.5)
        clean &= (column > 20) & (column < width - 20) & (row > 20) & (row < height - 20)
        if clean.sum() >= self.config.psf_star_min:
            size = np.percentile(radius[clean], 25)
            for _ in range(3):
                size = np.median(radius[clean & (np.abs(radius - size) < 0.12 * size)])
            clean &= np.abs(radius - size) < 0.1 * size
        if clean.sum() < self.config.psf_star_min:
            raise TooFewStarsError(
                f"only {int(clean.sum())} of {len(objects)} sources can be used to fit the PSF, "
                f"{self.config.psf_star_min} are needed (psf_star_min)",
                source_count=len(objects),
                star_count=int(clean.sum()),
            )
        brightest = np.argsort(np.where(clean, -objects["flux"], np.inf))[: self.config.psf_star_max]
        chosen = np.zeros(len(objects), dtype=bool)
        chosen[brightest] = clean[brightest]
        return chosen

    def _references(self, handles: Sequence[DeferredDatasetHandle], guess: WCS) -> Table:
        """Read the reference stars on and around the detector, with x and y by the guess."""
        table = vstack([handle.get() for handle in handles], metadata_conflicts="silent")
        x, y = guess.all_world2pix(table["ra"], table["dec"], 0)
        height, width = guess.array_shape
        margin = self.config.search_arcsec / PIXEL_SCALE_ARCSEC
        near = (x > -margin) & (x < width + margin) & (y > -margin) & (y < height + margin)
        table["x"], table["y"] = x, y
        return table[near]

    def _fit_astrometry(
        self, sources: Table, references: Table, guess: WCS
    ) -> tuple[AstrometricFit, tuple[np.ndarray, np.ndarray]]:
        """Find the pointing error, then match and fit twice; return the last pairs used."""
        bright = sources["flux"] > self.config.match_snr * sources["flux_err"]
        usable = np.flatnonzero(bright & (sources["flags"] <= 1) & ~sources["near_bad"])
        source_xy = np.column_stack([sources["x"], sources["y"]])[usable]
        reference_xy = np.column_stack([references["x"], references["y"]])
        offset, _ = vote_for_offset(source_xy, reference_xy, self.config.search_arcsec / PIXEL_SCALE_ARCSEC)
        reference_xy += offset
        radius_px = self.config.match_arcsec / PIXEL_SCALE_ARCSEC
        floor_px = self.config.reference_error_arcsec / PIXEL_SCALE_ARCSEC
        for _ in range(2):
            matched_sources, matched_references = match_catalogs(source_xy, reference_xy, radius_px)
            if len(matched_sources) < self.config.match_min:
                raise TooFewStarsError(
                    f"only {len(matched_sources)} of {len(source_xy)} sources match one of "
                    f"{len(reference_xy)} reference stars, {self.config.match_min} are needed (match_min)",
                    source_count=len(source_xy),
                    reference_count=len(reference_xy),
                    matched_count=len(matched_sources),
                )
            fit = fit_tangent_plane(
                source_xy[matched_sources, 0],
                source_xy[matched_sources, 1],
                references["ra"][matched_references],
                references["dec"][matched_references],
                np.hypot(sources["xy_err"][usable[matched_sources]], floor_px),
                guess,
            )
            reference_xy = np.column_stack(fit.wcs.all_world2pix(references["ra"], references["dec"], 0))
        self.metadata["pointing_error_arcsec"] = float(np.hypot(*offset)) * PIXEL_SCALE_ARCSEC
        self.metadata["astrometric_scatter_arcsec"] = fit.scatter_arcsec
        self.metadata["matched_count"] = int(fit.used.sum())
        return fit, (usable[matched_sources[fit.used]], matched_references[fit.used])

    def _zero_point(
        self,
        sources: Table,
        reference_mag: np.ndarray,
        matched: tuple[np.ndarray, np.ndarray],
    ) -> float:
        """Return the AB magnitude of one electron per exposure."""
        flux = np.asarray(sources["flux"])[matched[0]]
        difference = np.asarray(reference_mag)[matched[1]] + 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        zero_point_mag, scatter_mag, count = _clipped(difference)
        self.metadata["zero_point_mag"] = zero_point_mag
        self.metadata["zero_point_scatter_mag"] = scatter_mag
        self.metadata["zero_point_star_count"] = count
        return zero_point_mag


def _header_wcs(metadata: Mapping[str, Any]) -> WCS:
    """Return the projection from the pointing in the header."""
    keys = ("boresight_ra_deg", "boresight_dec_deg", "rotpa_deg")
    missing = [key for key in keys if metadata.get(key) is None]
    if missing:
        raise UncalibratedPointingError(
            f"the header of {metadata.get('obs_id', 'the image')} lacks {', '.join(missing)}: "
            "without a pointing the image cannot be matched to reference stars",
            missing=", ".join(missing),
        )
    ra_deg, dec_deg, rotpa_deg = (float(metadata[key]) for key in keys)
    return detector_wcs(ra_deg, dec_deg, rotpa_deg, int(metadata["detector"]))


def _near(bad: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which positions have a bad pixel within 4 pixels: their centroids are wrong."""
    height, width = bad.shape
    rows, columns = np.rint(y).astype(int).clip(0, height - 1), np.rint(x).astype(int).clip(0, width - 1)
    return np.asarray(ndimage.maximum_filter(bad, 9)[rows, columns])


def _recenter(
    pixels: np.ndarray,
    bad: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    fwhm_px: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return Gaussian-weighted centroids; the old ones where they cannot be computed."""
    new_x, new_y, flag = sep.winpos(pixels, x, y, fwhm_px / 2.3548, mask=bad)
    good = (flag == 0) & (np.hypot(new_x - x, new_y - y) < fwhm_px)
    return np.where(good, new_x, x), np.where(good, new_y, y)
