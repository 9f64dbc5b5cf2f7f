# SPDX-License-Identifier: BSD-3-Clause
"""One deadline per slot, the earliest first. Pure."""

import heapq

__all__ = ("Deadlines",)

MOST_DEAD = 64
"""Replaced entries that may lie about beside as many as there are deadlines."""


class Deadlines:
    """A heap of monotonic times; replaced entries die where they lie."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._at: dict[int, float] = {}

    def set(self, slot: int, at: float) -> None:
        """Set a slot's deadline; replaces the one before.

        Parameters
        ----------
        slot : `int`
            The slot's number.
        at : `float`
            Monotonic seconds.
        """
        self._at[slot] = at
        heapq.heappush(self._heap, (at, slot))
        if len(self._heap) > 2 * len(self._at) + MOST_DEAD:
            # Those of hours ahead would not come to the top for hours.
            self._heap = [(at, slot) for slot, at in self._at.items()]
            heapq.heapify(self._heap)

    def clear(self, slot: int) -> None:
        """Let a slot be without a deadline.

        Parameters
        ----------
        slot : `int`
            The slot's number.
        """
        self._at.pop(slot, None)

    def of(self, slot: int) -> float | None:
        """Return a slot's deadline.

        Parameters
        ----------
        slot : `int`
            The slot's number.

        Returns
        -------
        at : `float` or `None`
            Monotonic seconds.
        """
        return self._at.get(slot)

    def next(self) -> float | None:
        """Return the earliest deadline.

        Returns
        -------
        at : `float` or `None`
            Monotonic seconds; `None` if there is none.
        """
        self._drop_dead()
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[int]:
        """Take out the slots whose deadline has passed.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.

        Returns
        -------
        slots : `list` [`int`]
            The earliest first.
        """
        slots = []
        self._drop_dead()
        while self._heap and self._heap[0][0] <= now:
            _, slot = heapq.heappop(self._heap)
            del self._at[slot]
            slots.append(slot)
            self._drop_dead()
        return slots

    def _drop_dead(self) -> None:
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
