# SPDX-License-Identifier: BSD-3-Clause
"""Goals of the fan-out."""

from collections.abc import Mapping

from benching.floors import PYTHON_CPU
from benching.results import Goal

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
