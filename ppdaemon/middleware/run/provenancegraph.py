# SPDX-License-Identifier: BSD-3-Clause
"""The provenance quantum graph of a run: what each quantum read, wrote and logged, as the middleware
of LSST stores it.

It is written after the run, from what the engine has recorded: nothing is written between the tasks,
and a visit does not fail because its provenance cannot be written.
"""

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lsst.daf.butler import DatasetRef, DatasetType, DimensionUniverse, Quantum
from lsst.daf.butler.logging import ButlerLogRecords
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.log_on_close import LogOnClose
from lsst.pipe.base.pipeline_graph import PipelineGraph, ReadEdge, TaskNode, WriteEdge
from lsst.pipe.base.quantum_graph import (
    HeaderModel,
    PredictedDatasetModel,
    PredictedQuantumDatasetsModel,
    PredictedQuantumGraphComponents,
    ProvenanceQuantumGraphWriter,
)

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.failures import is_out_of_space
from ppdaemon.middleware.run.engine import Job
from ppdaemon.middleware.run.executor import encodable_end

__all__ = ("PROVENANCE_TYPE", "QuantumEnd", "predicted_graph", "provenance_type", "write_provenance")

_LOG = logging.getLogger(__name__)

PROVENANCE_TYPE = "prompt_provenance"
"""Dataset type of the graph; the name and the dimensions are those of LSST's own service."""

_FORMATTER = "lsst.pipe.base.quantum_graph.formatter.ProvenanceFormatter"
"""Reads it; the default formatter of its storage class."""

_ZSTD_LEVEL = 3
"""The writer's own level of 10 takes seven times as long for small blocks, and the file is 3 % smaller."""


class RunQuantum(Protocol):
    """A quantum of a graph."""

    @property
    def id(self) -> uuid.UUID:
        """Its identifier in the graph."""

    @property
    def node(self) -> TaskNode:
        """The task."""

    @property
    def quantum(self) -> Quantum:
        """Its datasets."""


@dataclass(frozen=True, slots=True)
class QuantumEnd:
    """How a quantum has ended."""

    logs: ButlerLogRecords
    metadata: TaskMetadata | None
    """`None` if it failed."""


def provenance_type(universe: DimensionUniverse) -> DatasetType:
    """Return the dataset type of the graph."""
    return DatasetType(PROVENANCE_TYPE, universe.conform(("group", "detector")), acc.PROVENANCE_STORAGE_CLASS)


def write_provenance(
    folder: Path,
    ref: DatasetRef,
    predicted: Callable[[], PredictedQuantumGraphComponents],
    ends: Mapping[uuid.UUID, QuantumEnd],
) -> LocatedFile | None:
    """Write the graph of a run; quanta without an end were skipped. Return `None`, and log why, if it
    cannot be written.

    Raises the error if there is no space.
    """
    path = folder / f"{ref.id}.qg"
    try:
        _write(path, predicted(), ends)
    except Exception as error:  # it has the texts and metadata of tasks
        path.unlink(missing_ok=True)
        if is_out_of_space(error):
            raise
        _LOG.exception("the provenance graph of %s cannot be written", ref.run)
        return None
    return LocatedFile(path, _FORMATTER, (ref,))


def _write(
    path: Path, predicted: PredictedQuantumGraphComponents, ends: Mapping[uuid.UUID, QuantumEnd]
) -> None:
    with ExitStack() as stack:
        writer = ProvenanceQuantumGraphWriter(
            # As a URI: the name of a spool has a percent sign.
            path.as_uri(),
            exit_stack=stack,
            log_on_close=LogOnClose(_LOG.log),
            predicted=predicted,
            zstd_level=_ZSTD_LEVEL,
        )
        for quantum_id in predicted.quantum_datasets:
            if (end := ends.get(quantum_id)) is None:
                writer.write_blocked_quantum_provenance(quantum_id)
            else:
                logs, metadata = encodable_end(end.logs, end.metadata)
                writer.write_quantum_provenance(quantum_id, metadata=metadata, logs=logs)
        writer.write_overall_inputs()
        writer.write_packages()
        writer.write_init_outputs(assume_existence=True)


def predicted_graph(
    job: Job, graph: PipelineGraph, once: Mapping[str, DatasetRef], quanta: Iterable[RunQuantum]
) -> PredictedQuantumGraphComponents:
    """Return a graph of quanta that were built without one.

    `once` has the init-inputs and init-outputs by name of their type.
    """
    assert job.provenance is not None
    header = HeaderModel(
        inputs=list(job.inputs),
        output_run=job.run,
        provenance_dataset_id=job.provenance.id,
        # The default queries the password database, which does not have the dynamic user of a service.
        user="ppdaemon",
    )
    components = PredictedQuantumGraphComponents(header=header, pipeline_graph=graph)
    components.init_quanta.root.extend(_init_quantum(task, once) for task in graph.tasks.values())
    components.quantum_datasets = {
        each.id: PredictedQuantumDatasetsModel.from_execution_quantum(each.node, each.quantum, each.id)
        for each in quanta
    }
    components.set_thin_graph()
    components.set_header_counts()
    return components  # which are all that is written: to assemble the graph takes as long as to make them


def _init_quantum(task: TaskNode, once: Mapping[str, DatasetRef]) -> PredictedQuantumDatasetsModel:
    def models(edges: Iterable[ReadEdge | WriteEdge]) -> dict[str, list[PredictedDatasetModel]]:
        return {
            edge.connection_name: [PredictedDatasetModel.from_dataset_ref(once[name])]
            for edge in edges
            if (name := edge.parent_dataset_type_name) in once
        }

    return PredictedQuantumDatasetsModel(
        quantum_id=uuid.uuid4(),
        task_label=task.label,
        inputs=models(task.init.iter_all_inputs()),
        outputs=models(task.init.iter_all_outputs()),
    )
