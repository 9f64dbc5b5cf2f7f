# SPDX-License-Identifier: BSD-3-Clause
"""One attempt at a visit-detector, as the journal keeps it."""

from dataclasses import dataclass, field
from typing import Any

from ppdaemon.node.slots.assignment import Key
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit

__all__ = ("Entry",)


@dataclass(slots=True)
class Entry:
    """One open row as the supervisor holds it; written when it changes."""

    key: Key
    visit: NextVisit
    received_tai: float
    stages: dict[Stage, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    """What its steps took and brought, as its worker says."""
    outcome: Outcome | None = None
    reason: str = ""
    retriable: bool = False
    final: bool = False
    """Whether this attempt's outcome is the visit-detector's."""
    pipeline: str = ""
    engine: str = ""
    slot: int | None = None
    pid: int | None = None
    exposures: tuple[int, ...] = ()
    partial: bool = False
    datasets: int = 0
    shutter_close_tai: float | None = None
    ended_tai: float | None = None
    no_return: str = ""
    seen: tuple[int, ...] = ()
    """Exposures whose raws had come when it ended, used or not."""
    asked: int = 1
    """The attempt that the relay has asked for last; it counts its own."""
