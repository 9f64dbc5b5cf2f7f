# SPDX-License-Identifier: BSD-3-Clause
"""Visits with raws and permanent writes: what permission to write costs relay and worker."""

import time

from benching.cli import progress
from benching.results import Scalar, percentile

from fanoutbench.observatory import BenchFailed, Observatory
from fanoutbench.results import CADENCE_S
from ppdaemon.states import Outcome, Stage

PACE_MS = 300
"""Work before and after the permanent write: a permission arrives meanwhile."""


def measure_complete_visits(observatory: Observatory, visits: int, skipped_ms: float) -> dict[str, Scalar]:
    """Send visits one by one; `skipped_ms` is the relay's CPU time for one without a permanent write.

    The difference is an upper limit of what permits cost: more messages have less in common.
    """
    telescope, detectors = observatory.telescope, range(observatory.detectors)
    crossing_ms: list[float] = []
    idle = observatory.measure_idle()
    began, relay_s = time.monotonic(), observatory.relay_cpu_s()
    for number in range(visits):
        progress(f"complete: visit {number} of {visits}")
        group = f"complete{number}"
        observatory.announce(group, f"pace:{PACE_MS}")
        observatory.wait_for_all(observatory.prepared, group)
        telescope.raws.land(group, detectors)
        observatory.wait_for_all(observatory.released, group)
        observatory.wait_until_idle()
    passed_s = time.monotonic() - began
    relay_ms = (observatory.relay_cpu_s() - relay_s - idle * passed_s) * 1e3 / visits
    for number in range(visits):
        group = f"complete{number}"
        observatory.wait(lambda group=group: all(observatory.client.outcomes(group).values()))  # type: ignore[misc]
        if set(observatory.client.outcomes(group).values()) != {Outcome.SUCCEEDED}:
            raise BenchFailed(f"visit {group}: {observatory.client.outcomes(group)}")
        for rows in telescope.journal_rows(group).values():
            crossing_ms += [_crossing_ms(row.stages) for row in rows]
    writes = telescope.writes()
    return {
        "relay_idle_cpu_percent": 100 * idle,
        "complete_visits": visits,
        "complete_lost": visits * observatory.detectors - len(writes),
        "complete_doubled": sum(count > 1 for count in writes.values()),
        "relay_ms_per_complete_visit": relay_ms,
        "permit_cpu_percent": max(0.0, relay_ms - skipped_ms) / (10 * CADENCE_S),
        "crossing_p50_ms": percentile(crossing_ms, 50),
        "crossing_p99_ms": percentile(crossing_ms, 99),
    }


def _crossing_ms(stages: dict[Stage, float]) -> float:
    """Return what a permanent write took beside the scripted work before and after it."""
    return (stages[Stage.PROCESSED] - stages[Stage.FIRST_TASK]) * 1e3 - 2 * PACE_MS
