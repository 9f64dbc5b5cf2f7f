# SPDX-License-Identifier: BSD-3-Clause
"""The stages of all visit-detectors of a night, what its processes used, and the goals. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benching.floors import PYTHON_CPU, PYTHON_START
from benching.results import Goal, Scalar, percentile

from ppdaemon.states import Stage

COMPLETE = "complete"
"""When the raw was renamed."""
STEPS: Mapping[str, tuple[str, str]] = {
    "relayed": ("announced", Stage.ACCEPTED),
    "assigned": (Stage.ACCEPTED, Stage.ASSIGNED),
    "prepared": (Stage.ASSIGNED, Stage.PREPARED),
    "noticed": (COMPLETE, Stage.ARRIVED),
    "ingested": (Stage.ARRIVED, Stage.INGESTED),
    "begun": (Stage.INGESTED, Stage.FIRST_TASK),
    "processed": (Stage.FIRST_TASK, Stage.PROCESSED),
    "spooled": (Stage.PROCESSED, Stage.SPOOLED),
    "exported": (Stage.SPOOLED, Stage.CENTRAL),
    "whole": (COMPLETE, Stage.CENTRAL),
}
"""Begin and end of each step."""
PROCESSES = ("relay", "supervisor", "worker", "reader", "exporter")
"""CPU time of these is listed; workers together."""


@dataclass(slots=True)
class NightSamples:
    """Measurements of the exposures of one night."""

    steps_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STEPS})
    cpu_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PROCESSES})
    """Of each exposure."""
    visit_detectors: int = 0
    lost: int = 0
    """Without a row in the journal that has all stages."""

    def add(self, detectors: Iterable[int], at_s: Mapping[int, Mapping[str, float]]) -> None:
        """Count the detectors of an exposure; `at_s` has the time of each stage by detector."""
        for detector in detectors:
            self.visit_detectors += 1
            times = at_s.get(detector, {})
            if not all(name in times for step in STEPS.values() for name in step):
                self.lost += 1
                continue
            for name, (begin, end) in STEPS.items():
                self.steps_ms[name].append((times[end] - times[begin]) * 1e3)

    def add_cpu(self, before_s: Mapping[str, float], after_s: Mapping[str, float]) -> None:
        """Add what processes used for an exposure, by kind."""
        for name, samples in self.cpu_ms.items():
            samples.append((after_s.get(name, 0.0) - before_s.get(name, 0.0)) * 1e3)

    def results(self, detectors: int) -> dict[str, Scalar]:
        """Return percentiles of all steps, and medians of the CPU time for one visit-detector."""
        found: dict[str, Scalar] = {"visit_detectors": self.visit_detectors, "lost": self.lost}
        for name, values in self.steps_ms.items():
            for percent in (50, 99):
                found[f"{name}_p{percent}_ms"] = percentile(values, percent) if values else None
        for name, values in self.cpu_ms.items():
            found[f"{name}_cpu_ms"] = percentile(values, 50) / detectors if values else None
        return found


def compare(nights: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """Return how much more a night with the longest journal takes than one with the shortest."""
    shortest, longest = nights[0], nights[-1]
    found: dict[str, Scalar] = {}
    for name in ("relayed_p50_ms", "whole_p50_ms", "supervisor_cpu_ms"):
        before, after = shortest[name], longest[name]
        if len(nights) > 1 and isinstance(before, int | float) and isinstance(after, int | float) and before:
            found[name.removesuffix("_ms")] = after / before
    return found


GOALS: Mapping[str, Goal] = {
    "lost": Goal(0, kind="count"),
    "doubled": Goal(0, kind="count"),
    "relayed_p99_ms": Goal(120, floor=PYTHON_START),
    "noticed_p99_ms": Goal(90, floor=PYTHON_START),
    "whole_p99_ms": Goal(1500, floor=PYTHON_START),
    "supervisor_cpu_ms": Goal(3, floor=PYTHON_CPU),
    "relay_cpu_ms": Goal(0.5, floor=PYTHON_CPU),
    "long_journal.relayed_p50": Goal(1.25, kind="ratio"),
    "long_journal.whole_p50": Goal(1.25, kind="ratio"),
    "long_journal.supervisor_cpu": Goal(1.25, kind="ratio"),
}
"""By name of the result, those of nights for each, for two idle cores."""


def goals(groups: Iterable[str]) -> dict[str, Goal]:
    """Return the goals by name of the result; `groups` are the names of the nights."""
    names = tuple(groups)
    found: dict[str, Goal] = {}
    for name, goal in GOALS.items():
        found |= {name: goal} if "." in name else {f"{group}.{name}": goal for group in names}
    return found
