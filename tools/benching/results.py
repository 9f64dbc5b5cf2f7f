# SPDX-License-Identifier: BSD-3-Clause
"""Results of a bench and their goals. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

__all__ = ("Goal", "Scalar", "missed", "percentile", "table")

type Scalar = float | int | str | None


@dataclass(frozen=True, slots=True)
class Goal:
    """The limit that a result must meet."""

    limit: float
    sense: Literal["at most", "at least", "below"] = "at most"

    def met(self, value: float) -> bool:
        """Return whether a result meets the limit."""
        match self.sense:
            case "at most":
                return value <= self.limit
            case "below":
                return value < self.limit
            case "at least":
                return value >= self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: always one of the values.

    Raises `ValueError` for no values, or a percentage that is not above 0 and
    up to 100.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent:g} of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def missed(results: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> list[str]:
    """Return the names of the results that miss their goals, in the order of the goals."""
    return [
        name
        for name, goal in goals.items()
        if isinstance(value := results.get(name), int | float) and not goal.met(value)
    ]


def table(results: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> Table:
    """Make a table of results beside their goals."""
    missed_names = missed(results, goals)
    shown = Table("result", "value", "goal", "", box=None, pad_edge=False)
    shown.columns[1].justify = "right"
    for name, value in results.items():
        text = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
        goal = goals.get(name)
        comparison = "" if goal is None else "[red]missed" if name in missed_names else "[green]met"
        shown.add_row(name, text, str(goal or ""), comparison)
    return shown
