# SPDX-License-Identifier: BSD-3-Clause
"""What a slot's worker uses, and when it is stopped or replaced for that. Pure.

Does not cover how it is measured (`ppdaemon.node.slots.meters`), nor what a visit has left in the
process, which its worker reports.
"""

from collections.abc import Callable
from typing import NamedTuple

from ppdaemon.config import MemoryConfig, WorkersConfig
from ppdaemon.node.slots.events import MemorySampled, RecycleRequested
from ppdaemon.states import Outcome

__all__ = ("Excess", "Usage")

JITTER = 0.1
"""Workers are recycled up to a tenth earlier or later than configured."""
_AGE = RecycleRequested("age", "recycled because of its age")


class Excess(NamedTuple):
    """A limit that a worker has exceeded: its visit's outcome, why, and whether another try may succeed."""

    outcome: Outcome
    text: str
    retriable: bool


class Usage:
    """Memory, CPU time and age of the present worker of a slot. `jitter` returns random numbers in [0, 1)."""

    def __init__(self, jitter: Callable[[], float]):
        self.used_bytes = 0
        self.recycle_at = 0.0
        """Monotonic seconds: a worker without a visit is replaced then."""
        self.because = _AGE
        """Why it is."""
        self._jitter = jitter
        self._after_visits = 1
        self._cpu_start = (0, 0.0)
        """A visit's number, and the CPU time at its first sample."""

    def start(self, config: WorkersConfig, now: float) -> None:
        """Begin anew: a worker is forked."""
        self.used_bytes = 0
        self._cpu_start = (0, 0.0)
        # Workers that were forked together should not be replaced together.
        stretch = 1.0 + JITTER * (2.0 * self._jitter() - 1.0)
        self._after_visits = max(1, round(config.recycle_visits * stretch))
        self.recycle_at = now + config.recycle_age_s * stretch
        self.because = _AGE

    def add(self, sample: MemorySampled, visit_number: int) -> None:
        """Note a sample of the worker that has this visit."""
        self.used_bytes = sample.used_bytes
        # The first sample of a visit: CPU time before it is not counted for the visit.
        if self._cpu_start[0] != visit_number:
            self._cpu_start = (visit_number, sample.cpu_s)

    def exceeded(self, sample: MemorySampled, config: WorkersConfig, *, in_visit: bool) -> Excess | None:
        """Return the limit that the worker exceeds by its last sample, which was added before."""
        memory, cpu_limit_s = config.memory, config.times.cpu_s
        if sample.repo_bytes > memory.ramdisk:
            text = f"{sample.repo_bytes / 1e6:.0f} MB on the RAM disk, {memory.ramdisk / 1e6:.0f} MB allowed"
            return Excess(Outcome.RAMDISK_FULL, text, retriable=False)
        if sample.used_bytes > memory.hard:
            text = f"{sample.used_bytes / 1e6:.0f} MB used, {memory.hard / 1e6:.0f} MB allowed"
            return Excess(Outcome.OUT_OF_MEMORY, text, retriable=False)
        if in_visit and sample.cpu_s - self._cpu_start[1] > cpu_limit_s:
            text = f"the visit took more than {cpu_limit_s:g} s of CPU time"
            return Excess(Outcome.RUN_TIMEOUT, text, retriable=True)
        return None

    def request(self, event: RecycleRequested, now: float) -> None:
        """Replace the worker when it has no visit."""
        self.recycle_at, self.because = now, event

    def due(self, memory: MemoryConfig, visits: int, now: float) -> RecycleRequested | None:
        """Return why a worker is replaced now, after a number of visits; `None` if it stays."""
        if self.used_bytes > memory.soft:
            return RecycleRequested("memory", f"recycled: {self.used_bytes / 1e6:.0f} MB after the visit")
        if visits >= self._after_visits:
            return RecycleRequested("visits", f"recycled after {visits} visits")
        return self.because if now >= self.recycle_at else None
