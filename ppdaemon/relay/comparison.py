# SPDX-License-Identifier: BSD-3-Clause
"""The journal of a node that says hello, compared with the ledger: whichever is newer is believed. Pure code.

The ledger may be an older copy, and the node may have lost messages, or its journal.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ppdaemon.messages import EndedDetectors, Hello
from ppdaemon.relay import orders
from ppdaemon.relay.openvisit import OpenVisit, Reservation, ReservationState, VisitKey

__all__ = ("compare_held", "unknown_outcomes")

SENT, ACKNOWLEDGED, PERMITTED = (
    ReservationState.SENT,
    ReservationState.ACKNOWLEDGED,
    ReservationState.PERMITTED,
)


def unknown_outcomes(
    visits: Mapping[VisitKey, OpenVisit], hello: Hello
) -> Iterator[tuple[OpenVisit, Reservation, EndedDetectors]]:
    """Yield what a node has ended, and the ledger does not know.

    What is ended meanwhile is not yielded again: a node may list it twice.
    """
    for ended in hello.ended:
        visit = visits.get((ended.instrument, ended.group))
        if visit is None:
            continue
        for detector in ended.detectors:
            reservation = visit.reservations.get(detector)
            if reservation is None:
                continue
            # It was confirmed, so that the node does not send it again.
            is_own = (reservation.node, reservation.attempt) == (hello.origin, ended.attempt)
            if (is_own and ended.reported) or _is_unknown(
                reservation, hello.origin, ended.attempt, may_have_written=True
            ):
                yield visit, reservation, ended


def compare_held(
    visits: Mapping[VisitKey, OpenVisit], hello: Hello, peer: bytes, now: float, *, adopt: bool
) -> tuple[orders.Effects, list[tuple[OpenVisit, Reservation]], int]:
    """Correct the reservations of a node by what it holds, and withdraw what it no longer should have.

    With `adopt`, what the ledger does not know counts as its reservation. Return also its reservations, and
    how many of them were adopted.
    """
    effects = orders.Effects()
    own: list[tuple[OpenVisit, Reservation]] = []
    adopted = 0
    listed: dict[tuple[str, str, int], tuple[int, str]] = {
        (held.instrument, held.group, detector): (held.attempt, held.state)
        for held in hello.holds
        for detector in held.detectors
    }
    for (instrument, group, detector), (attempt, state) in listed.items():
        visit = visits.get((instrument, group))
        reservation = None if visit is None else visit.reservations.get(detector)
        if not adopt or visit is None or reservation is None:
            continue
        if _is_unknown(reservation, hello.origin, attempt, may_have_written=state != "held"):
            reservation.release()
            reservation.node, reservation.attempt, reservation.state = hello.origin, attempt, ACKNOWLEDGED
            effects.writes.append(orders.SetRoute(visit.number, hello.origin, attempt, (detector,)))
            effects.writes.append(orders.SetAcknowledged(visit.number, (detector,)))
            adopted += 1
    for visit in visits.values():
        changes: dict[ReservationState, list[int]] = defaultdict(list)
        for reservation in visit.reservations.values():
            if reservation.node == hello.origin:
                own.append((visit, reservation))
                attempt, state = listed.pop((*visit.key, reservation.detector), (0, ""))
                known = state if attempt == reservation.attempt else ""
                change = _correct(reservation, known, hello.incarnation)
                missing = not known and reservation.state is PERMITTED
                reservation.missing_since = min(reservation.missing_since, now) if missing else math.inf
                if hello.alone and not reservation.alone and reservation.state in (SENT, ACKNOWLEDGED):
                    # It was sent before the node was configured so, and could be written there now.
                    reservation.alone = True
                    effects.writes.append(
                        orders.SetRoute(
                            visit.number, hello.origin, reservation.attempt, (reservation.detector,), True
                        )
                    )
                    change = reservation.state  # `SetRoute` has cleared it in the ledger
                if change is not None:
                    changes[change].append(reservation.detector)
        for change, detectors in changes.items():
            if change == ACKNOWLEDGED:
                effects.writes.append(orders.SetAcknowledged(visit.number, tuple(detectors)))
            effects.writes.append(
                orders.SetPermitted(
                    visit.number, tuple(detectors), hello.incarnation if change == PERMITTED else ""
                )
            )
    withdrawn: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for (instrument, group, detector), (attempt, _) in listed.items():
        withdrawn[instrument, group, attempt].append(detector)
    for (instrument, group, attempt), detectors in withdrawn.items():
        effects.sends.append(orders.Withdraw(peer, instrument, group, tuple(detectors), attempt))
    return effects, own, adopted


def _is_unknown(reservation: Reservation, node: str, attempt: int, *, may_have_written: bool) -> bool:
    """Return whether a node has an attempt that the ledger does not know, because it is an older copy.

    An attempt is in the ledger before it is sent. What another node may write now stays there.
    """
    if reservation.state is PERMITTED or attempt < reservation.attempt:
        return False
    if attempt > reservation.attempt:
        return True
    return node != reservation.node and (may_have_written or not reservation.node)


def _correct(reservation: Reservation, held: str, incarnation: str) -> ReservationState | None:
    """Correct one reservation; return its new state if the ledger needs it.

    ``held`` is the state at its node, blank if the node does not have this attempt.
    """
    match held, reservation.state:
        case "", state if state in (SENT, ACKNOWLEDGED):
            # Never accepted, or ended: sent again, the node answers with its acknowledgement or outcome.
            reservation.state, reservation.sent_at = SENT, -math.inf
        case "", _:
            # Its outcome follows. If the node has lost its journal none does: what it
            # has written is unknown, and the dispatcher gives it up.
            pass
        case "held", state if state is SENT or (
            state is PERMITTED and reservation.incarnation != incarnation
        ):
            # A permit of an earlier run of the node is void: that process has ended, and
            # its journal says that it did not cross.
            reservation.state, reservation.incarnation = ACKNOWLEDGED, ""
            return ACKNOWLEDGED
        case "permitted" | "crossed", _ if (reservation.state, reservation.incarnation) != (
            PERMITTED,
            incarnation,
        ):
            reservation.state, reservation.incarnation = PERMITTED, incarnation
            return PERMITTED
    return None
