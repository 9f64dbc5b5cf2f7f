# SPDX-License-Identifier: BSD-3-Clause
"""The time from an announcement to the last worker's order to prepare, and from a cancellation to
the last free worker.
"""

from dataclasses import dataclass, field

from benching.cli import progress
from benching.results import Scalar, percentile

from fanoutbench.bare import BareWorkers
from fanoutbench.floor import Floor
from fanoutbench.observatory import Observatory
from ppdaemon.states import SlotState

WARM_UP = 3
"""Visits before the first one that counts: the first visit of a worker imports modules."""
PACE_MS = 300
"""Wait of a preparation; a real one takes seconds."""
FLOOR_SAMPLES = 5
"""Per visit, so that floor and fan-out have the same load of the machine."""


@dataclass(slots=True)
class Latencies:
    """Milliseconds of each visit."""

    fanout_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    half_ms: list[float] = field(default_factory=list)
    cancel_ms: list[float] = field(default_factory=list)
    fanout_cpu_ms: list[tuple[float, ...]] = field(default_factory=list)
    """CPU time of relay, supervisors and workers until all workers wait for raws; other load of the
    machine does not change it."""
    cancel_cpu_ms: list[tuple[float, ...]] = field(default_factory=list)

    def results(self, floor: Floor, bare: BareWorkers) -> dict[str, Scalar]:
        """Return percentiles."""
        floor_ms, bare_ms = percentile(floor.samples_ms, 50), percentile(bare.samples_ms, 50)
        return {
            "fanout_p50_ms": percentile(self.fanout_ms, 50),
            "fanout_p99_ms": percentile(self.fanout_ms, 99),
            "fanout_first_p50_ms": percentile(self.first_ms, 50),
            "fanout_half_p50_ms": percentile(self.half_ms, 50),
            "cancel_p50_ms": percentile(self.cancel_ms, 50),
            "cancel_p99_ms": percentile(self.cancel_ms, 99),
            **_cpu_results("fanout", self.fanout_cpu_ms),
            **_cpu_results("cancel", self.cancel_cpu_ms),
            "floor_p50_ms": floor_ms,
            "floor_p99_ms": percentile(floor.samples_ms, 99),
            "floor_workers_p50_ms": bare_ms,
            "floor_workers_p99_ms": percentile(bare.samples_ms, 99),
            "fanout_over_floor": percentile(self.fanout_ms, 50) / (floor_ms + bare_ms),
        }


def _cpu_results(name: str, samples: list[tuple[float, ...]]) -> dict[str, Scalar]:
    medians = (percentile(column, 50) for column in zip(*samples, strict=True))
    names = (f"{name}_relay_cpu_ms", f"{name}_nodes_cpu_ms", f"{name}_workers_cpu_ms")
    return dict(zip(names, medians, strict=True))


def measure_latencies(
    observatories: list[Observatory],
    rounds: int,
    floor: Floor,
    bare: BareWorkers,
) -> tuple[list[Latencies], Latencies]:
    """Announce and cancel visits, at the observatories in turn: the load of the machine is the same.

    The second result is of visits of the first observatory whose preparation waits, as a real one
    does for its queries: then no worker has already finished when the last one gets its order.
    """
    measured, paced = [Latencies() for _ in observatories], Latencies()
    for number in range(WARM_UP + rounds):
        for observatory, latencies in zip(observatories, measured, strict=True):
            counted = latencies if number >= WARM_UP else Latencies()
            _measure_visit(observatory, f"latency{number}", "idle", counted)
            floor.sample(FLOOR_SAMPLES)
        if number >= WARM_UP:
            _measure_visit(observatories[0], f"paced{number}", f"idle pace:{PACE_MS}", paced)
            bare.sample()
        if number % 20 == 0:
            progress(f"latency: visit {number} of {WARM_UP + rounds}")
    return measured, paced


def _measure_visit(observatory: Observatory, group: str, survey: str, latencies: Latencies) -> None:
    before = observatory.cpu_s()
    announced = observatory.announce(group, survey)
    observatory.wait_for_all(observatory.prepared, group)
    times = sorted(at for _, at in observatory.prepared.of(group))
    for found, at in (
        (latencies.first_ms, times[0]),
        (latencies.half_ms, times[len(times) // 2]),
        (latencies.fanout_ms, times[-1]),
    ):
        found.append((at - announced) * 1e3)
    observatory.wait(lambda: observatory.slots_in(SlotState.WAITING) == observatory.detectors)
    between = observatory.cpu_s()
    canceled = observatory.cancel(group)
    latencies.cancel_ms.append((observatory.wait_for_all(observatory.released, group) - canceled) * 1e3)
    observatory.wait_until_idle()
    after = observatory.cpu_s()
    latencies.fanout_cpu_ms.append(_passed_ms(before, between))
    latencies.cancel_cpu_ms.append(_passed_ms(between, after))


def _passed_ms(begin: tuple[float, ...], end: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((later - earlier) * 1e3 for earlier, later in zip(begin, end, strict=True))
