# SPDX-License-Identifier: BSD-3-Clause
"""Whether the memory or the time per visit of the supervisor grows with the visits."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from benching.cli import progress
from benching.folders import BenchFolders
from benching.results import Scalar

from poolbench.fullcamera import CAMERA
from poolbench.node import WORK, BenchFailed, Node, node_config, running
from poolbench.results import per_thousand
from ppdaemon.states import Outcome
from ppdaemon.testing.processes import ResourceUsage
from ppdaemon.testing.raws import RawWriter

BATCH = 100
"""Detectors in one visit."""
SLOTS = 8
# So that the workers are never idle.
MOST_OPEN = 2 * BATCH
REMEMBER_S = 5.0
"""Short, so that the caches of the arrivals are full long before the end."""
WARM_UP = 0.25
"""This fraction of the visits fills caches that do not grow afterwards."""
SHARE = 0.1
"""Fraction of the visits that is compared, at the start and at the end."""


@dataclass(frozen=True, slots=True)
class _Sample:
    done: int
    at: float
    usage: ResourceUsage


def measure_endurance(folders: BenchFolders, visits: int, *, raws: bool) -> dict[str, Scalar]:
    """Send visit-detectors through a daemon whose workers do nothing.

    With `raws` each of them waits for a raw, which is written. Results are
    slopes per 1000 visit-detectors, and times of the first and last tenth.
    Raises `BenchFailed` if a visit-detector did not succeed.
    """
    workers = {"max": SLOTS, "work": WORK}
    parts = {"arrivals": {"roots": [str(folders.scratch / "raw")], "remember_s": REMEMBER_S}}
    config = node_config(folders, {CAMERA: f"0-{BATCH - 1}"}, workers, **parts)
    with running(config, folders) as node:
        samples = _serve(node, visits // BATCH, raws=raws)
        outcomes = {entry.outcome for entries in node.relay.results.values() for entry in entries}
        if outcomes != {Outcome.SUCCEEDED}:
            raise BenchFailed(f"not all visit-detectors succeeded, outcomes: {sorted(outcomes)}")
    return _compare(samples)


def _serve(node: Node, batches: int, *, raws: bool) -> list[_Sample]:
    """Send visits with two open at any time; take a sample after each one."""
    relay, samples = node.relay, [_sample(node)]
    camera = RawWriter(node.raw_root, CAMERA, "MC")
    for number in range(batches):
        group = f"g{number:06d}"
        relay.reserve(group, range(BATCH), instrument=CAMERA, survey="idle" if raws else "skip")
        if raws:
            camera.land(group, range(BATCH), number + 1)
        most = MOST_OPEN - BATCH if number + 1 < batches else 0
        node.wait(lambda most=most: len(relay.open) <= most, pause_s=0.02)  # type: ignore[misc]
        samples.append(_sample(node))
        if (number + 1) % 20 == 0:
            rss_mb = samples[-1].usage.rss_bytes / 1e6
            progress(f"slope: {len(relay.results)} of {batches * BATCH}, {rss_mb:.2f} MB")
    return samples


def _sample(node: Node) -> _Sample:
    return _Sample(len(node.relay.results), time.monotonic(), node.usage())


def _compare(samples: list[_Sample]) -> dict[str, Scalar]:
    steady = samples[round(len(samples) * WARM_UP) :]
    counts = [sample.done for sample in steady]
    share = max(1, round(len(samples) * SHARE))
    first, last = samples[: share + 1], samples[-share - 1 :]
    return {
        "visit_detectors": samples[-1].done,
        "slope_kb_per_1000": per_thousand(counts, [sample.usage.rss_bytes / 1e3 for sample in steady]),
        "descriptors_slope": per_thousand(counts, [sample.usage.descriptors for sample in steady]),
        "ms_per_visit_first": _ms_per_visit(first, lambda sample: sample.at),
        "ms_per_visit_last": _ms_per_visit(last, lambda sample: sample.at),
        "cpu_ms_per_visit_first": _ms_per_visit(first, lambda sample: sample.usage.cpu_s),
        "cpu_ms_per_visit_last": _ms_per_visit(last, lambda sample: sample.usage.cpu_s),
        "slope_rss_first_mb": samples[0].usage.rss_bytes / 1e6,
        "slope_rss_last_mb": samples[-1].usage.rss_bytes / 1e6,
    }


def _ms_per_visit(samples: list[_Sample], clock: Callable[[_Sample], float]) -> float:
    first, last = samples[0], samples[-1]
    return 1e3 * (clock(last) - clock(first)) / max(1, last.done - first.done)
