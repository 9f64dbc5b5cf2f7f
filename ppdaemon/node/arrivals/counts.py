# SPDX-License-Identifier: BSD-3-Clause
"""Counters of arrival errors, and the latencies of the sources."""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable

from ppdaemon.reports import ArrivalSource
from ppdaemon.throttle import Throttle

__all__ = ("ErrorCounts", "Latencies")

_LOG = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
"""One broken file or publisher can cause hundreds of events a second."""
LATENCY_SAMPLES = 1000
"""Raws from which the latency of a source is computed: five exposures of 205 detectors."""


class ErrorCounts(Throttle):
    """Counts events by kind; logs a warning of each kind at most once in `LOG_EVERY_S`."""

    def __init__(self, mono: Callable[[], float]):
        super().__init__(LOG_EVERY_S, mono)

    def warn(self, kind: str, text: str, sample: bytes | None = None) -> None:
        """Count an event; log it unless its kind was logged recently."""
        if self.passes(kind, sample):
            _LOG.warning("%s", text, extra={"kind": kind, "count": self.by_kind[kind]})


class Latencies:
    """Counts raws and measures latencies by the source that reported each raw first."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._latencies: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LATENCY_SAMPLES))

    def sighted(self, source: str) -> None:
        """Count a raw that a source reported first."""
        self._files[source] += 1

    def delivered(self, source: str, latency_s: float) -> None:
        """Record the time from the last change of a delivered file to the sighting, seconds."""
        self._latencies[source].append(latency_s)

    def report(
        self, name: str, *, live: bool, note: str, last_notice_s: float | None = None
    ) -> ArrivalSource:
        """Return the state, the count and the latencies of a source."""
        lags = sorted(self._latencies.get(name, ()))
        return ArrivalSource(
            name=name,
            live=live,
            note=note,
            files=self._files[name],
            lag_p50_ms=_quantile_ms(lags, 0.5),
            lag_p99_ms=_quantile_ms(lags, 0.99),
            last_notice_s=last_notice_s,
        )


def _quantile_ms(sorted_s: list[float], fraction: float) -> float | None:
    if not sorted_s:
        return None
    return 1000.0 * sorted_s[min(len(sorted_s) - 1, int(fraction * len(sorted_s)))]
