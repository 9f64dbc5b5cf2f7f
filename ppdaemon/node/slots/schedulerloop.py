# SPDX-License-Identifier: BSD-3-Clause
"""Runs the scheduler: passes changes of slots to it, and carries out its decisions."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ppdaemon.clock import Clock
from ppdaemon.config import WorkersConfig
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.events import RetireRequested, SlotAssigned, SlotChanged
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.scheduler import Assign, OpenSlot, RetireSlot, Scheduler
from ppdaemon.node.slots.slot import Slot
from ppdaemon.states import SlotState

__all__ = ("SchedulerLoop",)


@dataclass(eq=False)
class SchedulerLoop:
    """Matches queued visit-detectors and slots, soon after either changes."""

    config: WorkersConfig
    clock: Clock
    pool: Pool
    post: Callable[[object], None]

    def __post_init__(self) -> None:
        self.assigning = True
        """Whether slots may get visit-detectors; `False` until the names of tasks are resolved."""
        self.resizing = True
        """Whether slots may be opened or retired; `False` while the daemon stops."""
        self._watchers: list[Callable[[], None]] = []
        self._scheduler = Scheduler(self.config)
        self._waking = False
        self._loop = asyncio.get_running_loop()
        self.pool.watch(self._slot_changed)

    def watch(self, decided: Callable[[], None]) -> None:
        """Call a function after each decision from now on."""
        self._watchers.append(decided)

    @property
    def queued(self) -> int:
        """How many visit-detectors wait for a worker."""
        return self._scheduler.queued

    def reconfigure(self, config: WorkersConfig) -> None:
        """Use other numbers of slots from now on."""
        self.config = config
        self._scheduler.config = config
        self._wake()

    def add(self, assignment: Assignment) -> None:
        """Queue a visit-detector that is in the journal."""
        if drop := self._scheduler.add(assignment):
            self.post(drop)
        self._wake()

    def remove(self, key: Key) -> None:
        """Remove a visit-detector from the queue, if it is queued."""
        self._scheduler.remove(key)

    def mark_idle(self, slot: int) -> None:
        """Make a slot available again whose assigned visit ended before the slot received it."""
        if self.pool.slots[slot].state == SlotState.IDLE:
            self._scheduler.slot_idle(slot, self.clock.mono())
            self._wake()

    def tick(self) -> None:
        """Drop expired visit-detectors; open and retire slots."""
        for drop in self._scheduler.drop_expired(self.clock.mono()):
            self.post(drop)
        self.decide()

    def decide(self) -> None:
        """Carry out the present decisions of the scheduler."""
        self._waking = False
        for decision in self._scheduler.decide(
            self.clock.mono(), assigning=self.assigning, resizing=self.resizing, room=self._room()
        ):
            match decision:
                case Assign(assignment=assignment, slot=number):
                    self.post(SlotAssigned(assignment, number, self.pool.slots[number].pid))
                case OpenSlot():
                    self._scheduler.slot_opened(self.pool.open_slot().number)
                case RetireSlot(slot=number):
                    self.pool.handle(number, RetireRequested())
        for decided in self._watchers:
            decided()

    def _wake(self) -> None:
        """Decide in the next turn of the event loop, once for all changes of this one."""
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self.decide)

    def _room(self) -> int | None:
        """Return for how many more workers there is memory in the host's budget; `None` without a budget.
        None is opened while workers cannot start in those that exist.
        """
        if self.pool.slots and all(slot.quarantined for slot in self.pool.slots.values()):
            return 0
        memory = self.config.memory
        if memory.budget is None:
            return None
        return max(0, memory.budget - self.pool.used_bytes()) // max(memory.soft, 1)

    def _slot_changed(self, slot: Slot, change: SlotChanged) -> None:
        match change.after:
            case SlotState.IDLE:
                self._scheduler.slot_idle(slot.number, self.clock.mono())
            case SlotState.STARTING | SlotState.BACKOFF:
                self._scheduler.slot_starting(slot.number)
            case SlotState.STOPPED | SlotState.UNKILLABLE:
                self._scheduler.slot_closed(slot.number)
            case _:
                self._scheduler.slot_busy(slot.number)
        self._wake()
