# SPDX-License-Identifier: BSD-3-Clause
"""Goals of what an operator sees."""

from collections.abc import Mapping

from benching.results import Goal

GOALS: Mapping[str, Goal] = {
    "status_ms": Goal(300, "below", floor="floor_python_ms"),
    "workers_ms": Goal(500, floor="floor_python_ms"),
    "visits_ms": Goal(500, floor="floor_python_ms"),
    "visits_1000_ms": Goal(1500, floor="floor_python_ms"),
    "failed_night_ms": Goal(500, floor="floor_python_ms"),
    "visit_ms": Goal(500, floor="floor_python_ms"),
    "top_ms": Goal(500, floor="floor_python_ms"),
    "supervisor_mb": Goal(200),
}
"""By name of the result, for two idle cores."""
