# SPDX-License-Identifier: BSD-3-Clause
"""A visit under way: one reservation for each detector that has not ended."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from ppdaemon.visit import NextVisit

__all__ = ("OpenVisit", "Reservation", "ReservationState", "VisitKey", "opened")

type VisitKey = tuple[str, str]
"""Instrument and group."""

ABANDON_S = 86_400.0
"""A node that acknowledged a visit a day ago and never told its outcome will
not tell it any more; every time limit of a node is far below this."""


class ReservationState(StrEnum):
    """Where a visit-detector is. Ended ones are in the ledger only."""

    UNASSIGNED = "held"
    """No node was told, or the one that was told refused."""
    SENT = "sent"
    """A node was told and may have it."""
    ACKED = "acked"
    """The node's journal has it: that node answers for it."""


@dataclass(slots=True)
class Reservation:
    """One detector of a visit."""

    detector: int
    state: ReservationState = ReservationState.UNASSIGNED
    node: str = ""
    """Who was told last; empty if nobody was."""
    attempt: int = 1
    """Raised whenever it goes to another node: whatever the former one still
    says or is told concerns its own attempt only."""
    sent_at: float = -math.inf
    """Monotonic seconds."""
    former: frozenset[str] = frozenset()
    """Nodes that may still have an earlier attempt."""
    refused_until: dict[str, float] = field(default_factory=dict)
    """When to ask nodes again that did not take it, monotonic seconds."""


@dataclass(slots=True)
class OpenVisit:
    """A visit of which not all detectors have ended."""

    number: int
    """Its row in the ledger."""
    visit: NextVisit
    received_tai: float
    expires_at: float
    """When what no node acknowledged is given up, monotonic seconds."""
    abandon_at: float
    """When acknowledged detectors are given up too, monotonic seconds."""
    reservations: dict[int, Reservation]
    """By detector; only those that have not ended."""
    cancelled: bool = False
    due: float = -math.inf
    """When something may have to be done, monotonic seconds."""

    @property
    def key(self) -> VisitKey:
        """Instrument and group (`tuple` [`str`])."""
        return self.visit.instrument, self.visit.group

    def holding(self, *states: ReservationState) -> list[Reservation]:
        """Return the reservations in some states.

        Parameters
        ----------
        *states : `ReservationState`
            Which.

        Returns
        -------
        reservations : `list` [`Reservation`]
            In the order of detectors as announced.
        """
        return [found for found in self.reservations.values() if found.state in states]


def opened(
    number: int,
    visit: NextVisit,
    reservations: Iterable[Reservation],
    *,
    received_tai: float,
    expiry_s: float,
    now: float,
    now_tai: float,
    cancelled: bool = False,
) -> OpenVisit:
    """Make an open visit, with its wall-clock times turned into deadlines.

    Parameters
    ----------
    number : `int`
        Its row in the ledger.
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    reservations : `~collections.abc.Iterable` [`Reservation`]
        One for each detector that has not ended.
    received_tai : `float`
        When the relay accepted it, TAI seconds since 1970.
    expiry_s : `float`
        Seconds after publication (or receipt, whichever is earlier) from
        which on it is not worth starting.
    now, now_tai : `float`
        Monotonic seconds, and TAI seconds since 1970.
    cancelled : `bool`
        Whether the script queue cancelled it already.

    Returns
    -------
    open_visit : `OpenVisit`
        Due at once.
    """
    announced_tai = min(received_tai, received_tai if visit.published_tai is None else visit.published_tai)
    return OpenVisit(
        number=number,
        visit=visit,
        received_tai=received_tai,
        expires_at=now + announced_tai + expiry_s - now_tai,
        abandon_at=now + received_tai + ABANDON_S - now_tai,
        reservations={reservation.detector: reservation for reservation in reservations},
        cancelled=cancelled,
    )
