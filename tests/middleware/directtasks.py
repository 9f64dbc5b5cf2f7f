# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that use components, conversions, deferred loads, shared objects and lookup functions."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from astropy.table import Table
from lsst.pex.config import Field
from lsst.pipe.base import (
    NoWorkFound,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
)
from lsst.pipe.base.connectionTypes import InitInput, InitOutput
from toycam import CALIB, EXPOSURE, FLAT, PATCHES, VISIT, Rig, finds, makes, reads

_DICT = "StructuredDataDict"


def find_flat(dataset_type: Any, registry: Any, data_id: Any, collections: Any) -> Iterator[Any]:
    """Find a flat as tasks of the observatory do, by the time of the exposure."""
    (record,) = registry.queryDimensionRecords("exposure", dataId=data_id)
    yield registry.findDataset(dataset_type, data_id, collections=collections, timespan=record.timespan)


def find_shards(dataset_type: Any, registry: Any, data_id: Any, collections: Any) -> Iterator[Any]:
    """Find shards, without the records of their data IDs."""
    yield from registry.queryDatasets(dataset_type, collections=collections, findFirst=True)


class MakeConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    bias = finds("bias", CALIB, isCalibration=True)
    flat = finds("flat", FLAT, isCalibration=True, lookupFunction=find_flat)
    schema = InitOutput(name="many_schema", doc="made once", storageClass=_DICT)
    table = makes("many_table", storage="ArrowAstropy")
    box = makes("many_box")
    twin = makes("many_twin", doc="the same object")


class MakeConfig(PipelineTaskConfig, pipelineConnections=MakeConnections):
    pass


class MakeTask(PipelineTask):
    """Puts one object as two datasets, and changes its inputs."""

    ConfigClass = MakeConfig
    _DefaultName = "make"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.schema = {"columns": ["a", "b"]}
        self.runs = 0
        self.log.info("I am being constructed")

    def run(self, raw: Any, bias: Any, flat: Any) -> Struct:
        self.runs += 1
        self.metadata["runs"] = self.runs
        box = {"raw": dict(raw), "bias": dict(bias), "flat": dict(flat), "runs": self.runs, "list": [1, 2]}
        raw["spoilt"] = bias["spoilt"] = flat["spoilt"] = True
        return Struct(
            table=Table({"a": np.arange(4.0), "b": np.arange(4) * raw["exposure"]}), box=box, twin=box
        )


class SpoilConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    bias = finds("bias", CALIB, isCalibration=True)
    box = reads("many_box")
    table = reads("many_table", storage="ArrowAstropy")
    spoilt = makes("many_spoilt", doc="what was read, changed")


class SpoilConfig(PipelineTaskConfig, pipelineConnections=SpoilConnections):
    pass


class SpoilTask(PipelineTask):
    """Changes its inputs in place."""

    ConfigClass = SpoilConfig
    _DefaultName = "aSpoil"

    def run(self, bias: Any, box: Any, table: Any) -> Struct:
        box["list"].append(3)
        table["a"] += 100.0
        bias["epoch"] = "none"
        return Struct(spoilt=box | {"sum": float(table["a"].sum())})


class ReadAllConnections(PipelineTaskConnections, dimensions=VISIT):
    schema = InitInput(name="many_schema", doc="made once", storageClass=_DICT)
    bias = finds("bias", CALIB, isCalibration=True)
    shards = finds("toy_refcat", ("skypix",), multiple=True, deferLoad=True)
    patches = finds("toy_template", PATCHES, multiple=True)
    boxes = reads("many_box", multiple=True)
    twins = reads("many_twin", doc="the same object", multiple=True)
    frames = reads("many_table", storage="ArrowNumpyDict", multiple=True)
    columns = reads("many_table.columns", storage="ArrowColumnList", multiple=True)
    missing = reads("many_none", VISIT, minimum=0, deferGraphConstraint=True)
    result = makes("many_inputs", VISIT, doc="all that was read")
    never = makes("many_never", VISIT, doc="dropped by adjustQuantum", multiple=True)

    def adjustQuantum(  # noqa: N802
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], label: str, data_id: Any
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        connection, shards = inputs["shards"]
        super().adjustQuantum(inputs, outputs, label, data_id)
        return {"shards": (connection, shards[:1])}, {"never": (outputs["never"][0], ())}


class ReadAllConfig(PipelineTaskConfig, pipelineConnections=ReadAllConnections):
    pass


class ReadAllTask(PipelineTask):
    """Outputs what it reads."""

    ConfigClass = ReadAllConfig
    _DefaultName = "readAll"

    def __init__(self, initInputs: Any, **kwargs: Any):  # noqa: N803
        super().__init__(initInputs=initInputs, **kwargs)
        self.columns = initInputs["schema"]["columns"]

    def run(
        self,
        bias: Any,
        shards: Any,
        patches: Any,
        boxes: Any,
        twins: Any,
        frames: Any,
        columns: Any,
        missing: Any = None,
    ) -> Struct:
        assert missing is None
        return Struct(
            result={
                "schema": self.columns,
                "bias": bias,
                "shards": [handle.get()["shard"] for handle in shards for _ in range(2)],
                "patches": sorted(each["patch"] for each in patches),
                "boxes": boxes,
                "twins": twins,
                "frames": [
                    {"type": type(each).__name__, "a": [float(a) for a in each["a"]]} for each in frames
                ],
                "columns": [list(each) for each in columns],
            }
        )


class LateConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    table = reads("many_table", storage="ArrowAstropy", deferLoad=True)
    late = makes("many_late", doc="what was read")


class LateConfig(PipelineTaskConfig, pipelineConnections=LateConnections):
    idle = Field[bool](doc="Whether there is nothing to do.", default=False)


class LateTask(PipelineTask):
    """Reads parts of deferred inputs, and changes them."""

    ConfigClass = LateConfig
    _DefaultName = "late"

    def run(self, table: Any) -> Struct:
        if self.config.idle:
            raise NoWorkFound("not today")
        part = table.get(parameters={"columns": ["a"]})
        part["a"] -= 7.0
        whole = table.get()
        late = {
            "part": [float(a) for a in part["a"]],
            "names": list(part.colnames),
            "rows": int(table.get(component="rowcount")),
            "whole": [float(a) for a in whole["a"]],
            "dict": sorted(table.get(storageClass="ArrowNumpyDict")),
        }
        return Struct(late=late)


class HookedConnections(LateConnections, dimensions=EXPOSURE):
    table = reads("many_table", storage="ArrowAstropy")

    def adjust_all_quanta(self, adjuster: Any) -> None:
        """Adjust all quanta together."""


class HookedConfig(PipelineTaskConfig, pipelineConnections=HookedConnections):
    pass


class HookedTask(PipelineTask):
    """Its connections have a hook for all quanta."""

    ConfigClass = HookedConfig
    _DefaultName = "hooked"

    def run(self, table: Any) -> Struct:
        return Struct(late={"sum": float(table["a"].sum())})


class LaterConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    later = finds(
        "toy_later", ("instrument",), storage="ArrowAstropy", doc="not known to the repo at first", minimum=0
    )
    output = makes("many_later", doc="what it is")


class LaterConfig(PipelineTaskConfig, pipelineConnections=LaterConnections):
    pass


class LaterTask(PipelineTask):
    """Outputs the type of its input."""

    ConfigClass = LaterConfig
    _DefaultName = "later"

    def run(self, raw: Any, later: Any = None) -> Struct:
        return Struct(output={"later": type(later).__name__})


class InVainConnections(HookedConnections, dimensions=EXPOSURE):
    def adjustQuantum(self, inputs: Any, outputs: Any, label: str, data_id: Any) -> Any:  # noqa: N802
        raise RuntimeError("not today")


class InVainConfig(PipelineTaskConfig, pipelineConnections=InVainConnections):
    pass


class InVainTask(HookedTask):
    """Its connections have a hook for all quanta, and it cannot be built."""

    ConfigClass = InVainConfig


class AnyBiasConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    bias = finds("bias", CALIB, isCalibration=True)
    output = makes("many_any")


class AnyBiasConfig(PipelineTaskConfig, pipelineConnections=AnyBiasConnections):
    pass


class AnyBiasTask(PipelineTask):
    """Takes a bias."""

    ConfigClass = AnyBiasConfig
    _DefaultName = "anyBias"

    def run(self, raw: Any, bias: Any) -> Struct:
        return Struct(output={"raw": raw, "bias": bias})


class ShardsConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    shards = finds("toy_refcat", ("skypix",), multiple=True, deferLoad=True, lookupFunction=find_shards)
    output = makes("many_shards", doc="what is known of them")


class ShardsConfig(PipelineTaskConfig, pipelineConnections=ShardsConnections):
    pass


class ShardsTask(PipelineTask):
    """Outputs whether data IDs of shards have records."""

    ConfigClass = ShardsConfig
    _DefaultName = "shards"

    def run(self, raw: Any, shards: Any) -> Struct:
        return Struct(output={"records": [handle.dataId.hasRecords() for handle in shards]})


class RawFirstConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = finds("raw")
    output = makes("many_raw")


class RawFirstConfig(PipelineTaskConfig, pipelineConnections=RawFirstConnections):
    pass


class RawFirstTask(PipelineTask):
    """Has a raw among its prerequisites."""

    ConfigClass = RawFirstConfig
    _DefaultName = "rawFirst"

    def run(self, raw: Any) -> Struct:
        return Struct(output={"raw": raw})


class AgainConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    box = reads("many_box")
    early = makes("again_early", doc="changed after that")
    late = makes("again_late", doc="the same, changed")


class AgainConfig(PipelineTaskConfig, pipelineConnections=AgainConnections):
    pass


class AgainTask(PipelineTask):
    """Reads an input again after changing it, and changes an output after putting it."""

    ConfigClass = AgainConfig
    _DefaultName = "again"

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802, N803
        butlerQC.get(inputRefs.box)["list"].append("spoilt")
        result = {"list": butlerQC.get(inputRefs.box)["list"]}
        butlerQC.put(result, outputRefs.early)
        result["list"].append("changed")
        butlerQC.put(result, outputRefs.late)


class UnwritableConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    output = makes("many_unwritable", doc="not for YAML")


class UnwritableConfig(PipelineTaskConfig, pipelineConnections=UnwritableConnections):
    pass


class UnwritableTask(PipelineTask):
    """Puts a dictionary that its formatter cannot write."""

    ConfigClass = UnwritableConfig
    _DefaultName = "unwritable"

    def run(self, raw: Any) -> Struct:
        return Struct(output={"flux": np.float64(1.0)})


PIPELINES = {
    "Many": {"make": "MakeTask", "aSpoil": "SpoilTask", "readAll": "ReadAllTask", "late": "LateTask"},
    "Hooked": {"make": "MakeTask", "hooked": "HookedTask"},
    "Again": {"make": "MakeTask", "again": "AgainTask"},
    "Shards": {"shards": "ShardsTask"},
    "RawFirst": {"rawFirst": "RawFirstTask"},
    "HookedInVain": {"make": "MakeTask", "hooked": "InVainTask"},
    "Later": {"later": "LaterTask"},
    "AnyBias": {"anyBias": "AnyBiasTask"},
    "Unwritable": {"unwritable": "UnwritableTask", "make": "MakeTask"},
}


def write_many(rig: Rig) -> None:
    """Add the pipelines of this module."""
    for name, tasks in PIPELINES.items():
        rig.add_pipeline(name, tasks, __name__)
