# SPDX-License-Identifier: BSD-3-Clause
"""How many workers a cadence needs, for ``ppctl size`` and the relay. Pure."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

__all__ = ("FEWEST", "LONGEST_GAP_S", "cadence_of", "percentile", "visits_under_way")

PERCENTILE = 0.95
"""Of the times of visit-detectors: so many find a free worker; the others wait a moment."""
FEWEST = 20
"""Times of fewer visit-detectors are not used."""
LONGEST_GAP_S = 600.0
"""A longer time between two visits is a break, not a cadence."""


def percentile(values: Iterable[float]) -> float:
    """Return the time that 95 % of some do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(PERCENTILE * len(ordered)) - 1]


def cadence_of(starts_s: Sequence[float]) -> float | None:
    """Return the median time between visits that began at these times, in order; `None` without any."""
    gaps = [late - early for early, late in itertools.pairwise(starts_s)]
    gaps = [gap for gap in gaps if gap < LONGEST_GAP_S]
    return statistics.median(gaps) if gaps else None


def visits_under_way(visit_s: float, cadence_s: float) -> int:
    """Return how many visits are under way at once. All detectors of a visit come at once: each of these
    visits needs a worker for each of its detectors.
    """
    return max(1, math.ceil(visit_s / cadence_s))
