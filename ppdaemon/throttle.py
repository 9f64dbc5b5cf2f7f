# SPDX-License-Identifier: BSD-3-Clause
"""Counts events, and limits how often they are logged."""

import unicodedata
from collections import Counter
from collections.abc import Callable

__all__ = ("Throttle", "sample_of")

SAMPLE_LENGTH = 300
"""Bytes of a message that are kept as a sample: the beginning shows who has sent it."""


def sample_of(data: bytes | str) -> str:
    """Return the beginning of a message on one line, without control characters."""
    first = data[:SAMPLE_LENGTH]
    text = first.decode(errors="replace") if isinstance(first, bytes) else first
    return "".join(
        "?" if unicodedata.category(letter).startswith("C") else letter for letter in " ".join(text.split())
    )


class Throttle:
    """Counts events by kind, and allows one log line of each kind per `interval_s` seconds."""

    def __init__(self, interval_s: float, mono: Callable[[], float]):
        self._interval_s = interval_s
        self._mono = mono
        self._passed_at: dict[str, float] = {}
        self.by_kind: Counter[str] = Counter()
        """Events of each kind since the start."""
        self.samples: dict[str, str] = {}
        """For some kinds: the beginning of one message."""

    def count(self, kind: str) -> None:
        """Count an event."""
        self.by_kind[kind] += 1

    def passes(self, kind: str, sample: bytes | str | None = None) -> bool:
        """Count an event; return whether it may be logged, as the first of its kind in an interval.

        The set of kinds must be small: each is stored, with the first sample of it.
        """
        if sample is not None and kind not in self.samples:
            self.samples[kind] = sample_of(sample)
        self.count(kind)
        now = self._mono()
        if now - self._passed_at.get(kind, now - self._interval_s) < self._interval_s:
            return False
        self._passed_at[kind] = now
        return True
