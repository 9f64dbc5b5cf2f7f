# SPDX-License-Identifier: BSD-3-Clause
"""Goals of the fan-out, and what the workers recorded. Pure but for reading files."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benching.floors import PYTHON_CPU
from benching.results import Goal

from ppdaemon.testing.played import VisitDetector

__all__ = ("CADENCE_S", "GOALS", "Records")

CADENCE_S = 35.0
"""Seconds between two visits of a night."""

GOALS: Mapping[str, Goal] = {
    "fanout_p50_ms": Goal(50, floor="floor_workers_p50_ms"),
    "fanout_p99_ms": Goal(120, floor="floor_workers_p99_ms"),
    "cancel_p99_ms": Goal(60, floor="floor_workers_p99_ms"),
    "lost": Goal(0, kind="count"),
    "doubled": Goal(0, kind="count"),
    "relay_growth_percent": Goal(1),
    "permit_cpu_percent": Goal(1, floor=PYTHON_CPU),
    "permit_wait_ms": Goal(1, floor="floor_p50_ms"),
    "curve_over_plain": Goal(1.15, kind="ratio"),
}
"""By name of the result, for two idle cores."""


class Records:
    """Lines that scripted workers append to a file of each node: group, detector, monotonic time.

    `files` need not exist yet.
    """

    def __init__(self, files: Iterable[Path]):
        self._offsets = dict.fromkeys(files, 0)
        self.times: dict[str, list[float]] = defaultdict(list)
        """By group: one time for each line."""
        self.counts: dict[VisitDetector, int] = defaultdict(int)

    def read(self) -> None:
        """Read what was appended since the last call."""
        for path, offset in self._offsets.items():
            if path.exists():
                with path.open("rb") as stream:
                    stream.seek(offset)
                    data = stream.read()
                data = data[: data.rfind(b"\n") + 1]  # the last line may be half written
                self._offsets[path] += len(data)
                self._add(data.decode().splitlines())

    def _add(self, lines: Sequence[str]) -> None:
        for line in lines:
            group, detector, time = line.split()
            self.times[group].append(float(time))
            self.counts[group, int(detector)] += 1

    def number(self, group: str) -> int:
        """Return the number of lines of a group."""
        return len(self.times.get(group, ()))
