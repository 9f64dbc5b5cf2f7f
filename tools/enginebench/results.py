# SPDX-License-Identifier: BSD-3-Clause
"""Summarize the visits of the bench and compare the engines. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median

from benching.results import Goal, Scalar

__all__ = ("GOALS", "Sample", "flatten", "summarize", "ratios")

type Sample = Mapping[str, float]
"""Measurements of one visit: times in milliseconds, sizes in 10^6 bytes."""
type Summary = dict[str, float | int]

_TIMES = (
    "raw_to_first_task_ms",
    "tasks_ms",
    "between_tasks_ms",
    "processed_ms",
    "spool_ms",
    "overhead_ms",
    "total_ms",
    "written_ms",
    "warm_ms",
    "prepare_ms",
)
_SIZES = ("memory_peak_mb", "ramdisk_mb")

_OVERHEAD = {
    "first_task": ("raw_to_first_task_ms",) * 2,
    "between_tasks": ("between_tasks_ms",) * 2,
    "overhead": ("overhead_ms",) * 2,
}
_TOTAL = {"total": ("total_ms",) * 2}
_FLOOR = _TOTAL | {"processed": ("processed_ms", "total_ms"), "total_written": ("total_ms", "written_ms")}
_PAIRS: Sequence[tuple[str, str, str, Mapping[str, tuple[str, str]]]] = (
    ("direct", "separable", "", _OVERHEAD),
    ("direct", "pipetask", "", _OVERHEAD),
    ("direct_20", "separable_20", "_20", _OVERHEAD),
    ("direct_appipe", "floor", "_appipe", _FLOOR),
    ("direct_appipe", "separable_appipe", "_appipe", _TOTAL),
    ("direct_2_snaps", "direct_snaps", "_snaps", _TOTAL),
    ("direct_images", "separable_images", "_images", _TOTAL),
    ("direct_images_export", "separable_images_export", "_images_export", _TOTAL),
)
"""Two workers to compare, suffix of the names, and the compared results by name."""

_TENTH, _FIFTEENTH, _FIFTIETH = Goal(1 / 10), Goal(1 / 15), Goal(1 / 50)
GOALS: Mapping[str, Goal] = {
    "ratios.first_task_of_separable": _TENTH,
    "ratios.between_tasks_of_separable": _FIFTEENTH,
    "ratios.overhead_of_separable": _TENTH,
    "ratios.first_task_of_pipetask": _FIFTIETH,
    "ratios.between_tasks_of_pipetask": _FIFTIETH,
    "ratios.overhead_of_pipetask": _FIFTIETH,
    "ratios.first_task_of_separable_20": _TENTH,
    "ratios.between_tasks_of_separable_20": _FIFTEENTH,
    "ratios.overhead_of_separable_20": _TENTH,
    "ratios.total_of_floor_appipe": Goal(1.15),
    "ratios.total_of_separable_images": Goal(0.5),
}
"""By name of the result, as in `flatten`."""


def summarize(visits: Sequence[Sample], task_count: int, *, idle: bool) -> Summary:
    """Summarize one engine's visits: medians of times, maxima of sizes.

    There must be at least two visits; the first one, of a new worker, is
    listed separately. With `idle` the tasks do nothing, so that all time is
    overhead.
    """
    first, *others = [_with_overhead(each, task_count, idle=idle) for each in visits]
    summary: Summary = {
        name: median(each[name] for each in others) for name in _TIMES if all(name in each for each in others)
    }
    summary |= {name: max(each[name] for each in others) for name in _SIZES}
    return summary | {
        "total_worst_ms": max(each["total_ms"] for each in others),
        "first_visit_total_ms": first["total_ms"],
        "first_visit_warm_ms": first["warm_ms"],
        "visits": len(others),
    }


def _with_overhead(visit: Sample, task_count: int, *, idle: bool) -> dict[str, float]:
    results = dict(visit)
    if idle:
        results["between_tasks_ms"] = visit["tasks_ms"] / task_count
        results["overhead_ms"] = visit["total_ms"]
    return results


def ratios(summaries: Mapping[str, Mapping[str, float | int]]) -> dict[str, float]:
    """Compare the engines of which both were measured.

    The keys of `summaries` are engines with a suffix for the pipeline.
    """
    found = {}
    for one, other, suffix, results in _PAIRS:
        if one in summaries and other in summaries:
            for name, (numerator, denominator) in results.items():
                ratio_name = f"{name}_of_{other.removesuffix(suffix)}{suffix}"
                found[ratio_name] = summaries[one][numerator] / summaries[other][denominator]
    return found


def flatten(summaries: Mapping[str, Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """Return all results in one dict, with names such as ``direct.total_ms``."""
    return {f"{group}.{name}": value for group, values in summaries.items() for name, value in values.items()}
