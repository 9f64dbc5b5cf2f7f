# SPDX-License-Identifier: BSD-3-Clause
"""What the report of a simulated night has beside that of any night: what was announced, camera, host.

`ppdaemon.demo.report` adds what only the demonstration knows. Imports no LSST code.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydantic

from ppdaemon.night.report import NightReport
from ppdaemon.night.tables import span_words
from ppdaemon.wire import Model

__all__ = (
    "CameraReport",
    "HostLoad",
    "HostReport",
    "Lateness",
    "NightMeter",
    "SimulatedNight",
    "night_facts",
)


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


class SimulatedNight(NightReport):
    """A simulated night in numbers."""

    announced: int
    """Visit-detectors that were announced."""
    doubled: int | None
    """Visit-detectors that were completed more than once; `None` if that is unknown."""
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


class NightMeter:
    """Measures time and the host's load since it was made, and the lateness of the camera."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._load = os.getloadavg()[0]
        self._cpu = psutil.cpu_times()
        self.late_s: list[float] = []
        """One value for each exposure whose raws were written."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of a `SimulatedNight` that come from the host and the camera."""
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


def night_facts(report: SimulatedNight) -> list[tuple[str, str]]:
    """Return lines of a summary: latencies, the camera, the host."""
    facts = [
        (span_words(name), f"{latency.p50_ms:.0f} ms median, {latency.p99_ms:.0f} ms p99")
        for name, latency in report.latencies.items()
    ]
    if late := report.camera.lateness_s:
        facts.append(("raws later than planned", f"{late.p50:.1f} s median, {late.max:.1f} s at most"))
    load = report.host.load
    text = f"{load.cores} cores, load {load.begin:.1f} to {load.end:.1f}, {load.cpu_share:.0%} busy"
    return [*facts, ("host", text)]
