# SPDX-License-Identifier: BSD-3-Clause
"""Assigns visit-detectors to slots, and decides how many slots there are. Pure.

The idle worker that served the same detector last is preferred, then any idle one, then a new
slot while the maximum is not reached; otherwise the visit-detector is queued until it expires.
Some idle workers are kept ready, surplus ones are retired.
"""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from ppdaemon.config import WorkersConfig
from ppdaemon.node.slots.assignment import Assignment, Key

__all__ = ("Assign", "Drop", "OpenSlot", "RetireSlot", "Scheduler", "SchedulerAction")


@dataclass(frozen=True, slots=True)
class Assign:
    """Assign this visit-detector to this idle slot."""

    assignment: Assignment
    slot: int


@dataclass(frozen=True, slots=True)
class OpenSlot:
    """Open one more slot."""


@dataclass(frozen=True, slots=True)
class RetireSlot:
    """Retire this idle slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class Drop:
    """End this visit-detector: no worker became free in time, or the queue is full."""

    assignment: Assignment
    reason: str


SchedulerAction = Assign | OpenSlot | RetireSlot


class Scheduler:
    """Matches queued visit-detectors and idle slots."""

    def __init__(self, config: WorkersConfig):
        self.config = config
        self._queue: OrderedDict[Key, Assignment] = OrderedDict()
        self._idle: OrderedDict[int, float] = OrderedDict()  # slot: idle since
        self._slots: set[int] = set()
        self._starting: set[int] = set()  # slots that will be idle soon
        self._last_detector: dict[int, tuple[str, int]] = {}  # slot: (instrument, detector)
        self._last_slot: dict[tuple[str, int], int] = {}  # (instrument, detector): slot

    @property
    def queued(self) -> int:
        """How many visit-detectors wait for a worker."""
        return len(self._queue)

    def add(self, assignment: Assignment) -> Drop | None:
        """Queue a visit-detector; return the oldest one if the queue is full."""
        self._queue[assignment.key] = assignment
        if len(self._queue) > max(self.config.queue, 1):
            _, oldest = self._queue.popitem(last=False)
            return Drop(oldest, f"more than {self.config.queue} visit-detectors wait for a worker")
        return None

    def remove(self, key: Key) -> Assignment | None:
        """Remove a visit-detector from the queue; return `None` if it is not queued."""
        return self._queue.pop(key, None)

    def slot_opened(self, slot: int) -> None:
        """Add a slot whose worker is starting."""
        self._slots.add(slot)
        self._starting.add(slot)

    def slot_idle(self, slot: int, now: float) -> None:
        """Note that a slot's worker is idle."""
        self._starting.discard(slot)
        self._idle[slot] = now

    def slot_busy(self, slot: int) -> None:
        """Note that a slot's worker is not available."""
        self._starting.discard(slot)
        self._idle.pop(slot, None)

    def slot_starting(self, slot: int) -> None:
        """Note that a slot will become idle without further orders."""
        self._slots.add(slot)
        self._idle.pop(slot, None)
        self._starting.add(slot)

    def slot_closed(self, slot: int) -> None:
        """Remove a slot that has no worker and gets none."""
        for members in (self._slots, self._starting):
            members.discard(slot)
        self._idle.pop(slot, None)
        last = self._last_detector.pop(slot, None)
        if last is not None and self._last_slot.get(last) == slot:
            del self._last_slot[last]

    def decide(
        self, now: float, *, assigning: bool = True, resizing: bool = True, room: int | None = None
    ) -> list[SchedulerAction]:
        """Return the assignments and changes of slots to be carried out in order; the scheduler
        already counts with them. `assigning` is whether slots may get visit-detectors, `resizing`
        whether they may be opened or retired; `room` is for how many more workers the host has
        memory, `None` for any number. The minimum number of slots is opened regardless of `room`.
        """
        # Before the match: an idle slot above a lowered maximum must not get a visit.
        decisions = self._shrink() if resizing else []
        if assigning:
            decisions += self._match()
        if resizing:
            decisions += self._resize(now, room)
        return decisions

    def drop_expired(self, now: float) -> list[Drop]:
        """Remove the visit-detectors from the queue that are too late to be started, the oldest first."""
        drops = [
            Drop(assignment, "no worker became free in time")
            for assignment in self._queue.values()
            if now >= assignment.expires_at
        ]
        for drop in drops:
            del self._queue[drop.assignment.key]
        return drops

    def _match(self) -> list[SchedulerAction]:
        decisions: list[SchedulerAction] = []
        while self._queue and self._idle:
            _, assignment = self._queue.popitem(last=False)
            instrument_detector = (assignment.key.instrument, assignment.key.detector)
            slot = self._choose_slot(instrument_detector, assignment.avoid)
            del self._idle[slot]
            self._remember(slot, instrument_detector)
            decisions.append(Assign(assignment, slot))
        return decisions

    def _choose_slot(self, instrument_detector: tuple[str, int], avoid: int | None) -> int:
        """Return the idle slot that served a detector last, or else one that served none; a
        second attempt prefers another slot than the first.
        """
        last_slot = self._last_slot.get(instrument_detector)
        if last_slot is not None and last_slot in self._idle and last_slot != avoid:
            return last_slot
        others = [slot for slot in self._idle if slot != avoid] or list(self._idle)
        return next((slot for slot in others if slot not in self._last_detector), others[0])

    def _remember(self, slot: int, instrument_detector: tuple[str, int]) -> None:
        before = self._last_detector.get(slot)
        if before is not None and self._last_slot.get(before) == slot:
            del self._last_slot[before]
        self._last_detector[slot] = instrument_detector
        self._last_slot[instrument_detector] = slot

    def _resize(self, now: float, room: int | None) -> list[SchedulerAction]:
        available = len(self._idle) + len(self._starting)
        missing = len(self._queue) + self.config.spare - available
        if room is not None:
            missing = min(missing, room - len(self._starting))
        missing = max(missing, self.config.min - len(self._slots))
        missing = min(missing, self.config.max - len(self._slots))
        if missing > 0:
            return [OpenSlot()] * missing
        return self._retire(now) if not self._queue else []

    def _shrink(self) -> list[SchedulerAction]:
        """Retire idle slots beyond the maximum, after a reload lowered it."""
        surplus = max(len(self._slots) - self.config.max, 0)
        return [self._retire_slot(slot) for slot in list(self._idle)[:surplus]]

    def _retire(self, now: float) -> list[SchedulerAction]:
        most = min(len(self._idle) - self.config.spare, len(self._slots) - self.config.min)
        return [
            self._retire_slot(slot)
            for slot, since in tuple(islice(self._idle.items(), max(most, 0)))
            if now - since >= self.config.retire_idle_s
        ]

    def _retire_slot(self, slot: int) -> SchedulerAction:
        del self._idle[slot]
        self._slots.discard(slot)
        return RetireSlot(slot)
