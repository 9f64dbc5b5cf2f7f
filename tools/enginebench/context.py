# SPDX-License-Identifier: BSD-3-Clause
"""One worker of the bench: a process of its own that does visits when it is told to."""

import gc
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from enginebench.byhand import ByHand
from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.demo.raws import detector_names, raw_path
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.messages import Pipelines, PointOfNoReturn, Prepare, Process, Raw, StageReached
from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import read_next_visit
from ppdaemon.work import WorkerContext
from ppdaemon.worker.main import give_memory_back

__all__ = ("DETECTOR", "Setup", "sit")

DETECTOR = 4
"""In the middle."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker of the bench gets."""

    config: Mapping[str, Any]
    """As ``ppdaemon.yaml``."""
    ramdisk: Path
    """Its own folder for the template, the repo and what hosts share; empty."""
    spool: Path
    """On a disk."""
    main: tuple[str, ...]
    before: tuple[str, ...] = ()
    """Paths of pipelines."""
    by_hand: bool = False
    """Whether tasks are run without an engine."""


class _Reports:
    """Notes when a visit reaches what."""

    def __init__(self) -> None:
        self.at_s: dict[Stage, float] = {}

    def __call__(self, fact: StageReached | PointOfNoReturn) -> None:
        if isinstance(fact, StageReached):
            self.at_s[fact.stage] = time.perf_counter()


def sit(setup: Setup, channel: Connection) -> None:
    """Do visits until there are no more; as a worker that the zygote has forked.

    Parameters
    ----------
    setup : `Setup`
        Configuration and places.
    channel : `multiprocessing.connection.Connection`
        Gives visits (`~ppdaemon.demo.visits.VisitPlan`), then `None`, and
        takes the figures of each.
    """
    setup.ramdisk.mkdir(parents=True)
    with _said_into(setup.ramdisk / "log"):
        log.set_up("INFO", "json")
        reports = _Reports()
        context = _context(setup, reports)
        work.set_up_libraries()
        work.build_template(context)
        gc.collect()
        gc.freeze()
        make = ByHand if setup.by_hand else ButlerWork
        assert context.config.butler is not None
        worker = make(context, context.config.butler)
        for number, plan in enumerate(iter(channel.recv, None)):
            channel.send(_visit(worker, context, setup, plan, reports, first=number == 0))
        worker.close()


@contextmanager
def _said_into(path: Path) -> Iterator[None]:
    """Have all that this process and its children say in a file; a traceback still is seen."""
    stderr = os.dup(2)
    with path.open("w") as lines:
        os.dup2(lines.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _context(setup: Setup, reports: _Reports) -> WorkerContext:
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
        clock=Clock(),
        report=reports,
    )


def _visit(
    worker: ButlerWork,
    context: WorkerContext,
    setup: Setup,
    plan: VisitPlan,
    reports: _Reports,
    *,
    first: bool,
) -> dict[str, float]:
    """Do one visit; return what it took."""
    _reset_peak()
    start_s = time.perf_counter()
    prepared = worker.prepare(_order(setup, plan))
    figures = {
        "prepare_ms": (time.perf_counter() - start_s) * 1e3,
        "warm_ms": float(prepared.detail["warm_ms"]),
    }
    raws = list(_raws(context.config.arrivals.roots[0].path, plan))
    exposures = Process(exposures=tuple(raw.exposure for raw in raws))
    reports.at_s.clear()
    start_s = time.perf_counter()
    for raw in raws:
        worker.ingest(raw)
    if isinstance(worker, ByHand):
        figures |= worker.run_tasks(exposures)
    else:
        figures |= _processed(worker, context, exposures, reports, start_s, first=first)
    figures |= {"memory_peak_mb": _peak_mb(), "ramdisk_mb": _size_mb(context.repo)}
    worker.reset()
    give_memory_back()
    shutil.rmtree(context.spool, ignore_errors=True)
    return figures


def _processed(
    worker: ButlerWork,
    context: WorkerContext,
    order: Process,
    reports: _Reports,
    start_s: float,
    *,
    first: bool,
) -> dict[str, float]:
    done = worker.process(order)
    if done.outcome != Outcome.SUCCEEDED or done.engine != context.config.engine.kind or done.spool is None:
        raise RuntimeError(f"{context.config.engine.kind}: {done.model_dump()}")
    if first:  # what each run has only once is exported now, as in a node's first visit
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
        pipelines=Pipelines(preprocessing=setup.before, main=setup.main),
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
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Return the most memory that this process had resident, and its largest child."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (own_kb,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return (own_kb + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024 / 1e6


def _size_mb(folder: Path) -> float:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 1e6
