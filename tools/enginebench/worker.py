# SPDX-License-Identifier: BSD-3-Clause
"""One worker of the bench: a process that does visits on request."""

import gc
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from enginebench.tasksonly import TasksOnly
from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.demo.raws import detector_names, raw_path
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Connecting, Pipelines, Prepare, Process, Raw, StageReached
from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import read_next_visit
from ppdaemon.work import WorkerContext
from ppdaemon.worker.main import trim_memory

__all__ = ("DETECTOR", "Setup", "run_worker")

DETECTOR = 4
"""In the middle of the camera."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Configuration and folders of a worker of the bench."""

    config: Mapping[str, Any]
    """As ``ppdaemon.yaml``."""
    ramdisk: Path
    """Its own folder for the template, the repo and the shared cache; must not exist."""
    spool: Path
    """On a disk."""
    main: tuple[str, ...]
    preprocessing: tuple[str, ...] = ()
    """Paths of pipelines."""
    tasks_only: bool = False
    """Whether tasks are run without an engine."""


class _StageTimes:
    """Records the time at which a visit reaches each stage."""

    def __init__(self) -> None:
        self.at_s: dict[Stage, float] = {}

    def __call__(self, fact: StageReached | Connecting) -> None:
        if isinstance(fact, StageReached):
            self.at_s[fact.stage] = time.perf_counter()


def run_worker(setup: Setup, channel: Connection) -> None:
    """Do visits as a worker does that the zygote has forked.

    The channel sends visits (`~ppdaemon.demo.visits.VisitPlan`), then `None`;
    it receives the measurements of each visit.
    """
    setup.ramdisk.mkdir(parents=True)
    with _stderr_to(setup.ramdisk / "log"):
        log.set_up("INFO", "json")
        reports = _StageTimes()
        context = _context(setup, reports)
        work.set_up_libraries()
        NodeFolders.of(context.config).ramdisk.mkdir(parents=True)
        context = replace(context, warmed=work.warm_up(context.config))
        work.build_template(context)
        # As in the zygote: collections in a worker need not visit the imported objects.
        gc.collect()
        gc.freeze()
        make = TasksOnly if setup.tasks_only else ButlerWork
        assert context.config.butler is not None
        worker = make(context, context.config.butler)
        for number, plan in enumerate(iter(channel.recv, None)):
            channel.send(_visit(worker, context, setup, plan, reports, first=number == 0))
        worker.close()


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Redirect stderr of this process and its children to a file; restored for a traceback."""
    stderr = os.dup(2)
    with path.open("w") as lines:
        os.dup2(lines.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _context(setup: Setup, reports: _StageTimes) -> WorkerContext:
    folder = setup.ramdisk
    (folder / "slot").mkdir()
    return WorkerContext(
        config=NodeConfig.model_validate(setup.config),
        slot=0,
        epoch=1,
        repo=folder / "slot",
        template=folder / "template",
        cache=folder / "cache",
        runs=folder / "runs",
        spool=setup.spool,
        ramdisk_spool=setup.spool,
        publish=setup.spool.with_name("publish"),
        clock=Clock(),
        report=reports,
        cross=lambda what: None,
    )


def _visit(
    worker: ButlerWork,
    context: WorkerContext,
    setup: Setup,
    plan: VisitPlan,
    reports: _StageTimes,
    *,
    first: bool,
) -> dict[str, float]:
    """Do one visit; return its measurements."""
    _reset_peak()
    start_s = time.perf_counter()
    prepared = worker.prepare(_order(setup, plan))
    results = {
        "prepare_ms": (time.perf_counter() - start_s) * 1e3,
        "warm_ms": float(prepared.detail["warm_ms"]),
    }
    raws = list(_raws(context.config.arrivals.roots[0].path, plan))
    exposures = Process(exposures=tuple(raw.exposure for raw in raws))
    reports.at_s.clear()
    start_s = time.perf_counter()
    for raw in raws:
        worker.ingest(raw)
    if isinstance(worker, TasksOnly):
        results |= worker.run_tasks(exposures)
    else:
        results |= _process(worker, context, exposures, reports, start_s, first=first)
    results |= {"memory_peak_mb": _peak_mb(), "ramdisk_mb": _size_mb(context.repo)}
    worker.reset()
    trim_memory()
    shutil.rmtree(context.spool, ignore_errors=True)
    return results


def _process(
    worker: ButlerWork,
    context: WorkerContext,
    order: Process,
    reports: _StageTimes,
    start_s: float,
    *,
    first: bool,
) -> dict[str, float]:
    done = worker.process(order)
    if done.outcome != Outcome.SUCCEEDED or done.engine != context.config.engine.kind or done.spool is None:
        raise RuntimeError(f"engine {context.config.engine.kind} failed or was not used: {done.model_dump()}")
    if first:  # the outputs that a run has only once are exported now, as in a node's first visit
        work.open_exporter(context).export([Path(done.spool)])
    at_ms = {stage: (at_s - start_s) * 1e3 for stage, at_s in reports.at_s.items()}
    return {
        "raw_to_first_task_ms": at_ms[Stage.FIRST_TASK],
        "tasks_ms": at_ms[Stage.PROCESSED] - at_ms[Stage.FIRST_TASK],
        "processed_ms": at_ms[Stage.PROCESSED],
        "spool_ms": at_ms[Stage.SPOOLED] - at_ms[Stage.PROCESSED],
        "total_ms": at_ms[Stage.SPOOLED],
    }


def _order(setup: Setup, plan: VisitPlan) -> Prepare:
    return Prepare(
        visit=read_next_visit(plan.next_visit(plan.announced_tai_s)),
        detector=DETECTOR,
        attempt=1,
        pipelines=Pipelines(preprocessing=setup.preprocessing, main=setup.main),
    )


def _raws(root: Path, plan: VisitPlan) -> Iterator[Raw]:
    for exposure in plan.exposures:
        path = root / raw_path(exposure, detector_names(exposure.instrument)[DETECTOR][0])
        yield Raw(
            path=str(path),
            sidecar=str(path.with_suffix(".json")),
            instrument=exposure.instrument,
            group=exposure.group,
            detector=DETECTOR,
            exposure=exposure.exposure_id,
            seen_tai=0.0,
        )


def _reset_peak() -> None:
    # 5 resets the peak resident memory, see proc(5).
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Return the peak resident memory of this process plus that of its largest child."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (process_kb,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return (process_kb + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024 / 1e6


def _size_mb(folder: Path) -> float:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 1e6
