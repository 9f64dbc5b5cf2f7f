# SPDX-License-Identifier: BSD-3-Clause
"""Latencies of messages, and their goals. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benching.floors import PYTHON_START
from benching.results import Goal, Scalar, percentile

__all__ = ("GOALS", "Samples", "beside", "bursts")

ABOVE_MS = 25
"""What another source may add to the path over ZeroMQ."""
BURST_MS = 100

GOALS: Mapping[str, Goal] = {
    "lost": Goal(0, kind="count"),
    "doubled": Goal(0, kind="count"),
    "bridge.above_zeromq_p99_ms": Goal(ABOVE_MS, floor=PYTHON_START),
    "burst.p99_ms": Goal(BURST_MS, floor="burst.floor_p99_ms"),
    "burst.kept_p99_ms": Goal(BURST_MS, floor="burst.floor_p99_ms"),
    "redis.lost": Goal(0, kind="count"),
    "redis.doubled": Goal(0, kind="count"),
    "redis.above_zeromq_p99_ms": Goal(ABOVE_MS, floor=PYTHON_START),
    "redis.burst_p99_ms": Goal(BURST_MS, floor="burst.floor_p99_ms"),
    "ring.memory_mb": Goal(60, "below", kind="count"),
}
"""By name of the result, for two idle cores; the memory is the same on a busy machine."""


@dataclass(slots=True)
class Samples:
    """The messages of one source, each for one detector."""

    sent: int = 0
    lost: int = 0
    """Messages without an order to a worker."""
    doubled: int = 0
    """Repeated orders."""
    latencies_ms: list[float] = field(default_factory=list)
    """From the message to the order."""

    def add(self, sent: Mapping[int, float], ordered: Iterable[tuple[int, float]]) -> None:
        """Add messages by detector, and the orders that followed; all times are monotonic seconds."""
        times: dict[int, list[float]] = {}
        for detector, at in ordered:
            times.setdefault(detector, []).append(at)
        self.sent += len(sent)
        self.lost += len(sent.keys() - times.keys())
        self.doubled += sum(len(each) - 1 for each in times.values())
        self.latencies_ms += [
            (min(times[detector]) - at) * 1e3 for detector, at in sent.items() if detector in times
        ]

    def results(self, what: str = "") -> dict[str, Scalar]:
        """Return percentiles, with a prefix; `None` if there is no message."""
        prefix, found = f"{what}_" if what else "", self.latencies_ms
        return {
            f"{prefix}p50_ms": percentile(found, 50) if found else None,
            f"{prefix}p99_ms": percentile(found, 99) if found else None,
            f"{prefix}worst_ms": max(found, default=None),
        }


def beside(samples: Samples, zeromq: Samples) -> dict[str, Scalar]:
    """Return by how much the messages of a source were later than those over ZeroMQ of the same run."""
    if not samples.latencies_ms or not zeromq.latencies_ms:
        return {}
    return {
        f"above_zeromq_p{percent}_ms": percentile(samples.latencies_ms, percent)
        - percentile(zeromq.latencies_ms, percent)
        for percent in (50, 99)
    }


def bursts(samples: Samples, kept: Samples, zeromq: Samples, floor: Samples) -> dict[str, Scalar]:
    """Return the results of bursts on new connections, and on those that the sender had `kept`, beside what
    the same node needs for a burst over ZeroMQ, and what workers alone need for as many orders (`floor`).
    The goals are for two idle cores.
    """
    found = samples.results() | kept.results("kept") | zeromq.results("zeromq")
    found |= beside(samples, zeromq) | floor.results("floor")
    return {"sent": samples.sent + kept.sent, "lost": samples.lost + kept.lost} | found
