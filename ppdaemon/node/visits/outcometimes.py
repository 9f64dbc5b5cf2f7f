# SPDX-License-Identifier: BSD-3-Clause
"""Counts the outcomes of this run, and the times between their stages. Pure.

Each outcome is recorded once, after its commit. What an operator has requested again counts as an
outcome, but its times are not those of a night.
"""

from collections import Counter
from collections.abc import Iterable

from ppdaemon.metrics import HistogramsByLabels
from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.reports import FALLBACK, REQUEUED
from ppdaemon.states import BAD_OUTCOMES, Outcome, Stage

__all__ = ("OutcomeTimes",)

PREPARE_BOUNDS_S = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120)
"""The shutter opens 20 to 45 s after the announcement."""
START_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
"""Tens of milliseconds in memory, seconds for a pipeline in a separate process."""
RUN_BOUNDS_S = (1, 2, 5, 10, 20, 30, 40, 50, 60, 90, 120, 180, 300, 450, 600, 900)
"""A pipeline takes 30 to 300 s; ``workers.times.run_s`` is 900 s."""
ALERT_BOUNDS_S = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 120, 180, 300)
"""Close together around the budget of 60 s."""


class OutcomeTimes:
    """Outcomes, failures and times since the start of the daemon."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, ...]] = Counter()
        """By instrument and outcome."""
        self.fallbacks: Counter[tuple[str, ...]] = Counter()
        """Those that ran another than the first pipeline of their rule, by instrument."""
        self.failures: Counter[tuple[str, ...]] = Counter()
        """Outcomes that need daytime reprocessing, by instrument and detector: at most as many as the
        node serves."""
        self.prepare = HistogramsByLabels(PREPARE_BOUNDS_S)
        """Announcement to prepared, by instrument."""
        self.start = HistogramsByLabels(START_BOUNDS_S)
        """Raw to the first task, by instrument."""
        self.run = HistogramsByLabels(RUN_BOUNDS_S)
        """First task to the end of the last one, by instrument and pipeline."""
        self.alerts = HistogramsByLabels(ALERT_BOUNDS_S)
        """Shutter close to the end of the last task, by instrument and pipeline."""

    def record(self, entries: Iterable[JournalEntry]) -> None:
        """Record those entries that have a final outcome."""
        for entry in entries:
            if entry.final and entry.outcome is not None:
                instrument = entry.key.instrument
                self.outcomes[instrument, entry.outcome] += 1
                self.fallbacks[instrument,] += FALLBACK in entry.figures
                if entry.outcome in BAD_OUTCOMES:
                    self.failures[instrument, str(entry.key.detector)] += 1
                if REQUEUED not in entry.figures:
                    self._record_times(entry)

    def _record_times(self, entry: JournalEntry) -> None:
        reached, by_instrument = entry.stages.get, (entry.key.instrument,)
        by_pipeline = (entry.key.instrument, entry.pipeline)
        started = reached(Stage.FIRST_TASK)
        if (prepared := reached(Stage.PREPARED)) is not None:
            self.prepare.add(by_instrument, prepared - entry.received_tai)
            # With two snaps the wait for the second exposure would count. A raw that arrived before the
            # worker was prepared waited for the preparation, which is counted above.
            if started is not None and (raw := reached(Stage.ARRIVED)) and len(entry.exposures) == 1:
                self.start.add(by_instrument, started - max(raw, prepared))
        ended = reached(Stage.PROCESSED)
        if entry.outcome is Outcome.SUCCEEDED and ended is not None:
            if started is not None:
                self.run.add(by_pipeline, ended - started)
            if entry.shutter_close_tai is not None:
                self.alerts.add(by_pipeline, ended - entry.shutter_close_tai)
