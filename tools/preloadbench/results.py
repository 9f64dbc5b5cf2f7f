# SPDX-License-Identifier: BSD-3-Clause
"""Summarize the samples of the bench; its goals. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benching.results import Goal, Scalar, percentile

from ppdaemon.config import TimesConfig

type VisitSamples = Sequence[Mapping[str, Any]]
"""Measurements of one worker's visits in order; the first one is cold."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Measurements of the first visit of each of several workers, at the same moment."""

    workers: Sequence[Mapping[str, Any]]
    asker: Mapping[str, float] = field(default_factory=dict)
    """CPU time and queries meanwhile of the process that asks for all; nothing if there is none."""


MOVES = (0.5, 0.0, 0.5, 0.0)
"""Right ascension offsets of the visits after those to one field, in degrees.

The first of them finds nothing in the cache for its position and is not
counted.
"""

LIMIT_MS = TimesConfig().prepare_s * 1e3
"""Time after which a worker that prepares is stopped."""
PHASES = ("pipelines", "connect", "query", "locate", "cache", "register", "keep")

GOALS: Mapping[str, Goal] = {
    "bytes_copied_warm": Goal(0, kind="count"),
    "warm_of_cold": Goal(0.2, kind="ratio"),
    **{
        name: goal
        for database in ("sqlite", "postgresql")
        for name, goal in {
            # One worker asks for all; another one asks again for those that came too late.
            f"cold_20_{database}.queries_of_each": Goal(0.4, kind="ratio"),
            f"cold_20_{database}.p95_of_copies": Goal(4.0, kind="ratio"),
            f"cold_20_{database}.p95_of_other": Goal(0.4, kind="ratio"),
            f"cold_205_{database}.max_of_limit": Goal(0.5),
            f"cold_205_{database}.max_of_p50": Goal(3.0, kind="ratio"),
            # Groups of up to 64, and those that came between.
            f"cold_205_{database}.workers_asking": Goal(8, kind="count"),
            f"cold_205_{database}.connections": Goal(8, kind="count"),
            f"cold_205_{database}.grown_bytes": Goal(100_000_000),
        }.items()
    },
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


def summarize_crowd(rounds: Sequence[Crowd], alone: Crowd) -> dict[str, Scalar]:
    """Summarize rounds of workers that prepared at once, each with an empty cache: medians over the rounds.

    `alone` is one round of one worker.
    """
    results: dict[str, Scalar] = {
        "p50_ms": _over(rounds, lambda crowd: percentile(_of(crowd, "preload_ms"), 50)),
        "p95_ms": _over(rounds, lambda crowd: percentile(_of(crowd, "preload_ms"), 95)),
        "max_ms": _over(rounds, lambda crowd: max(_of(crowd, "preload_ms"))),
        "cpu_ms": _over(rounds, lambda crowd: _total(crowd, "cpu_ms")),
        "asker_cpu_ms": _over(rounds, lambda crowd: crowd.asker.get("cpu_ms", 0.0)),
        "grown_bytes": _over(rounds, lambda crowd: max(_of(crowd, "grown_bytes"))),
        "queries": _over(rounds, lambda crowd: _total(crowd, "queries")),
        "workers_asking": _over(rounds, lambda crowd: sum(each > 0 for each in _of(crowd, "queries"))),
        "connections": _over(rounds, lambda crowd: _total(crowd, "connections")),
        "bytes_asked": _over(rounds, lambda crowd: sum(_of(crowd, "bytes"))),
        "bytes_copied": _over(rounds, lambda crowd: sum(_of(crowd, "fetched_bytes"))),
        "rounds": len(rounds),
    }
    results["max_of_limit"] = float(results["max_ms"]) / LIMIT_MS  # type: ignore[arg-type]
    results["max_of_p50"] = float(results["max_ms"]) / float(results["p50_ms"])  # type: ignore[arg-type]
    every = _total(alone, "queries") * len(rounds[0].workers)
    results["queries_of_each"] = float(results["queries"]) / every  # type: ignore[arg-type]
    for phase in ("wait", *PHASES):
        results[f"{phase}_ms"] = _over(rounds, lambda crowd, name=f"{phase}_ms": median(_of(crowd, name)))
    return results


def ratios(found: Mapping[str, Scalar], other: Mapping[str, Scalar], name: str) -> dict[str, Scalar]:
    """Return times of a crowd over those of another one."""
    return {
        f"{key}_of_{name}": float(found[f"{key}_ms"]) / float(other[f"{key}_ms"])  # type: ignore[arg-type]
        for key in ("p50", "p95", "cpu")
        if f"{key}_ms" in other
    }


def summarize_copies(rounds: Sequence[Crowd]) -> dict[str, Scalar]:
    """Summarize rounds of plain copies, by a process on each core."""
    return {
        "p95_ms": _over(rounds, lambda crowd: max(_of(crowd, "preload_ms"))),
        "cpu_ms": _over(rounds, lambda crowd: sum(_of(crowd, "cpu_ms"))),
    }


def _over(rounds: Sequence[Crowd], figure: Callable[[Crowd], float]) -> float:
    return float(median(figure(crowd) for crowd in rounds))


def _of(crowd: Crowd, name: str) -> list[float]:
    return [each.get(name, 0) for each in crowd.workers]


def _total(crowd: Crowd, name: str) -> float:
    return sum(_of(crowd, name)) + crowd.asker.get(name, 0.0)


def _median(samples: VisitSamples, name: str) -> float:
    return float(median(each.get(name, 0) for each in samples))
