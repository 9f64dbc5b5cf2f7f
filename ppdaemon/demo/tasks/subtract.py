# SPDX-License-Identifier: BSD-3-Clause
"""Image subtraction: science minus the warped and PSF-matched template."""

from collections.abc import Sequence

import astropy.units as u
import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import sep
from astropy.table import Table
from lsst.daf.butler import DeferredDatasetHandle
from lsst.images import MaskedImage
from scipy import ndimage

from ppdaemon.demo.tasks.calibrate import psf_of
from ppdaemon.demo.tasks.errors import TooFewStarsError
from ppdaemon.demo.tasks.matching import MatchingKernel, convolve, fit_matching_kernel
from ppdaemon.demo.tasks.planes import make_image, plane, projection_of, unusable
from ppdaemon.demo.tasks.warp import Warped, warp_patches

__all__ = ("SubtractConfig", "SubtractConnections", "SubtractTask")


class SubtractConnections(pipeBase.PipelineTaskConnections, dimensions=("instrument", "visit", "detector")):
    """An image and the template patches that overlap it as inputs, their difference as output."""

    science = cT.Input(
        name="preliminary_visit_image",
        doc="Calibrated image, nJy.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )
    stars = cT.Input(
        name="initial_stars",
        doc="Sources of the image.",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
    )
    templates = cT.Input(
        name="template",
        doc="Patches of the template, nJy.",
        storageClass="MaskedImageV2",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        # Its graph constraint is not deferred: a visit without a template in
        # its band has an empty graph, and the next pipeline is used.
        deferLoad=True,
    )
    template_warp = cT.Output(
        name="template_warp",
        doc="The template on the image's pixels, with its own PSF.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )
    difference_image = cT.Output(
        name="difference_image",
        doc="Image minus matched template, nJy.",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "visit", "detector"),
    )


class SubtractConfig(pipeBase.PipelineTaskConfig, pipelineConnections=SubtractConnections):
    """Configuration of `SubtractTask`."""

    coverage_min = pexConfig.RangeField(
        dtype=float,
        doc="Least fraction of the image covered by the template; with less there is no work.",
        default=0.2,
        min=0.0,
        max=1.0,
    )
    kernel_star_snr = pexConfig.Field[float](
        doc="Least signal to noise of a star for the kernel.", default=40.0
    )
    kernel_star_max = pexConfig.Field[int](doc="Largest number of stars used for the kernel.", default=50)
    kernel_star_min = pexConfig.Field[int](doc="Least number of stars; with fewer the task fails.", default=5)
    sky_mesh_px = pexConfig.Field[int](
        doc="Size of the cells of the residual sky model, pixels.", default=128
    )


class SubtractTask(pipeBase.PipelineTask):
    """Warp the template, match its PSF to the image's, and subtract it."""

    ConfigClass = SubtractConfig
    _DefaultName = "subtract"
    config: SubtractConfig

    def run(
        self, science: MaskedImage, stars: Table, templates: Sequence[DeferredDatasetHandle]
    ) -> pipeBase.Struct:
        """Subtract the template.

        Parameters
        ----------
        science : `lsst.images.MaskedImage`
            Calibrated image, nJy.
        stars : `astropy.table.Table`
            Sources in the image, from `CalibrateTask`.
        templates : `~collections.abc.Sequence`
            Handles of `lsst.images.MaskedImage`, nJy.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``template_warp`` and ``difference_image``, both
            `lsst.images.MaskedImage` in nJy.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            Raised if the template covers too little of the image.
        TooFewStarsError
            Raised if no kernel can be fitted.
        """
        margin = round(3.0 * psf_of(science).fwhm_px)
        # Template pixels beyond the edge contribute to the image after the convolution.
        around = _warp_around(science, templates, margin)
        warped = around.cropped(margin)
        self.metadata["template_patch_count"] = warped.patch_count
        self.metadata["template_coverage"] = warped.coverage
        if warped.coverage < self.config.coverage_min:
            raise pipeBase.NoWorkFound(
                f"the template covers {warped.coverage:.0%} of the image, "
                f"{self.config.coverage_min:.0%} are needed"
            )
        bad = unusable(science) | warped.no_data | warped.saturated
        kernel = self._fit_kernel(science, stars, warped, bad, margin)
        template_planes = {"NO_DATA": warped.no_data, "SATURATED": warped.saturated}
        return pipeBase.Struct(
            template_warp=make_image(
                warped.pixels, warped.variance, template_planes, u.nJy, projection=science.sky_projection
            ),
            difference_image=self._subtract(science, around, margin, kernel, bad),
        )

    def _subtract(
        self, science: MaskedImage, around: Warped, margin: int, kernel: MatchingKernel, bad: np.ndarray
    ) -> MaskedImage:
        """Subtract the convolved template, then the residual sky."""
        inner = slice(margin, -margin), slice(margin, -margin)
        matched = convolve(around.pixels, kernel.pixels)[inner]
        variance = science.variance.array + convolve(around.variance, kernel.pixels**2)[inner]
        difference = science.image.array - matched - np.float32(kernel.background)
        # Near a hole in the template the convolution misses light.
        incomplete = ndimage.maximum_filter(around.no_data, 2 * margin + 1)[inner]
        mesh = self.config.sky_mesh_px
        difference -= sep.Background(difference, mask=bad | incomplete, bw=mesh, bh=mesh).back()
        difference[incomplete] = 0.0
        planes = {name: plane(science, name) for name in science.mask.schema.names}
        planes["NO_DATA"] = planes["NO_DATA"] | incomplete
        planes["SATURATED"] = planes["SATURATED"] | around.saturated[inner]
        metadata = dict(science.metadata) | {
            "kernel_flux_ratio": kernel.flux_ratio,
            "kernel_chi2_per_pixel": kernel.chi2_per_pixel,
            "template_coverage": self.metadata["template_coverage"],
        }
        return make_image(
            difference,
            np.maximum(variance, science.variance.array),
            planes,
            u.nJy,
            projection=science.sky_projection,
            metadata=metadata,
        )

    def _fit_kernel(
        self, science: MaskedImage, stars: Table, warped: Warped, bad: np.ndarray, half_width_px: int
    ) -> MatchingKernel:
        """Fit the kernel on bright sources of any shape."""
        psf = psf_of(science)
        bright = stars[stars["flux"] > self.config.kernel_star_snr * stars["flux_err"]]
        bright = bright[np.argsort(-np.asarray(bright["flux"]))][: self.config.kernel_star_max]
        try:
            kernel = fit_matching_kernel(
                warped.pixels,
                science.image.array,
                science.variance.array,
                ~bad,
                np.asarray(bright["x"]),
                np.asarray(bright["y"]),
                # The typical template has two thirds of the image's seeing.
                width_px=0.35 * psf.fwhm_px,
                half_width_px=half_width_px,
                stamp_half_width_px=round(3.5 * psf.fwhm_px),
            )
        except ValueError as error:
            raise TooFewStarsError(str(error), star_count=len(bright)) from error
        if kernel.stamp_count < self.config.kernel_star_min:
            raise TooFewStarsError(
                f"only {kernel.stamp_count} of {len(bright)} stars fit a common matching kernel, "
                f"{self.config.kernel_star_min} are needed",
                star_count=len(bright),
                stamp_count=kernel.stamp_count,
            )
        self.metadata["kernel_stamp_count"] = kernel.stamp_count
        self.metadata["kernel_flux_ratio"] = kernel.flux_ratio
        self.metadata["kernel_chi2_per_pixel"] = kernel.chi2_per_pixel
        return kernel


def _warp_around(science: MaskedImage, templates: Sequence[DeferredDatasetHandle], margin_px: int) -> Warped:
    """Warp the template to the image's pixels and a margin on all sides."""
    wcs = projection_of(science).deepcopy()
    wcs.wcs.crpix = wcs.wcs.crpix + margin_px
    height, width = science.image.array.shape
    shape = height + 2 * margin_px, width + 2 * margin_px
    return warp_patches((handle.get() for handle in templates), wcs, shape)
