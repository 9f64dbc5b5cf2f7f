# SPDX-License-Identifier: BSD-3-Clause
"""A node of the bench with one worker at a time: processes that do visits on request."""

import os
import resource
import select
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lsst.daf.butler import ButlerConfig

from enginebench.tasksonly import TasksOnly
from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.demo.raws import detector_names, raw_path
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Connecting, Pipelines, Prepare, Process, Raw, StageReached
from ppdaemon.middleware import work
from ppdaemon.middleware.butler.repo import template_dimensions, template_repo
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.export.packing import pack
from ppdaemon.processes import die_with_parent
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import read_next_visit
from ppdaemon.work import WorkerContext
from ppdaemon.worker.imports import ImportCosts, observed_imports
from ppdaemon.worker.leftovers import Leftovers
from ppdaemon.worker.main import trim_memory
from ppdaemon.worker.sharedpages import keep_pages_shared
from ppdaemon.worker.zygote import assert_single_threaded

DETECTOR = 4
"""In the middle of the camera."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Configuration and folders of a node of the bench."""

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
    """Records when a visit reaches each stage, and when its last task ends."""

    def __init__(self) -> None:
        self._clock = Clock()
        self.at_s: dict[Stage, float] = {}
        self.last_task_s = 0.0

    def __call__(self, fact: StageReached | Connecting) -> None:
        if isinstance(fact, StageReached):
            self.at_s[fact.stage] = time.perf_counter()
        if isinstance(fact, StageReached) and fact.stage is Stage.PROCESSED:
            # Label, begin, end, error of each task, as for the traces: the end is before this report.
            age_s = self._clock.tai() - max(end for _, _, end, _ in fact.detail["tasks"])
            self.last_task_s = time.perf_counter() - age_s


@dataclass(frozen=True, slots=True)
class _Used:
    """What this process, its ended children and its asker have used until now."""

    at_s: float
    cpu_s: float
    read_bytes: int
    written_bytes: int

    @classmethod
    def now(cls, asker: int) -> "_Used":
        """Read the clock and the kernel's counters."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        asker_s = int(Path(f"/proc/{asker}/schedstat").read_text().split()[0]) / 1e9
        cpu_s = time.process_time() + children.ru_utime + children.ru_stime + asker_s
        moved = dict(map(str.split, Path("/proc/self/io").read_text().splitlines()))
        return cls(time.perf_counter(), cpu_s, int(moved["rchar:"]), int(moved["wchar:"]))

    def until(self, end: "_Used", name: str) -> dict[str, float]:
        """Return wall and CPU time of a step in milliseconds."""
        wall_s, cpu_s = end.at_s - self.at_s, end.cpu_s - self.cpu_s
        return {f"{name}_ms": wall_s * 1e3, f"{name}_cpu_ms": cpu_s * 1e3}


def run_node(setup: Setup, channel: Connection) -> None:
    """Do visits as a node does, whose zygote forks workers.

    The channel sends the number of visits of the next worker, which is answered
    when that is ready, and these visits (`~ppdaemon.demo.visits.VisitPlan`),
    each answered with its measurements; then `None`.
    """
    setup.ramdisk.mkdir(parents=True)
    with _stderr_to(setup.ramdisk / "log"):
        log.set_up("INFO", "json")
        reports = _StageTimes()
        context = _context(setup, reports)
        work.set_up_libraries()
        workers = context.config.workers
        leftovers = Leftovers(workers.preload, workers.allowed_threads)
        NodeFolders.of(context.config).uncompressed.mkdir(parents=True)
        context = replace(context, warmed=work.warm_up(context.config))
        assert_single_threaded()
        keep_pages_shared()
        _wait(_fork(partial(work.build_template, context)))
        asker = _start_asker(context)
        node = _Node(setup, context, reports, leftovers, asker)
        for number, count in enumerate(iter(channel.recv, None)):
            _wait(_fork(partial(_run_worker, node, channel, count, export=number == 0)))


@dataclass(frozen=True, slots=True)
class _Node:
    """What the workers of a node have in common."""

    setup: Setup
    context: WorkerContext
    reports: _StageTimes
    leftovers: Leftovers
    asker: int
    """Its pid."""


def _run_worker(node: _Node, channel: Connection, count: int, *, export: bool) -> None:
    """Do visits as a worker does that the zygote has forked; with `export`, they are exported."""
    config = node.context.config
    shutil.rmtree(node.context.repo, ignore_errors=True)  # that of the worker before
    node.context.repo.mkdir()
    assert config.butler is not None
    worker = (TasksOnly if node.setup.tasks_only else ButlerWork)(node.context, config.butler)
    node.leftovers.begin()
    channel.send("ready")
    with observed_imports(node.leftovers.around):
        for number in range(count):
            # A worker also measures what its first visit imports.
            measured = nullcontext() if number else observed_imports(ImportCosts().around)
            plan = channel.recv()
            with measured:
                results = _BenchVisit(worker, node, plan).run(export=export)
            channel.send(results)
    worker.close()


def _fork(function: Callable[[], None]) -> int:
    """Run a function in a forked process, which ends with this one; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            die_with_parent()
            if os.getppid() == parent:
                function()
                status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def _wait(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"a process of the node has ended with status {status}"


def _start_asker(context: WorkerContext) -> int:
    """Fork the process that asks the central repo, as a node has one; return its pid when it is prepared."""
    ready, is_ready = os.pipe()

    def serve() -> None:
        asker = work.open_asker(context)
        asker.prepare(lambda waited_s: None)
        os.write(is_ready, b"\0")
        while True:
            select.select([asker.fileno()], [], [])
            asker.answer(lambda waited_s: None)

    pid = _fork(serve)
    os.close(is_ready)
    with open(ready, "rb") as answer:
        assert answer.read(1), "the asker has failed"
    return pid


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


@dataclass(frozen=True, slots=True)
class _BenchVisit:
    """One visit, in the steps of a worker's loop."""

    worker: ButlerWork
    node: _Node
    plan: VisitPlan

    @property
    def context(self) -> WorkerContext:
        """That of the worker."""
        return self.node.context

    def run(self, *, export: bool) -> dict[str, float]:
        """Do the visit; return its measurements."""
        self.context.spool.mkdir(parents=True, exist_ok=True)
        _reset_peak()
        ordered = _Used.now(self.node.asker)
        prepared = self.worker.prepare(_order(self.node.setup, self.plan))
        if prepared.ran_tasks:
            self.node.leftovers.restore()
        ready = _Used.now(self.node.asker)
        raws = list(_raws(self.context.config.arrivals.roots[0].path, self.plan))
        exposures = Process(exposures=tuple(raw.exposure for raw in raws))
        self.node.reports.at_s.clear()
        begun = _Used.now(self.node.asker)
        for raw in raws:
            self.worker.ingest(raw)
        spool = None
        if isinstance(self.worker, TasksOnly):
            results = self.worker.run_tasks(exposures)
        else:
            spool = self._process(exposures)
            self.node.leftovers.restore()
            results = self._times(begun.at_s)
        answered = _Used.now(self.node.asker)
        results |= {"memory_peak_mb": _peak_mb(), "ramdisk_mb": _size_mb(self.context.repo)}
        if export and spool:
            # The outputs that a run has only once are exported, so that no later visit has them.
            results["packing_cpu_ms"] = self._pack(Path(spool))
            work.open_exporter(self.context).export([Path(spool)])
        cleaning = _Used.now(self.node.asker)
        self.worker.reset()
        trim_memory()
        free = _Used.now(self.node.asker)
        if spool and not export:
            results["packing_cpu_ms"] = self._pack(Path(spool))
        shutil.rmtree(self.context.spool, ignore_errors=True)
        for path in NodeFolders.of(self.context.config).uncompressed.iterdir():
            path.unlink()
        results |= ordered.until(ready, "prepare") | {"warm_ms": float(prepared.detail["warm_ms"])}
        if not isinstance(self.worker, TasksOnly):
            results |= self._whole(ordered, ready, begun, answered, cleaning, free)
        return results

    def _pack(self, spool: Path) -> float:
        """Compress the images of a spool as packers do; return the CPU time."""
        template, begin = self.context.template, time.process_time()
        if any(file.plain for file in read_manifest(spool).files):
            config = ButlerConfig(str(template_repo(template)))
            pack(spool, DatasetWriter(config, template_dimensions(template)))
        return (time.process_time() - begin) * 1e3

    def _process(self, order: Process) -> str:
        done, engine = self.worker.process(order), self.context.config.engine.kind
        if done.outcome != Outcome.SUCCEEDED or done.engine != engine or done.spool is None:
            raise RuntimeError(f"engine {engine} failed or was not used: {done.model_dump()}")
        return done.spool

    def _times(self, begun_s: float) -> dict[str, float]:
        at_ms = {stage: (at_s - begun_s) * 1e3 for stage, at_s in self.node.reports.at_s.items()}
        return {
            "raw_to_first_task_ms": at_ms[Stage.FIRST_TASK],
            "tasks_ms": at_ms[Stage.PROCESSED] - at_ms[Stage.FIRST_TASK],
            "processed_ms": at_ms[Stage.PROCESSED],
            "spool_ms": at_ms[Stage.SPOOLED] - at_ms[Stage.PROCESSED],
            "total_ms": at_ms[Stage.SPOOLED],
        }

    def _whole(
        self, ordered: _Used, ready: _Used, begun: _Used, answered: _Used, cleaning: _Used, free: _Used
    ) -> dict[str, float]:
        """Return what the worker was busy for, without what only the bench does between the steps."""
        steps = ((ordered, ready), (begun, answered), (cleaning, free))
        cleaned_ms = (free.at_s - cleaning.at_s) * 1e3
        held_ms = (answered.at_s - self.node.reports.last_task_s) * 1e3
        return {
            "held_ms": held_ms,
            "free_ms": held_ms + cleaned_ms,
            "raw_to_free_ms": (answered.at_s - begun.at_s) * 1e3 + cleaned_ms,
            "visit_ms": sum(end.at_s - begin.at_s for begin, end in steps) * 1e3,
            "process_cpu_ms": (answered.cpu_s - begun.cpu_s) * 1e3,
            "free_cpu_ms": (free.cpu_s - cleaning.cpu_s) * 1e3,
            "cpu_ms": sum(end.cpu_s - begin.cpu_s for begin, end in steps) * 1e3,
            "read_mb": sum(end.read_bytes - begin.read_bytes for begin, end in steps) / 1e6,
            "written_mb": sum(end.written_bytes - begin.written_bytes for begin, end in steps) / 1e6,
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
