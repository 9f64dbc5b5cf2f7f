# SPDX-License-Identifier: BSD-3-Clause
"""An open visit: one reservation for each detector that has no outcome yet."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ppdaemon.visit import NextVisit

__all__ = ("OpenVisit", "Reservation", "ReservationState", "VisitKey", "age_at_restart", "make_open_visit")

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
    acknowledged_at: float | None = field(default=None, compare=False)
    """When its node has acknowledged it to this run of the relay, monotonic seconds."""
    incarnation: str = ""
    """The run of the node that has the permit; blank without one."""
    missing_since: float = math.inf
    """When its node, which has the permit, has first said hello without it; monotonic seconds."""
    refused_until: dict[str, float] = field(default_factory=dict)
    """For each node that refused it: when it may be sent there again, monotonic seconds."""
    place: str | None = field(default=None, init=False, compare=False)
    """Where `~ppdaemon.relay.assignments.Assignments` counts it."""

    def release(self) -> None:
        """Take it from its node."""
        self.state = ReservationState.UNASSIGNED
        self.node = self.incarnation = ""
        self.attempt += 1
        self.missing_since = math.inf
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
    adopted: bool = False
    """Whether only nodes have announced it, because the ledger is an older copy: its content is unknown, so
    that it is sent to no node."""
    due: float = -math.inf
    """When the visit must be checked next, monotonic seconds."""

    @property
    def received_at(self) -> float:
        """When it was received as far as is known (see `age_at_restart`), monotonic seconds."""
        return self.abandon_at - ABANDON_S

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
    age_s: float,
    expiry_s: float,
    now: float,
    cancelled: bool = False,
    adopted: bool = False,
) -> OpenVisit:
    """Make an open visit with its deadlines.

    It was received `age_s` seconds ago. It expires `expiry_s` after publication or receipt,
    whichever is earlier; only the time between these two comes from clocks that may jump.
    """
    announced_tai = min(received_tai, received_tai if visit.published_tai is None else visit.published_tai)
    return OpenVisit(
        number=number,
        visit=visit,
        received_tai=received_tai,
        expires_at=now - age_s - (received_tai - announced_tai) + expiry_s,
        abandon_at=now - age_s + ABANDON_S,
        reservations={reservation.detector: reservation for reservation in reservations},
        cancelled=cancelled,
        adopted=adopted,
    )


def age_at_restart(
    boot: str, received_mono: float, now: float, this_boot: str, known: Mapping[str, float]
) -> float:
    """Return for how long a visit of a previous run is known to be open, in seconds.

    It was received at a monotonic time of some boot of a host; `known` has by boot the last
    monotonic time in the ledger. No wall clock counts: one that was an hour off would expire
    visits that still can be processed. The time that a host was down is not counted, so that a
    visit may be sent to a node although it is too old: the node then refuses it.
    """
    last = now if boot == this_boot else known.get(boot, received_mono)
    return max(0.0, last - received_mono)
