# SPDX-License-Identifier: BSD-3-Clause
"""A pipeline with a task that fails, exits or lacks outputs, as configured."""

import errno
import os
from typing import Any, NoReturn

from lsst.pex.config import Field
from lsst.pipe.base import (
    AlgorithmError,
    AnnotatedPartialOutputsError,
    NoWorkFound,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
    UpstreamFailureNoWorkFound,
)
from lsst.pipe.base.connectionTypes import InitInput, InitOutput
from toycam import EXPOSURE, Rig, finds, makes, reads

_DICT = "StructuredDataDict"


class BadStars(AlgorithmError):
    """A failure with metadata."""

    @property
    def metadata(self) -> dict[str, Any]:
        return {"stars": 3}


def _fail() -> NoReturn:
    raise RuntimeError("no stars\nat all")


def _fill_the_disk() -> NoReturn:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("put failed") from error


def _find_no_work() -> NoReturn:
    raise NoWorkFound("a blank field")


def _exit() -> NoReturn:
    raise SystemExit(0)


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _take_all_memory() -> NoReturn:
    raise MemoryError("4 TB")


def _exit_process() -> NoReturn:
    os._exit(0)


ACTIONS = {
    "fail": _fail,
    "full": _fill_the_disk,
    "no work": _find_no_work,
    "exit": _exit,
    "interrupt": _interrupt,
    "memory": _take_all_memory,
    "die": _exit_process,
}


class ScriptedConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    image = reads("toy_isr")
    hint = finds("toy_hint", ("instrument",), doc="does not exist", minimum=0)
    schema = InitOutput(name="toy_scripted_schema", doc="made once", storageClass=_DICT)
    output = makes("toy_scripted")
    other = makes("toy_other", doc="not made in part")


class ScriptedConfig(PipelineTaskConfig, pipelineConnections=ScriptedConnections):
    action = Field[str](doc="Key of ACTIONS: what the task does when it runs.", default="")
    at_init = Field[str](doc="Key of ACTIONS: what its constructor does.", default="")


class ScriptedTask(PipelineTask):
    ConfigClass = ScriptedConfig
    _DefaultName = "scripted"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.config.at_init:
            ACTIONS[self.config.at_init]()
        self.schema = {"columns": ["scripted"]}

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802, N803
        inputs = butlerQC.get(inputRefs)
        self.log.warning("about to do %s", self.config.action or "nothing")
        result = {"image": inputs["image"], "hint": inputs.get("hint")}
        if self.config.action == "partial":
            butlerQC.put(result, outputRefs.output)
            error = BadStars("three stars")
            raise AnnotatedPartialOutputsError.annotate(error, self, log=self.log) from error
        if self.config.action:
            ACTIONS[self.config.action]()
        butlerQC.put(Struct(output=result, other=result), outputRefs)


class AfterConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    schema = InitInput(name="toy_scripted_schema", doc="made once", storageClass=_DICT)
    scripted = reads("toy_scripted")
    other = reads("toy_other", doc="may be missing", minimum=0)
    output = makes("toy_after")


class AfterConfig(PipelineTaskConfig, pipelineConnections=AfterConnections):
    pass


class AfterTask(PipelineTask):
    ConfigClass = AfterConfig
    _DefaultName = "after"

    def __init__(self, initInputs: Any, **kwargs: Any):  # noqa: N803
        super().__init__(initInputs=initInputs, **kwargs)
        self.columns = initInputs["schema"]["columns"]

    def run(self, scripted: Any, other: Any = None) -> Struct:
        if other is None:
            raise UpstreamFailureNoWorkFound("half of it is missing")
        return Struct(output={"scripted": scripted, "columns": self.columns})


class AsideConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    image = reads("toy_isr")
    output = makes("toy_aside")


class AsideConfig(PipelineTaskConfig, pipelineConnections=AsideConnections):
    pass


class AsideTask(PipelineTask):
    ConfigClass = AsideConfig
    _DefaultName = "zAside"

    def run(self, image: Any) -> Struct:
        return Struct(output={"image": image})


def write_scripted(rig: Rig) -> None:
    """Add the pipeline ``Scripted``: a task with an action, one that depends on it, one that does not."""
    tasks = {
        "isr": "toycam.IsrTask",
        "scripted": f"{__name__}.ScriptedTask",
        "after": f"{__name__}.AfterTask",
        "zAside": f"{__name__}.AsideTask",
    }
    rig.add_pipeline("Scripted", tasks)
