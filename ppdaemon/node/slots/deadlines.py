# SPDX-License-Identifier: BSD-3-Clause
"""One deadline per slot, the earliest first. Pure."""

import heapq

__all__ = ("Deadlines",)

MAX_STALE = 64
"""Stale heap entries that are tolerated beyond one per deadline before the heap is rebuilt."""


class Deadlines:
    """A heap of monotonic times. A replaced or cleared entry stays in the heap as stale until it
    reaches the top.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._at: dict[int, float] = {}

    def set(self, slot: int, at: float) -> None:
        """Set a slot's deadline, in monotonic seconds; replaces its previous one."""
        self._at[slot] = at
        heapq.heappush(self._heap, (at, slot))
        if len(self._heap) > 2 * len(self._at) + MAX_STALE:
            # Stale entries hours ahead would not reach the top for hours.
            self._heap = [(at, slot) for slot, at in self._at.items()]
            heapq.heapify(self._heap)

    def clear(self, slot: int) -> None:
        """Remove a slot's deadline."""
        self._at.pop(slot, None)

    def of(self, slot: int) -> float | None:
        """Return a slot's deadline in monotonic seconds, or `None`."""
        return self._at.get(slot)

    def next(self) -> float | None:
        """Return the earliest deadline in monotonic seconds, or `None`."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[int]:
        """Remove and return the slots whose deadline has passed, the earliest first."""
        slots = []
        self._drop_stale()
        while self._heap and self._heap[0][0] <= now:
            _, slot = heapq.heappop(self._heap)
            del self._at[slot]
            slots.append(slot)
            self._drop_stale()
        return slots

    def _drop_stale(self) -> None:
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
