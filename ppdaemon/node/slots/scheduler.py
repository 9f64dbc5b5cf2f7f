# SPDX-License-Identifier: BSD-3-Clause
"""Which slot gets which visit-detector, and how many slots there are. Pure.

An idle worker that served the detector last is taken first, then any idle
one, then a new slot while there may be more; else the visit-detector queues
until it is pointless. Some idle workers are kept ready, surplus ones retired.
"""

from collections import OrderedDict
from dataclasses import dataclass

from ppdaemon.config import WorkersConfig
from ppdaemon.node.slots.assignment import Assignment, Key

__all__ = ("Assign", "Decision", "Drop", "OpenSlot", "RetireSlot", "Scheduler")


@dataclass(frozen=True, slots=True)
class Assign:
    """Give this visit-detector to this idle slot."""

    assignment: Assignment
    slot: int


@dataclass(frozen=True, slots=True)
class OpenSlot:
    """One more slot is wanted."""


@dataclass(frozen=True, slots=True)
class RetireSlot:
    """This idle slot is not needed."""

    slot: int


@dataclass(frozen=True, slots=True)
class Drop:
    """No worker became free while it made sense."""

    assignment: Assignment
    reason: str


Decision = Assign | OpenSlot | RetireSlot


class Scheduler:
    """Matches waiting visit-detectors and idle slots.

    Parameters
    ----------
    config : `~ppdaemon.config.WorkersConfig`
        Numbers of slots.
    """

    def __init__(self, config: WorkersConfig):
        self.config = config
        self._waiting: OrderedDict[Key, Assignment] = OrderedDict()
        self._idle: OrderedDict[int, float] = OrderedDict()  # slot: idle since
        self._slots: set[int] = set()
        self._rising: set[int] = set()  # slots on their way to idle
        self._last: dict[int, tuple[str, int]] = {}  # slot: (instrument, detector)
        self._home: dict[tuple[str, int], int] = {}  # (instrument, detector): slot

    @property
    def queued(self) -> int:
        """How many visit-detectors wait for a worker (`int`)."""
        return len(self._waiting)

    def add(self, assignment: Assignment) -> Drop | None:
        """Queue a visit-detector.

        Parameters
        ----------
        assignment : `~ppdaemon.node.slots.assignment.Assignment`
            Accepted and without an outcome.

        Returns
        -------
        drop : `Drop` or `None`
            What had to go because the queue is full: the oldest.
        """
        self._waiting[assignment.key] = assignment
        if len(self._waiting) > max(self.config.queue, 1):
            _, oldest = self._waiting.popitem(last=False)
            return Drop(oldest, f"more than {self.config.queue} visit-detectors wait for a worker")
        return None

    def remove(self, key: Key) -> Assignment | None:
        """Take a visit-detector out of the queue.

        Parameters
        ----------
        key : `~ppdaemon.node.slots.assignment.Key`
            Which.

        Returns
        -------
        assignment : `~ppdaemon.node.slots.assignment.Assignment` or `None`
            `None` if it does not wait here.
        """
        return self._waiting.pop(key, None)

    def slot_opened(self, slot: int) -> None:
        """Count a slot that is being filled."""
        self._slots.add(slot)
        self._rising.add(slot)

    def slot_idle(self, slot: int, now: float) -> None:
        """Note that a slot's worker waits for a visit."""
        self._rising.discard(slot)
        self._idle[slot] = now

    def slot_busy(self, slot: int) -> None:
        """Note that a slot's worker is not to be had."""
        self._rising.discard(slot)
        self._idle.pop(slot, None)

    def slot_starting(self, slot: int) -> None:
        """Note that a slot will be idle soon, by itself."""
        self._slots.add(slot)
        self._idle.pop(slot, None)
        self._rising.add(slot)

    def slot_closed(self, slot: int) -> None:
        """Forget a slot that is not filled any more."""
        for members in (self._slots, self._rising):
            members.discard(slot)
        self._idle.pop(slot, None)
        home = self._last.pop(slot, None)
        if home is not None and self._home.get(home) == slot:
            del self._home[home]

    def decide(self, now: float, *, growing: bool = True, room: int | None = None) -> list[Decision]:
        """Decide what can be decided.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.
        growing : `bool`, optional
            Whether slots may be opened or retired (not while stopping).
        room : `int`, optional
            For how many more workers the host has memory; any number if not
            given. The least number of slots is filled all the same.

        Returns
        -------
        decisions : `list`
            To be carried out in order; the scheduler already counts with
            them.
        """
        decisions = self._shrink() if growing else []
        decisions += self._match()
        if growing:
            decisions += self._resize(now, room)
        return decisions

    def drop_pointless(self, now: float) -> list[Drop]:
        """Take out of the queue what is not worth starting any more.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.

        Returns
        -------
        drops : `list` [`Drop`]
            The oldest first.
        """
        drops = [
            Drop(assignment, "no worker became free in time")
            for assignment in self._waiting.values()
            if now >= assignment.pointless_at
        ]
        for drop in drops:
            del self._waiting[drop.assignment.key]
        return drops

    def _match(self) -> list[Decision]:
        decisions: list[Decision] = []
        while self._waiting and self._idle:
            _, assignment = self._waiting.popitem(last=False)
            place = (assignment.key.instrument, assignment.key.detector)
            slot = self._pick(place, assignment.avoid)
            del self._idle[slot]
            self._settle(slot, place)
            decisions.append(Assign(assignment, slot))
        return decisions

    def _pick(self, place: tuple[str, int], avoid: int | None) -> int:
        """Return the idle slot that served a detector last, or one that
        nobody else will miss; a second attempt goes elsewhere if it can.
        """
        home = self._home.get(place)
        if home is not None and home in self._idle and home != avoid:
            return home
        others = [slot for slot in self._idle if slot != avoid] or list(self._idle)
        return next((slot for slot in others if slot not in self._last), others[0])

    def _settle(self, slot: int, place: tuple[str, int]) -> None:
        before = self._last.get(slot)
        if before is not None and self._home.get(before) == slot:
            del self._home[before]
        self._last[slot] = place
        self._home[place] = slot

    def _resize(self, now: float, room: int | None) -> list[Decision]:
        coming = len(self._idle) + len(self._rising)
        wanted = len(self._waiting) + self.config.spare - coming
        if room is not None:
            wanted = min(wanted, room - len(self._rising))
        wanted = max(wanted, self.config.min - len(self._slots))
        wanted = min(wanted, self.config.max - len(self._slots))
        if wanted > 0:
            return [OpenSlot()] * wanted
        return self._retire(now) if not self._waiting else []

    def _shrink(self) -> list[Decision]:
        """Retire idle slots above the most there may be: it was lowered."""
        surplus = max(len(self._slots) - self.config.max, 0)
        return [self._retire_slot(slot) for slot in list(self._idle)[:surplus]]

    def _retire(self, now: float) -> list[Decision]:
        most = min(len(self._idle) - self.config.spare, len(self._slots) - self.config.min)
        return [
            self._retire_slot(slot)
            for slot, since in list(self._idle.items())[: max(most, 0)]
            if now - since >= self.config.retire_idle_s
        ]

    def _retire_slot(self, slot: int) -> Decision:
        del self._idle[slot]
        self._slots.discard(slot)
        return RetireSlot(slot)
