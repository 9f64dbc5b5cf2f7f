# SPDX-License-Identifier: BSD-3-Clause
"""A pipeline for the catch-up: one task runs for a visit, and fails or waits while a file exists."""

import os
import time
from pathlib import Path
from typing import Any

from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output

EXPOSURE = ("instrument", "exposure", "detector")
VISIT = ("instrument", "visit", "detector")


class MeasureConnections(PipelineTaskConnections, dimensions=VISIT):
    raw = Input(name="raw", doc="raw", storageClass="ImageV2", dimensions=EXPOSURE)
    output = Output(name="measured", doc="sum", storageClass="StructuredDataDict", dimensions=VISIT)


class MeasureConfig(PipelineTaskConfig, pipelineConnections=MeasureConnections):
    folder = Field[str](doc="Has the files.", default="")


class MeasureTask(PipelineTask):
    ConfigClass = MeasureConfig
    _DefaultName = "measure"

    def run(self, raw: Any) -> Struct:
        folder = Path(self.config.folder)
        (folder / f"began-{os.getpid()}").touch()
        while (folder / "wait").exists():
            time.sleep(0.05)
        if (folder / "fail").exists():
            raise RuntimeError("no stars: 0 found")
        return Struct(output={"type": type(raw).__name__})


def write_pipeline(folder: Path) -> str:
    """Write the pipeline; return its path."""
    path = folder / "Measure.yaml"
    path.write_text(
        "description: isr and measure\n"
        "instrument: ppdaemon.demo.instrument.DemoCam\n"
        f"tasks:\n  isr: ppdaemon.demo.tasks.isr.IsrTask\n  measure: {__name__}.MeasureTask\n"
    )
    return str(path)
