# SPDX-License-Identifier: BSD-3-Clause
"""How many visit-detectors the nodes must be able to have at once, by the latest visits. Pure.

Since the start of the relay: what it has not seen itself is not counted.
"""

from collections import deque
from dataclasses import dataclass, field

from ppdaemon.sizing import FEWEST, LONGEST_GAP_S, cadence_of, percentile, visits_under_way

__all__ = ("Demand", "InstrumentDemand")

VISITS = 60
"""Visits of which the cadence is taken: the last half hour."""
DETECTORS = 5000
"""Visit-detectors of which the times are taken: some 25 visits of LSSTCam."""


@dataclass(frozen=True, slots=True)
class InstrumentDemand:
    """What one instrument needs."""

    cadence_s: float
    detectors: int
    """Of the largest visit."""
    visit_s: float
    """From the acknowledgment of a node to its outcome; 95 % of the visit-detectors that succeeded take no
    longer."""

    @property
    def slots(self) -> int:
        """Visit-detectors at once."""
        return self.detectors * visits_under_way(self.visit_s, self.cadence_s)


@dataclass(slots=True)
class _Seen:
    starts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=VISITS))
    """When each visit was received, monotonic seconds, and its detectors."""
    busy_s: deque[float] = field(default_factory=lambda: deque(maxlen=DETECTORS))


class Demand:
    """Counts visits and the times of their detectors, by instrument."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def add_visit(self, instrument: str, now: float, detectors: int) -> None:
        """Note a new visit."""
        self._seen.setdefault(instrument, _Seen()).starts.append((now, detectors))

    def add_success(self, instrument: str, busy_s: float) -> None:
        """Note for how long a node had a visit-detector that succeeded."""
        self._seen.setdefault(instrument, _Seen()).busy_s.append(busy_s)

    def of_instruments(self, now: float) -> dict[str, InstrumentDemand]:
        """Return what each instrument needs whose visits come now, and of which enough have ended."""
        found = {}
        for name, seen in self._seen.items():
            cadence_s = cadence_of([start for start, _ in seen.starts])
            is_over = not seen.starts or now - seen.starts[-1][0] > LONGEST_GAP_S
            if cadence_s and not is_over and len(seen.busy_s) >= FEWEST:
                detectors = max(number for _, number in seen.starts)
                found[name] = InstrumentDemand(cadence_s, detectors, percentile(seen.busy_s))
        return found
