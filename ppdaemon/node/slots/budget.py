# SPDX-License-Identifier: BSD-3-Clause
"""How often and how soon a slot's worker may be forked again. Pure."""

from collections import deque
from collections.abc import Callable

from ppdaemon.backoff import Backoff

__all__ = ("RestartBudget",)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 60.0
WINDOW_S = 300.0
FAILURES = 5
LONGEST_PUT_OFF_S = 2.0
"""Where nothing was forked, trying again costs next to nothing."""


class RestartBudget:
    """Counts a slot's failures: growing pauses, then quarantine.

    Parameters
    ----------
    jitter : `~collections.abc.Callable`
        Returns a number in [0, 1); slots that fail together should not
        come back together.
    """

    def __init__(self, jitter: Callable[[], float]):
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._pauses = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, jitter=jitter)
        self._put_off = Backoff(FIRST_PAUSE_S, LONGEST_PUT_OFF_S, jitter=jitter)

    def failed(self, now: float) -> float | None:
        """Count a failure at a monotonic time; return the seconds to wait
        before the next fork, or `None` after 5 failures within 300 s.
        """
        while self._failures and now - self._failures[0] > WINDOW_S:
            self._failures.popleft()
        self._failures.append(now)
        if len(self._failures) >= FAILURES:
            return None
        return self._pauses.pause_s(len(self._failures))

    def put_off(self, now: float) -> float:
        """Count a fork that did not happen, which is no failure of the worker;
        return the seconds to wait before the next try.
        """
        return self._put_off.failed(now)

    def forked(self) -> None:
        """Note that forking works."""
        self._put_off.succeeded()

    def forgive(self) -> None:
        """Forget all failures: an operator mended the cause."""
        self._failures.clear()
