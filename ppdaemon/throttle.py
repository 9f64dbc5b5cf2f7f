# SPDX-License-Identifier: BSD-3-Clause
"""Counts events, and limits how often they are logged."""

from collections import Counter
from collections.abc import Callable

__all__ = ("Throttle",)


class Throttle:
    """Counts events by kind, and allows one log line of each kind per `interval_s` seconds."""

    def __init__(self, interval_s: float, mono: Callable[[], float]):
        self._interval_s = interval_s
        self._mono = mono
        self._passed_at: dict[str, float] = {}
        self.by_kind: Counter[str] = Counter()
        """Events of each kind since the start."""

    def count(self, kind: str) -> None:
        """Count an event."""
        self.by_kind[kind] += 1

    def passes(self, kind: str) -> bool:
        """Count an event; return whether it may be logged, as the first of its kind in an interval.

        The set of kinds must be small: each is stored.
        """
        self.count(kind)
        now = self._mono()
        if now - self._passed_at.get(kind, now - self._interval_s) < self._interval_s:
            return False
        self._passed_at[kind] = now
        return True
