# SPDX-License-Identifier: BSD-3-Clause
"""The report of a night, and what adds it up from visit-detectors. Pure.

The rows of a long night do not fit into memory: `NightTotals` keeps counts, and four bytes for each
duration.
"""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppdaemon.journalfile import NightRow
from ppdaemon.reports import FALLBACK, GIVEN_UP, REQUEUED, SCHEMA, VisitRow
from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome, Stage
from ppdaemon.wire import Model

__all__ = (
    "ALERT_SPAN",
    "BUDGET_S",
    "OPEN",
    "SPANS",
    "Latency",
    "NightCache",
    "NightDetector",
    "NightExports",
    "NightFallback",
    "NightHistogram",
    "NightNode",
    "NightReason",
    "NightReport",
    "NightTotals",
    "NightVisit",
    "last_attempts",
)

BUDGET_S = 60.0
"""From shutter close to the alerts."""
OPEN = "open"
"""State of a visit-detector without an outcome."""
ALERT_SPAN = "shutter_to_processed_ms"
"""The span to which the budget applies."""
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
MOST_STEPS = 80
"""Of a histogram: more cannot be told apart."""
STEPS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)

_NUMBER = re.compile(r"\d+(\.\d+)?")


class Latency(Model):
    """Percentiles of one duration over all visit-detectors that have it."""

    p50_ms: float
    """Median."""
    p95_ms: float
    """95 of 100 were not longer."""
    p99_ms: float
    """99 of 100 were not longer."""
    max_ms: float
    """The longest one."""
    count: int
    """Visit-detectors, or events of the relay."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency | None":
        """Return the percentiles of durations; `None` if there are none."""
        if not seconds:
            return None
        p50, p95, p99, longest = (round(1e3 * float(s), 1) for s in np.percentile(seconds, [50, 95, 99, 100]))
        return cls(p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=longest, count=len(seconds))


class NightVisit(Model):
    """One visit, with the last attempt at each of its detectors."""

    instrument: str
    group: str
    survey: str
    received_tai: float
    """When the node accepted it, TAI seconds since 1970."""
    outcomes: dict[str, int]
    """Visit-detectors by outcome; ``partial`` are those that succeeded although images were missing,
    ``open`` those without an outcome."""
    median_s: float | None
    """Median of the times from shutter close to the end of the last task, of detectors that succeeded."""
    slowest_s: float | None
    """The longest of these times."""
    slowest_detector: int | None
    """Its detector."""
    failed_detector: int | None
    """The first detector that needs daytime processing."""
    reason: str
    """Its reason."""
    spooled: int
    """Visit-detectors with outputs for the central repo."""
    exported: int
    """Those of them whose outputs are there."""


class NightDetector(Model):
    """One detector in all visits."""

    instrument: str
    detector: int
    outcomes: dict[str, int]
    """As in `NightVisit`."""
    latency: Latency | None
    """From shutter close to the end of the last task, where it succeeded."""
    over_budget: int
    """How often that was longer than the budget."""

    @property
    def bad(self) -> int:
        """Number of outcomes that need daytime processing (`int`)."""
        return sum(self.outcomes.get(outcome, 0) for outcome in BAD_OUTCOMES)


class NightNode(Model):
    """One node among several."""

    name: str
    """Name of its journal: of the file, or of the folder of a ``journal.sqlite``."""
    outcomes: dict[str, int]
    """As in `NightVisit`, of visit-detectors whose last attempt was made here."""
    latency: Latency | None
    """As in `NightDetector`."""
    over_budget: int
    """As in `NightDetector`."""

    @property
    def accepted(self) -> int:
        """Visit-detectors whose last attempt was made here (`int`)."""
        return sum(self.outcomes.values())

    @property
    def succeeded(self) -> int:
        """Those that succeeded (`int`)."""
        return self.outcomes.get(Outcome.SUCCEEDED, 0) + self.outcomes.get(PARTIAL, 0)

    @property
    def bad(self) -> int:
        """Those that need daytime processing (`int`)."""
        return sum(self.outcomes.get(outcome, 0) for outcome in BAD_OUTCOMES)


class NightReason(Model):
    """A reason of outcomes; those that differ in numbers only are one."""

    outcome: Outcome
    """The outcome that they explain."""
    count: int
    """Number of visit-detectors."""
    reason: str
    """Of the first visit-detector that had it."""
    group: str
    """Its visit."""
    detector: int
    """Its detector."""


class NightFallback(Model):
    """Visit-detectors that ran a later pipeline of their rule instead of the first one."""

    first: str
    """The first pipeline of the rule."""
    pipeline: str
    """The one that ran."""
    count: int
    """Number of visit-detectors."""
    reason: str
    """Why the first visit-detector ran it."""
    group: str
    """Its visit."""
    detector: int
    """Its detector."""


class NightHistogram(Model):
    """Times from shutter close to the end of the last task."""

    step_s: float
    """Width of a step."""
    counts: tuple[int, ...]
    """Visit-detectors in each step, from 0 s."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "NightHistogram":
        """Return a histogram in round steps, which reaches beyond the budget."""
        end_s = max(BUDGET_S, max(seconds, default=0.0))
        step_s = next((step for step in STEPS_S if end_s / step < MOST_STEPS), end_s / (MOST_STEPS - 1))
        steps = int(end_s / step_s) + 1
        # A raw that is found before its header's end of exposure, by clocks that differ, counts as 0 s.
        counts = Counter(max(0, int(each / step_s)) for each in seconds)
        return cls(step_s=round(step_s, 3), counts=tuple(counts[step] for step in range(steps)))


class NightCache(Model):
    """Files that the workers took from the node's cache before their images."""

    hits: int
    """Files that were there already."""
    misses: int
    """Files that were fetched."""
    taken_mb: float
    """Size of both, 10^6 bytes."""
    fetched_mb: float
    """Size of the fetched ones."""
    evicted: int
    """Files that were deleted to make room."""

    @property
    def hit_rate(self) -> float | None:
        """Fraction of files that were there (`float`); `None` if none was taken."""
        return self.hits / total if (total := self.hits + self.misses) else None


class NightExports(Model):
    """Outputs on the way to the central repo."""

    spooled: int
    """Visit-detectors with outputs for it."""
    exported: int
    """Those of them whose outputs are there."""
    datasets: int
    """Datasets of all of them."""
    not_exported: int
    """Visit-detectors of which the central repo has datasets from another one instead."""
    given_up: int = 0
    """Visit-detectors whose images were deleted because too much waited."""


class NightReport(Model):
    """A night in numbers: the last attempt at each visit-detector, of one node or of several."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    day_obs: int | None = None
    """The night, such as 20261122; `None` if it is simulated."""
    budget_s: float = BUDGET_S
    """Longest time from shutter close to the alerts."""
    visits: int
    """Visits that were announced."""
    accepted: int
    """Visit-detectors in the journals; those that the relay accepted where no journal was read."""
    succeeded: int
    """Visit-detectors whose last attempt succeeded."""
    partial: int
    """Those of them of which images were missing."""
    failed: int
    """Visit-detectors that need daytime processing."""
    outcomes: dict[Outcome, int]
    """Visit-detectors by their last outcome; those that are missing here have none."""
    retried: int
    """Visit-detectors that needed a second attempt."""
    over_budget: int
    """Visit-detectors whose last task ended later than `budget_s` after shutter close."""
    late_raws: int | None = None
    """Raws that arrived after the outcome of their detector, and that no attempt has used; `None` if
    no journal was read."""
    recycled: dict[str, int] | None = None
    """Workers that were replaced in the night, by cause; `None` if no journal was read."""
    latencies: dict[str, Latency]
    """Milliseconds by name of the measured span."""
    histogram: NightHistogram
    """Of the latencies to which the budget applies."""
    cache: NightCache
    """The node's cache of inputs."""
    exports: NightExports
    """What reached the central repo."""
    fallbacks: tuple[NightFallback, ...]
    """The most frequent ones first."""
    reasons: tuple[NightReason, ...]
    """The most frequent ones first."""
    visit_list: tuple[NightVisit, ...]
    """In the order of acceptance."""
    detector_list: tuple[NightDetector, ...]
    """The slowest ones first."""
    nodes: tuple[NightNode, ...] = ()
    """The nodes, by name; empty for a single one."""
    shadow: bool = False
    """Whether the nodes ran in shadow mode, beside the present service."""


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
        key = outcome, _NUMBER.sub("#", row.reason)
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
