# SPDX-License-Identifier: BSD-3-Clause
"""What an operator should check: what does not work now, and since when."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from ppdaemon.reports import BridgeStatusReport, Problem, ProblemSource, RelayStatusReport, StatusReport
from ppdaemon.terminal import duration, plain

__all__ = ("Finding", "ProblemLog", "status_line")

_LOG = logging.getLogger(__name__)
_SOURCES: tuple[ProblemSource, ...] = get_args(ProblemSource.__value__)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not work now, as a part of the program reports it."""

    source: ProblemSource
    text: str
    subject: str = ""
    """Which one of several, such as the number of a slot. A text that changes while the problem lasts
    needs one, or there is only one problem of its source."""
    age_s: float = 0.0
    """For how long it had lasted when it was reported first."""
    degrades: bool = True
    """Whether it limits the program now."""


class ProblemLog:
    """Adds to each finding when it was reported first, and logs when it is not reported any more."""

    def __init__(self) -> None:
        self._known: list[tuple[str, Problem]] = []
        """With their subjects."""

    def update(self, findings: Iterable[Finding], tai: float) -> tuple[Problem, ...]:
        """Return the problems of now: those that limit the program first, by source, the oldest first."""
        findings, before = list(findings), defaultdict[tuple[ProblemSource, str], list[Problem]](list)
        # By source and subject: each of 1,700 slots may have a problem.
        for subject, known in self._known:
            before[known.source, subject].append(known)
        self._known = []
        # The same text first: of several findings of one source, one may end and the text of another change.
        matches = {
            number: match
            for number, each in enumerate(findings)
            if (match := _take(before[each.source, each.subject], each.text)) is not None
        }
        for number, each in enumerate(findings):
            match = matches.get(number) or _take(before[each.source, each.subject])
            problem = Problem(
                source=each.source,
                text=each.text,
                since_tai=tai - each.age_s if match is None else match.since_tai,
                degrades=each.degrades,
            )
            self._known.append((each.subject, problem))
        for ended in itertools.chain.from_iterable(before.values()):
            _LOG.info("ended after %s: %s", duration(tai - ended.since_tai), plain(ended.text))
        return tuple(sorted((problem for _, problem in self._known), key=_rank))


def _take(known: list[Problem], text: str | None = None) -> Problem | None:
    """Remove and return the first problem, with a text if one is passed."""
    for number, problem in enumerate(known):
        if text in (None, problem.text):
            return known.pop(number)
    return None


def _rank(problem: Problem) -> tuple[bool, int, float]:
    return not problem.degrades, _SOURCES.index(problem.source), problem.since_tai


def status_line(report: StatusReport | RelayStatusReport | BridgeStatusReport) -> str:
    """Return the state in one line, with the first problem and the number of others."""
    if not report.problems:
        return report.text
    first = report.problems[0]
    others = f"; {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
    return f"{report.text}; {first.text}, since {duration(report.tai - first.since_tai)}{others}"
