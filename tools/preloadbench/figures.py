# SPDX-License-Identifier: BSD-3-Clause
"""What the samples of the bench come to, and what they should be. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benching.figures import Goal, Scalar, percentile

__all__ = ("GOALS", "MOVES", "Visits", "of_crowds", "of_single")

type Visits = Sequence[Mapping[str, Any]]
"""Figures of one worker's visits, one after the other; the first one is cold."""

MOVES = (0.5, 0.0, 0.5, 0.0)
"""Where visits go after those of one field, in degrees; the first one finds
nothing in the cache for its place on the sky, and is not counted."""

PHASES = ("pipelines", "connect", "query", "locate", "cache", "register", "keep")

GOALS: Mapping[str, Goal] = {"bytes_copied_warm": Goal(0), "warm_of_cold": Goal(0.2)}
"""By figure."""


def of_single(workers: Sequence[Visits]) -> dict[str, Scalar]:
    """Sum up workers that were alone, each with a cache of its own.

    Parameters
    ----------
    workers : `~collections.abc.Sequence`
        At least two visits of each to one field, then `MOVES`.

    Returns
    -------
    figures : `dict`
        Medians of times; of bytes copied warm, the most.
    """
    cold = [visits[0] for visits in workers]
    warm = [each for visits in workers for each in visits[1 : -len(MOVES)]]
    moved = [each for visits in workers for each in visits[1 - len(MOVES) :]]
    cold_ms, warm_ms = _median(cold, "preload_ms"), _median(warm, "preload_ms")
    figures: dict[str, Scalar] = {
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
            figures[f"{name}_{phase}_ms"] = _median(samples, f"{phase}_ms")
    return figures


def of_crowds(rounds: Sequence[Sequence[Visits]]) -> dict[str, Scalar]:
    """Sum up rounds of workers that preloaded all at once.

    Parameters
    ----------
    rounds : `~collections.abc.Sequence`
        Two visits of each worker: one with an empty cache, one after it.

    Returns
    -------
    figures : `dict`
        Medians over the rounds of the 95th percentile of each.
    """
    count = len(rounds[0])
    figures: dict[str, Scalar] = {}
    for name, k in (("", 0), ("warm_", 1)):
        worst = [percentile([visits[k]["preload_ms"] for visits in crowd], 95) for crowd in rounds]
        figures[f"parallel_{count}_{name}p95_ms"] = median(worst)
    for phase in PHASES:
        every = [visits[0].get(f"{phase}_ms", 0) for crowd in rounds for visits in crowd]
        figures[f"parallel_{count}_{phase}_ms"] = median(every)
    copied = [sum(visits[0]["fetched_bytes"] for visits in crowd) for crowd in rounds]
    asked = [sum(visits[0]["bytes"] for visits in crowd) for crowd in rounds]
    return figures | {
        f"parallel_{count}_bytes_asked": round(median(asked)),
        f"parallel_{count}_bytes_copied": round(median(copied)),
        f"parallel_{count}_rounds": len(rounds),
    }


def _median(samples: Visits, name: str) -> float:
    return float(median(each.get(name, 0) for each in samples))
