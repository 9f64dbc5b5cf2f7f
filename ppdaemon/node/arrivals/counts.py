# SPDX-License-Identifier: BSD-3-Clause
"""Counters of the arrivals: what went wrong, and how soon each source reports raws."""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable

from ppdaemon.reports import ArrivalSource
from ppdaemon.throttle import Throttle

__all__ = ("ErrorCounts", "Latencies")

_LOG = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
LATELY = 1000
"""Raws of a source that its latency is computed from: five exposures of 205 detectors."""


class ErrorCounts(Throttle):
    """Counts events by kind; logs a warning of each kind at most once in `LOG_EVERY_S`."""

    def __init__(self, mono: Callable[[], float]):
        super().__init__(LOG_EVERY_S, mono)

    def complain(self, kind: str, text: str) -> None:
        """Count an event and log it, unless its kind was logged lately."""
        if self.passes(kind):
            _LOG.warning("%s", text, extra={"kind": kind, "count": self.by_kind[kind]})


class Latencies:
    """Counts raws by the source that reported them first."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._lags: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LATELY))

    def sighted(self, source: str) -> None:
        """Count a raw that a source reported first."""
        self._files[source] += 1

    def delivered(self, source: str, lag_s: float) -> None:
        """Record how soon a source reported a raw that is delivered now."""
        self._lags[source].append(lag_s)

    def report(self, name: str, *, live: bool, note: str) -> ArrivalSource:
        """Return the state of a source with its figures: latencies are those of the last `LATELY`."""
        lags = sorted(self._lags.get(name, ()))
        return ArrivalSource(
            name=name,
            live=live,
            note=note,
            files=self._files[name],
            lag_p50_ms=_quantile_ms(lags, 0.5),
            lag_p99_ms=_quantile_ms(lags, 0.99),
        )


def _quantile_ms(sorted_s: list[float], fraction: float) -> float | None:
    if not sorted_s:
        return None
    return 1000.0 * sorted_s[min(len(sorted_s) - 1, int(fraction * len(sorted_s)))]
