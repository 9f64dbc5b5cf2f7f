# SPDX-License-Identifier: BSD-3-Clause
"""A visit's stages as spans of time on one axis, for terminal and picture.

Pure: journal rows in, spans out. Drawing is in `ppdaemon.ctl.plots` and
`ppdaemon.ctl.tables`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage

__all__ = ("SPAN_NAMES", "Bar", "Span", "Timeline", "elapsed_s", "lay_out")

_SPANS: tuple[tuple[str, tuple[Stage, ...], Stage], ...] = (
    ("queue", (Stage.ACCEPTED,), Stage.ASSIGNED),
    ("prepare", (Stage.ASSIGNED,), Stage.PREPARED),
    ("wait", (Stage.PREPARED,), Stage.ARRIVED),
    # A raw may be there before the worker is prepared: ingest begins with the later one.
    ("ingest", (Stage.PREPARED, Stage.ARRIVED), Stage.INGESTED),
    ("build", (Stage.INGESTED,), Stage.FIRST_TASK),
    ("tasks", (Stage.FIRST_TASK,), Stage.PROCESSED),
    ("spool", (Stage.PROCESSED,), Stage.SPOOLED),
    ("export", (Stage.SPOOLED,), Stage.CENTRAL),
)
"""Name of each span, the stages it begins after, the stage it ends with."""

SPAN_NAMES = tuple(name for name, _, _ in _SPANS)
"""In the order in which a visit goes through them."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a visit-detector did from one time to another."""

    name: str
    begin_s: float
    end_s: float
    finished: bool = True
    """False if the visit-detector ended within this span."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One visit-detector's spans."""

    row: VisitRow
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A visit on one axis: seconds since `zero_tai`."""

    group: str
    zero: str
    """What happened at 0, such as ``shutter close``."""
    zero_tai: float
    bars: tuple[Bar, ...]

    @property
    def begin_s(self) -> float:
        """Where the first span begins (`float`)."""
        return min((span.begin_s for bar in self.bars for span in bar.spans), default=0.0)

    @property
    def end_s(self) -> float:
        """Where the last span ends (`float`)."""
        return max((span.end_s for bar in self.bars for span in bar.spans), default=0.0)


def elapsed_s(row: VisitRow, first: Stage, last: Stage) -> float | None:
    """Return the seconds from one stage to another."""
    begin, end = row.stages.get(first), row.stages.get(last)
    return None if begin is None or end is None else end - begin


def _spans(row: VisitRow, zero_tai: float) -> tuple[Span, ...]:
    spans = []
    for name, begins, end in _SPANS:
        begun = [row.stages[stage] for stage in begins if stage in row.stages]
        if len(begun) < len(begins):
            continue
        begin_tai = max(begun)
        if end in row.stages:
            if row.stages[end] >= begin_tai:
                spans.append(Span(name, begin_tai - zero_tai, row.stages[end] - zero_tai))
        elif row.outcome not in (None, Outcome.SUCCEEDED) and row.ended_tai is not None:
            spans.append(Span(name, begin_tai - zero_tai, row.ended_tai - zero_tai, finished=False))
            break
    return tuple(spans)


def lay_out(rows: Sequence[VisitRow]) -> tuple[Timeline, ...]:
    """Put visits on axes of their own, each detector on a bar of its own."""
    groups: dict[str, list[VisitRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    timelines = []
    for group, members in sorted(groups.items()):
        members.sort(key=lambda row: (row.instrument, row.detector, row.attempt))
        closes = [row.shutter_close_tai for row in members if row.shutter_close_tai is not None]
        begins = [tai for row in members for tai in row.stages.values()]
        zero, zero_tai = (
            ("shutter close", max(closes)) if closes else ("acceptance", min(begins, default=0.0))
        )
        bars = tuple(Bar(row, _spans(row, zero_tai)) for row in members)
        timelines.append(Timeline(group, zero, zero_tai, bars))
    return tuple(timelines)
