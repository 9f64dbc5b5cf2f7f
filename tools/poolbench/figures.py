# SPDX-License-Identifier: BSD-3-Clause
"""Figures and their goals: statistics, memory maps, the table. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

__all__ = ("GOALS", "Goal", "Scalar", "missed", "per_thousand", "percentile", "private_mb", "table")

type Scalar = float | int | str | None


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    limit: float
    sense: Literal["at most", "at least"] = "at most"

    def met(self, value: float) -> bool:
        """Tell whether a figure is as it should be.

        Parameters
        ----------
        value : `float`
            The figure.

        Returns
        -------
        met : `bool`
            Whether it is.
        """
        return value <= self.limit if self.sense == "at most" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}"


GOALS: Mapping[str, Goal] = {
    "fork_ready_ms": Goal(100),
    "fork_over_spawn": Goal(15, "at least"),
    "idle_private_mb": Goal(25),
    "supervisor_cpu_percent": Goal(2),
    "supervisor_mb": Goal(150),
    "threads_per_worker": Goal(0.01),
    "reserve_205_ms": Goal(250),
    "replace_p95_ms": Goal(1000),
}
"""By figure; on two cores that do nothing else."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent do not exceed.

    Parameters
    ----------
    values : `~collections.abc.Sequence` [`float`]
        At least one.
    percent : `float`
        Above 0 and up to 100.

    Returns
    -------
    value : `float`
        One of `values`: the nearest rank, never interpolated.

    Raises
    ------
    ValueError
        Raised if there are no values, or `percent` is out of range.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent:g} of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def per_thousand(counts: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much a value grows per 1000 counts: least squares.

    Parameters
    ----------
    counts : `~collections.abc.Sequence` [`float`]
        How much had been done.
    values : `~collections.abc.Sequence` [`float`]
        What was measured then.

    Returns
    -------
    slope : `float`
        In units of the values.

    Raises
    ------
    ValueError
        Raised if the counts are not as many as the values, or all the same.
    """
    n = len(counts)
    mean_count, mean_value = (sum(each) / max(n, 1) for each in (counts, values))
    spread = sum((count - mean_count) ** 2 for count in counts)
    if n != len(values) or spread == 0:
        raise ValueError(f"no slope through {n} counts and {len(values)} values")
    pairs = zip(counts, values, strict=True)
    return 1000 * sum((count - mean_count) * (value - mean_value) for count, value in pairs) / spread


def private_mb(smaps: str) -> float:
    """Return the memory that only one process has.

    Parameters
    ----------
    smaps : `str`
        Its ``smaps_rollup``.

    Returns
    -------
    size : `float`
        Private pages, clean and dirty, in 10^6 bytes.
    """
    lines = (line.split() for line in smaps.splitlines() if line.startswith("Private_"))
    return sum(int(words[1]) for words in lines) * 1024 / 1e6


def missed(figures: Mapping[str, Scalar], goals: Mapping[str, Goal] = GOALS) -> list[str]:
    """Name the figures that are not as they should be.

    Parameters
    ----------
    figures : `~collections.abc.Mapping`
        What was measured.
    goals : `~collections.abc.Mapping`, optional
        What they should be.

    Returns
    -------
    names : `list` [`str`]
        In the order of the goals; those that were not measured are none.
    """
    return [
        name
        for name, goal in goals.items()
        if isinstance(value := figures.get(name), int | float) and not goal.met(value)
    ]


def table(figures: Mapping[str, Scalar], goals: Mapping[str, Goal] = GOALS) -> Table:
    """Lay out figures beside their goals.

    Parameters
    ----------
    figures : `~collections.abc.Mapping`
        What was measured.
    goals : `~collections.abc.Mapping`, optional
        What they should be.

    Returns
    -------
    table : `rich.table.Table`
        One row each.
    """
    wrong = missed(figures, goals)
    shown = Table("figure", "value", "goal", "", box=None, pad_edge=False)
    shown.columns[1].justify = "right"
    for name, value in figures.items():
        text = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
        goal = goals.get(name)
        verdict = "" if goal is None else "[red]missed" if name in wrong else "[green]met"
        shown.add_row(name, text, str(goal or ""), verdict)
    return shown
