# SPDX-License-Identifier: BSD-3-Clause
"""A task with calibrations that it can do without."""

from pathlib import Path
from typing import Any

from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput
from toycam import EXPOSURE

_DICT = "StructuredDataDict"


class ForgivingConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = Input(name="raw", doc="raw", storageClass=_DICT, dimensions=EXPOSURE)
    bias = PrerequisiteInput(
        name="bias",
        doc="can do without",
        storageClass=_DICT,
        dimensions=("instrument", "detector"),
        isCalibration=True,
        minimum=0,
    )
    flat = PrerequisiteInput(
        name="flat",
        doc="can do without",
        storageClass=_DICT,
        dimensions=("instrument", "detector", "physical_filter"),
        isCalibration=True,
        minimum=0,
    )
    output = Output(name="toy_forgiving", doc="what was there", storageClass=_DICT, dimensions=EXPOSURE)


class ForgivingConfig(PipelineTaskConfig, pipelineConnections=ForgivingConnections):
    pass


class ForgivingTask(PipelineTask):
    ConfigClass = ForgivingConfig
    _DefaultName = "forgiving"

    def run(self, raw: Any, bias: Any = None, flat: Any = None) -> Struct:
        return Struct(output={"bias": bias, "flat": flat})


def write_pipeline(folder: Path) -> str:
    """Write the pipeline of the task; return its path."""
    path = folder / "Forgiving.yaml"
    path.write_text(f"description: Forgiving\ntasks:\n  forgiving: {__name__}.ForgivingTask\n")
    return str(path)
