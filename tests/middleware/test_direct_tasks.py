# SPDX-License-Identifier: BSD-3-Clause
"""Tasks whose construction takes long are used again, unless their quantum has changed them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from lsst.pex.config import Config, ConfigurableField, Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Task
from lsst.pipe.base.pipeline_graph import PipelineGraph

from ppdaemon.middleware.direct import tasks
from ppdaemon.middleware.direct.tasks import ReadyTasks


class ModelTask(Task):
    """A subtask with a model."""

    ConfigClass = Config
    _DefaultName = "model"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.weights = [1.0, 2.0]


class ScoreConnections(PipelineTaskConnections, dimensions=("visit",)):
    pass


class ScoreConfig(PipelineTaskConfig, pipelineConnections=ScoreConnections):
    threshold = Field[float](doc="a threshold", default=5.0)
    model = ConfigurableField(doc="a model", target=ModelTask)


class ScoreTask(PipelineTask):
    """A task with a model, in itself and in a subtask."""

    ConfigClass = ScoreConfig
    _DefaultName = "score"
    constructed = 0

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        type(self).constructed += 1
        self.makeSubtask("model")
        self.model: ModelTask
        self.weights = bytearray(10)
        self.names = ["a"]
        self.labels = {"a": 1}
        self.number = 10**6


@pytest.fixture(autouse=True)
def everything_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SLOW_S", 0.0)
    monkeypatch.setattr(ScoreTask, "constructed", 0)


def a_step(threshold: float = 5.0) -> Any:
    config = ScoreConfig()
    config.threshold = threshold
    node = PipelineGraph().add_task("score", ScoreTask, config)
    return SimpleNamespace(node=node, task=node, quantum=SimpleNamespace(initInputs={}))


def visit(ready: ReadyTasks, step: Any, change: Callable[[Any], object] = lambda task: None) -> Any:
    """Use a task once, as a visit does; return it."""
    ready.prepare([step], None)  # type: ignore[arg-type]
    task = ready.makeTask(step.node, None, None)  # type: ignore[arg-type]
    assert "stars" not in task.metadata
    task.metadata["stars"] = 3
    change(task)
    ready.discard()
    return task


def test_a_task_that_is_unchanged_is_used_in_later_visits() -> None:
    ready, step = ReadyTasks(), a_step()
    first = visit(ready, step)
    assert [visit(ready, step) for _ in range(3)] == [first] * 3
    assert ScoreTask.constructed == 1


def test_two_quanta_of_a_visit_never_share_a_task() -> None:
    ready, step = ReadyTasks(), a_step()
    for _ in range(2):
        ready.prepare([step, step], None)  # type: ignore[arg-type]
        one, other = (ready.makeTask(step.node, None, None) for _ in range(2))  # type: ignore[arg-type]
        assert one is not other
        ready.discard()
    assert ScoreTask.constructed == 2


def test_a_task_that_was_not_used_stays() -> None:
    ready, step = ReadyTasks(), a_step()
    for _ in range(2):
        ready.prepare([step], None)  # type: ignore[arg-type]
        ready.discard()
    assert ScoreTask.constructed == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda task: setattr(task, "number", task.number + 1),
        lambda task: setattr(task, "weights", bytearray(10)),
        lambda task: setattr(task, "found", 1),
        lambda task: task.names.append("b"),
        lambda task: task.labels.update(a=2),
        lambda task: task.model.weights.pop(),
        lambda task: setattr(task.model, "last_visit", 7),
        lambda task: delattr(task, "names"),
    ],
    ids=["number", "object", "new", "list", "dict", "list of a subtask", "new in a subtask", "gone"],
)
def test_a_task_that_its_quantum_has_changed_is_constructed_again(change: Callable[[Any], object]) -> None:
    ready, step = ReadyTasks(), a_step()
    first = visit(ready, step, change)
    assert visit(ready, step) is not first
    assert ScoreTask.constructed == 2


def test_another_configuration_has_its_own_task() -> None:
    ready, low, high = ReadyTasks(), a_step(3.0), a_step(7.0)
    assert [visit(ready, step).config.threshold for step in (low, high, low, high)] == [3.0, 7.0, 3.0, 7.0]
    assert ScoreTask.constructed == 2


def test_a_task_that_is_constructed_quickly_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SLOW_S", 60.0)
    ready, step = ReadyTasks(), a_step()
    assert visit(ready, step) is not visit(ready, step)
    assert ScoreTask.constructed == 2
