# SPDX-License-Identifier: BSD-3-Clause
"""The form that all reports of a simulated night have, and what fills it.

`ppdaemon.demo.report` adds what only the demonstration knows. Imports no LSST code. The visit
rows of a long night do not fit into memory: `NightTotals` keeps only counts and durations.
"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydantic

from ppdaemon.ctl.timeline import elapsed_s
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage
from ppdaemon.wire import Model

__all__ = (
    "CameraReport",
    "HostLoad",
    "HostReport",
    "Lateness",
    "Latency",
    "NightMeter",
    "NightReport",
    "NightTotals",
    "last_attempts",
    "night_facts",
)

SPANS = {
    "queue_ms": (Stage.ACCEPTED, Stage.ASSIGNED),
    "prepare_ms": (Stage.ASSIGNED, Stage.PREPARED),
    "raw_to_first_task_ms": (Stage.ARRIVED, Stage.FIRST_TASK),
    "tasks_ms": (Stage.FIRST_TASK, Stage.PROCESSED),
    "spool_ms": (Stage.PROCESSED, Stage.SPOOLED),
    "central_ms": (Stage.SPOOLED, Stage.CENTRAL),
}
"""First and last stage of each measured span, by its name in the report."""


class Latency(Model):
    """Percentiles of one duration over all visit-detectors that have it."""

    p50_ms: float
    """Median."""
    p99_ms: float
    """99 of 100 were not longer."""
    count: int
    """Visit-detectors, or events of the relay."""

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> "Latency | None":
        """Return the percentiles of the known durations; `None` if there are none."""
        known = [1e3 * value for value in seconds if value is not None]
        if not known:
            return None
        middle, high = np.percentile(known, [50, 99])
        return cls(p50_ms=round(float(middle), 1), p99_ms=round(float(high), 1), count=len(known))


class Lateness(Model):
    """How much later than planned the raws of an exposure were complete, in seconds."""

    p50: float
    """Median."""
    max: float
    """The latest one."""
    count: int
    """Exposures."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Lateness | None":
        """Return median and maximum; `None` if there are no exposures."""
        if not seconds:
            return None
        return cls(p50=round(float(np.median(seconds)), 3), max=round(max(seconds), 3), count=len(seconds))


class CameraReport(Model):
    """The simulated camera."""

    lateness_s: Lateness | None = None
    """`None` if it wrote no raws."""


class HostLoad(Model):
    """The load of the host, by all programs on it."""

    cores: int
    """Of the machine, busy or not."""
    begin: float
    """Load average of one minute at the begin of the night."""
    end: float
    """The same at its end."""
    cpu_share: float
    """Busy part of the CPU time of all cores during the night, 0 to 1."""


class HostReport(Model):
    """The host on which the report was made."""

    load: HostLoad
    """While the night was taken."""


class NightReport(Model):
    """A night in numbers."""

    visits: int
    """Visits that were announced."""
    announced: int
    """Visit-detectors that were announced."""
    accepted: int
    """Visit-detectors in the journals; those that the relay accepted where no journal was read."""
    succeeded: int
    """Visit-detectors whose last attempt succeeded."""
    outcomes: dict[Outcome, int]
    """Visit-detectors by their last outcome."""
    doubled: int | None
    """Visit-detectors that were completed more than once; `None` if that is unknown."""
    retried: int
    """Visit-detectors that needed a second attempt."""
    latencies: dict[str, Latency]
    """Milliseconds by name of the measured span."""
    total_s: float
    """Duration of the whole run."""
    camera: CameraReport
    """The simulated camera, which shares the machine."""
    host: HostReport
    """The machine, which other programs share, too."""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def lost(self) -> int:
        """Visit-detectors that were announced and have no outcome."""
        return self.announced - sum(self.outcomes.values())

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")


def last_attempts(rows: Iterable[VisitRow]) -> dict[tuple[str, int], VisitRow]:
    """Return the last attempt at each visit-detector, by group and detector."""
    return {(row.group, row.detector): row for row in sorted(rows, key=lambda row: row.attempt)}


class NightTotals:
    """Counts outcomes and collects durations."""

    def __init__(self) -> None:
        self.accepted = self.retried = 0
        self.doubled: int | None = 0
        self.outcomes: Counter[Outcome] = Counter()
        self._seconds: defaultdict[str, list[float | None]] = defaultdict(list)

    def add(self, rows: Sequence[VisitRow]) -> None:
        """Add whole visits: all attempts of all nodes at their detectors."""
        last = last_attempts(rows)
        completed = Counter((row.group, row.detector) for row in rows if row.outcome == Outcome.SUCCEEDED)
        self.doubled = (self.doubled or 0) + sum(count > 1 for count in completed.values())
        for row in last.values():
            self.count(row.outcome, row.attempt)
        succeeded = [row for row in last.values() if row.outcome == Outcome.SUCCEEDED]
        # With two snaps the wait for the second exposure would count as latency.
        single = [row for row in succeeded if len(row.exposures) <= 1]
        for name, (begin, end) in SPANS.items():
            self.measure(name, (elapsed_s(row, begin, end) for row in single))

    def count(self, outcome: Outcome | None, attempt: int) -> None:
        """Count the last attempt at one accepted visit-detector."""
        self.accepted += 1
        self.retried += attempt > 1
        if outcome is not None:
            self.outcomes[outcome] += 1

    def measure(self, name: str, seconds: Iterable[float | None]) -> None:
        """Add durations of a span; `None` for those that are unknown."""
        self._seconds[name] += seconds

    def fields(self, visits: int, announced: int) -> dict[str, Any]:
        """Return the fields of a `NightReport` that come from visits."""
        latencies = {name: Latency.of(seconds) for name, seconds in self._seconds.items()}
        return {
            "visits": visits,
            "announced": announced,
            "accepted": self.accepted,
            "succeeded": self.outcomes[Outcome.SUCCEEDED],
            "outcomes": dict(self.outcomes),
            "doubled": self.doubled,
            "retried": self.retried,
            "latencies": {name: latency for name, latency in latencies.items() if latency is not None},
        }


class NightMeter:
    """Measures time and the host's load since it was made, and the lateness of the camera."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._load = os.getloadavg()[0]
        self._cpu = psutil.cpu_times()
        self.late_s: list[float] = []
        """One value for each exposure whose raws were written."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of a `NightReport` that come from the host and the camera."""
        load = HostLoad(
            cores=os.cpu_count() or 1,
            begin=round(self._load, 2),
            end=round(os.getloadavg()[0], 2),
            cpu_share=_busy_share(self._cpu, psutil.cpu_times()),
        )
        return {
            "total_s": round(time.monotonic() - self._began, 1),
            "camera": CameraReport(lateness_s=Lateness.of(self.late_s)),
            "host": HostReport(load=load),
        }


def _busy_share(begin: Any, end: Any) -> float:
    """Return the busy part of the CPU time between two samples of `psutil.cpu_times`."""
    # Time of guests is in user time, too.
    names = [name for name in begin._fields if not name.startswith("guest")]
    passed = {name: getattr(end, name) - getattr(begin, name) for name in names}
    idle = passed["idle"] + passed.get("iowait", 0.0)
    total = sum(passed.values())
    return round(1.0 - idle / total, 3) if total > 0.0 else 0.0


def night_facts(report: NightReport) -> list[tuple[str, str]]:
    """Return lines of a summary: latencies, the camera, the host."""
    facts = [
        (
            name.removesuffix("_ms").replace("_", " "),
            f"{latency.p50_ms:.0f} ms median, {latency.p99_ms:.0f} ms p99",
        )
        for name, latency in report.latencies.items()
    ]
    if late := report.camera.lateness_s:
        facts.append(("raws later than planned", f"{late.p50:.1f} s median, {late.max:.1f} s at most"))
    load = report.host.load
    text = f"{load.cores} cores, load {load.begin:.1f} to {load.end:.1f}, {load.cpu_share:.0%} busy"
    return [*facts, ("host", text)]
