# SPDX-License-Identifier: BSD-3-Clause
"""A detector of 4072 x 4000 pixels with 16 amplifiers: its raws, its central repo, and tasks that do a
detector's work on it: assembly, sky, template of four patches, subtraction, sources.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DatasetType,
    FormatterV2,
    Timespan,
)
from lsst.images import Image, MaskedImage
from lsst.pipe.base import PipelineTask, Struct
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput

from enginebench.camera import BlankCam, BlankFormatter, make_task
from ppdaemon.demo.geometry import CAMERA_NAME, FILTER_BANDS
from ppdaemon.demo.plan import ExposurePlan, primary_header
from ppdaemon.demo.raws import encode_sidecar
from ppdaemon.demo.sky import demo_skies
from ppdaemon.demo.skymap import TractMap
from ppdaemon.demo.tasks.planes import PLANES
from ppdaemon.middleware.export.mark import mark_datastore

SHAPE = (4000, 4072)
"""Rows and columns of imaging pixels."""
SMALL = (400, 416)
"""The same to test the bench."""
SKYMAP = "bench"
PATCHES = 4
AMPLIFIERS = (2, 8)
"""Rows and columns of amplifiers."""
OVERSCAN = 64
"""Columns of each amplifier."""
_BIAS_ADU, _SKY_ADU, _NOISE_ADU = 1000, 800.0, 10.0
_MESH = 8
"""Cells of the sky along each side of an amplifier."""
_THRESHOLD = 5.0
"""Of a source, in standard deviations."""
_BLOCK = 2880

_IMAGE, _MASKED = "ImageV2", "MaskedImageV2"
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")
_BIAS = ("instrument", "detector")
_FLAT = (*_BIAS, "physical_filter")
_TEMPLATE = ("skymap", "tract", "patch", "band")


class RawFormatter(BlankFormatter):
    """Read all amplifiers of a raw into one image."""

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Return the pixels in ADU, overscan included."""
        with fits.open(path, memmap=False) as hdus:
            rows = [
                np.hstack([hdu.data for hdu in hdus[1:][k :: AMPLIFIERS[0]]]) for k in range(AMPLIFIERS[0])
            ]
        return Image(np.vstack(rows).astype(np.float32))


class FullSizeCam(BlankCam):
    """DemoCam with raws of 16 amplifiers."""

    raw_definition = ("raw", _EXPOSURE, _IMAGE)

    def getRawFormatter(self, dataId: Any) -> type[FormatterV2]:  # noqa: D102, N802, N803
        return RawFormatter


class FullSizeRaws:
    """Raws that differ in their headers only: making noise would take longer than processing it."""

    def __init__(self, shape: tuple[int, int]):
        rows, columns = shape[0] // AMPLIFIERS[0], shape[1] // AMPLIFIERS[1] + OVERSCAN
        random = np.random.default_rng(1)
        amplifiers = []
        for number in range(AMPLIFIERS[0] * AMPLIFIERS[1]):
            pixels = random.normal(_BIAS_ADU, _NOISE_ADU, (rows, columns))
            pixels[:, :-OVERSCAN] += _SKY_ADU
            hdu = fits.ImageHDU(pixels.astype(np.int16), name=f"C{number:02}")
            content = hdu.data.astype(">i2").tobytes()
            padding = bytes(-len(content) % _BLOCK)
            amplifiers.append(hdu.header.tostring().encode() + content + padding)
        self._amplifiers = b"".join(amplifiers)

    def encode(self, plan: ExposurePlan, detector: int, name: str) -> tuple[bytes, bytes]:
        """Return a raw and its sidecar."""
        header = primary_header(plan, detector, name)
        primary = fits.PrimaryHDU()
        for key, value in header.items():
            primary.header[key] = value
        return primary.header.tostring().encode() + self._amplifiers, encode_sidecar(header)


def make_central(root: Path, detector: int, filters: Iterable[str], shape: tuple[int, int]) -> None:
    """Make a central repo with the calibrations of one detector, and the patches over it, in some
    filters.
    """
    with Butler.from_config(Butler.makeRepo(str(root)), writeable=True) as butler:
        camera = FullSizeCam()
        camera.register(butler.registry)
        define = partial(DatasetType, universe=butler.dimensions)
        for dataset_type in (
            define("raw", _EXPOSURE, _IMAGE),
            define("bias", _BIAS, _IMAGE, isCalibration=True),
            define("flat", _FLAT, _IMAGE, isCalibration=True),
            define("template", _TEMPLATE, _IMAGE),
        ):
            butler.registry.registerDatasetType(dataset_type)
        calibs, templates = camera.makeCalibrationCollectionName(), camera.makeCollectionName("templates")
        butler.collections.register(calibs, CollectionType.CALIBRATION)
        for run in (f"{calibs}/bench", templates):
            butler.collections.register(run)
        data_id = {"instrument": CAMERA_NAME, "detector": detector}
        noise = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
        flat = Image(1 + 0.01 * noise)
        refs = [butler.put(Image(noise), "bias", data_id, run=f"{calibs}/bench")]
        refs += [
            butler.put(flat, "flat", data_id, physical_filter=name, run=f"{calibs}/bench") for name in filters
        ]
        butler.registry.certify(calibs, refs, Timespan(None, None))
        _put_templates(
            butler, Image(_SKY_ADU / 100 * noise), [FILTER_BANDS[name] for name in filters], templates
        )
        mark_datastore(butler)


def _put_templates(butler: Butler, image: Image, bands: Iterable[str], run: str) -> None:
    """Put four patches in each band, each of which has the region of the whole tract."""
    tract = TractMap.around(demo_skies()[0])
    region = tract.region(tract.projection.pixel_frame.bbox)
    sync = butler.registry.syncDimensionData
    sizes = {"tract_max": 1, "patch_nx_max": 2, "patch_ny_max": 2}
    sync("skymap", {"name": SKYMAP, "hash": b"bench", **sizes})
    sync("tract", {"skymap": SKYMAP, "id": 0, "region": region})
    for patch in range(PATCHES):
        place = {"skymap": SKYMAP, "tract": 0, "patch": patch}
        row, column = divmod(patch, 2)
        record = {
            "skymap": SKYMAP,
            "tract": 0,
            "id": patch,
            "cell_x": column,
            "cell_y": row,
            "region": region,
        }
        sync("patch", record)
        for band in bands:
            butler.put(image, "template", place, band=band, run=run)


# --- tasks -----------------------------------------------------------------


def _assemble(self: PipelineTask, raw: Image, bias: Image, flat: Image) -> Struct:
    """Subtract overscan and bias, divide by the flat."""
    rows, columns = (side // count for side, count in zip(raw.array.shape, AMPLIFIERS, strict=True))
    pixels = np.empty(flat.array.shape, dtype=np.float32)
    for row, part in enumerate(np.split(raw.array, AMPLIFIERS[0], axis=0)):
        for column, amplifier in enumerate(np.split(part, AMPLIFIERS[1], axis=1)):
            level = np.median(amplifier[:, -OVERSCAN:], axis=1, keepdims=True)
            wide = columns - OVERSCAN
            place = np.s_[row * rows : (row + 1) * rows, column * wide : (column + 1) * wide]
            pixels[place] = amplifier[:, :-OVERSCAN] - level
    pixels = (pixels - bias.array) / flat.array
    variance = Image(np.maximum(pixels, 1.0) + np.float32(_NOISE_ADU**2))
    return Struct(output=MaskedImage(Image(pixels), variance=variance, mask_schema=PLANES))


def _subtract_sky(self: PipelineTask, image: MaskedImage) -> Struct:
    """Subtract the median of each cell."""
    output = image.copy()
    for rows in np.array_split(output.image.array, AMPLIFIERS[0] * _MESH, axis=0):
        for cell in np.array_split(rows, AMPLIFIERS[1] * _MESH, axis=1):
            cell -= np.median(cell)
    return Struct(output=output)


def _subtract(self: PipelineTask, science: MaskedImage, templates: Sequence[Any]) -> Struct:
    """Shift all patches by half a pixel, and subtract their mean."""
    mean = np.zeros(science.image.array.shape, dtype=np.float32)
    for handle in templates:
        patch = handle.get().array
        mean += 0.25 * (patch + np.roll(patch, 1, 0) + np.roll(patch, 1, 1) + np.roll(patch, (1, 1), (0, 1)))
    mean /= len(templates)
    warp, difference = science.copy(), science.copy()
    warp.image.array[:] = mean
    difference.image.array -= mean
    return Struct(warp=warp, difference=difference)


def _detect(self: PipelineTask, difference: MaskedImage) -> Struct:
    """Count the significant pixels of the smoothed difference."""
    signal = difference.image.array / np.sqrt(difference.variance.array)
    for axis in (0, 1):
        signal = (np.roll(signal, 1, axis) + signal + np.roll(signal, -1, axis)) / np.sqrt(np.float32(3))
    return Struct(sources={"pixels": int(np.count_nonzero(np.abs(signal) > _THRESHOLD))})


def _tasks() -> list[type[PipelineTask]]:
    image = partial(dict, doc="image", storageClass=_IMAGE)
    masked = partial(dict, doc="image", storageClass=_MASKED, dimensions=_VISIT)
    taken = masked(name="post_isr", dimensions=_EXPOSURE)
    calib = partial(image, isCalibration=True)
    templates = image(name="template", dimensions=_TEMPLATE, multiple=True, deferLoad=True)
    sources = {"name": "sources", "doc": "number", "storageClass": "StructuredDataDict", "dimensions": _VISIT}
    assemble = {
        "raw": Input(**image(name="raw", dimensions=_EXPOSURE)),
        "bias": PrerequisiteInput(**calib(name="bias", dimensions=_BIAS)),
        "flat": PrerequisiteInput(**calib(name="flat", dimensions=_FLAT)),
        "output": Output(**taken),
    }
    sky = {"image": Input(**taken), "output": Output(**masked(name="science"))}
    subtract = {
        "science": Input(**masked(name="science")),
        "templates": Input(**templates),
        "warp": Output(**masked(name="template_warp")),
        "difference": Output(**masked(name="difference")),
    }
    detect = {"difference": Input(**masked(name="difference")), "sources": Output(**sources)}
    make = partial(make_task, globals())
    return [
        make("assemble", _EXPOSURE, assemble, _assemble),
        make("sky", _VISIT, sky, _subtract_sky),
        make("subtract", _VISIT, subtract, _subtract),
        make("detect", _VISIT, detect, _detect),
    ]


TASKS = _tasks()
