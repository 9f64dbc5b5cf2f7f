# SPDX-License-Identifier: BSD-3-Clause
"""The floor below any engine: the tasks' own ``run``, called on objects in memory."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler
from lsst.pipe.base import QuantumContext, TaskFactory

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.direct.engine import DirectRun
from ppdaemon.states import Outcome

type _Spent = tuple[float, float]
"""Wall and CPU time of a call, seconds."""


class TasksOnly(ButlerWork):
    """A worker that prepares as any other and then only runs tasks: no logs, metadata or reports."""

    def run_tasks(self, order: Process) -> dict[str, float]:
        """Run the tasks of a visit, then write their exported outputs.

        ``total_ms`` is the sum over the ``run`` methods, ``tasks_cpu_ms`` their CPU time. The inputs are
        in memory before, each a separate object; reading a part of one, such as a cutout, does not count.
        ``written_ms`` includes writing the outputs, and ``held_ms`` is that and one durable file of them
        on the spool's disk.
        """
        visit = self._prepared()
        visit.raws.define_visits(order.exposures, visit.inputs)
        built = self._build(visit, order.exposures)
        if not isinstance(built.run, DirectRun):
            raise VisitFailed(Outcome.FAILED, f"{built.job.pipeline.name}: {built.declined}", retriable=False)
        total_ms, cpu_ms = _run_tasks(built.run, self._repo.butler)
        folder = self._repo.incoming / "written"
        folder.mkdir(parents=True)
        start = time.perf_counter()
        list(built.run.write(folder))
        written_ms = (time.perf_counter() - start) * 1e3
        _store(folder, self._context.spool)
        return {
            "total_ms": total_ms,
            "tasks_cpu_ms": cpu_ms,
            "written_ms": total_ms + written_ms,
            "held_ms": (time.perf_counter() - start) * 1e3,
        }


def _store(folder: Path, disk: Path) -> None:
    """Copy all files into one on a disk, and wait until it is there."""
    disk.mkdir(parents=True, exist_ok=True)
    with (disk / "floor").open("wb") as container:
        for path in folder.rglob("*"):
            if path.is_file():
                container.write(path.read_bytes())
        container.flush()
        os.fsync(container.fileno())


def _run_tasks(run: DirectRun, butler: Butler) -> tuple[float, float]:
    """Return wall and CPU time of all tasks, milliseconds."""
    spent: list[_Spent] = []
    reading: list[_Spent] = []
    run.memory.get = _timed(  # type: ignore[method-assign]
        run.memory.get, reading, lambda request: bool(request.get("parameters"))
    )
    for step in run.runner._steps.values():  # in topological order
        task = TaskFactory().makeTask(step.node, butler, list(step.quantum.initInputs.values()))
        task.run = _timed(task.run, spent)  # type: ignore[method-assign]
        inputs, outputs = task.config.connections.ConnectionsClass(config=task.config).buildDatasetRefs(
            step.quantum
        )
        run.memory.begin(step)
        task.runQuantum(QuantumContext(run.memory, step.quantum), inputs, outputs)
        run.memory.end(step)
    wall, cpu = (sum(each[k] for each in spent) - sum(each[k] for each in reading) for k in range(2))
    return wall * 1e3, cpu * 1e3


def _timed(
    method: Callable[..., Any],
    spent: list[_Spent],
    counts: Callable[[Mapping[str, Any]], bool] = lambda request: True,
) -> Callable[..., Any]:
    """Add the time of each call to a list, if its keyword arguments are to be counted."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            if counts(kwargs):
                spent.append((time.perf_counter() - start, time.process_time() - cpu))

    return run
