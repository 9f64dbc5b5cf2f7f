# SPDX-License-Identifier: BSD-3-Clause
"""The status of a node for operators."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ppdaemon import __version__
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.folders import REFUSAL, NodeFolders
from ppdaemon.metricsserver import MetricsServer
from ppdaemon.mounts import is_ramdisk
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.lock import NodeLock
from ppdaemon.node.processes.asker import AskerProcess
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.processes.publisher import PublisherProcess
from ppdaemon.node.processes.reload import Generations
from ppdaemon.node.slots.meters import REPO_EVERY, Meters
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.schedulerloop import SchedulerLoop
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.offer import CapacityOffer
from ppdaemon.node.visits.pump import VisitPump
from ppdaemon.node.visits.source import VisitSource
from ppdaemon.problemlog import Finding, ProblemLog
from ppdaemon.reports import ArrivalSource, Resumed, SpoolReport, StatusReport, WorkerRow
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.states import BUSY_STATES, SlotState
from ppdaemon.terminal import size
from ppdaemon.tracesender import TraceSender

__all__ = ("Status", "dead_sources")

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

State = Literal["starting", "running", "draining", "stopping", "degraded"]


@dataclass(slots=True)
class Status:
    """Collects the status from the parts of a node."""

    config: NodeConfig
    folders: NodeFolders
    """Those of the start: no reload changes them, and making them reads the state disk."""
    clock: Clock
    count: Counter[str]
    lock: NodeLock
    pool: Pool
    visits: Visits
    pump: VisitPump
    journal: BatchWriter[Journal]
    scheduler: SchedulerLoop
    exporter: ExporterProcess
    asker: AskerProcess
    source: VisitSource
    arrivals: Arrivals
    meters: Meters
    generations: Generations
    offer: CapacityOffer
    metrics: MetricsServer
    publisher: PublisherProcess
    traces: TraceSender
    state: State = "starting"
    drained_since: float | None = None
    """Since when an operator wants no visits here, TAI seconds."""
    stage: str = ""
    """What the start does after the generation was made."""
    late_raws: int = 0
    """Number of late raws that are not used, as last counted in the journal."""
    spools_refused: int = 0
    """Number of quarantined spools, as last counted on the state disk."""
    started_tai: float = field(init=False)
    _fixed_problems: tuple[Finding, ...] = field(init=False)
    _on_ramdisk: bool = field(init=False)
    _problem_log: ProblemLog = field(init=False, default_factory=ProblemLog)
    _last: StatusReport | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.started_tai = self.clock.tai()
        problems = [
            Finding(
                "leftovers",
                f"{path} does not belong to ppdaemon; delete it if it is not needed",
                str(path),
                degrades=False,
            )
            for path in self.lock.unknown
        ]
        problems += [
            Finding(
                "export",
                f"export: {path}, where outputs waited, could not be written to at the start: mount or allow"
                f" it and restart, or delete its line in {self.folders.spills}",
                str(path),
            )
            for path in self.lock.away
        ]
        self._on_ramdisk = is_ramdisk(self.folders.ramdisk)
        if not self._on_ramdisk:
            text = f"{self.folders.ramdisk} is not on a tmpfs: workers are slow; mount a tmpfs there"
            problems.append(Finding("ramdisk", text, degrades=False))
        self._fixed_problems = tuple(problems)

    def report(self) -> StatusReport:
        """Return the current status."""
        tai, left_s = self.clock.tai(), self.visits.takes_until - self.clock.mono()
        problems = self._problem_log.update((*self._fixed_problems, *self._problems()), tai)
        is_limited = any(problem.degrades for problem in problems)
        starting = self.state == "starting"
        is_degraded = is_limited and (self.state == "running" or (starting and self.generations.waiting))
        state: State = "degraded" if is_degraded else self.state
        if left_s < 0 and self.state == "running":
            state = "draining"  # as planned
        stage = (self.generations.stage or self.stage) if self.state == "starting" else ""
        slots = self.pool.state_counts()
        busy = sum(slots[name] for name in BUSY_STATES)
        spools = tuple(self._spools())
        self._last = StatusReport(
            node=self.config.node.name,
            version=__version__,
            pid=os.getpid(),
            state=state,
            stage=stage,
            shadow=self.config.shadow.enabled,
            text=f"{state}: {'shadow mode, ' if self.config.shadow.enabled else ''}"
            + (
                stage
                if stage
                else f"{busy} busy, {slots[SlotState.IDLE]} idle, {self.scheduler.queued} queued,"
                f" {self.pump.open} visit-detectors open"
            ),
            started_tai=self.started_tai,
            tai=tai,
            relay=self.source.text,
            # What is not started yet has not failed.
            relay_connected=None if self.config.relay.address is None or starting else self.source.connected,
            redis=self.source.report(),
            slots={name: slots[name] for name in SlotState if slots[name]},
            workers_max=self.config.workers.max,
            capacity=0 if starting else self.offer.offered,
            takes_until_tai=None if left_s == math.inf else tai + left_s,
            queued=self.scheduler.queued,
            open_visits=self.pump.open,
            outcomes=dict(self.visits.outcomes),
            late_raws=self.late_raws,
            refused_raws=self.arrivals.refused,
            refused_by_kind=dict(self.arrivals.refused_by_kind),
            spooled=self.exporter.waiting,
            oldest_spool_s=self.exporter.oldest_s,
            spooled_mb=sum(spool.mb for spool in spools),
            exported_per_min=self.exporter.rate,
            exported_mb=self.exporter.exported_bytes / 1e6,
            spools=spools,
            uncompressed=self.exporter.uncompressed,
            images_given_up=self.exporter.given_up,
            images_given_up_mb=self.exporter.given_up_bytes / 1e6,
            journal_backlog=self.journal.backlog,
            exporter=self.exporter.text,
            asker=None if self.config.butler is None else self.asker.report(),
            publish=self.publisher.report(),
            logs=str(self.folders.logs),
            arrivals=() if starting else self.arrivals.report(),
            counters={
                **self.count,
                **{f"arrivals.{k}": n for k, n in self.arrivals.counters.items()},
                **self.traces.counters,
            },
            samples={f"arrivals.{kind}": text for kind, text in self.arrivals.samples.items()}
            | dict(self.source.samples),
            problems=problems,
            leftovers_removed=self.lock.removed,
            template_ms=self.generations.template_ms,
            generation=self.generations.number,
            reloaded_tai=self.generations.reloaded_tai,
            limits=self._limits(),
            ramdisk_mb=self.meters.ramdisk_bytes / 1e6 if self._on_ramdisk else None,
            ramdisk_size_mb=self.meters.ramdisk_size_bytes / 1e6 if self.meters.ramdisk_size_bytes else None,
            set_aside=self.visits.health.set_aside,
            reload_refused=bool(self.generations.refusal),
            supervisor_mb=_own_mb(),
        )
        return self._last

    def health(self) -> tuple[str, str]:
        """Return the state and the worst problem of the last report, which is made once a second."""
        if self._last is None:
            return self.state, ""
        return self._last.state, next(iter(self._last.problem_texts), "")

    def workers(self) -> Iterator[WorkerRow]:
        """Yield one row for each slot, by number, as it is when its row is made."""
        for slot in [*self.pool.slots.values()]:  # others may be opened meanwhile
            now, deadline = self.clock.mono(), self.pool.deadline_of(slot.number)
            yield WorkerRow(
                slot=slot.number,
                state=slot.state,
                epoch=slot.epoch,
                pid=slot.pid,
                since_s=max(0.0, now - slot.since),
                **(slot.assignment.key._asdict() if slot.assignment else {}),
                memory_mb=slot.usage.used_bytes / 1e6 if slot.usage.used_bytes else None,
                visits=slot.visit_number,
                deadline_s=None if deadline is None else deadline - now,
                note=slot.note,
            )

    def _spools(self) -> Iterator[SpoolReport]:
        """Yield what waits for export on each disk where outputs may go."""
        folders, export = self.folders, self.exporter
        ramdisk: tuple[Literal["ramdisk", "spill"], Path] = ("ramdisk", folders.ramdisk_spool)
        for name, folder in (ramdisk, ("spill", folders.spool)):
            count, disk = export.waiting_on(ramdisk=name == "ramdisk")
            if count or disk.max_bytes != 0:
                limit = None if disk.max_bytes is None else disk.max_bytes / 1e6
                yield SpoolReport(
                    name=name, folder=str(folder), spooled=count, mb=disk.used_bytes / 1e6, max_mb=limit
                )

    def _limits(self) -> dict[str, str]:
        """Return each limit of a worker with the process that enforces it."""
        memory, times = self.config.workers.memory, self.config.workers.times
        sampled = f"supervisor every {memory.sample_s:g} s"
        kernel = self.pool.cgroups.enforced_by
        limits = {
            "memory": f"{size(memory.hard)}, {sampled}; {kernel('memory')}",
            "asker": f"{size(memory.soft)} of memory, {sampled}",
            "RAM disk": f"{size(memory.ramdisk)}, supervisor every {REPO_EVERY * memory.sample_s:g} s",
            "CPU time": f"{times.cpu_s:g} s a visit, {sampled}",
            "wall time": f"{times.run_s:g} s for a pipeline, supervisor",
            "processes": f"{self.config.workers.tasks_max}, {kernel('pids')}",
            "descendants": f"supervisor by process group; {kernel('kill')}",
        }
        if memory.budget is not None:
            limits["all workers"] = f"{size(memory.budget)}, supervisor before each fork"
        return limits

    def resumed(self, journal_problem: str) -> Resumed:
        """Return the problems that keep visits away from this node, given that of the journal or a blank, and
        the others that degrade it.
        """
        closed = [] if self.state == "starting" else [finding.text for finding in self._closed()]
        problems = [finding.text for finding in self._problems() if finding.degrades]
        if self.state == "starting":
            stage = self.generations.stage or self.stage
            closed = [f"the daemon is starting: {stage}" if stage else "the daemon is starting", *problems]
        if journal_problem:
            closed = [*(text for text in closed if text != journal_problem), journal_problem]
        return Resumed(closed=tuple(closed), problems=tuple(each for each in problems if each not in closed))

    def _closed(self) -> Iterator[Finding]:
        """Yield what keeps visits away from this node."""
        if self.drained_since is not None:
            text = "drained by an operator: no visits until ppctl resume, also after a restart"
            age_s = self.clock.tai() - self.drained_since
            yield Finding("capacity", text, "drained", age_s, degrades=False)
        if self.source.drained:
            name = self.config.node.name
            text = f"drained at the relay by an operator: no visits until ppctl --relay resume {name}"
            yield Finding("capacity", text, "drained at the relay", degrades=False)
        if (since_s := self.clock.mono() - self.visits.takes_until) > 0:
            text = "no more visits are taken: this host is given back before they could end (--until)"
            yield Finding("capacity", text, "ends", since_s, degrades=False)
        if self.source.problem:
            yield Finding(self.source.kind, self.source.problem, age_s=self.source.away_s)
        if problem := self.offer.journal_problem:
            yield Finding("journal", problem)
        if self.offer.problem:
            yield Finding("capacity", f"no visits are accepted: {self.offer.problem}")

    def _problems(self) -> Iterator[Finding]:
        yield from self.generations.findings()
        if self.state == "starting":
            return  # other parts are not started yet
        yield from self._closed()
        yield from (Finding("pipelines", problem) for problem in self.visits.health.problems)
        for first, problem, age_s in self.visits.fallbacks.problems(self.clock.mono()):
            yield Finding("pipelines", problem, first, age_s, degrades=False)
        if self.asker.problem:
            text = "preload: workers ask the central repo by themselves, which takes longer"
            yield Finding("central_repo", f"{text}: {self.asker.problem}", "asker", degrades=False)
        if self.exporter.problem:
            yield Finding("export", f"export: {self.exporter.problem}", "exporter")
        if count := self.exporter.incomplete:
            text = (
                f"export: {count} that wait have lost their images: {self.folders.spool} has more than"
                " export.spill_max"
            )
            yield Finding("export", text, "images")
        if self.spools_refused:
            text = f"export: {self.spools_refused} spools quarantined, see {self.folders.refused}/*/{REFUSAL}"
            yield Finding("export", text, "quarantine")
        for names, note in dead_sources(self.arrivals.report()):
            yield Finding("arrivals", f"arrivals: {names}: {note}", names)
        yield from (Finding("resources", problem) for problem in self.meters.problems)
        for place in self.publisher.report():
            if place.problem:
                counts = f"{place.waiting} waiting, {place.dropped} dropped"
                text = f"publish: {place.name}: {counts}: {place.problem}"
                yield Finding("publish", text, place.name, degrades=False)
        if self.metrics.problem:
            yield Finding("metrics", self.metrics.problem, degrades=False)
        if self.traces.problem:
            yield Finding("traces", self.traces.problem, degrades=False)
        if self.pool.cgroups.problem:
            yield Finding("limits", self.pool.cgroups.problem)
        for slot in self.pool.slots.values():
            if slot.state in (SlotState.QUARANTINED, SlotState.UNKILLABLE):
                yield Finding("slots", f"slot {slot.number} is {slot.state}: {slot.note}", str(slot.number))


def dead_sources(sources: Iterable[ArrivalSource]) -> Iterator[tuple[str, str]]:
    """Yield the names of sources that do not work, and why; those of one place with one reason together."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        if not source.live:
            kind, _, place = source.name.partition(" ")
            kinds.setdefault((place, source.note), []).append(kind)
    for (place, note), those in kinds.items():
        yield f"{', '.join(those)} {place}".rstrip(), note


def _own_mb() -> float | None:
    """Return the memory of this process, or `None` if no descriptor is free to read it."""
    try:
        with open("/proc/self/statm", "rb", 0) as pages:
            return int(pages.read().split()[1]) * _PAGE_BYTES / 1e6
    except OSError:
        return None
