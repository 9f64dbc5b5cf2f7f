# SPDX-License-Identifier: BSD-3-Clause
"""The models of the report of a night, which are also its JSON. Pure."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ppdaemon.reports import SCHEMA
from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome
from ppdaemon.wire import Model

__all__ = (
    "ALERT_SPAN",
    "BUDGET_S",
    "OPEN",
    "Latency",
    "NightCache",
    "NightDetector",
    "NightExports",
    "NightFallback",
    "NightHistogram",
    "NightNode",
    "NightReason",
    "NightReport",
    "NightVisit",
)

BUDGET_S = 60.0
"""From shutter close to the alerts."""
OPEN = "open"
"""State of a visit-detector without an outcome."""
ALERT_SPAN = "shutter_to_processed_ms"
"""The span to which the budget applies."""
MOST_STEPS = 80
"""Of a histogram: more cannot be told apart."""
STEPS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


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
