# SPDX-License-Identifier: BSD-3-Clause
"""A task whose output, log or metadata cannot be written, as configured, and one that reads that output."""

from typing import Any, NoReturn

from directtasks import write_pipeline
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output
from toycam import EXPOSURE, Rig

_DICT = "StructuredDataDict"
HALF = "half \ud800"
"""Text with half of a surrogate pair."""


class Uncopyable:
    """An object that can be neither copied nor sent to another process."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise TypeError("cannot be copied")

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot be pickled")


class BreakConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = Input(name="raw", doc="raw", storageClass=_DICT, dimensions=EXPOSURE)
    broken = Output(name="toy_broken", doc="may be lost", storageClass="Fragile", dimensions=EXPOSURE)
    whole = Output(name="toy_whole", doc="is written", storageClass="Fragile", dimensions=EXPOSURE)


class BreakConfig(PipelineTaskConfig, pipelineConnections=BreakConnections):
    how = Field[str](doc="What the task does.", default="")


class BreakTask(PipelineTask):
    ConfigClass = BreakConfig
    _DefaultName = "breaks"

    def run(self, raw: Any) -> Struct:
        how = self.config.how
        if how == "text":
            self.log.warning("%s in a log", HALF)
            self.log.warning("with a traceback", exc_info=ValueError(HALF))
            self.metadata["text"], self.metadata["texts"] = HALF, [HALF, "whole"]
            self.metadata[HALF], self.metadata["count"] = float("nan"), 2**60
        elif how == "no log":
            self.log.warning("no log")
        elif how == "object":
            self.metadata.scalars["object"] = Uncopyable
        elif how == "no float":
            self.metadata["huge"] = 10**400
        elif how == "raise":
            self.metadata["text"] = HALF
            raise RuntimeError(HALF)
        broken: dict[str, Any] = {"how": how.removeprefix("uncopyable ")}
        if how.startswith("uncopyable"):
            broken["object"] = Uncopyable()
        return Struct(broken=broken, whole={"exposure": raw["exposure"]})


class ReadConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    broken = Input(name="toy_broken", doc="may be lost", storageClass="Fragile", dimensions=EXPOSURE)
    output = Output(name="toy_read", doc="made of it", storageClass=_DICT, dimensions=EXPOSURE)


class ReadConfig(PipelineTaskConfig, pipelineConnections=ReadConnections):
    pass


class ReadTask(PipelineTask):
    ConfigClass = ReadConfig
    _DefaultName = "reads"

    def run(self, broken: Any) -> Struct:
        return Struct(output={"keys": sorted(broken)})


def write_fragile(rig: Rig) -> None:
    """Add the pipeline ``Fragile``: the two tasks, and one that does not depend on them."""
    tasks = {
        "isr": "toycam.IsrTask",
        "breaks": f"{__name__}.BreakTask",
        "reads": f"{__name__}.ReadTask",
    }
    write_pipeline(rig, "Fragile", tasks)
