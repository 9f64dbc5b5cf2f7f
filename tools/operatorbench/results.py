# SPDX-License-Identifier: BSD-3-Clause
"""Goals of what an operator sees."""

from collections.abc import Mapping

from benching.results import Goal

__all__ = ("GOALS",)

GOALS: Mapping[str, Goal] = {
    "status_ms": Goal(300, "below"),
    "workers_ms": Goal(500),
    "visits_ms": Goal(500),
    "visits_1000_ms": Goal(1500),
    "failed_night_ms": Goal(500),
    "visit_ms": Goal(500),
    "top_ms": Goal(500),
    "supervisor_mb": Goal(200),
}
"""By name of the result, for two idle cores."""
