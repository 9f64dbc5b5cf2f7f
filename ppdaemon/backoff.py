# SPDX-License-Identifier: BSD-3-Clause
"""Growing pauses between tries of something that fails. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ("Backoff",)

JITTER = 0.25
"""The largest share of a pause that is added to it."""
MOST_DOUBLINGS = 64
"""No pause grows further: its power must not overflow."""


@dataclass(eq=False)
class Backoff:
    """Counts failures in a row and returns the pause after each.

    Parameters
    ----------
    first_s : `float`
        The pause after the first failure, seconds.
    longest_s : `float`
        No pause is longer, jitter included.
    factor : `float`, optional
        How much longer each pause is than the one before.
    jitter : `~collections.abc.Callable`, optional
        Returns a number in [0, 1): up to a quarter is added to each pause, so
        that what fails together does not come back together.
    steady_s : `float`, optional
        A failure later than this after the pause before it was over begins a
        new row.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    jitter: Callable[[], float] | None = None
    steady_s: float = math.inf

    def __post_init__(self) -> None:
        self.failures = 0
        """Failures in a row (`int`)."""
        self.due = -math.inf
        """When to try next, monotonic seconds (`float`)."""

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failures in a row, at least one."""
        pause_s = self.first_s * self.factor ** min(failures - 1, MOST_DOUBLINGS)
        if self.jitter is not None:
            pause_s *= 1.0 + JITTER * self.jitter()
        return min(pause_s, self.longest_s)

    def failed(self, now: float) -> float:
        """Count a failure at a monotonic time; return the seconds to wait."""
        self.failures = 1 if now - self.due > self.steady_s else self.failures + 1
        pause_s = self.pause_s(self.failures)
        self.due = now + pause_s
        return pause_s

    def remaining_s(self, now: float) -> float:
        """Return the seconds until the next try; 0 if it is due."""
        return max(self.due - now, 0.0)

    def succeeded(self) -> None:
        """Begin a new row, due at once."""
        self.failures, self.due = 0, -math.inf
