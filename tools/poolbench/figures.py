# SPDX-License-Identifier: BSD-3-Clause
"""What the figures of the pool should be; slopes and memory maps. Pure."""

from collections.abc import Mapping, Sequence

from benching.figures import Goal

__all__ = ("GOALS", "per_thousand", "private_mb")

GOALS: Mapping[str, Goal] = {
    "fork_ready_ms": Goal(100),
    "fork_over_spawn": Goal(15, "at least"),
    "idle_private_mb": Goal(25),
    "supervisor_cpu_percent": Goal(2),
    "supervisor_mb": Goal(150),
    "threads_per_worker": Goal(0.01),
    "reserve_205_ms": Goal(250),
    "replace_p95_ms": Goal(1000),
}
"""By figure; on two cores that do nothing else."""


def per_thousand(counts: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much a value grows per 1000 counts: least squares.

    Parameters
    ----------
    counts : `~collections.abc.Sequence` [`float`]
        How much had been done.
    values : `~collections.abc.Sequence` [`float`]
        What was measured then.

    Returns
    -------
    slope : `float`
        In units of the values.

    Raises
    ------
    ValueError
        Raised if the counts are not as many as the values, or all the same.
    """
    n = len(counts)
    mean_count, mean_value = (sum(each) / max(n, 1) for each in (counts, values))
    spread = sum((count - mean_count) ** 2 for count in counts)
    if n != len(values) or spread == 0:
        raise ValueError(f"no slope through {n} counts and {len(values)} values")
    pairs = zip(counts, values, strict=True)
    return 1000 * sum((count - mean_count) * (value - mean_value) for count, value in pairs) / spread


def private_mb(smaps: str) -> float:
    """Return the memory that only one process has.

    Parameters
    ----------
    smaps : `str`
        Its ``smaps_rollup``.

    Returns
    -------
    size : `float`
        Private pages, clean and dirty, in 10^6 bytes.
    """
    lines = (line.split() for line in smaps.splitlines() if line.startswith("Private_"))
    return sum(int(words[1]) for words in lines) * 1024 / 1e6
