# SPDX-License-Identifier: BSD-3-Clause
"""Latencies of messages, and their goals. Pure."""

from collections.abc import Mapping

from benching.floors import PYTHON_START
from benching.orders import Samples
from benching.results import Goal, Scalar, percentile

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
