# SPDX-License-Identifier: BSD-3-Clause
"""Figures and their goals. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

__all__ = ("Goal", "Scalar", "missed", "percentile", "table")

type Scalar = float | int | str | None


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    limit: float
    sense: Literal["at most", "at least", "below"] = "at most"

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


def missed(figures: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> list[str]:
    """Name the figures that are not as they should be.

    Parameters
    ----------
    figures : `~collections.abc.Mapping`
        What was measured.
    goals : `~collections.abc.Mapping`
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


def table(figures: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> Table:
    """Lay out figures beside their goals.

    Parameters
    ----------
    figures : `~collections.abc.Mapping`
        What was measured.
    goals : `~collections.abc.Mapping`
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
