# SPDX-License-Identifier: BSD-3-Clause
"""A task with calibrations that it can do without."""

from typing import Any

from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from toycam import CALIB, EXPOSURE, FLAT, finds, makes, reads


class ForgivingConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    bias = finds("bias", CALIB, doc="can do without", isCalibration=True, minimum=0)
    flat = finds("flat", FLAT, doc="can do without", isCalibration=True, minimum=0)
    output = makes("toy_forgiving", doc="what was there")


class ForgivingConfig(PipelineTaskConfig, pipelineConnections=ForgivingConnections):
    pass


class ForgivingTask(PipelineTask):
    ConfigClass = ForgivingConfig
    _DefaultName = "forgiving"

    def run(self, raw: Any, bias: Any = None, flat: Any = None) -> Struct:
        return Struct(output={"bias": bias, "flat": flat})
