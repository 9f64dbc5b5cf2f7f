# SPDX-License-Identifier: BSD-3-Clause
"""What an operator should check: what does not work now, and since when."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from ppdaemon.reports import Problem, ProblemSource, RelayStatusReport, StatusReport
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
        self._known: dict[tuple[ProblemSource, str, int], Problem] = {}

    def update(self, findings: Iterable[Finding], tai: float) -> tuple[Problem, ...]:
        """Return the problems of now: those that limit the program first, by source, the oldest first."""
        counts: Counter[tuple[ProblemSource, str]] = Counter()
        known = self._known
        self._known = {}
        for each in findings:
            # Findings of one source that cannot be told apart are numbered: the text of each may change.
            number = counts[each.source, each.subject]
            counts[each.source, each.subject] += 1
            key = (each.source, each.subject, number)
            since_tai = known[key].since_tai if key in known else tai - each.age_s
            self._known[key] = Problem(
                source=each.source, text=each.text, since_tai=since_tai, degrades=each.degrades
            )
        for key in known.keys() - self._known.keys():
            ended = known[key]
            _LOG.info("ended after %s: %s", duration(tai - ended.since_tai), plain(ended.text))
        return tuple(sorted(self._known.values(), key=_rank))


def _rank(problem: Problem) -> tuple[bool, int, float]:
    return not problem.degrades, _SOURCES.index(problem.source), problem.since_tai


def status_line(report: StatusReport | RelayStatusReport) -> str:
    """Return the state in one line, with the first problem and the number of others."""
    if not report.problems:
        return report.text
    first = report.problems[0]
    others = f"; {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
    return f"{report.text}; {first.text}, since {duration(report.tai - first.since_tai)}{others}"
