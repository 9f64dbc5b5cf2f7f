# SPDX-License-Identifier: BSD-3-Clause
"""Tables of metrics, and the histograms that some of them show.

Pure, and without the Prometheus client, which is imported only where metrics are served
(`ppdaemon.metricsserver`). Labels are bounded: names of the configuration, states, outcomes, kinds of
events; never a group, an exposure or a process.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ppdaemon.reports import Problem

__all__ = ("Histogram", "HistogramsByLabels", "LABELS_MAX", "Metric", "by_source", "one_hot")

LABELS_MAX = 100
"""Histograms of one metric: a site has a few instruments with some ten pipelines each, and reloads
rename them."""
OTHER = "other"
"""Instead of all labels above `LABELS_MAX`."""


class Histogram:
    """Counts values by their upper bounds.

    These are classic histograms: native ones need the protobuf format, which prometheus_client does not
    write, and a switch in Prometheus 2.
    """

    def __init__(self, bounds: tuple[float, ...]):
        self.sum = 0.0
        """Of all values."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value. A negative one counts as 0: the clock was set between its two times."""
        value = max(value, 0.0)
        self.sum += value
        self._counts[bisect_left(self._bounds, value)] += 1

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the text of each bound, with the number of values up to it."""
        total, found = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else f"{bound:.12g}", float(total)))
        return found


class HistogramsByLabels(dict[tuple[str, ...], Histogram]):
    """The histograms of one metric, by the values of its labels; at most `LABELS_MAX`."""

    def __init__(self, bounds: tuple[float, ...]):
        super().__init__()
        self._bounds = bounds

    def add(self, labels: tuple[str, ...], value: float) -> None:
        """Count a value."""
        if labels not in self and len(self) >= LABELS_MAX:
            labels = (OTHER,) * len(labels)
        self.setdefault(labels, Histogram(self._bounds)).add(value)


type Reading = float | Histogram | Mapping[Any, float | Histogram] | None
"""The value of a metric without labels (`None`: it has none now), or values by the value of its label, or
by those of its labels in a `tuple`."""


@dataclass(frozen=True, slots=True)
class Metric[S]:
    """One line of a table of metrics, which are read from a source of type `S`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    read: Callable[[S], Reading]
    labels: tuple[str, ...] = ()

    def samples(self, source: S) -> Iterator[tuple[tuple[str, ...], float | Histogram]]:
        """Yield each value with the values of the labels."""
        reading = self.read(source)
        if isinstance(reading, Mapping):
            for key, value in reading.items():
                yield (key,) if isinstance(key, str) else key, value
        elif reading is not None:
            yield (), reading


def one_hot(state: str, states: Iterable[str]) -> dict[str, float]:
    """Return 1 for one of some states, 0 for the others."""
    return {each: float(each == state) for each in states}


def by_source(problems: Iterable[Problem]) -> Counter[str]:
    """Count problems by what they are about."""
    return Counter(problem.source for problem in problems)
