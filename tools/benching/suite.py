# SPDX-License-Identifier: BSD-3-Clause
"""The results of all benches beside their goals and the baseline. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from benching.results import Baseline, Goal

type Measured = Mapping[str, tuple[float, Goal]]
"""Values and goals of one bench by name of the result."""


@dataclass(frozen=True, slots=True)
class Row:
    """A result beside its goal and its baseline, or a bench that has failed."""

    bench: str
    name: str
    value: float | None = None
    goal: Goal | None = None
    before: float | None = None
    """Ratio in the baseline."""
    worse: float | None = None
    """Factor, if the ratio is worse than in the baseline by more than its tolerance."""

    @property
    def good(self) -> bool:
        """Whether the goal is met and the ratio not worse than before."""
        return bool(self.goal and self.value is not None and self.goal.met(self.value) and not self.worse)

    @property
    def verdict(self) -> str:
        """What is wrong, or ``met``."""
        if self.goal is None or self.value is None:
            return self.name
        missed = [] if self.goal.met(self.value) else ["missed"]
        worse = [f"{self.worse:.2g} times worse"] if self.worse else []
        return ", ".join(missed + worse) or "met"

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads."""
        return {
            "bench": self.bench,
            "result": self.name,
            "value": self.value,
            "goal": None if self.goal is None else str(self.goal),
            "kind": None if self.goal is None else self.goal.kind,
            "floor": None if self.goal is None else self.goal.floor,
            "baseline": self.before,
            "good": self.good,
            "verdict": self.verdict,
        }


def measured_by(printed: Mapping[str, Any]) -> Measured:
    """Return values and goals, with measured floors, that a bench has printed with ``--json``."""
    goals = {name: dict(fields) for name, fields in printed["goals"].items()}
    return {name: (fields.pop("value"), Goal(**fields)) for name, fields in goals.items()}


def rows(found: Mapping[str, Measured | str], baseline: Baseline) -> Iterator[Row]:
    """Yield a row for each result that has a goal; `found` has a text for a bench that has failed."""
    for bench, measured in found.items():
        if isinstance(measured, str):
            yield Row(bench, measured)
            continue
        worse, before = baseline.worse(bench, measured), baseline.ratios.get(bench, {})
        for name, (value, goal) in measured.items():
            yield Row(bench, name, value, goal, before.get(name), worse.get(name))


def suite_table(results: list[Row]) -> Table:
    """Make a table of all results."""
    shown = Table("bench", "result", "value", "goal", "baseline", "", "floor", box=None, pad_edge=False)
    for column in (2, 4):
        shown.columns[column].justify = "right"
    for row in results:
        numbers = ["" if number is None else f"{number:.4g}" for number in (row.value, row.before)]
        verdict = Text(row.verdict, "green" if row.good else "red")
        named = "" if row.goal is None else row.name
        floor = "" if row.goal is None else row.goal.floor
        shown.add_row(row.bench, named, numbers[0], str(row.goal or ""), numbers[1], verdict, floor)
    return shown
