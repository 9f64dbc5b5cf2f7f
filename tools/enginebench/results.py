# SPDX-License-Identifier: BSD-3-Clause
"""Summarize the visits of the bench and compare the engines. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median

from benching.results import Goal

type Sample = Mapping[str, float]
"""Measurements of one visit: times in milliseconds, sizes in 10^6 bytes."""
type Summary = dict[str, float | int]

_MEDIANS = (
    "prepare_ms",
    "prepare_cpu_ms",
    "warm_ms",
    "raw_to_first_task_ms",
    "tasks_ms",
    "tasks_cpu_ms",
    "between_tasks_ms",
    "processed_ms",
    "spool_ms",
    "overhead_ms",
    "total_ms",
    "written_ms",
    "process_cpu_ms",
    "held_ms",
    "free_ms",
    "free_cpu_ms",
    "raw_to_free_ms",
    "visit_ms",
    "cpu_ms",
    "packing_cpu_ms",
    "read_mb",
    "written_mb",
)
_MAXIMA = ("memory_peak_mb", "ramdisk_mb")
_FIRST = ("prepare_ms", "warm_ms", "total_ms", "held_ms", "free_ms", "visit_ms", "cpu_ms")
"""What is listed of the first visits of workers."""
_NODE_FIRST = ("visit_ms", "cpu_ms")

_WHOLE = {
    "prepare": ("prepare_ms",) * 2,
    "prepare_cpu": ("prepare_cpu_ms",) * 2,
    "raw_to_free": ("raw_to_free_ms",) * 2,
    "cpu": ("cpu_ms",) * 2,
}
_OVERHEAD = {
    "first_task": ("raw_to_first_task_ms",) * 2,
    "between_tasks": ("between_tasks_ms",) * 2,
    "overhead": ("overhead_ms",) * 2,
}
_TOTAL = {"total": ("total_ms",) * 2}
_MEMORY = {"memory_peak": ("memory_peak_mb",) * 2}
_HELD = {"held": ("held_ms",) * 2, "free": ("free_ms", "held_ms")}
_FLOOR = (
    _TOTAL
    | _HELD
    | {
        "processed": ("processed_ms", "total_ms"),
        "total_written": ("total_ms", "written_ms"),
        "cpu": ("cpu_ms", "tasks_cpu_ms"),
    }
    | _MEMORY
)
_PAIRS: Sequence[tuple[str, str, str, Mapping[str, tuple[str, str]]]] = (
    ("direct", "separable", "", _OVERHEAD | _WHOLE),
    ("direct", "pipetask", "", _OVERHEAD),
    ("direct", "floor", "", _HELD),
    ("direct_20", "separable_20", "_20", _OVERHEAD | _WHOLE),
    ("direct_appipe", "floor_appipe", "_appipe", _FLOOR),
    ("direct_appipe", "separable_appipe", "_appipe", _TOTAL | _WHOLE),
    ("direct_2_snaps", "direct_snaps", "_snaps", _TOTAL),
    ("direct_images", "separable_images", "_images", _TOTAL),
    ("direct_images_export", "separable_images_export", "_images_export", _TOTAL),
    ("direct_detector", "floor_detector", "_detector", _FLOOR),
    ("direct_field", "separable_field", "_field", _TOTAL | _WHOLE | _MEMORY),
    ("direct_field", "floor_field", "_field", _FLOOR),
)
"""Two workers to compare, suffix of the names, and the compared results by name."""
_FIELD = ("direct_field", "separable_field", "floor_field")
"""Workers whose time above that of the tasks is compared."""
_FIRST_VISITS = ("direct", "direct_appipe")
"""Engines whose workers' first visits are compared with the later ones."""


def _ratio(limit: float) -> Goal:
    return Goal(limit, kind="ratio")


_TENTH, _FIFTEENTH, _FIFTIETH = _ratio(1 / 10), _ratio(1 / 15), _ratio(1 / 50)
GOALS: Mapping[str, Goal] = {
    "ratios.prepare_of_separable": _ratio(0.65),
    "ratios.prepare_of_separable_appipe": _ratio(0.45),
    "ratios.prepare_cpu_of_separable": _ratio(0.65),
    "ratios.prepare_cpu_of_separable_appipe": _ratio(0.45),
    "ratios.cpu_of_separable": _ratio(0.2),
    "ratios.held_of_floor": _ratio(2),
    "ratios.held_of_floor_appipe": _ratio(1.2),
    "ratios.free_of_floor": _ratio(3),
    "ratios.free_of_floor_appipe": _ratio(1.3),
    "ratios.raw_to_free_of_separable": _TENTH,
    "ratios.first_visit_of_later": _ratio(1.3),
    "ratios.first_visit_of_later_appipe": _ratio(1.3),
    "ratios.first_visit_cpu_of_later": _ratio(1.3),
    "ratios.first_visit_cpu_of_later_appipe": _ratio(1.3),
    "ratios.cpu_of_floor_appipe": _ratio(1.75),
    "ratios.memory_peak_of_floor_appipe": _ratio(1.25),
    "ratios.first_task_of_separable": _TENTH,
    "ratios.between_tasks_of_separable": _FIFTEENTH,
    "ratios.overhead_of_separable": _TENTH,
    "ratios.first_task_of_pipetask": _FIFTIETH,
    "ratios.between_tasks_of_pipetask": _FIFTIETH,
    "ratios.overhead_of_pipetask": _FIFTIETH,
    "ratios.first_task_of_separable_20": _TENTH,
    "ratios.between_tasks_of_separable_20": _FIFTEENTH,
    "ratios.overhead_of_separable_20": _TENTH,
    "ratios.total_of_floor_appipe": _ratio(1.15),
    "ratios.total_of_separable_images": _ratio(0.5),
    "ratios.total_written_of_floor_detector": _ratio(1.15),
    "ratios.memory_peak_of_floor_detector": _ratio(1.25),
    "ratios.field_large_overhead_ratio": _ratio(0.35),
    "ratios.memory_peak_of_floor_field": _ratio(1.25),
}
"""By name of the result."""


def summarize(workers: Sequence[Sequence[Sample]], task_count: int, *, idle: bool) -> Summary:
    """Summarize the visits of one engine by worker: medians of times, maxima of sizes.

    The first visits of workers are listed separately; so is that of the first
    worker, which is the first visit of its node. With `idle` the tasks do
    nothing, so that all time is overhead.
    """
    (node_first, *_), *others = [
        [_with_overhead(each, task_count, idle=idle) for each in visits] for visits in workers
    ]
    first = [visits[0] for visits in others]
    later = [visit for visits in others for visit in visits[1:]]
    summary: Summary = _medians(later, _MEDIANS)
    summary |= {name: max(each[name] for each in later) for name in _MAXIMA}
    summary |= {f"first_{name}": value for name, value in _medians(first, _FIRST).items()}
    summary |= {f"node_first_{name}": value for name, value in _medians([node_first], _NODE_FIRST).items()}
    return summary | {"total_worst_ms": max(each["total_ms"] for each in later), "visits": len(later)}


def _medians(visits: Sequence[Sample], names: Sequence[str]) -> Summary:
    return {
        name: median(each[name] for each in visits) for name in names if all(name in each for each in visits)
    }


def _with_overhead(visit: Sample, task_count: int, *, idle: bool) -> dict[str, float]:
    results = dict(visit)
    if idle and "tasks_ms" in visit:
        results["between_tasks_ms"] = visit["tasks_ms"] / task_count
        results["overhead_ms"] = visit["total_ms"]
    return results


def ratios(summaries: Mapping[str, Mapping[str, float | int]]) -> dict[str, float]:
    """Compare the engines of which both were measured, and first visits with later ones.

    The keys of `summaries` are engines with a suffix for the pipeline.
    """
    found = {}
    for one, other, suffix, results in _PAIRS:
        if one in summaries and other in summaries:
            for name, (numerator, denominator) in results.items():
                ratio_name = f"{name}_of_{other.removesuffix(suffix)}{suffix}"
                found[ratio_name] = summaries[one][numerator] / summaries[other][denominator]
    if all(name in summaries for name in _FIELD):
        direct, separable, floor = (summaries[name]["total_ms"] for name in _FIELD)
        found["field_large_overhead_ratio"] = (direct - floor) / (separable - floor)
    for name in _FIRST_VISITS:
        if name in summaries:
            suffix, summary = name.removeprefix("direct"), summaries[name]
            found[f"first_visit_of_later{suffix}"] = summary["first_visit_ms"] / summary["visit_ms"]
            found[f"first_visit_cpu_of_later{suffix}"] = summary["first_cpu_ms"] / summary["cpu_ms"]
    return found
