# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines for the catch-up. The main one needs the output of preprocessing; its task for a visit fails or
waits while a file exists.
"""

import os
import time
from pathlib import Path
from typing import Any

from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output

EXPOSURE = ("instrument", "exposure", "detector")
GROUP = ("instrument", "group", "detector")
VISIT = ("instrument", "visit", "detector")


class KnownConnections(PipelineTaskConnections, dimensions=GROUP):
    footprint = Input(
        name="regionTimeInfo", doc="where and when", storageClass="RegionTimeInfo", dimensions=GROUP
    )
    known = Output(name="known", doc="objects", storageClass="StructuredDataDict", dimensions=GROUP)


class KnownConfig(PipelineTaskConfig, pipelineConnections=KnownConnections):
    pass


class KnownTask(PipelineTask):
    ConfigClass = KnownConfig
    _DefaultName = "known"

    def run(self, footprint: Any) -> Struct:
        return Struct(known={"begin": footprint.timespan.begin.isot})


class MeasureConnections(PipelineTaskConnections, dimensions=VISIT):
    raw = Input(name="raw", doc="raw", storageClass="ImageV2", dimensions=EXPOSURE)
    known = Input(name="known", doc="objects", storageClass="StructuredDataDict", dimensions=GROUP)
    output = Output(name="measured", doc="sum", storageClass="StructuredDataDict", dimensions=VISIT)


class MeasureConfig(PipelineTaskConfig, pipelineConnections=MeasureConnections):
    folder = Field[str](doc="Has the files.", default="")


class MeasureTask(PipelineTask):
    ConfigClass = MeasureConfig
    _DefaultName = "measure"

    def run(self, raw: Any, known: Any) -> Struct:
        folder = Path(self.config.folder)
        (folder / f"began-{os.getpid()}").touch()
        while (folder / "wait").exists():
            time.sleep(0.05)
        if (folder / "fail").exists():
            raise RuntimeError("no stars: 0 found")
        return Struct(output={"type": type(raw).__name__} | known)


def write_pipelines(folder: Path) -> tuple[str, str]:
    """Write the pipelines; return the paths of preprocessing and of the main one."""
    tasks = {
        "Known": {"known": f"{__name__}.KnownTask"},
        "Measure": {"isr": "ppdaemon.demo.tasks.isr.IsrTask", "measure": f"{__name__}.MeasureTask"},
    }
    for name, labels in tasks.items():
        lines = [f"description: {name}", "instrument: ppdaemon.demo.instrument.DemoCam", "tasks:"]
        lines += [f"  {label}: {task}" for label, task in labels.items()]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return str(folder / "Known.yaml"), str(folder / "Measure.yaml")
