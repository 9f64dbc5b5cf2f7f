# SPDX-License-Identifier: BSD-3-Clause
"""How much each peer of a socket may send: one token bucket for each of them. Pure code."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

__all__ = ("BURST_S", "TOKEN_BYTES", "RateLimit", "tokens_of")

BURST_S = 5.0
"""A peer may send at once what its rate allows in this time."""
MAX_PEERS = 4096
"""Peers whose use is remembered. The one forgotten first has sent nothing for longest: its bucket is
most probably full again, which is the same as none."""
TOKEN_BYTES = 4096
"""A message costs one token, and one more for each of these, so that the rate limits bytes, too."""


def tokens_of(size: int) -> float:
    """Return the cost of a message of so many bytes."""
    return 1.0 + size // TOKEN_BYTES


class RateLimit:
    """Lets each peer use `per_s` tokens a second, and `BURST_S` seconds of them at once."""

    def __init__(self, per_s: float, mono: Callable[[], float]):
        self.per_s = per_s
        """May be changed."""
        self._mono = mono
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """By peer: tokens used and not regained, and when that was, monotonic seconds."""

    def take(self, peer: Hashable, tokens: float = 1.0) -> float:
        """Use tokens and return 0, or use none and return the seconds until the peer has enough."""
        now = self._mono()
        used, at = self._buckets.get(peer, (0.0, now))
        used = max(0.0, used - (now - at) * self.per_s)
        # More than a full bucket is granted when the bucket is full, or it would never be.
        missing = used + min(tokens, self.per_s * BURST_S) - self.per_s * BURST_S
        self._buckets[peer] = (used if missing > 0 else used + tokens, now)
        self._buckets.move_to_end(peer)
        if len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)
        return max(0.0, missing / self.per_s)
