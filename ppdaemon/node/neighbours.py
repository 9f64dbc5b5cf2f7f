# SPDX-License-Identifier: BSD-3-Clause
"""Whom the visit desk turns to: the other parts of a node, as it sees them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ppdaemon.messages import ReserveVisit, ResultEntry
from ppdaemon.node.lastlook import Look

__all__ = ("Link", "Neighbours")


class Link(Protocol):
    """What the desk says to the relay."""

    def ack(self, visit: ReserveVisit, detectors: Sequence[int]) -> None:
        """Tell that the journal has these detectors."""

    def nak(self, visit: ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool) -> None:
        """Tell that these detectors are not taken."""

    def results(self, entries: Sequence[ResultEntry]) -> None:
        """Tell outcomes."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Whom the desk turns to."""

    link: Link
    seat: Callable[[int, object], None]
    """Gives a slot an event."""
    export: Callable[[str], None]
    """Gives the exporter a spool."""
    decide: Callable[[], None]
    """Wakes the scheduler."""
    look: Look
    """Looks for the raws of a visit, whatever was seen."""
