# SPDX-License-Identifier: BSD-3-Clause
"""Compare the times of written files with the times of orders to workers. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benching.floors import PYTHON_START
from benching.results import Goal, Scalar, percentile

__all__ = ("FileCounts", "source_results", "goals", "read_notes")

# A raw may be written just after a poll; then the daemon still needs some time.
POLL_SLACK_MS = 100


@dataclass(slots=True)
class FileCounts:
    """Counts and latencies of the files of one source."""

    files: int = 0
    missed: int = 0
    """Files for which no worker got an order in time."""
    twice: int = 0
    """Repeated orders."""
    latencies_ms: list[float] = field(default_factory=list)
    """From the complete file to the order."""

    def add(self, complete: Mapping[int, float], notes: Iterable[tuple[int, float]]) -> None:
        """Count the files of an exposure.

        `complete` has the time at which each detector's file was complete,
        `notes` detector and time of each order; all are monotonic seconds.
        """
        ordered: dict[int, list[float]] = {}
        for detector, at in notes:
            ordered.setdefault(detector, []).append(at)
        self.files += len(complete)
        self.missed += len(complete.keys() - ordered.keys())
        self.twice += sum(len(times) - 1 for times in ordered.values())
        self.latencies_ms += [
            (min(ordered[detector]) - at) * 1e3 for detector, at in complete.items() if detector in ordered
        ]

    def plus(self, other: "FileCounts") -> "FileCounts":
        """Return the sum of both."""
        return FileCounts(
            self.files + other.files,
            self.missed + other.missed,
            self.twice + other.twice,
            self.latencies_ms + other.latencies_ms,
        )


def source_results(source: str, counts: FileCounts) -> dict[str, Scalar]:
    """Return the results of one source; percentiles are `None` if no file was found.

    Results of ``inotify`` have no prefix.
    """
    prefix = "" if source == "inotify" else f"{source}_"
    latencies = counts.latencies_ms
    return {
        f"{prefix}notice_p50_ms": percentile(latencies, 50) if latencies else None,
        f"{prefix}notice_p99_ms": percentile(latencies, 99) if latencies else None,
        f"{prefix}notice_worst_ms": max(latencies, default=None),
    }


def goals(poll_s: float) -> dict[str, Goal]:
    """Return the goals by name of the result, for two idle cores."""
    return {
        "missed": Goal(0, kind="count"),
        "twice": Goal(0, kind="count"),
        "notice_p99_ms": Goal(50, "below", floor=PYTHON_START),
        "burst_notice_p99_ms": Goal(90, "below", floor=PYTHON_START),
        "burst_notice_worst_ms": Goal(500, "below", floor=PYTHON_START),
        "zmq_notice_p99_ms": Goal(50, "below", floor=PYTHON_START),
        "poll_notice_p99_ms": Goal(poll_s * 1e3 + POLL_SLACK_MS, "below", floor=PYTHON_START),
        "races_missed": Goal(0, kind="count"),
        "races_twice": Goal(0, kind="count"),
        "storm_missed": Goal(0, kind="count"),
        "storm_s": Goal(2, floor=PYTHON_START),
        "old_tree_start_s": Goal(5, floor=PYTHON_START),
        "old_tree_mb": Goal(200, "below"),
    }


def read_notes(lines: Iterable[str], exposure: int) -> Sequence[tuple[int, float]]:
    """Return detector and time of the orders of one exposure.

    `lines` are those of `ppdaemon.testing.work`: group, detector, exposure,
    bytes, monotonic seconds; an incomplete last line is ignored.
    """
    rows = (line.split() for line in lines if line.endswith("\n"))
    return [(int(detector), float(at)) for _, detector, number, _, at in rows if int(number) == exposure]
