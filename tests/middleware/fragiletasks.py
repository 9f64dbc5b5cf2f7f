# SPDX-License-Identifier: BSD-3-Clause
"""A task whose output, log or metadata cannot be written, as configured, and one that reads that output."""

from typing import Any, NoReturn

from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from toycam import EXPOSURE, Rig, makes, reads

HALF = "half \ud800"
"""Text with half of a surrogate pair."""


class Uncopyable:
    """An object that can be neither copied nor sent to another process."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise TypeError("cannot be copied")

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot be pickled")


class BreakConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    broken = makes("toy_broken", storage="Fragile", doc="may be lost")
    whole = makes("toy_whole", storage="Fragile")


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
    broken = reads("toy_broken", storage="Fragile", doc="may be lost")
    output = makes("toy_read", doc="made of it")


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
    rig.add_pipeline("Fragile", tasks)
