# SPDX-License-Identifier: BSD-3-Clause
"""What the parts of a visit's work took."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ppdaemon.clock import Clock

__all__ = ("Timings",)


@dataclass(slots=True)
class Timings:
    """Numbers by name, for the journal and the metrics dataset."""

    clock: Clock
    values: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note the milliseconds of a phase.

        Parameters
        ----------
        phase : `str`
            Becomes ``<phase>_ms``; times of one name add up.
        """
        start = self.clock.mono()
        try:
            yield
        finally:
            name = f"{phase}_ms"
            spent_ms = (self.clock.mono() - start) * 1e3
            self.values[name] = round(self.values.get(name, 0.0) + spent_ms, 1)
