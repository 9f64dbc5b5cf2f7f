# SPDX-License-Identifier: BSD-3-Clause
"""Counting what may come in floods, and logging it now and then."""

from collections import Counter
from collections.abc import Callable

__all__ = ("Throttle",)


class Throttle:
    """Lets one log line of each kind pass per interval, and counts them all.

    Parameters
    ----------
    interval_s : `float`
        Seconds between two lines of a kind.
    mono : `~collections.abc.Callable`
        The monotonic clock.
    """

    def __init__(self, interval_s: float, mono: Callable[[], float]):
        self._interval_s = interval_s
        self._mono = mono
        self._passed_at: dict[str, float] = {}
        self.by_kind: Counter[str] = Counter()
        """How many there were of each kind, ever."""

    def count(self, kind: str) -> None:
        """Count one."""
        self.by_kind[kind] += 1

    def passes(self, kind: str) -> bool:
        """Count one and tell whether it may be logged.

        Parameters
        ----------
        kind : `str`
            A word out of a small set.

        Returns
        -------
        passes : `bool`
            `True` for the first one of its kind in an interval.
        """
        self.count(kind)
        now = self._mono()
        if now - self._passed_at.get(kind, now - self._interval_s) < self._interval_s:
            return False
        self._passed_at[kind] = now
        return True
