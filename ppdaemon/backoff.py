# SPDX-License-Identifier: BSD-3-Clause
"""Growing pauses between repeated attempts. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ("Backoff",)

JITTER = 0.25
"""Largest fraction of a pause that is added to it."""
MOST_DOUBLINGS = 64
"""Limit of the exponent, so that the power cannot overflow."""


@dataclass(eq=False)
class Backoff:
    """Counts consecutive failures and returns the pause after each.

    The first pause is `first_s` seconds, each further one `factor` times longer, up to `longest_s`
    with jitter included. `jitter` returns a number in [0, 1): up to a quarter is added to each pause,
    so that processes that fail together do not retry together. A failure more than `steady_s` after
    the end of the last pause counts as the first again.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    jitter: Callable[[], float] | None = None
    steady_s: float = math.inf

    def __post_init__(self) -> None:
        self.failures = 0
        """Number of consecutive failures."""
        self.due = -math.inf
        """Time of the next attempt, monotonic seconds."""

    def pause_s(self, failures: int) -> float:
        """Return the pause after a number of consecutive failures, at least 1."""
        pause_s = self.first_s * self.factor ** min(failures - 1, MOST_DOUBLINGS)
        if self.jitter is not None:
            pause_s *= 1.0 + JITTER * self.jitter()
        return min(pause_s, self.longest_s)

    def failed(self, now: float) -> float:
        """Count a failure at a monotonic time; return the pause, seconds."""
        self.failures = 1 if now - self.due > self.steady_s else self.failures + 1
        pause_s = self.pause_s(self.failures)
        self.due = now + pause_s
        return pause_s

    def remaining_s(self, now: float) -> float:
        """Return the seconds until the next attempt; 0 if it is due."""
        return max(self.due - now, 0.0)

    def succeeded(self) -> None:
        """Reset the count; the next attempt is due at once."""
        self.failures, self.due = 0, -math.inf
