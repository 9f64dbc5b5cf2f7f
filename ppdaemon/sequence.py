# SPDX-License-Identifier: BSD-3-Clause
"""Lost messages between relay and node, found by their sequence numbers."""

import math
from dataclasses import dataclass, field

__all__ = ("SequenceCheck",)

REQUEST_S = 5.0
"""The state is requested at most once in this time: a link that loses every second
message must not carry a full state for each of them."""


@dataclass(slots=True)
class SequenceCheck:
    """Counts the lost messages of one sender.

    A number that is not higher than the last one is accepted: 0 is not counted by
    the sender, and a message may arrive twice.
    """

    lost: int = 0
    """Messages that did not arrive, since the start."""
    _last: int = 0
    _asked_at: float = field(default=-math.inf)
    _repair_pending: bool = False

    def restart(self, number: int) -> None:
        """Begin after a message that has the sender's whole state."""
        self._last = number
        self._repair_pending = False

    def received(self, number: int, now: float) -> bool:
        """Record a message; return whether the sender's state must be requested now.

        This is so after a gap, until `restart` is called, but not more often than the
        limit allows; `now` is monotonic seconds.
        """
        if number > self._last + 1:
            self.lost += number - self._last - 1
            self._repair_pending = True
        self._last = max(self._last, number)
        if not self._repair_pending or now - self._asked_at < REQUEST_S:
            return False
        self._asked_at = now
        return True
