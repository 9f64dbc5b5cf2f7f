# SPDX-License-Identifier: BSD-3-Clause
"""Goals of the pool, and slopes. Pure."""

from collections.abc import Mapping, Sequence
from statistics import linear_regression

from benching.floors import PYTHON_CPU, PYTHON_START
from benching.results import Goal

GOALS: Mapping[str, Goal] = {
    "fork_ready_ms": Goal(100, floor="bare_fork_cpu_ms"),
    "fork_over_spawn": Goal(15, "at least", "ratio"),
    "ready_cpu_of_bare_fork": Goal(3, kind="ratio"),
    "cpu_of_other": Goal(0.5, kind="ratio"),
    "idle_private_mb": Goal(15),
    "supervisor_cpu_percent": Goal(0.8, floor=PYTHON_CPU),
    "supervisor_mb": Goal(150),
    "threads_per_worker": Goal(0.01),
    "reserve_205_ms": Goal(250, floor=PYTHON_START),
    "replace_p95_ms": Goal(1000, floor=PYTHON_START),
    "leftovers_ms": Goal(2, floor=PYTHON_CPU),
}
"""By name of the result, for two idle cores."""


def per_thousand(counts: Sequence[float], values: Sequence[float]) -> float:
    """Return the least-squares slope of a value per 1000 counts."""
    return 1000 * linear_regression(counts, values).slope
