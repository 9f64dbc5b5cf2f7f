# SPDX-License-Identifier: BSD-3-Clause
"""The stages of a visit as spans of time, computed from journal rows.

Drawing is in `ppdaemon.ctl.plots` and `ppdaemon.ctl.tables`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage

__all__ = ("SPAN_NAMES", "Bar", "Span", "Timeline", "elapsed_s", "build_timelines")

_SPANS: tuple[tuple[str, tuple[Stage, ...], Stage], ...] = (
    ("queue", (Stage.ACCEPTED,), Stage.ASSIGNED),
    ("prepare", (Stage.ASSIGNED,), Stage.PREPARED),
    ("wait", (Stage.PREPARED,), Stage.ARRIVED),
    # A raw may arrive before the worker is prepared: ingest begins with the later stage.
    ("ingest", (Stage.PREPARED, Stage.ARRIVED), Stage.INGESTED),
    ("build", (Stage.INGESTED,), Stage.FIRST_TASK),
    ("tasks", (Stage.FIRST_TASK,), Stage.PROCESSED),
    ("spool", (Stage.PROCESSED,), Stage.SPOOLED),
    ("export", (Stage.SPOOLED,), Stage.CENTRAL),
)
"""Of each span: name, stages after which it begins, stage at which it ends."""

SPAN_NAMES = tuple(name for name, _, _ in _SPANS)
"""In the order of processing."""


@dataclass(frozen=True, slots=True)
class Span:
    """One step of a visit-detector; times in seconds since `Timeline.zero_tai`."""

    name: str
    begin_s: float
    end_s: float
    finished: bool = True
    """False if the visit-detector ended within this span."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The spans of one visit-detector."""

    row: VisitRow
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A visit on a time axis in seconds since `zero_tai`."""

    group: str
    zero: str
    """The event at 0: ``shutter close`` or ``acceptance``."""
    zero_tai: float
    bars: tuple[Bar, ...]

    @property
    def begin_s(self) -> float:
        """Begin of the first span."""
        return min((span.begin_s for bar in self.bars for span in bar.spans), default=0.0)

    @property
    def end_s(self) -> float:
        """End of the last span."""
        return max((span.end_s for bar in self.bars for span in bar.spans), default=0.0)


def elapsed_s(row: VisitRow, first: Stage, last: Stage) -> float | None:
    """Return the seconds between two stages; `None` if either was not reached."""
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
            # No span if the end came first, such as a raw that arrived before PREPARED.
            if row.stages[end] >= begin_tai:
                spans.append(Span(name, begin_tai - zero_tai, row.stages[end] - zero_tai))
        elif row.outcome not in (None, Outcome.SUCCEEDED) and row.ended_tai is not None:
            spans.append(Span(name, begin_tai - zero_tai, row.ended_tai - zero_tai, finished=False))
            break
    return tuple(spans)


def build_timelines(rows: Sequence[VisitRow]) -> tuple[Timeline, ...]:
    """Return one timeline per group, sorted by name, with one bar per attempt of a detector.

    Zero is the last shutter close, or the first acceptance if no row has one.
    """
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
