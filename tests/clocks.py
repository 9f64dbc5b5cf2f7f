# SPDX-License-Identifier: BSD-3-Clause
"""A clock that stands still until a test moves it."""

from ppdaemon.clock import Clock


class FakeClock(Clock):
    """Both clocks of a process, moved by hand.

    Parameters
    ----------
    mono_s : `float`
        Monotonic seconds at the start.
    tai_s : `float`
        TAI seconds since 1970 at the start; 2025-11-22T03:25:16 by default.
    """

    __slots__ = ("_now",)

    def __init__(self, mono_s: float = 1000.0, tai_s: float = 1_763_781_916.0):
        now = [mono_s, tai_s]
        super().__init__(mono=lambda: now[0], tai=lambda: now[1])
        object.__setattr__(self, "_now", now)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._now[0] += seconds
        self._now[1] += seconds
