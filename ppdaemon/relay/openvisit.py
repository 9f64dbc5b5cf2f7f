# SPDX-License-Identifier: BSD-3-Clause
"""An open visit: one reservation for each detector that has no outcome yet."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from ppdaemon.visit import NextVisit

__all__ = ("OpenVisit", "Reservation", "ReservationState", "VisitKey", "make_open_visit")

type VisitKey = tuple[str, str]
"""Instrument and group."""

ABANDON_S = 86_400.0
"""A node that has sent no outcome one day after the visit was received will not
send it: every time limit of a node is far below this."""


class ReservationState(StrEnum):
    """The state of a visit-detector. Those with an outcome are only in the ledger."""

    UNASSIGNED = "unassigned"
    """It was not sent to a node, or the node refused it."""
    SENT = "sent"
    """It was sent to a node, which may have it."""
    ACKNOWLEDGED = "acknowledged"
    """The node's journal has it. It has written nothing permanent: another node may get it."""
    PERMITTED = "permitted"
    """The node may have written something permanent: the outcome must come from that node."""


@dataclass(slots=True)
class Reservation:
    """One detector of a visit."""

    detector: int
    state: ReservationState = ReservationState.UNASSIGNED
    node: str = ""
    """The node that it was sent to; empty if there is none."""
    attempt: int = 1
    """Increased whenever a node loses it, so that late messages from and to that
    node concern the previous attempt only."""
    alone: bool = False
    """Whether its node may write permanently without a permit: it never moves."""
    sent_at: float = -math.inf
    """Monotonic seconds."""
    incarnation: str = ""
    """The run of the node that has the permit; blank without one."""
    refused_until: dict[str, float] = field(default_factory=dict)
    """For each node that refused it: when it may be sent there again, monotonic seconds."""

    def release(self) -> None:
        """Take it from its node."""
        self.state = ReservationState.UNASSIGNED
        self.node = self.incarnation = ""
        self.attempt += 1
        self.alone = False


@dataclass(slots=True)
class OpenVisit:
    """A visit with at least one detector without an outcome."""

    number: int
    """Its row in the ledger."""
    visit: NextVisit
    received_tai: float
    expires_at: float
    """When detectors that no node acknowledged expire, monotonic seconds."""
    abandon_at: float
    """When acknowledged detectors end as interrupted, monotonic seconds."""
    reservations: dict[int, Reservation]
    """By detector; only those without an outcome."""
    cancelled: bool = False
    due: float = -math.inf
    """When the visit must be checked next, monotonic seconds."""

    @property
    def key(self) -> VisitKey:
        """Instrument and group."""
        return self.visit.instrument, self.visit.group

    def in_state(self, *states: ReservationState) -> list[Reservation]:
        """Return the reservations in some states."""
        return [found for found in self.reservations.values() if found.state in states]


def make_open_visit(
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
    """Make an open visit and convert its TAI times to monotonic deadlines.

    It expires `expiry_s` after publication or receipt, whichever is earlier.
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
