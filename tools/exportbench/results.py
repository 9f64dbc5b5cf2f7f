# SPDX-License-Identifier: BSD-3-Clause
"""Results of the bench of exports and their goals. Pure."""

from collections.abc import Mapping, Sequence

from benching.results import Goal, percentile

DATABASES = ("sqlite", "postgresql")


def goals(databases: Sequence[str] = DATABASES) -> dict[str, Goal]:
    """Return the goals of the databases that are measured."""
    found = {"held_ratio": Goal(0.6, kind="ratio")}
    for name in databases:
        for figure in ("faster", "apart_faster"):
            found[f"{name}_{figure}"] = Goal(6.0, "at least", "ratio")
        found[f"{name}_cpu_ratio"] = Goal(0.11, kind="ratio")
        found[f"{name}_transactions"] = Goal(3, kind="count")
        found[f"{name}_registration_ratio"] = found[f"{name}_rows_ratio"] = Goal(2.0, kind="ratio")
    return found


def summarize_database(name: str, samples: Mapping[str, float], datasets: int) -> dict[str, float]:
    """Return the figures of one database: seconds of all samples, and their ratios."""

    def each_us(sample: str) -> float:
        return samples[sample] / datasets * 1e6

    return {
        f"{name}_direct_s": samples["direct_s"],
        f"{name}_direct_cpu_s": samples["direct_cpu_s"],
        f"{name}_batched_s": samples["batched_s"],
        f"{name}_batched_cpu_s": samples["batched_cpu_s"],
        f"{name}_faster": samples["direct_s"] / samples["batched_s"],
        f"{name}_apart_s": samples["apart_s"],
        f"{name}_apart_cpu_s": samples["apart_cpu_s"],
        f"{name}_apart_faster": samples["direct_s"] / samples["apart_s"],
        f"{name}_apart_cpu_ratio": samples["apart_cpu_s"] / samples["direct_cpu_s"],
        f"{name}_transactions": samples["transactions"],
        f"{name}_cpu_ratio": samples["batched_cpu_s"] / samples["direct_cpu_s"],
        f"{name}_copied_s": samples["copied_s"],
        f"{name}_copied_cpu_s": samples["copied_cpu_s"],
        f"{name}_placed_us": each_us("placed_s"),
        f"{name}_removed_us": each_us("removed_s"),
        f"{name}_registered_us": each_us("registered_s"),
        f"{name}_registered_cpu_us": each_us("registered_cpu_s"),
        f"{name}_rows_us": each_us("rows_s"),
        f"{name}_rows_cpu_us": each_us("rows_cpu_s"),
        f"{name}_bare_us": each_us("bare_s"),
        f"{name}_bare_cpu_us": each_us("bare_cpu_s"),
        f"{name}_bare_rows": samples["bare_rows"],
        f"{name}_registration_ratio": samples["registered_s"] / samples["bare_s"],
        f"{name}_rows_ratio": samples["rows_s"] / samples["bare_s"],
        f"{name}_statements_ratio": samples["statements_s"] / samples["bare_s"],
    }


def summarize_held(
    before_ms: Sequence[float], now_ms: Sequence[float], floor_ms: Sequence[float]
) -> dict[str, float]:
    """Return how long workers are held after the pipeline, as before, now, and at least."""
    before, now, floor = (percentile(each, 95) for each in (before_ms, now_ms, floor_ms))
    return {
        "held_before_p95_ms": before,
        "held_p95_ms": now,
        "held_floor_p95_ms": floor,
        "held_ratio": now / before,
        "held_of_floor": now / floor,
    }
