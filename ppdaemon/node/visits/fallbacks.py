# SPDX-License-Identifier: BSD-3-Clause
"""Which pipelines are not run although they are the first of their rule: another one replaces them. Pure.

Does not cover pipelines that are set aside because they end workers
(`ppdaemon.node.slots.pipelinehealth`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ("Fallbacks",)

VISITS = 3
"""One field may have no templates, and the next one has them again."""
MAX_CHARS = 160
"""Of a reason in a problem: it is one line of the status."""


@dataclass(slots=True)
class _Missed:
    """What ran instead of a pipeline since it last succeeded."""

    since: float
    visits: set[tuple[str, str]] = field(default_factory=set)
    """The first `VISITS` ones."""
    detectors: int = 0
    text: str = ""


class Fallbacks:
    """Counts the visits in which the first pipeline of a rule was replaced. All times are monotonic."""

    def __init__(self) -> None:
        self._missed: dict[str, _Missed] = {}
        """By the name of the first pipeline."""

    def replaced(self, first: str, by: str, visit: tuple[str, str], reason: str, now: float) -> None:
        """Note that another pipeline ran for a visit-detector."""
        missed = self._missed.setdefault(first, _Missed(now))
        if len(missed.visits) < VISITS:
            missed.visits.add(visit)
        missed.detectors += 1
        short = reason if len(reason) <= MAX_CHARS else f"{reason[:MAX_CHARS]}…"
        missed.text = (
            f"pipeline {first} is not run, {by} of its rule ran instead in the last {missed.detectors}"
            f" visit-detectors: {short}"
        )

    def succeeded(self, pipeline: str) -> None:
        """Note that the first pipeline of a rule has succeeded."""
        self._missed.pop(pipeline, None)

    def problems(self, now: float) -> Iterator[tuple[str, str, float]]:
        """Yield name, problem and age in seconds of each pipeline that the last visits did not run."""
        for first, missed in self._missed.items():
            if len(missed.visits) >= VISITS:
                yield first, missed.text, now - missed.since
