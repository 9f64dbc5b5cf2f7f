# SPDX-License-Identifier: BSD-3-Clause
"""Running quanta in the order and with the failures of ``MPGraphExecutor``."""

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
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.direct.files import TransferredDataset
from ppdaemon.middleware.direct.forked import DiedWithoutResult, ForkedCall
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.quanta import QuantumStep
from ppdaemon.middleware.direct.tasks import reads_once_puts_last
from ppdaemon.middleware.run.engine import RunResult, TaskFailure
from ppdaemon.states import Outcome

__all__ = ("QuantumRunner",)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _QuantumResult:
    """How a quantum has ended."""

    failure: TaskFailure | None = None
    fatal: bool = False
    """Whether nothing is run after it: the reference ends its process here."""
    metadata: TaskMetadata | None = None
    outputs: Sequence[TransferredDataset] = ()
    """What it has put, if that was in another process."""


class _NotifyingFactory(TaskFactory):
    """Passes on to the memory what is known of the task that will run."""

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

    With more than one process, quanta that do not need each other are run at
    once: one here, others in forked children. Nothing may hold up those with
    an urgent label: no child runs them, and while one is left nothing is
    written beside them. `context` goes into all log records.
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
        self._steps = {step.id: step for step in steps}
        self._urgent = frozenset(step.id for step in steps if step.task.label in urgent)
        self._memory = memory
        self._context = dict(context)
        self._executor = SingleQuantumExecutor(
            butler=memory,
            task_factory=_NotifyingFactory(tasks, memory),
            assume_no_existing_outputs=True,
            raise_on_partial_outputs=False,
        )
        self._processes = processes
        self._unfinished = set(self._steps)
        """What has not ended."""
        self._children: dict[ForkedCall, QuantumStep] = {}
        self._failure: TaskFailure | None = None
        self._succeeded: list[tuple[str, TaskMetadata]] = []

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        """Run all; see `~ppdaemon.middleware.run.engine.PipelineRun`."""
        try:
            with ButlerMDC.set_mdc(self._context):
                self._run(before_task)
        except BaseException:
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
            # One process does all that is ready before it looks again, as the reference does.
            if not ready or self._processes > 1:
                ready += sorted(released, key=lambda step: step.order)
                released.clear()
            self._start_children(ready, before_task)
            ends: list[tuple[QuantumStep, _QuantumResult]] = []
            if ready:
                step = ready.pop(0)
                before_task(step.task.label)
                ends.append((step, self._execute(step)))
                self._memory.end(step)
            if self._children:
                ended = ForkedCall.ended(self._children, wait=not ends)
                ends += ((self._children[child], self._collect(child)) for child in ended)
            for step, end in ends:
                self._record_result(step, end, walker)
            if any(end.fatal for _, end in ends):
                return

    def _start_children(self, ready: list[QuantumStep], before_task: Callable[[str], None]) -> None:
        """Let children run all but one of what can be run now, as far as there may be more of them."""
        for_children = [step for step in ready if step.id not in self._urgent]
        while for_children and len(ready) > 1 and len(self._children) + 1 < self._processes:
            step = for_children.pop()  # what comes first in the order is run here
            before_task(step.task.label)
            try:
                child = ForkedCall.start(partial(self._run_in_child, step), partial(self._with_files, step))
            except OSError as error:
                _LOG.warning("%s is not run in a process of its own: %s", step.task.label, error)
                return
            ready.remove(step)
            self._children[child] = step
            self._memory.end(step)  # the child has all that it reads

    def _run_in_child(self, step: QuantumStep) -> _QuantumResult:
        """Run a quantum in a child."""
        end = self._execute(step)
        return replace(end, outputs=self._memory.outputs_for_transfer(step))

    def _with_files(self, step: QuantumStep, end: _QuantumResult) -> _QuantumResult:
        return replace(end, outputs=self._memory.outputs_for_transfer(step, in_files=True))

    def _collect(self, child: ForkedCall) -> _QuantumResult:
        """Take over what a child has done."""
        step = self._children.pop(child)
        try:
            end: _QuantumResult = child.result()
        except DiedWithoutResult as error:
            reason = f"task {step.task.label}: its process ended with {error}"
            raise VisitFailed(Outcome.CRASHED, reason, retriable=True) from None
        self._memory.adopt(step, end.outputs)
        return end

    def _execute(self, step: QuantumStep) -> _QuantumResult:
        self._memory.begin(step)
        try:
            result = self._executor.execute(
                step.node, step.quantum, quantum_id=step.id, log_records=ButlerLogRecords([])
            )
        except InvalidQuantumError as error:
            return _QuantumResult(TaskFailure.of(step.task.label, error), fatal=True)
        except Exception as error:  # what a task raises concerns those that read its outputs
            _LOG.error(
                "%s (%s@%s) failed; processing will continue for remaining tasks.",
                step.id,
                step.task.label,
                step.quantum.dataId,
                exc_info=error,
            )
            return _QuantumResult(TaskFailure.of(step.task.label, error))
        except BaseException as error:  # of a task, as Runner does not raise one: it ends all
            return _QuantumResult(TaskFailure.of(step.task.label, error), fatal=True)
        return _QuantumResult(metadata=result.task_metadata)

    def _record_result(self, step: QuantumStep, end: _QuantumResult, walker: GraphWalker[uuid.UUID]) -> None:
        """Go on with what a quantum has made, or without it."""
        self._unfinished.discard(step.id)
        if end.metadata is not None:
            self._succeeded.append((step.task.label, end.metadata))
        if end.failure is None:
            walker.finish(step.id)
        else:
            self._failure = self._failure or end.failure
            if not end.fatal:
                self._skip_after(step, walker)
        self._allow_writing()

    def _skip_after(self, step: QuantumStep, walker: GraphWalker[uuid.UUID]) -> None:
        """Go on without what a task did not make."""
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
        """Let writing begin beside the tasks when nothing urgent is ahead and
        nothing will be forked: a fork wants no other thread.
        """
        if self._unfinished and not self._urgent & self._unfinished and self._processes == 1:
            self._memory.background.allow()
