# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that only read, each in another way; none of them is run."""

from pathlib import Path
from typing import Any

from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput
from toycam import EXPOSURE, GROUP_DETECTOR

_DICT = "StructuredDataDict"


def refuse(dataset_type: Any, registry: Any, data_id: Any, collections: Any) -> Any:
    """Stand for a lookup that needs the exposure's data ID."""
    raise AssertionError("inputs with the dimension exposure are not searched before the image")


class OptionalConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = Input(name="raw", doc="raw", storageClass=_DICT, dimensions=EXPOSURE)
    bias = PrerequisiteInput(
        name="bias",
        doc="found by a lookup function",
        storageClass=_DICT,
        dimensions=("instrument", "detector"),
        isCalibration=True,
        lookupFunction=refuse,
    )
    defects = PrerequisiteInput(
        name="toy_defects",
        doc="can do without",
        storageClass=_DICT,
        dimensions=("instrument", "detector"),
        isCalibration=True,
        minimum=0,
    )
    output = Output(name="toy_optional", doc="never made", storageClass=_DICT, dimensions=EXPOSURE)


class OptionalConfig(PipelineTaskConfig, pipelineConnections=OptionalConnections):
    pass


class OptionalTask(PipelineTask):
    ConfigClass = OptionalConfig
    _DefaultName = "optional"


class TableConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = Input(name="raw", doc="raw", storageClass=_DICT, dimensions=EXPOSURE)
    columns = PrerequisiteInput(
        name="toy_table.columns",
        doc="a part of a dataset",
        storageClass="ArrowColumnList",
        dimensions=("instrument",),
    )
    frame = PrerequisiteInput(
        name="toy_frame", doc="kept as another class", storageClass="ArrowTable", dimensions=("instrument",)
    )
    output = Output(name="toy_tabled", doc="never made", storageClass=_DICT, dimensions=EXPOSURE)


class TableConfig(PipelineTaskConfig, pipelineConnections=TableConnections):
    pass


class TableTask(PipelineTask):
    ConfigClass = TableConfig
    _DefaultName = "table"


class EarlyConnections(PipelineTaskConnections, dimensions=GROUP_DETECTOR):
    model = PrerequisiteInput(name="toy_model", doc="never written", storageClass=_DICT, dimensions=())
    known = Output(name="toy_known", doc="known objects", storageClass=_DICT, dimensions=GROUP_DETECTOR)


class EarlyConfig(PipelineTaskConfig, pipelineConnections=EarlyConnections):
    pass


class EarlyTask(PipelineTask):
    ConfigClass = EarlyConfig
    _DefaultName = "early"


def write_pipeline(folder: Path, task: str) -> str:
    """Write the pipeline of one task; return its path."""
    path = folder / f"{task}.yaml"
    path.write_text(f"description: {task}\ntasks:\n  {task.lower()}: {__name__}.{task}Task\n")
    return str(path)
