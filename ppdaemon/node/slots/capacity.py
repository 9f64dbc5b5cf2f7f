# SPDX-License-Identifier: BSD-3-Clause
"""How many visit-detectors the slots can have at once. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from ppdaemon.config import WorkersConfig
from ppdaemon.node.slots.slot import Slot
from ppdaemon.states import BUSY_STATES, SlotState

__all__ = ("Capacity", "capacity_of")


@dataclass(frozen=True, slots=True)
class Capacity:
    """The number of visit-detectors that slots can have, now or after a pause."""

    number: int
    problem: str = ""
    """Why no slot can take one; blank if some can."""


def capacity_of(config: WorkersConfig, slots: Collection[Slot], fork_problem: str = "") -> Capacity:
    """Return what the slots can have. A slot whose worker is only being replaced counts, and so does one
    that was never opened. `fork_problem` is why no worker can be started at present, or blank.
    """
    memory, number = config.memory, config.max
    if memory.budget is not None:
        number = min(number, memory.budget // max(memory.soft, 1))
        if not number:
            return Capacity(
                0, "workers.memory.budget is less than workers.memory.soft, the memory of one worker"
            )
    if fork_problem:
        # A worker that lives may have a visit, and the next one; a slot without one cannot.
        living = sum(slot.state in BUSY_STATES or slot.state == SlotState.IDLE for slot in slots)
        return Capacity(min(number, living), "" if living else fork_problem)
    # In the place of an unkillable slot another one is opened.
    opened = [slot for slot in slots if slot.state not in (SlotState.STOPPED, SlotState.UNKILLABLE)]
    quarantined = [slot for slot in opened if slot.quarantined]
    if quarantined and len(quarantined) == len(opened):
        # Slots that were never opened would be no better.
        return Capacity(0, f"all slots are quarantined, such as slot {quarantined[0].number}")
    return Capacity(max(min(number, config.max - len(quarantined)), 0))
