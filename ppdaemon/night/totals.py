# SPDX-License-Identifier: BSD-3-Clause
"""Adds up the report of a night from its visit-detectors. Pure.

The rows of a long night do not fit into memory: `NightTotals` keeps counts, and four bytes for each
duration.
"""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppdaemon.journalfile import NightRow
from ppdaemon.night.report import (
    ALERT_SPAN,
    BUDGET_S,
    OPEN,
    Latency,
    NightCache,
    NightDetector,
    NightExports,
    NightFallback,
    NightHistogram,
    NightNode,
    NightReason,
    NightVisit,
)
from ppdaemon.reports import FALLBACK, GIVEN_UP, REQUEUED, VisitRow
from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome, Stage

__all__ = ("SPANS", "NightTotals", "last_attempts")

SPANS: dict[str, tuple[Stage | None, Stage]] = {
    "queue_ms": (Stage.ACCEPTED, Stage.ASSIGNED),
    "prepare_ms": (Stage.ASSIGNED, Stage.PREPARED),
    "shutter_to_raw_ms": (None, Stage.ARRIVED),
    "raw_to_first_task_ms": (Stage.ARRIVED, Stage.FIRST_TASK),
    "tasks_ms": (Stage.FIRST_TASK, Stage.PROCESSED),
    ALERT_SPAN: (None, Stage.PROCESSED),
    "spool_ms": (Stage.PROCESSED, Stage.SPOOLED),
    "central_ms": (Stage.SPOOLED, Stage.CENTRAL),
}
"""First and last stage of each measured span, by its name; `None` is the end of the last exposure."""
MAX_REASONS = 1000
"""Different reasons that are counted apart."""
SHOWN_REASONS = 20

_VARYING = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{1,12}){1,4}\b|\b0x[0-9a-f]+|\d+(\.\d+)?")
"""What differs between reasons that are counted together: ids of datasets, which may be cut, addresses in
memory, numbers.
"""


def last_attempts(rows: Iterable[VisitRow]) -> dict[tuple[str, int], VisitRow]:
    """Return the last attempt at each visit-detector, by group and detector."""
    return {(row.group, row.detector): row for row in sorted(rows, key=lambda row: row.attempt)}


def _seconds() -> "array[float]":
    return array("f")


@dataclass(slots=True)
class _Part:
    """What is added up of a visit, or of a detector."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: "array[float]" = field(default_factory=_seconds)


@dataclass(slots=True)
class _Visit(_Part):
    survey: str = ""
    received_tai: float = float("inf")
    slowest: tuple[float, int] | None = None
    failed: tuple[int, str] | None = None
    spooled: int = 0
    exported: int = 0


class NightTotals:
    """Adds up visit-detectors."""

    def __init__(self) -> None:
        self.accepted = self.retried = 0
        self.doubled: int | None = 0
        """Visit-detectors that more than one attempt has completed; only `add` finds them."""
        self.outcomes: Counter[Outcome] = Counter()
        self._partial = 0
        self._seconds: defaultdict[str, array[float]] = defaultdict(_seconds)
        self._visits: dict[tuple[str, str], _Visit] = {}
        self._detectors: dict[tuple[str, int], _Part] = {}
        self._nodes: dict[str, _Part] = {}
        self._reasons: dict[tuple[Outcome, str], tuple[int, VisitRow | NightRow]] = {}
        self._fallbacks: dict[tuple[str, str], tuple[int, VisitRow | NightRow]] = {}
        """By first pipeline and the one that ran: their number, and the first of them."""
        self._figures: Counter[str] = Counter()

    def add(self, rows: Sequence[VisitRow]) -> None:
        """Add whole visits: all attempts of all nodes at their detectors."""
        completed = Counter((row.group, row.detector) for row in rows if row.outcome == Outcome.SUCCEEDED)
        self.doubled = (self.doubled or 0) + sum(count > 1 for count in completed.values())
        for row in last_attempts(rows).values():
            self.add_last(row)

    def add_last(self, row: VisitRow | NightRow, node: str = "") -> None:
        """Add the last attempt at a visit-detector, by one of several nodes or by a single one."""
        self.count(row.outcome, row.attempt)
        state = PARTIAL if row.partial and row.outcome == Outcome.SUCCEEDED else row.outcome or OPEN
        self._partial += state == PARTIAL
        visit = self._visits.setdefault((row.instrument, row.group), _Visit())
        detector = self._detectors.setdefault((row.instrument, row.detector), _Part())
        parts: list[_Part] = [visit, detector]
        if node:
            parts.append(self._nodes.setdefault(node, _Part()))
        for part in parts:
            part.outcomes[state] += 1
        visit.survey = row.survey
        visit.received_tai = min(visit.received_tai, row.stages.get(Stage.ACCEPTED, visit.received_tai))
        if row.datasets:
            visit.spooled += 1
            visit.exported += Stage.CENTRAL in row.stages
        if row.outcome in BAD_OUTCOMES:
            failed = row.detector, row.reason or str(row.outcome)
            visit.failed = min(visit.failed or failed, failed)
        if row.reason and row.outcome not in (None, Outcome.SUCCEEDED):
            self._add_reason(row.outcome, row)
        if fallback := row.figures.get(FALLBACK):
            pipelines = fallback["first"], row.pipeline
            count, first = self._fallbacks.get(pipelines, (0, row))
            self._fallbacks[pipelines] = count + 1, first
        self._add_figures(row)
        # What an operator has requested again is in the outcomes, but its times are not those of the night.
        if row.outcome == Outcome.SUCCEEDED and REQUEUED not in row.figures:
            self._add_times(row, visit, parts)

    def _add_times(self, row: VisitRow | NightRow, visit: _Visit, parts: Sequence[_Part]) -> None:
        stages, close = row.stages, row.shutter_close_tai
        for name, (first, last) in SPANS.items():
            begin, end = close if first is None else stages.get(first), stages.get(last)
            # With two snaps the wait for the second exposure would count as latency.
            if begin is None or end is None or (len(row.exposures) > 1 and name != ALERT_SPAN):
                continue
            self._seconds[name].append(end - begin)
            if name == ALERT_SPAN:
                for part in parts:
                    part.seconds.append(end - begin)
                visit.slowest = max(visit.slowest or (0.0, row.detector), (end - begin, row.detector))

    def _add_reason(self, outcome: Outcome, row: VisitRow | NightRow) -> None:
        key = outcome, _VARYING.sub("#", row.reason)
        if key in self._reasons:
            count, first = self._reasons[key]
            self._reasons[key] = count + 1, first
        elif len(self._reasons) < MAX_REASONS:
            self._reasons[key] = 1, row

    def _add_figures(self, row: VisitRow | NightRow) -> None:
        for name in ("hits", "misses", "bytes", "fetched_bytes", "evicted"):
            self._figures[name] += row.figures.get(name) or 0
        self._figures["datasets"] += row.datasets
        for name in ("not_exported", GIVEN_UP):
            self._figures[name] += name in row.figures

    def count(self, outcome: Outcome | None, attempt: int) -> None:
        """Count the last attempt at one accepted visit-detector."""
        self.accepted += 1
        self.retried += attempt > 1
        if outcome is not None:
            self.outcomes[outcome] += 1

    def measure(self, name: str, seconds: Iterable[float | None]) -> None:
        """Add durations of a span; `None` for those that are unknown."""
        self._seconds[name].extend(each for each in seconds if each is not None)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a `NightReport` that come from visits."""
        latencies = {name: Latency.of(seconds) for name, seconds in self._seconds.items()}
        ordered = {name: latencies.pop(name, None) for name in SPANS} | latencies
        visits = sorted(self._visits.items(), key=lambda item: (item[1].received_tai, item[0]))
        return {
            "visits": len(visits),
            "accepted": self.accepted,
            "succeeded": self.outcomes[Outcome.SUCCEEDED],
            "partial": self._partial,
            "failed": sum(self.outcomes[outcome] for outcome in BAD_OUTCOMES),
            "outcomes": {outcome: self.outcomes[outcome] for outcome in Outcome if self.outcomes[outcome]},
            "retried": self.retried,
            "over_budget": _over(self._seconds[ALERT_SPAN]),
            "latencies": {name: latency for name, latency in ordered.items() if latency is not None},
            "histogram": NightHistogram.of(self._seconds[ALERT_SPAN]),
            "cache": self._cache(),
            "exports": NightExports(
                spooled=sum(visit.spooled for _, visit in visits),
                exported=sum(visit.exported for _, visit in visits),
                datasets=self._figures["datasets"],
                not_exported=self._figures["not_exported"],
                given_up=self._figures[GIVEN_UP],
            ),
            "fallbacks": self._fallback_list(),
            "reasons": self._reason_list(),
            "visit_list": tuple(_visit(*key, visit) for key, visit in visits),
            "detector_list": self._detector_list(),
            "nodes": tuple(
                NightNode(
                    name=name,
                    outcomes=dict(part.outcomes),
                    latency=Latency.of(part.seconds),
                    over_budget=_over(part.seconds),
                )
                for name, part in sorted(self._nodes.items())
            ),
        }

    def _cache(self) -> NightCache:
        figures: Mapping[str, int] = self._figures
        return NightCache(
            hits=figures["hits"],
            misses=figures["misses"],
            taken_mb=round(figures["bytes"] / 1e6, 1),
            fetched_mb=round(figures["fetched_bytes"] / 1e6, 1),
            evicted=figures["evicted"],
        )

    def _reason_list(self) -> tuple[NightReason, ...]:
        most = sorted(self._reasons.items(), key=lambda item: -item[1][0])[:SHOWN_REASONS]
        return tuple(
            NightReason(
                outcome=outcome, count=count, reason=row.reason, group=row.group, detector=row.detector
            )
            for (outcome, _), (count, row) in most
        )

    def _fallback_list(self) -> tuple[NightFallback, ...]:
        return tuple(
            NightFallback(
                first=first,
                pipeline=pipeline,
                count=count,
                reason=row.figures[FALLBACK]["reason"],
                group=row.group,
                detector=row.detector,
            )
            for (first, pipeline), (count, row) in sorted(
                self._fallbacks.items(), key=lambda item: (-item[1][0], item[0])
            )
        )

    def _detector_list(self) -> tuple[NightDetector, ...]:
        found = (
            NightDetector(
                instrument=instrument,
                detector=detector,
                outcomes=dict(part.outcomes),
                latency=Latency.of(part.seconds),
                over_budget=_over(part.seconds),
            )
            for (instrument, detector), part in self._detectors.items()
        )
        return tuple(
            sorted(found, key=lambda each: (-(each.latency.p95_ms if each.latency else -1.0), each.detector))
        )


def _over(seconds: Iterable[float]) -> int:
    return sum(each > BUDGET_S for each in seconds)


def _visit(instrument: str, group: str, visit: _Visit) -> NightVisit:
    median = Latency.of(visit.seconds)
    return NightVisit(
        instrument=instrument,
        group=group,
        survey=visit.survey,
        received_tai=visit.received_tai if visit.received_tai != float("inf") else 0.0,
        outcomes=dict(visit.outcomes),
        median_s=None if median is None else round(median.p50_ms / 1e3, 3),
        slowest_s=None if visit.slowest is None else round(visit.slowest[0], 3),
        slowest_detector=None if visit.slowest is None else visit.slowest[1],
        failed_detector=None if visit.failed is None else visit.failed[0],
        reason="" if visit.failed is None else visit.failed[1],
        spooled=visit.spooled,
        exported=visit.exported,
    )
