# SPDX-License-Identifier: BSD-3-Clause
"""Summarize the samples of the bench; its goals. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benching.results import Goal, Scalar, percentile

__all__ = ("GOALS", "MOVES", "VisitSamples", "summarize_parallel", "summarize_single")

type VisitSamples = Sequence[Mapping[str, Any]]
"""Measurements of one worker's visits in order; the first one is cold."""

MOVES = (0.5, 0.0, 0.5, 0.0)
"""Right ascension offsets of the visits after those to one field, in degrees.

The first of them finds nothing in the cache for its position and is not
counted.
"""

PHASES = ("pipelines", "connect", "query", "locate", "cache", "register", "keep")

GOALS: Mapping[str, Goal] = {
    "bytes_copied_warm": Goal(0, kind="count"),
    "warm_of_cold": Goal(0.2, kind="ratio"),
}
"""By name of the result."""


def summarize_single(workers: Sequence[VisitSamples]) -> dict[str, Scalar]:
    """Summarize workers that ran one at a time, each with its own cache.

    Each has at least two visits to one field, then `MOVES`. Times are medians;
    of the bytes copied warm it is the maximum.
    """
    cold = [visits[0] for visits in workers]
    warm = [each for visits in workers for each in visits[1 : -len(MOVES)]]
    moved = [each for visits in workers for each in visits[1 - len(MOVES) :]]
    cold_ms, warm_ms = _median(cold, "preload_ms"), _median(warm, "preload_ms")
    results: dict[str, Scalar] = {
        "cold_ms": cold_ms,
        "warm_ms": warm_ms,
        "warm_of_cold": warm_ms / cold_ms,
        "bytes_copied_cold": round(_median(cold, "fetched_bytes")),
        "bytes_copied_warm": max(each["fetched_bytes"] for each in (*warm, *moved)),
        "datasets": round(_median(cold, "datasets")),
        "cold_samples": len(cold),
        "warm_samples": len(warm),
        "moved_ms": _median(moved, "preload_ms"),
        "moved_samples": len(moved),
    }
    for name, samples in (("cold", cold), ("warm", warm), ("moved", moved)):
        for phase in PHASES:
            results[f"{name}_{phase}_ms"] = _median(samples, f"{phase}_ms")
    return results


def summarize_parallel(rounds: Sequence[Sequence[VisitSamples]]) -> dict[str, Scalar]:
    """Summarize rounds of workers that preloaded at the same time.

    Each has two visits: one with an empty cache and one after it. Results are
    medians over the rounds of the 95th percentile in each.
    """
    count = len(rounds[0])
    results: dict[str, Scalar] = {}
    for name, k in (("", 0), ("warm_", 1)):
        worst = [percentile([visits[k]["preload_ms"] for visits in workers], 95) for workers in rounds]
        results[f"parallel_{count}_{name}p95_ms"] = median(worst)
    for phase in PHASES:
        samples = [visits[0].get(f"{phase}_ms", 0) for workers in rounds for visits in workers]
        results[f"parallel_{count}_{phase}_ms"] = median(samples)
    copied = [sum(visits[0]["fetched_bytes"] for visits in workers) for workers in rounds]
    requested = [sum(visits[0]["bytes"] for visits in workers) for workers in rounds]
    return results | {
        f"parallel_{count}_bytes_asked": round(median(requested)),
        f"parallel_{count}_bytes_copied": round(median(copied)),
        f"parallel_{count}_rounds": len(rounds),
    }


def _median(samples: VisitSamples, name: str) -> float:
    return float(median(each.get(name, 0) for each in samples))
