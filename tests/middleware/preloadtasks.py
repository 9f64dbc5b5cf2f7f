# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that only read, each in another way; none of them is run."""

from pathlib import Path
from typing import Any

from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from toycam import CALIB, EXPOSURE, GROUP_DETECTOR, finds, makes, reads, write_pipeline


def refuse(dataset_type: Any, registry: Any, data_id: Any, collections: Any) -> Any:
    """Stand for a lookup that needs the exposure's data ID."""
    raise AssertionError("inputs with the dimension exposure are not searched before the image")


class OptionalConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    bias = finds("bias", CALIB, doc="found by a lookup function", isCalibration=True, lookupFunction=refuse)
    defects = finds("toy_defects", CALIB, doc="can do without", isCalibration=True, minimum=0)
    output = makes("toy_optional")


class OptionalConfig(PipelineTaskConfig, pipelineConnections=OptionalConnections):
    pass


class OptionalTask(PipelineTask):
    ConfigClass = OptionalConfig
    _DefaultName = "optional"


class TableConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    columns = finds(
        "toy_table.columns", ("instrument",), storage="ArrowColumnList", doc="a part of a dataset"
    )
    frame = finds("toy_frame", ("instrument",), storage="ArrowTable", doc="kept as another class")
    output = makes("toy_tabled")


class TableConfig(PipelineTaskConfig, pipelineConnections=TableConnections):
    pass


class TableTask(PipelineTask):
    ConfigClass = TableConfig
    _DefaultName = "table"


class EarlyConnections(PipelineTaskConnections, dimensions=GROUP_DETECTOR):
    model = finds("toy_model", ())
    known = makes("toy_known", GROUP_DETECTOR)


class EarlyConfig(PipelineTaskConfig, pipelineConnections=EarlyConnections):
    pass


class EarlyTask(PipelineTask):
    ConfigClass = EarlyConfig
    _DefaultName = "early"


def write_one(folder: Path, task: str) -> str:
    """Write the pipeline of one task; return its path."""
    return write_pipeline(folder, task, {task.lower(): f"{task}Task"}, __name__)
