# SPDX-License-Identifier: BSD-3-Clause
"""A survey camera without raws: its instrument, its focal plane, and tasks that are not run.

The connections are those of an alert pipeline, so that a preload has to find
its inputs; nothing is computed.
"""

import math
from pathlib import Path
from typing import Any

from lsst.daf.butler import FormatterV2
from lsst.pipe.base import Instrument, PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput

from ppdaemon.camera import Camera

__all__ = (
    "CALIBS",
    "CAMERA",
    "FILTERS",
    "FLATS",
    "IMAGES",
    "OBSERVED",
    "SIDE_DEG",
    "SurveyCam",
    "load_survey_camera",
    "write_pipelines",
)

CAMERA = "SurveyCam"
FILTERS = {f"{band}_0{k}": band for k, band in enumerate("ugrizy")}
OBSERVED = "g_01"
"""The filter of all visits."""
CALIBS = ("bias", "dark", "defects", "linearizer", "ptc", "bfk", "crosstalk")
"""One per detector."""
FLATS = ("flat", "fringe")
"""One per detector and filter."""
IMAGES = frozenset({"bias", "dark", *FLATS})
"""Those of the above that are as large as a detector's image."""
SIDE_DEG = 0.22
"""Side of a detector, as LSSTCam's."""
_DICT = "StructuredDataDict"
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")
_PIPELINES = {
    "Alerts": {"isr": "Isr", "calibrate": "Calibrate", "subtract": "Subtract"},
    "Single": {"isr": "Isr"},
}


class SurveyCam(Instrument):
    """A camera without raws, with a number of detectors to register."""

    raw_definition = ("raw", _EXPOSURE, _DICT)

    def __init__(self, collection_prefix: str | None = None, detectors: int = 205):
        super().__init__(collection_prefix)
        self._detectors = detectors

    @classmethod
    def getName(cls) -> str:  # noqa: D102, N802
        return CAMERA

    def getRawFormatter(self, dataId: Any) -> type[FormatterV2]:  # noqa: D102, N802, N803
        raise NotImplementedError("this bench takes no raws")

    def register(self, registry: Any, *, update: bool = False) -> None:  # noqa: D102
        large = 10**13
        numbers = {
            "detector_max": self._detectors,
            "visit_max": large,
            "exposure_max": large,
            "visit_system": 0,
        }
        records: list[tuple[str, dict[str, Any]]] = [
            ("instrument", {"name": CAMERA, "class_name": f"{__name__}.SurveyCam", **numbers})
        ]
        for k in range(self._detectors):
            records.append(("detector", {"id": k, "full_name": f"S{k:03d}", "purpose": "SCIENCE"}))
        for name, band in FILTERS.items():
            records.append(("physical_filter", {"name": name, "band": band}))
        with registry.transaction():
            for element, record in records:
                of = {} if element == "instrument" else {"instrument": CAMERA}
                registry.syncDimensionData(element, of | record, update=update)


def load_survey_camera(detectors: int = 205) -> Camera:
    """Return the focal-plane table: squares, side by side, row by row."""
    side_mm, columns = SIDE_DEG * 100.0, math.ceil(math.sqrt(detectors))
    table = [
        {
            "id": k,
            "name": f"S{k:03d}",
            "purpose": "SCIENCE",
            "type": "SQUARE",
            "x": (k % columns - columns / 2) * side_mm,
            "y": (k // columns - columns / 2) * side_mm,
            "width": side_mm,
            "height": side_mm,
            "yaw": 0,
        }
        for k in range(detectors)
    ]
    return Camera.model_validate(
        {
            "instrument": CAMERA,
            "focal_plane_parity": False,
            "plate_scale_arcsec_per_mm": 36.0,
            "radial_coefficients": {"c1": 1.0, "c3": 0.0, "c5": 0.0},
            "detectors": table,
        }
    )


def _calib(name: str, *more: str) -> PrerequisiteInput:
    dimensions = ("instrument", "detector", *more)
    return PrerequisiteInput(
        name=name, doc=name, storageClass=_DICT, dimensions=dimensions, isCalibration=True
    )


class IsrConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    raw = Input(name="raw", doc="raw", storageClass=_DICT, dimensions=_EXPOSURE)
    camera = PrerequisiteInput(
        name="camera", doc="camera", storageClass=_DICT, dimensions=("instrument",), isCalibration=True
    )
    bias = _calib("bias")
    dark = _calib("dark")
    defects = _calib("defects")
    linearizer = _calib("linearizer")
    ptc = _calib("ptc")
    bfk = _calib("bfk")
    crosstalk = _calib("crosstalk")
    flat = _calib("flat", "physical_filter")
    fringe = _calib("fringe", "physical_filter")
    output = Output(name="post_isr", doc="cleaned", storageClass=_DICT, dimensions=_EXPOSURE)


class IsrConfig(PipelineTaskConfig, pipelineConnections=IsrConnections):
    pass


class IsrTask(PipelineTask):
    ConfigClass = IsrConfig
    _DefaultName = "isr"


class CalibrateConnections(PipelineTaskConnections, dimensions=_VISIT):
    image = Input(name="post_isr", doc="cleaned", storageClass=_DICT, dimensions=_EXPOSURE)
    stars = PrerequisiteInput(
        name="stars", doc="shards", storageClass=_DICT, dimensions=("skypix",), multiple=True
    )
    galaxies = PrerequisiteInput(
        name="galaxies", doc="shards", storageClass=_DICT, dimensions=("skypix",), multiple=True
    )
    output = Output(name="preliminary_image", doc="calibrated", storageClass=_DICT, dimensions=_VISIT)


class CalibrateConfig(PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    pass


class CalibrateTask(PipelineTask):
    ConfigClass = CalibrateConfig
    _DefaultName = "calibrate"


class SubtractConnections(PipelineTaskConnections, dimensions=_VISIT):
    image = Input(name="preliminary_image", doc="calibrated", storageClass=_DICT, dimensions=_VISIT)
    sky_map = Input(name="skyMap", doc="sky map", storageClass=_DICT, dimensions=("skymap",))
    templates = Input(
        name="template_coadd",
        doc="patches",
        storageClass=_DICT,
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferGraphConstraint=True,
    )
    model = PrerequisiteInput(name="model", doc="trained", storageClass=_DICT, dimensions=())
    output = Output(name="difference", doc="subtracted", storageClass=_DICT, dimensions=_VISIT)


class SubtractConfig(PipelineTaskConfig, pipelineConnections=SubtractConnections):
    pass


class SubtractTask(PipelineTask):
    ConfigClass = SubtractConfig
    _DefaultName = "subtract"


def write_pipelines(folder: Path) -> tuple[str, ...]:
    """Write the pipeline files; return their paths in order of preference."""
    paths = []
    for name, tasks in _PIPELINES.items():
        lines = [f"description: {name}", "tasks:"]
        lines += [f"  {label}: {__name__}.{task}Task" for label, task in tasks.items()]
        path = folder / f"{name}.yaml"
        path.write_text("\n".join(lines) + "\n")
        paths.append(str(path))
    return tuple(paths)
