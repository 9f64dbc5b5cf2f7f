# SPDX-License-Identifier: BSD-3-Clause
"""How often and how soon a seat's worker may be forked again. Pure."""

from collections import deque
from collections.abc import Callable

__all__ = ("RestartBudget",)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 60.0
WINDOW_S = 300.0
FAILURES = 5
LONGEST_PUT_OFF_S = 2.0
"""Where nothing was forked, trying again costs next to nothing."""


class RestartBudget:
    """Counts a seat's failures: growing pauses, then quarantine.

    Parameters
    ----------
    jitter : `~collections.abc.Callable`
        Returns a number in [0, 1); seats that fail together should not
        come back together.
    """

    def __init__(self, jitter: Callable[[], float]):
        self._jitter = jitter
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._put_off = 0

    def failed(self, now: float) -> float | None:
        """Count a failure.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.

        Returns
        -------
        pause : `float` or `None`
            Seconds to wait before the next fork: 0.2 x 2^n with up to a
            quarter of jitter, at most 60; `None` after 5 failures within
            300 s.
        """
        while self._failures and now - self._failures[0] > WINDOW_S:
            self._failures.popleft()
        self._failures.append(now)
        if len(self._failures) >= FAILURES:
            return None
        pause = FIRST_PAUSE_S * 2.0 ** (len(self._failures) - 1) * (1.0 + 0.25 * self._jitter())
        return min(pause, LONGEST_PAUSE_S)

    def put_off(self) -> float:
        """Count a fork that did not happen: it says nothing of the worker.

        Returns
        -------
        pause : `float`
            Seconds to wait before the next try: 0.2 x 2^n with up to a
            quarter of jitter, at most 2.
        """
        pause = FIRST_PAUSE_S * 2.0 ** min(self._put_off, 10) * (1.0 + 0.25 * self._jitter())
        self._put_off += 1
        return min(pause, LONGEST_PUT_OFF_S)

    def forked(self) -> None:
        """Note that forking works."""
        self._put_off = 0

    def forgive(self) -> None:
        """Forget all failures: an operator mended the cause."""
        self._failures.clear()
