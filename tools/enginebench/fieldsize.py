# SPDX-License-Identifier: BSD-3-Clause
"""Tasks with the shape of the field's alert pipeline, on images of a whole detector: which images each
reads, whole, by component, or as cutouts of deferred ones, and which it changes. They compute little, so
that what remains is passing images on.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import astropy.units as u
import numpy as np
from lsst.images import Box, Image, MaskedImage
from lsst.pipe.base import PipelineTask, Struct
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput

from enginebench.camera import make_task
from enginebench.fullsize import AMPLIFIERS
from ppdaemon.demo.tasks.planes import PLANES

_SOURCES = 20
"""Fewer than a difference image has: reading a cutout from a file takes some milliseconds in any engine."""
_CUTOUT = 51
"""Pixels along the side of a source's cutout."""
_PIXELS, _IMAGE, _DICT = "ImageV2", "MaskedImageV2", "StructuredDataDict"
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")
_BIAS = ("instrument", "detector")


def _masked(pixels: np.ndarray, variance: np.ndarray) -> MaskedImage:
    return MaskedImage(Image(pixels, unit=u.nJy), variance=Image(variance), mask_schema=PLANES)


def _isr(self: PipelineTask, ccdExposure: Image, bias: Image, flat: Image) -> Struct:  # noqa: N803
    wide = flat.array.shape[1] // AMPLIFIERS[1]
    pixels = np.empty(flat.array.shape, dtype=np.float32)
    for column, amplifier in enumerate(np.split(ccdExposure.array, AMPLIFIERS[1], axis=1)):
        pixels[:, column * wide : (column + 1) * wide] = amplifier[:, :wide]
    pixels -= bias.array
    pixels /= flat.array
    return Struct(outputExposure=_masked(pixels, np.full_like(pixels, 100.0)))


def _calibrate(self: PipelineTask, exposures: Sequence[MaskedImage]) -> Struct:
    image = exposures[0].copy()
    image.image.array -= np.float32(np.median(image.image.array[::16, ::16]))
    return Struct(exposure=image, stars={"count": _SOURCES}, background={"level": 1.0})


def _warp(self: PipelineTask, bbox: Box, coaddExposures: Sequence[Any]) -> Struct:  # noqa: N803
    """Sum the parts of all patches that are under the image."""
    patches = [handle.get(parameters={"bbox": bbox}).array for handle in coaddExposures]
    mean = sum(patches[1:], patches[0].copy()) / np.float32(len(patches))
    return Struct(template=_masked(mean, np.full_like(mean, 10.0)))


def _subtract(self: PipelineTask, template: MaskedImage, science: MaskedImage, sources: Any) -> Struct:
    matched, difference = template.copy(), science.copy()
    difference.image.array -= matched.image.array
    return Struct(difference=difference, matchedTemplate=matched, kernel={"of": sources["count"]})


def _detect(
    self: PipelineTask,
    science: MaskedImage,
    matchedTemplate: MaskedImage,  # noqa: N803
    difference: MaskedImage,
    kernel: Any,
) -> Struct:
    """Find the brightest pixels, and mark them in the image itself."""
    pixels = difference.image.array
    rows, columns = np.unravel_index(np.argpartition(pixels, -_SOURCES, axis=None)[-_SOURCES:], pixels.shape)
    difference.metadata["sources"] = _SOURCES
    places = {"x": columns.tolist(), "y": rows.tolist()}
    return Struct(diaSources=places, subtractedMeasuredExposure=difference)


def _filter(self: PipelineTask, diaSources: Mapping[str, Any], diffImUnit: Any) -> Struct:  # noqa: N803
    return Struct(filtered={**diaSources, "unit": str(diffImUnit)})


def _classify(
    self: PipelineTask,
    science: Any,
    template: Any,
    difference: Any,
    diaSources: Mapping[str, Any],  # noqa: N803
) -> Struct:
    """Read a cutout of three deferred images for each source, as the field's task does."""
    scores = []
    for box in _cutouts(science, diaSources):
        parts = [each.get(parameters={"bbox": box}) for each in (science, template, difference)]
        scores.append(float(sum(part.image.array.mean() for part in parts)))
    return Struct(scores={"scores": scores})


def _cutouts(handle: Any, sources: Mapping[str, Any]) -> list[Box]:
    box = handle.get(component="bbox")
    sides = []
    for size, name in ((box.y.size, "y"), (box.x.size, "x")):
        half = _CUTOUT // 2
        sides.append([min(max(place, half), size - half - 1) for place in sources[name]])
    half = _CUTOUT // 2
    return [
        Box.factory[y - half : y + half + 1, x - half : x + half + 1] for y, x in zip(*sides, strict=True)
    ]


def _standardize(self: PipelineTask, filtered: Any, scores: Any, diffIm: MaskedImage) -> Struct:  # noqa: N803
    return Struct(table={**filtered, **scores, "sky": float(diffIm.image.array[::16, ::16].mean())})


def _associate(
    self: PipelineTask,
    table: Mapping[str, Any],
    diffIm: MaskedImage,  # noqa: N803
    exposure: MaskedImage,
    template: MaskedImage,
) -> Struct:
    levels = [float(each.image.array[::16, ::16].mean()) for each in (diffIm, exposure, template)]
    return Struct(associated={**table, "levels": levels})


def _package(self: PipelineTask, associated: Mapping[str, Any], diffIm: Any, template: Any) -> Struct:  # noqa: N803
    sums = []
    for box in _cutouts(diffIm, associated):
        sums.append(
            [float(each.get(parameters={"bbox": box}).image.array.sum()) for each in (diffIm, template)]
        )
    return Struct(alerts={"sums": sums})


def _tasks() -> list[type[PipelineTask]]:
    def reads(name: str, storage: str, dimensions: Sequence[str] = _VISIT, **more: Any) -> Input:
        return Input(name=name, doc="input", storageClass=storage, dimensions=dimensions, **more)

    def makes(name: str, storage: str, dimensions: Sequence[str] = _VISIT) -> Output:
        return Output(name=name, doc="output", storageClass=storage, dimensions=dimensions)

    calib = partial(PrerequisiteInput, doc="calibration", storageClass=_PIXELS, isCalibration=True)
    image = partial(reads, storage=_IMAGE)
    deferred = partial(image, deferLoad=True)
    patches = {"multiple": True, "deferLoad": True, "deferGraphConstraint": True}
    task = partial(make_task, globals())
    return [
        task(
            "isr",
            _EXPOSURE,
            {
                "ccdExposure": reads("raw", _PIXELS, _EXPOSURE),
                "bias": calib(name="bias", dimensions=_BIAS),
                "flat": calib(name="flat", dimensions=(*_BIAS, "physical_filter")),
                "outputExposure": makes("post_isr_image", _IMAGE, _EXPOSURE),
            },
            _isr,
        ),
        task(
            "calibrateImage",
            _VISIT,
            {
                "exposures": image("post_isr_image", dimensions=_EXPOSURE, multiple=True),
                "exposure": makes("preliminary_visit_image", _IMAGE),
                "stars": makes("single_visit_star_footprints", _DICT),
                "background": makes("preliminary_visit_image_background", _DICT),
            },
            _calibrate,
        ),
        task(
            "buildTemplate",
            _VISIT,
            {
                "bbox": reads("preliminary_visit_image.bbox", "BoxV2"),
                "coaddExposures": reads("template", _PIXELS, ("skymap", "tract", "patch", "band"), **patches),
                "template": makes("template_detector", _IMAGE),
            },
            _warp,
        ),
        task(
            "subtractImages",
            _VISIT,
            {
                "template": image("template_detector"),
                "science": image("preliminary_visit_image"),
                "sources": reads("single_visit_star_footprints", _DICT),
                "difference": makes("difference_image_predetection", _IMAGE),
                "matchedTemplate": makes("template_matched", _IMAGE),
                "kernel": makes("difference_kernel", _DICT),
            },
            _subtract,
        ),
        task(
            "detectAndMeasureDiaSource",
            _VISIT,
            {
                "science": image("preliminary_visit_image"),
                "matchedTemplate": image("template_matched"),
                "difference": image("difference_image_predetection"),
                "kernel": reads("difference_kernel", _DICT),
                "diaSources": makes("dia_source_unfiltered", _DICT),
                "subtractedMeasuredExposure": makes("difference_image", _IMAGE),
            },
            _detect,
        ),
        task(
            "filterDiaSource",
            _VISIT,
            {
                "diaSources": reads("dia_source_unfiltered", _DICT),
                "diffImUnit": reads("difference_image.unit", "AstropyUnit"),
                "filtered": makes("dia_source_unstandardized", _DICT),
            },
            _filter,
        ),
        task(
            "computeReliability",
            _VISIT,
            {
                "science": deferred("preliminary_visit_image"),
                "template": deferred("template_detector"),
                "difference": deferred("difference_image"),
                "diaSources": reads("dia_source_unstandardized", _DICT),
                "scores": makes("dia_source_reliability", _DICT),
            },
            _classify,
        ),
        task(
            "standardizeDiaSource",
            _VISIT,
            {
                "filtered": reads("dia_source_unstandardized", _DICT),
                "scores": reads("dia_source_reliability", _DICT),
                "diffIm": image("difference_image"),
                "table": makes("dia_source_detector", _DICT),
            },
            _standardize,
        ),
        task(
            "associateApdb",
            _VISIT,
            {
                "table": reads("dia_source_detector", _DICT),
                "diffIm": image("difference_image"),
                "exposure": image("preliminary_visit_image"),
                "template": image("template_detector"),
                "associated": makes("dia_source_apdb", _DICT),
            },
            _associate,
        ),
        task(
            "packageAlerts",
            _VISIT,
            {
                "associated": reads("dia_source_apdb", _DICT),
                "diffIm": deferred("difference_image"),
                "template": deferred("template_detector"),
                "alerts": makes("alerts", _DICT),
            },
            _package,
        ),
    ]


TASKS = _tasks()
