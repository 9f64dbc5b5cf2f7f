# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that are constructed before the image: one for each expected quantum, used once.

So no task carries metadata or other state from one quantum to the next. A task whose
construction takes long, for example because it loads a model, is used again in later visits,
unless its quantum has changed it.
"""

import copy
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import BufferingHandler

from lsst.daf.butler import DatasetRef, LimitedButler
from lsst.daf.butler.logging import ButlerLogRecordHandler
from lsst.pipe.base import PipelineTask, Task, TaskFactory
from lsst.pipe.base.pipeline_graph import TaskNode

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.direct.quanta import QuantumStep

__all__ = ("ReadyTasks", "reads_once_puts_last")

_LOG = logging.getLogger(__name__)

type _Key = tuple[TaskNode, frozenset[object]]
"""The task's node, with its configuration, and the ids of its init-inputs."""

SLOW_S = 0.1
"""A task whose construction takes longer is used in later visits, too."""
VALUES = (bool, int, float, complex, str, bytes, type(None))


def reads_once_puts_last(task: PipelineTask) -> bool:
    """Return whether a task reads each connection once and does nothing after it puts.

    That holds if it leaves reading and putting to
    `lsst.pipe.base.PipelineTask`; nothing is known of any other task.
    """
    return all(
        getattr(getattr(task, name), "__func__", None) is getattr(PipelineTask, name)
        for name in ("runQuantum", "getFullMetadata")  # the executor calls the latter after the last put
    )


@dataclass(frozen=True, slots=True)
class _ReadyTask:
    task: PipelineTask
    log_records: tuple[logging.LogRecord, ...]
    """What it logged while it was constructed."""
    state: Mapping[tuple[str, ...], object] | None
    """Its attributes after the construction; `None` if that was fast."""

    @property
    def reusable(self) -> bool:
        """Whether it is used again: its construction was slow, and it is as it was then."""
        return self.state is not None and self.state == _state(self.task)


class ReadyTasks(TaskFactory):
    """Returns tasks that were constructed before, and constructs the others."""

    def __init__(self) -> None:
        self._ready: dict[_Key, list[_ReadyTask]] = defaultdict(list)
        self._used: list[tuple[_Key, _ReadyTask]] = []

    def discard(self) -> None:
        """Discard the tasks of a visit, except unchanged ones whose construction is slow."""
        unused = [(key, ready) for key, tasks in self._ready.items() for ready in tasks]
        self._ready.clear()
        for key, ready in (*unused, *self._used):
            if ready.reusable:
                ready.task.emptyMetadata()
                self._ready[key].append(ready)
        self._used.clear()

    def prepare(self, steps: Iterable[QuantumStep], butler: LimitedButler) -> None:
        """Construct the tasks of all expected quanta.

        If one cannot be constructed, that is logged; it is constructed again
        when it is to be run.
        """
        counts: Counter[_Key] = Counter()
        for step in steps:
            refs = list(step.quantum.initInputs.values())
            key = _key(step.node, refs)
            counts[key] += 1
            if len(self._ready[key]) >= counts[key]:
                continue
            try:
                self._ready[key].append(self._construct(step.node, butler, refs))
            except BaseException as error:  # tasks are foreign code and may raise SystemExit
                if isinstance(error, (KeyboardInterrupt, MemoryError)):
                    raise
                _LOG.warning(
                    "cannot construct task %s before the image, it is constructed again when it runs: %s",
                    step.task.label,
                    describe(error),
                )
                return

    def makeTask(  # noqa: N802
        self,
        task_node: TaskNode,
        /,
        butler: LimitedButler,
        initInputRefs: Iterable[DatasetRef] | None,  # noqa: N803
    ) -> PipelineTask:
        """Return a task; see `lsst.pipe.base.TaskFactory`."""
        refs = list(initInputRefs or ())
        ready_tasks = self._ready.get(_key(task_node, refs))
        if not ready_tasks:
            return super().makeTask(task_node, butler, refs)
        ready = ready_tasks.pop()
        self._used.append((_key(task_node, refs), ready))
        _replay_log(ready.log_records)
        return ready.task

    def _construct(self, node: TaskNode, butler: LimitedButler, refs: list[DatasetRef]) -> _ReadyTask:
        node.config.freeze()  # type: ignore[no-untyped-call]  # as executors do before each quantum
        begin = time.perf_counter()
        with _captured_log() as log_records:
            task = super().makeTask(node, butler, refs)
        slow = time.perf_counter() - begin > SLOW_S
        return _ReadyTask(task, tuple(log_records), _state(task) if slow else None)


def _key(node: TaskNode, refs: Iterable[DatasetRef]) -> _Key:
    return node, frozenset(ref.id for ref in refs)


def _state(task: Task) -> dict[tuple[str, ...], object]:
    """Return the attributes of a task and its subtasks in a form that differs if one is replaced, or
    an element of a container is. What changes within another object is not seen.
    """
    found: dict[tuple[str, ...], object] = {}
    pending: list[tuple[tuple[str, ...], Task]] = [((), task)]
    seen = {id(task)}
    while pending:
        path, part = pending.pop()
        for name, value in vars(part).items():
            if name == "metadata":
                continue  # emptied before the task is used again
            found[*path, name] = _described(value)
            if isinstance(value, Task) and id(value) not in seen:
                seen.add(id(value))
                pending.append(((*path, name), value))
    return found


def _described(value: object) -> object:
    match value:
        case dict():
            return id(value), [(_one(key), _one(element)) for key, element in value.items()]
        case list() | tuple() | set() | frozenset():
            return id(value), [_one(element) for element in value]
    return _one(value)


def _one(value: object) -> object:
    return value if isinstance(value, VALUES) else id(value)


@contextmanager
def _captured_log() -> Iterator[list[logging.LogRecord]]:
    handler = BufferingHandler(sys.maxsize)
    logging.getLogger().addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logging.getLogger().removeHandler(handler)


def _replay_log(log_records: Iterable[logging.LogRecord]) -> None:
    """Add records to the log dataset of the running quantum, where ``separable`` has them.

    The worker's log got them when they were logged.
    """
    context = getattr(logging.makeLogRecord({}), "MDC", None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ButlerLogRecordHandler):
            for record in log_records:
                replayed = copy.copy(record)
                if context is not None:
                    replayed.MDC = context  # that of the quantum, as in the log of separable
                handler.handle(replayed)
