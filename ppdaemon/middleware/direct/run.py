# SPDX-License-Identifier: BSD-3-Clause
"""Running quanta in the order and with the failures of ``MPGraphExecutor``."""

import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import networkx
from lsst.daf.butler.logging import ButlerLogRecords, ButlerMDC
from lsst.pipe.base import InvalidQuantumError, TaskFactory, TaskMetadata
from lsst.pipe.base.graph_walker import GraphWalker
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.direct.apart import Apart, EndedSilently
from ppdaemon.middleware.direct.memory import Made, MemoryButler
from ppdaemon.middleware.direct.quanta import Step
from ppdaemon.middleware.direct.scribe import Scribe
from ppdaemon.middleware.run.engine import RunResult, TaskFailure, describe_caveats
from ppdaemon.states import Outcome

__all__ = ("Runner",)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _End:
    """How a quantum has ended."""

    failure: TaskFailure | None = None
    fatal: bool = False
    """Whether nothing is run after it: the reference ends its process here."""
    metadata: TaskMetadata | None = None
    made: Sequence[Made] = ()
    """What it has put, if that was in another process."""


class Runner:
    """Runs the quanta of one visit.

    With more than one process, quanta that do not need each other are run at
    once: one here, others in forked children.

    Parameters
    ----------
    steps : `~collections.abc.Sequence` [`~ppdaemon.middleware.direct.quanta.Step`]
        The quanta.
    memory : `~ppdaemon.middleware.direct.memory.MemoryButler`
        Hands on what they make.
    tasks : `lsst.pipe.base.TaskFactory`
        Constructs tasks, or has them ready.
    context : `~collections.abc.Mapping` [`str`, `str`]
        What log records tell of the visit.
    scribe : `~ppdaemon.middleware.direct.scribe.Scribe`
        Is allowed to begin when no urgent task is left.
    urgent : `~collections.abc.Collection` [`str`]
        Labels of tasks that nothing may hold up, and that no child runs.
    processes : `int`, optional
        How many quanta are run at once at the most.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        memory: MemoryButler,
        tasks: TaskFactory,
        context: Mapping[str, str],
        scribe: Scribe,
        urgent: Collection[str],
        processes: int = 1,
    ):
        self._steps = {step.id: step for step in steps}
        self._graph = networkx.DiGraph()
        self._graph.add_nodes_from(self._steps)
        self._graph.add_edges_from((made, step.id) for step in steps for made in step.after)
        self._scribe = scribe
        self._own = frozenset(step.id for step in steps if step.task.label in urgent)
        self._memory = memory
        self._context = dict(context)
        self._executor = SingleQuantumExecutor(
            butler=memory, task_factory=tasks, assume_no_existing_outputs=True, raise_on_partial_outputs=False
        )
        self._processes = processes
        self._to_begin = set(self._steps)
        self._to_end = set(self._steps)
        self._children: dict[Apart, Step] = {}
        self._failure: TaskFailure | None = None
        self._ended: list[tuple[str, TaskMetadata]] = []

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        """Run all; see `~ppdaemon.middleware.run.engine.PipelineRun`."""
        try:
            with ButlerMDC.set_mdc(self._context):
                self._run(before_task)
        except BaseException:
            self._scribe.finish()
            raise
        finally:
            for child in self._children:
                child.end()
        return RunResult(self._failure, describe_caveats(self._ended))

    def _run(self, before_task: Callable[[str], None]) -> None:
        walker = GraphWalker[uuid.UUID](self._graph.copy())
        ready: list[Step] = []
        freed: list[Step] = []
        self._let_write()
        for ids in walker:
            freed += (self._steps[each] for each in ids)
            # One process does all that is ready before it looks again, as the reference does.
            if not ready or self._processes > 1:
                ready += sorted(freed, key=lambda step: step.order)
                freed.clear()
            self._spread(ready, before_task)
            ends: list[tuple[Step, _End]] = []
            if ready:
                step = ready.pop(0)
                before_task(step.task.label)
                self._begin(step)
                ends.append((step, self._execute(step)))
                self._memory.end(step)
            if self._children:
                ended = Apart.over(self._children, wait=not ends)
                ends += ((self._children[child], self._take(child)) for child in ended)
            for step, end in ends:
                self._note(step, end, walker)
            if any(end.fatal for _, end in ends):
                return

    def _spread(self, ready: list[Step], before_task: Callable[[str], None]) -> None:
        """Give children all but one of what can be run now, as far as there may be more of them."""
        for_children = [step for step in ready if step.id not in self._own]
        while for_children and len(ready) > 1 and len(self._children) + 1 < self._processes:
            step = for_children.pop()  # what comes first in the order is run here
            before_task(step.task.label)
            try:
                child = Apart.begin(partial(self._work, step), partial(self._plain, step))
            except OSError as error:
                _LOG.warning("%s is not run in a process of its own: %s", step.task.label, error)
                return
            ready.remove(step)
            self._begin(step)
            self._children[child] = step
            self._memory.end(step)  # the child has all that it reads

    def _work(self, step: Step) -> _End:
        """Run a quantum in a child."""
        end = self._execute(step)
        return replace(end, made=self._memory.made_by(step))

    def _plain(self, step: Step, end: _End) -> _End:
        return replace(end, made=self._memory.made_by(step, in_files=True))

    def _take(self, child: Apart) -> _End:
        """Take over what a child has done."""
        step = self._children.pop(child)
        try:
            end: _End = child.take()
        except EndedSilently as error:
            reason = f"task {step.task.label}: its process ended with {error}"
            raise VisitFailed(Outcome.CRASHED, reason, retriable=True) from None
        self._memory.adopt(step, end.made)
        return end

    def _begin(self, step: Step) -> None:
        self._to_begin.discard(step.id)

    def _execute(self, step: Step) -> _End:
        self._memory.begin(step)
        try:
            result = self._executor.execute(
                step.node, step.quantum, quantum_id=step.id, log_records=ButlerLogRecords([])
            )
        except InvalidQuantumError as error:
            return _End(TaskFailure.of(step.task.label, error), fatal=True)
        except Exception as error:  # what a task raises concerns those that read its outputs
            _LOG.error(
                "%s (%s@%s) failed; processing will continue for remaining tasks.",
                step.id,
                step.task.label,
                step.quantum.dataId,
                exc_info=error,
            )
            return _End(TaskFailure.of(step.task.label, error))
        except BaseException as error:  # of a task, as Runner does not raise one: it ends all
            return _End(TaskFailure.of(step.task.label, error), fatal=True)
        return _End(metadata=result.task_metadata)

    def _note(self, step: Step, end: _End, walker: GraphWalker[uuid.UUID]) -> None:
        """Go on with what a quantum has made, or without it."""
        self._to_end.discard(step.id)
        if end.metadata is not None:
            self._ended.append((step.task.label, end.metadata))
        if end.failure is None:
            walker.finish(step.id)
        else:
            self._failure = self._failure or end.failure
            if not end.fatal:
                self._skip_after(step, walker)
        self._let_write()

    def _skip_after(self, step: Step, walker: GraphWalker[uuid.UUID]) -> None:
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
            self._to_begin.discard(each)
            self._to_end.discard(each)

    def _let_write(self) -> None:
        """Let writing begin beside the tasks when nothing urgent is ahead and
        nothing will be forked: a fork wants no other thread.
        """
        if self._own & self._to_end or not self._to_end:
            return
        if self._processes > 1:
            rest = self._graph.subgraph(self._to_begin)
            if any(len(generation) > 1 for generation in networkx.topological_generations(rest)):
                return
        self._scribe.allow()
