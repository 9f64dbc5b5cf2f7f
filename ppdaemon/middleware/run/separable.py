# SPDX-License-Identifier: BSD-3-Clause
"""The ``separable`` engine: executors of ``lsst.pipe.base``, in this process."""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from lsst.daf.butler import Butler, DatasetRef, Quantum
from lsst.daf.butler.logging import ButlerLogRecords, ButlerMDC
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph, PredictedQuantumGraphComponents
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor

from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.pipelines.graph import UnusablePipeline
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.middleware.run.engine import (
    DataQuery,
    Engine,
    Job,
    PipelineRun,
    RunResult,
    TaskFailure,
    building,
)
from ppdaemon.middleware.run.executor import EncodingExecutor
from ppdaemon.middleware.run.provenancegraph import QuantumEnd, write_provenance

__all__ = ("SeparableEngine",)

_NO_TIMEOUT_S = 2_592_000.0
"""A month: the supervisor enforces deadlines; in one process the executor has none."""


class SeparableEngine(Engine):
    """Builds by query and runs through the registry, as ``pipetask`` does."""

    name = "separable"

    def build(self, job: Job, query: DataQuery, raws: VisitRaws | None) -> PipelineRun:
        """Build a quantum graph by querying the repo; see `~ppdaemon.middleware.run.engine.Engine`."""
        if raws is not None:
            raws.register()
        execution = job.butler.clone(collections=[job.run, *job.inputs], run=job.run)
        with building(job), ButlerMDC.set_mdc(dict(query.context)):
            builder = AllDimensionsQuantumGraphBuilder(
                job.pipeline.graph.copy(), execution, where=query.where, bind=dict(query.bind)
            )
            # The default queries the password database, which does not have the
            # dynamic user of a service.
            built = builder.finish(metadata={"user": "ppdaemon"}, attach_datastore_records=False)
            graph = built.assemble()
        if not len(graph):
            raise UnusablePipeline(f"{job.pipeline.name} finds nothing to do: its graph is empty")
        return _SeparableRun(built, graph, query, execution, job.provenance)


class _SeparableRun(PipelineRun):
    """A built graph and the Butler it is run with."""

    def __init__(
        self,
        components: PredictedQuantumGraphComponents,
        graph: PredictedQuantumGraph,
        query: DataQuery,
        execution: Butler,
        provenance: DatasetRef | None,
    ):
        self._components = components
        self._graph = graph
        self._query = query
        self._execution = execution
        self._provenance = provenance

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        single = EncodingExecutor(
            butler=self._execution, assume_no_existing_outputs=True, raise_on_partial_outputs=False
        )
        observed = _ObservedExecutor(single, before_task)
        graph_executor = MPGraphExecutor(num_proc=1, timeout=_NO_TIMEOUT_S, quantum_executor=observed)
        try:
            with ButlerMDC.set_mdc(dict(self._query.context)):
                SeparablePipelineExecutor(self._execution).run_pipeline(
                    self._graph, graph_executor=graph_executor
                )
        except BaseException:
            # After a failed task the executor raises its own error, or the task's
            # SystemExit; the failure itself is recorded.
            if observed.failure is None:
                raise
        if self._provenance is not None:
            self._write_provenance(self._provenance, observed.ends)
        return RunResult.of(observed.failure, observed.succeeded)

    def _write_provenance(self, ref: DatasetRef, ends: Mapping[uuid.UUID, QuantumEnd]) -> None:
        (root,) = self._execution.get_datastore_roots().values()
        assert root is not None
        with TemporaryDirectory(dir=root.ospath) as folder:  # on its filesystem, to be moved
            file = write_provenance(Path(folder), ref, lambda: self._components, ends)
            if file is not None:
                dataset = file_dataset(file.path, [ref], file.formatter)
                self._execution.ingest(dataset, transfer="move")


class _ObservedExecutor(QuantumExecutor):
    """Reports each task before it is run, and records the first failure."""

    def __init__(self, inner: QuantumExecutor, before_task: Callable[[str], None]):
        self._inner = inner
        self._before_task = before_task
        self.failure: TaskFailure | None = None
        self.succeeded: list[tuple[str, TaskMetadata]] = []
        self.ends: dict[uuid.UUID, QuantumEnd] = {}
        """How the quanta have ended that were run, for the provenance graph."""

    def execute(
        self,
        task_node: TaskNode,
        /,
        quantum: Quantum,
        quantum_id: uuid.UUID | None = None,
        *,
        log_records: ButlerLogRecords | None = None,
    ) -> QuantumExecutionResult:
        assert quantum_id is not None
        self._before_task(task_node.label)
        logs = ButlerLogRecords([]) if log_records is None else log_records
        metadata = None
        try:
            result = self._inner.execute(task_node, quantum, quantum_id, log_records=logs)
            metadata = result.task_metadata
        except BaseException as error:
            if self.failure is None:
                self.failure = TaskFailure.of(task_node.label, error)
            raise
        finally:
            self.ends[quantum_id] = QuantumEnd(logs, metadata)
        if metadata is not None:
            self.succeeded.append((task_node.label, metadata))
        return result
