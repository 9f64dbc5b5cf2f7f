# SPDX-License-Identifier: BSD-3-Clause
"""A pipeline for the catch-up: its second task runs for a visit, and fails or waits while a file exists."""

import os
import time
from pathlib import Path
from typing import Any

from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output
from toycam import EXPOSURE, VISIT

_DICT = "StructuredDataDict"


class MeasureConnections(PipelineTaskConnections, dimensions=VISIT):
    image = Input(name="toy_isr", doc="cleaned", storageClass=_DICT, dimensions=EXPOSURE)
    output = Output(name="toy_measured", doc="measured", storageClass=_DICT, dimensions=VISIT)


class MeasureConfig(PipelineTaskConfig, pipelineConnections=MeasureConnections):
    folder = Field[str](doc="Has the files.", default="")


class MeasureTask(PipelineTask):
    ConfigClass = MeasureConfig
    _DefaultName = "measure"

    def run(self, image: Any) -> Struct:
        folder = Path(self.config.folder)
        (folder / f"began-{os.getpid()}").touch()
        while (folder / "wait").exists():
            time.sleep(0.05)
        if (folder / "fail").exists():
            raise RuntimeError("no stars: 0 found")
        return Struct(output={"image": image})


def write_pipeline(folder: Path) -> str:
    """Write the pipeline; return its path."""
    path = folder / "Measure.yaml"
    path.write_text(
        "description: isr and measure\n"
        "instrument: toycam.ToyCam\n"
        f"tasks:\n  isr: toycam.IsrTask\n  measure: {__name__}.MeasureTask\n"
    )
    return str(path)
