# SPDX-License-Identifier: BSD-3-Clause
"""Counting what goes wrong, and saying so at most once in a while."""

import logging
from collections import Counter
from collections.abc import Callable

__all__ = ("Tally",)

_LOG = logging.getLogger(__name__)

SAY_EVERY_S = 10.0
KINDS = 200
"""Kinds are fixed words of this program; a bound all the same."""


class Tally:
    """Counts events by kind; warns of each kind once in `SAY_EVERY_S`.

    Parameters
    ----------
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    """

    def __init__(self, mono: Callable[[], float]):
        self._mono = mono
        self._said: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        """Events since the start, by kind."""

    def count(self, kind: str, number: int = 1) -> None:
        """Count events."""
        self.counts[kind if len(self.counts) < KINDS else "other"] += number

    def complain(self, kind: str, text: str) -> None:
        """Count an event and warn of it, unless its kind was said lately.

        Parameters
        ----------
        kind : `str`
            A short fixed word to count by.
        text : `str`
            What happened.
        """
        self.count(kind)
        now = self._mono()
        said = self._said.get(kind)
        if said is None or now - said >= SAY_EVERY_S:
            self._said[kind] = now
            _LOG.warning("%s", text, extra={"kind": kind, "count": self.counts[kind]})
