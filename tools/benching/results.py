# SPDX-License-Identifier: BSD-3-Clause
"""Results of a bench, their goals, and the baseline of ratios. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

type Scalar = float | int | str | None
type Results = Mapping[str, Scalar | Mapping[str, Scalar]]
"""Results by name, or groups of them."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The limit that a result must meet."""

    limit: float
    sense: Literal["at most", "at least", "below"] = "at most"
    kind: Literal["absolute", "ratio", "count"] = "absolute"
    """A ``ratio`` of two results of one run, and a ``count`` of what went wrong, hold also on a busy
    machine; an ``absolute`` goal is for two idle cores."""
    floor: str = ""
    """Name of a result of the same run that a slow or busy machine lengthens likewise: it is shown beside
    an ``absolute`` goal."""

    def beside_floor(self, results: Mapping[str, Scalar]) -> "Goal":
        """Return the same goal with its floor as it was measured, as text; blank if it was not."""
        value = results.get(self.floor)
        return replace(self, floor="" if value is None else f"{self.floor}: {_text(value)}")

    def met(self, value: float) -> bool:
        """Return whether a result meets the limit."""
        match self.sense:
            case "at most":
                return value <= self.limit
            case "below":
                return value < self.limit
            case "at least":
                return value >= self.limit

    def worsening(self, value: float, before: float) -> float:
        """Return the factor by which a ratio is worse than before; below 1 it is better."""
        worse, better = (before, value) if self.sense == "at least" else (value, before)
        return worse / better if better else math.inf if worse else 1.0

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


def flatten(results: Results) -> dict[str, Scalar]:
    """Return all results in one dict, those of groups with names such as ``direct.total_ms``."""
    found: dict[str, Scalar] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            found[name] = value
    return found


def missed(results: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> list[str]:
    """Return the names of the results that miss their goals, in the order of the goals."""
    return [name for name, value in _measured(results, goals).items() if not goals[name].met(value)]


def explain(name: str, value: Scalar, goal: Goal) -> str:
    """Return a line about a result beside its goal, which has its floor as it was measured."""
    floor = f"; {goal.floor}" if goal.floor else ""
    return f"{name}: {_text(value)}, goal {goal} ({goal.kind}){floor}"


def as_json(results: Results, goals: Mapping[str, Goal]) -> dict[str, Any]:
    """Return results with their goals, as ``--json`` prints them: ``goals`` has those that were measured."""
    flat = flatten(results)
    measured = {
        name: {"value": value, **asdict(goals[name].beside_floor(flat))}
        for name, value in _measured(flat, goals).items()
    }
    return {**results, "goals": measured, "goals_missed": missed(flat, goals)}


def table(results: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> Table:
    """Make a table of results beside their goals."""
    missed_names = missed(results, goals)
    shown = Table("result", "value", "goal", "", "floor", box=None, pad_edge=False)
    shown.columns[1].justify = "right"
    for name, value in results.items():
        goal = goals.get(name)
        is_met = name not in missed_names
        comparison = Text() if goal is None else Text("met", "green") if is_met else Text("missed", "red")
        floor = "" if goal is None else goal.beside_floor(results).floor
        shown.add_row(name, _text(value), str(goal or ""), comparison, floor)
    return shown


def _measured(results: Mapping[str, Scalar], goals: Mapping[str, Goal]) -> dict[str, float]:
    return {name: value for name in goals if isinstance(value := results.get(name), int | float)}


def _text(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


# --- the baseline ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Baseline:
    """Ratios of an earlier run, by bench and name of the result."""

    tolerance: float
    """A ratio may be worse by this fraction."""
    ratios: Mapping[str, Mapping[str, float]]
    tolerances: Mapping[str, float]
    """Where it is another fraction: by name of the result."""

    def worse(self, bench: str, measured: Mapping[str, tuple[float, Goal]]) -> dict[str, float]:
        """Return by which factor results of a bench are worse than before, if by more than the tolerance.

        What has no earlier ratio is not compared.
        """
        before = self.ratios.get(bench, {})
        factors = {
            name: goal.worsening(value, before[name])
            for name, (value, goal) in measured.items()
            if name in before
        }
        return {
            name: factor
            for name, factor in factors.items()
            if factor > 1 + self.tolerances.get(name, self.tolerance)
        }

    def renewed(self, measured: Mapping[str, Mapping[str, tuple[float, Goal]]]) -> "Baseline":
        """Return the baseline with the ratios of the benches that were run; others and tolerances stay."""
        ratios = {
            bench: {
                name: float(f"{value:.3g}") for name, (value, goal) in found.items() if goal.kind == "ratio"
            }
            for bench, found in measured.items()
        }
        merged = {bench: found for bench, found in ({**self.ratios, **ratios}).items() if found}
        return Baseline(self.tolerance, merged, self.tolerances)


def baseline_of(found: Mapping[str, Any]) -> Baseline:
    """Return the baseline that a file has as JSON."""
    return Baseline(found["tolerance"], found["ratios"], found["tolerances"])
