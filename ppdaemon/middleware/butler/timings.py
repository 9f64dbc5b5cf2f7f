# SPDX-License-Identifier: BSD-3-Clause
"""Durations of the phases of a visit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ppdaemon.clock import Clock

__all__ = ("Timings",)


@dataclass(slots=True)
class Timings:
    """Durations and counts by name, for the journal and the metrics dataset."""

    clock: Clock
    values: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the milliseconds of a block to ``<phase>_ms``."""
        start = self.clock.mono()
        try:
            yield
        finally:
            name = f"{phase}_ms"
            spent_ms = (self.clock.mono() - start) * 1e3
            self.values[name] = round(self.values.get(name, 0.0) + spent_ms, 1)
