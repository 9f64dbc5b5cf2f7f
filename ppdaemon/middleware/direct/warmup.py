# SPDX-License-Identifier: BSD-3-Clause
"""Runs an empty task once in the zygote, so that the first visit of a worker is not slower than the others.

What the interpreter and the middleware do only once, such as imports inside
functions, compiled schemas and caches, takes tens of milliseconds.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsst.daf.butler import DimensionUniverse
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Output
from lsst.pipe.base.pipeline_graph import PipelineGraph

from ppdaemon.middleware.butler.formatters import read_dataset
from ppdaemon.middleware.direct.dataids import DataIds
from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.middleware.direct.inputs import InputIndex
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.quanta import build_steps
from ppdaemon.middleware.direct.quantumrunner import QuantumRunner
from ppdaemon.middleware.direct.shape import pipeline_shape
from ppdaemon.middleware.direct.tasks import ReadyTasks
from ppdaemon.middleware.direct.writing import BackgroundWriter

__all__ = ("warm_up",)

_MEMORY_BYTES = 1_000_000
"""More than the outputs of the empty task need."""


class WarmupConnections(PipelineTaskConnections, dimensions=("instrument",)):
    """One output."""

    output = Output(
        name="warmup", doc="nothing", storageClass="StructuredDataDict", dimensions=("instrument",)
    )


class WarmupConfig(PipelineTaskConfig, pipelineConnections=WarmupConnections):
    """Nothing to configure."""


class WarmupTask(PipelineTask):
    """Does nothing."""

    ConfigClass = WarmupConfig
    _DefaultName = "warmup"

    def run(self) -> Struct:
        """Return an empty dictionary."""
        return Struct(output={})


def warm_up(universe: DimensionUniverse, writer: DatasetWriter, folder: Path) -> None:
    """Run an empty task, write its outputs into a folder, read them, and remove the folder."""
    graph = PipelineGraph(universe=universe)
    graph.add_task("warmup", WarmupTask, WarmupConfig())  # type: ignore[no-untyped-call]
    graph.resolve(dimensions=universe, dataset_types={})
    shape, row = pipeline_shape(graph), {"instrument": "warmup"}
    data_ids = DataIds(universe, [universe["instrument"].RecordClass(name="warmup")])
    steps = build_steps(shape, data_ids, lambda subgraph: [row], InputIndex({}), "warmup", _no_dataset)
    background = BackgroundWriter(writer, folder)
    memory = MemoryButler(universe, shape.types, steps, _no_dataset, bool, _MEMORY_BYTES, background)
    with _info_logs_disabled():
        QuantumRunner(steps, memory, ReadyTasks(), {}, ())(lambda label: None)
    background.finish()
    for dataset in memory.outputs:
        background.write(dataset)
        assert dataset.file is not None  # written at the put or now
        read_dataset(dataset.file, dataset.ref)
    shutil.rmtree(folder)


def _no_dataset(*arguments: Any) -> Any:
    raise FileNotFoundError(str(arguments))


@contextmanager
def _info_logs_disabled() -> Iterator[None]:
    """Keep the executor's messages about the empty task out of the worker's log."""
    previous_level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(previous_level)
