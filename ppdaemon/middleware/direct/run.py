# SPDX-License-Identifier: BSD-3-Clause
"""Running quanta one after the other, in the order and with the failures of ``MPGraphExecutor``."""

import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence

import networkx
from lsst.daf.butler.logging import ButlerLogRecords, ButlerMDC
from lsst.pipe.base import InvalidQuantumError, TaskFactory, TaskMetadata
from lsst.pipe.base.graph_walker import GraphWalker
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.quanta import Step
from ppdaemon.middleware.direct.scribe import Scribe
from ppdaemon.middleware.engine import Ran, TaskFailure, describe_caveats

__all__ = ("Runner",)

_LOG = logging.getLogger(__name__)


class Runner:
    """Runs the quanta of one visit.

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
        Labels of tasks that nothing may hold up.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        memory: MemoryButler,
        tasks: TaskFactory,
        context: Mapping[str, str],
        scribe: Scribe,
        urgent: Collection[str],
    ):
        self._steps = {step.id: step for step in steps}
        self._scribe = scribe
        self._urgent = {step.id for step in steps if step.task.label in urgent}
        self._memory = memory
        self._context = dict(context)
        self._executor = SingleQuantumExecutor(
            butler=memory, task_factory=tasks, assume_no_existing_outputs=True, raise_on_partial_outputs=False
        )
        self._failure: TaskFailure | None = None
        self._ended: list[tuple[str, TaskMetadata]] = []

    def __call__(self, before_task: Callable[[str], None]) -> Ran:
        """Run all; see `~ppdaemon.middleware.engine.RunJob`."""
        try:
            return self._run(before_task)
        except BaseException:
            self._scribe.finish()
            raise

    def _run(self, before_task: Callable[[str], None]) -> Ran:
        graph = networkx.DiGraph()
        graph.add_nodes_from(self._steps)
        graph.add_edges_from((made, step.id) for step in self._steps.values() for made in step.after)
        walker = GraphWalker[uuid.UUID](graph)
        with ButlerMDC.set_mdc(self._context):
            self._leave()
            for ready in walker:
                for step in sorted((self._steps[each] for each in ready), key=lambda step: step.order):
                    before_task(step.task.label)
                    try:
                        self._execute(step)
                    except InvalidQuantumError:
                        return self._ran  # the reference ends its process here
                    except Exception as error:  # what a task raises concerns those that read its outputs
                        self._skip(step, error, walker)
                    except BaseException:  # of a task, as Runner does not raise one: it ends all
                        return self._ran
                    else:
                        walker.finish(step.id)
        return self._ran

    @property
    def _ran(self) -> Ran:
        return Ran(self._failure, describe_caveats(self._ended))

    def _execute(self, step: Step) -> None:
        self._memory.begin(step)
        try:
            result = self._executor.execute(
                step.node, step.quantum, quantum_id=step.id, log_records=ButlerLogRecords([])
            )
        except BaseException as error:
            if self._failure is None:
                self._failure = TaskFailure.of(step.task.label, error)
            raise
        finally:
            self._memory.end(step)
            self._leave(step)
        if result.task_metadata is not None:
            self._ended.append((step.task.label, result.task_metadata))

    def _skip(self, step: Step, error: Exception, walker: GraphWalker[uuid.UUID]) -> None:
        """Go on without what a task did not make."""
        _LOG.error(
            "%s (%s@%s) failed; processing will continue for remaining tasks.",
            step.id,
            step.task.label,
            step.quantum.dataId,
            exc_info=error,
        )
        for each in walker.fail(step.id):
            blocked = self._steps[each]
            _LOG.error(
                "Upstream job failed for task %s (%s@%s), skipping this quantum.",
                each,
                blocked.task.label,
                blocked.quantum.dataId,
            )
            self._memory.end(blocked)
            self._leave(blocked)

    def _leave(self, *steps: Step) -> None:
        """Note that steps are behind us; let writing begin when nothing urgent is ahead."""
        self._urgent.difference_update(step.id for step in steps)
        if not self._urgent:
            self._scribe.allow()
