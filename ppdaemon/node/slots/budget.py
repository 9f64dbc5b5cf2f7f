# SPDX-License-Identifier: BSD-3-Clause
"""How often and how soon a slot's worker may be forked again. Pure."""

from collections import deque
from collections.abc import Callable

from ppdaemon.backoff import Backoff

__all__ = ("RestartBudget",)

FIRST_PAUSE_S = 0.2
"""After a single crash, and after the first fork that failed."""
LONGEST_PAUSE_S = 60.0
"""Limit of the pauses, which grow with each crash."""
WINDOW_S = 300.0
"""Failures longer ago than this do not count."""
FAILURES = 5
"""So many in the window mean that another restart is useless now: quarantine."""
LONGEST_FORK_PAUSE_S = 2.0
"""A fork that failed used no resources, so it is tried again soon; so is one that was killed."""


class RestartBudget:
    """Counts a slot's failures: growing pauses, then quarantine. `jitter` returns random numbers
    in [0, 1), so that slots that fail together restart at different times.
    """

    def __init__(self, jitter: Callable[[], float]):
        self.exhausted = False
        """Whether the last failure was one too many, and no worker has been ready since."""
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._pauses = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, jitter=jitter)
        self._fork_pauses = Backoff(FIRST_PAUSE_S, LONGEST_FORK_PAUSE_S, jitter=jitter)

    def failed(self, now: float) -> float | None:
        """Count a failure at a monotonic time; return the seconds until the next fork, or `None`
        after 5 failures within 300 s.
        """
        while self._failures and now - self._failures[0] > WINDOW_S:
            self._failures.popleft()
        self._failures.append(now)
        # Also a single failure after a quarantine that has lasted longer than the window.
        self.exhausted = self.exhausted or len(self._failures) >= FAILURES
        return None if self.exhausted else self._pauses.pause_s(len(self._failures))

    def exhaust(self) -> None:
        """Note a failure that a restart cannot repair."""
        self.exhausted = True

    def ready(self) -> None:
        """Note that a worker has started. Its failures still count: it may fail again at once."""
        self.exhausted = False
        self._fork_pauses.succeeded()

    def pause_s(self) -> float:
        """Return the seconds until the next fork after a visit that has ended its worker."""
        return self._pauses.pause_s(1)

    def fork_failed(self, now: float) -> float:
        """Count a failed fork, or a worker that was killed from outside; neither is a failure of the
        worker. Return the seconds until the next try.
        """
        return self._fork_pauses.failed(now)

    def reset(self) -> None:
        """Forget all failures: the cause was removed, as far as is known."""
        self._failures.clear()
        self.exhausted = False
