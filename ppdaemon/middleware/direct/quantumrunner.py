# SPDX-License-Identifier: BSD-3-Clause
"""Runs quanta in the order of ``MPGraphExecutor``, and with its handling of failures."""

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import networkx
from lsst.daf.butler import DatasetRef, LimitedButler
from lsst.daf.butler.logging import ButlerLogRecords, ButlerMDC
from lsst.pipe.base import InvalidQuantumError, PipelineTask, TaskFactory, TaskMetadata
from lsst.pipe.base.graph_walker import GraphWalker
from lsst.pipe.base.pipeline_graph import TaskNode

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.direct.files import TransferredDataset
from ppdaemon.middleware.direct.forked import DiedWithoutResult, ForkedCall
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.quanta import QuantumStep
from ppdaemon.middleware.direct.tasks import reads_once_puts_last
from ppdaemon.middleware.run.engine import RunResult, TaskFailure
from ppdaemon.middleware.run.executor import EncodingExecutor
from ppdaemon.middleware.run.provenancegraph import QuantumEnd
from ppdaemon.states import Outcome

__all__ = ("QuantumRunner",)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _QuantumResult:
    """How a quantum has ended."""

    failure: TaskFailure | None = None
    fatal: bool = False
    """Whether no other quantum is run: here ``separable`` ends its process."""
    metadata: TaskMetadata | None = None
    logs: ButlerLogRecords | None = None
    """`None` if its process has died."""
    outputs: Sequence[TransferredDataset] = ()
    """Datasets that it has put, if another process has run it."""


class _NotifyingFactory(TaskFactory):
    """Informs the memory Butler about the task that will run."""

    def __init__(self, tasks: TaskFactory, memory: MemoryButler):
        self._tasks = tasks
        self._memory = memory

    def makeTask(  # noqa: N802
        self,
        task_node: TaskNode,
        /,
        butler: LimitedButler,
        initInputRefs: Iterable[DatasetRef] | None,  # noqa: N803
    ) -> PipelineTask:
        task = self._tasks.makeTask(task_node, butler, initInputRefs)
        if reads_once_puts_last(task):
            self._memory.expect_single_reads()
        return task


class QuantumRunner:
    """Runs the quanta of one visit.

    With more than one process, independent quanta are run at once: one in this
    process, others in forked children. Nothing may delay quanta with an urgent
    label: no child runs them, and while one is left no file is written.
    `context` goes into all log records.
    """

    def __init__(
        self,
        steps: Sequence[QuantumStep],
        memory: MemoryButler,
        tasks: TaskFactory,
        context: Mapping[str, str],
        urgent: Collection[str],
        processes: int = 1,
    ):
        self.steps = tuple(steps)
        """All quanta, in topological order."""
        self._steps = {step.id: step for step in steps}
        self._urgent = frozenset(step.id for step in steps if step.task.label in urgent)
        self._memory = memory
        self._context = dict(context)
        self._executor = EncodingExecutor(
            butler=memory,
            task_factory=_NotifyingFactory(tasks, memory),
            assume_no_existing_outputs=True,
            raise_on_partial_outputs=False,
        )
        self._processes = processes
        self._unfinished = set(self._steps)
        """Quanta that have not ended."""
        self._children: dict[ForkedCall, QuantumStep] = {}
        self._failure: TaskFailure | None = None
        self._succeeded: list[tuple[str, TaskMetadata]] = []
        self.ends: dict[uuid.UUID, QuantumEnd] = {}
        """How the quanta that have run ended, for the provenance graph."""

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        """Run all quanta; see `~ppdaemon.middleware.run.engine.PipelineRun`."""
        try:
            with ButlerMDC.set_mdc(self._context):
                self._run(before_task)
        except BaseException:
            # Its thread must not write any more while the worker handles the error.
            self._memory.background.finish()
            raise
        finally:
            for child in self._children:
                child.kill()
        return RunResult.of(self._failure, self._succeeded)

    def _run(self, before_task: Callable[[str], None]) -> None:
        graph = networkx.DiGraph()
        graph.add_nodes_from(self._steps)
        graph.add_edges_from((producer, step.id) for step in self._steps.values() for producer in step.after)
        walker = GraphWalker[uuid.UUID](graph)
        ready: list[QuantumStep] = []
        released: list[QuantumStep] = []
        self._allow_writing()
        for ids in walker:
            released += (self._steps[each] for each in ids)
            # One process runs all ready quanta before it adds released ones: the order of MPGraphExecutor.
            if not ready or self._processes > 1:
                ready += sorted(released, key=lambda step: step.order)
                released.clear()
            self._start_children(ready, before_task)
            ends: list[tuple[QuantumStep, _QuantumResult]] = []
            if ready:
                step = ready.pop(0)
                before_task(step.task.label)
                end = self._execute(step)
                ends.append((step, self._with_space(step, end, partial(self._memory.end, step))))
            if self._children:
                # Wait only if there was nothing to run here.
                ended = ForkedCall.ended(self._children, wait=not ends)
                ends += ((self._children[child], self._collect(child)) for child in ended)
            for step, end in ends:
                self._record_result(step, end, walker)
            if any(end.fatal for _, end in ends):
                return

    def _start_children(self, ready: list[QuantumStep], before_task: Callable[[str], None]) -> None:
        """Let children run all but one of the quanta that can be run now, up to the limit of processes."""
        for_children = [step for step in ready if step.id not in self._urgent]
        while for_children and len(ready) > 1 and len(self._children) + 1 < self._processes:
            step = for_children.pop()  # the first in the order is run in this process
            before_task(step.task.label)
            try:
                child = ForkedCall.start(partial(self._run_in_child, step), partial(self._with_files, step))
            except OSError as error:
                _LOG.warning(
                    "cannot fork a process for task %s, the worker runs it: %s", step.task.label, error
                )
                return
            ready.remove(step)
            self._children[child] = step
            self._memory.end(step)  # the child has a copy of all that it reads

    def _run_in_child(self, step: QuantumStep) -> _QuantumResult:
        """Run a quantum in a child."""
        return self._with_outputs(step, self._execute(step))

    def _with_files(self, step: QuantumStep, end: _QuantumResult) -> _QuantumResult:
        return self._with_outputs(step, end, in_files=True)

    def _with_outputs(
        self, step: QuantumStep, end: _QuantumResult, *, in_files: bool = False
    ) -> _QuantumResult:
        try:
            return replace(end, outputs=self._memory.outputs_for_transfer(step, in_files=in_files))
        except Exception as error:  # no space for an output that has to be written
            return _QuantumResult(end.failure or TaskFailure.of(step.task.label, error), logs=end.logs)

    @staticmethod
    def _with_space(step: QuantumStep, end: _QuantumResult, update: Callable[[], None]) -> _QuantumResult:
        """Update the memory after a quantum, which fails if there is no space for an output that has to
        be written.
        """
        try:
            update()
        except Exception as error:
            return replace(end, failure=end.failure or TaskFailure.of(step.task.label, error))
        return end

    def _collect(self, child: ForkedCall) -> _QuantumResult:
        """Add the outputs of a child to the memory; raise `VisitFailed` if it died."""
        step = self._children.pop(child)
        try:
            end: _QuantumResult = child.result()
        except DiedWithoutResult as error:
            reason = f"task {step.task.label}: its process {error}"
            raise VisitFailed(Outcome.CRASHED, reason, retriable=True) from None
        return self._with_space(step, end, partial(self._memory.adopt, step, end.outputs))

    def _execute(self, step: QuantumStep) -> _QuantumResult:
        self._memory.begin(step)
        logs = ButlerLogRecords([])
        try:
            result = self._executor.execute(step.node, step.quantum, quantum_id=step.id, log_records=logs)
        except InvalidQuantumError as error:
            return _QuantumResult(TaskFailure.of(step.task.label, error), fatal=True)
        except Exception as error:  # only quanta that need its outputs are skipped
            # The text of MPGraphExecutor: logs of both engines are the same.
            _LOG.error(
                "%s (%s@%s) failed; processing will continue for remaining tasks.",
                step.id,
                step.task.label,
                step.quantum.dataId,
                exc_info=error,
            )
            return _QuantumResult(TaskFailure.of(step.task.label, error), logs=logs)
        except BaseException as error:  # SystemExit or KeyboardInterrupt of a task
            return _QuantumResult(TaskFailure.of(step.task.label, error), fatal=True)
        return _QuantumResult(metadata=result.task_metadata, logs=logs)

    def _record_result(self, step: QuantumStep, end: _QuantumResult, walker: GraphWalker[uuid.UUID]) -> None:
        """Release the quanta that depend on this one, or skip them if it failed."""
        self._unfinished.discard(step.id)
        if end.metadata is not None:
            self._succeeded.append((step.task.label, end.metadata))
        if end.logs is not None:
            metadata = end.metadata
            if end.failure is not None and metadata is not None:
                # It failed after its task had succeeded: as the executor does for a task that fails.
                end.logs.extra = {**end.logs.extra, "metadata": metadata.model_dump()}
                metadata = None
            self.ends[step.id] = QuantumEnd(end.logs, metadata)
        if end.failure is None:
            walker.finish(step.id)
        else:
            self._failure = self._failure or end.failure
            if not end.fatal:
                self._skip_after(step, walker)
        self._allow_writing()

    def _skip_after(self, step: QuantumStep, walker: GraphWalker[uuid.UUID]) -> None:
        """Skip the quanta that need the outputs of a failed one."""
        for each in walker.fail(step.id):
            blocked = self._steps[each]
            _LOG.error(
                "Upstream job failed for task %s (%s@%s), skipping this quantum.",
                each,
                blocked.task.label,
                blocked.quantum.dataId,
            )
            self._memory.end(blocked)
            self._unfinished.discard(each)

    def _allow_writing(self) -> None:
        """Let the background writer begin if no urgent quantum is left and nothing will be forked.

        A fork must not happen while another thread is active.
        """
        if self._unfinished and not self._urgent & self._unfinished and self._processes == 1:
            self._memory.background.allow()
