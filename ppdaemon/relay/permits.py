# SPDX-License-Identifier: BSD-3-Clause
"""What a node may write permanently: the relay's part of the permits. Pure code.

A node that holds a visit-detector does everything but cross the point of no return.
For that it needs a permit: the relay records that the visit-detector is bound to this
run of the node, and only then answers. A permit has no time in it: what is bound does
not move, however long its node is silent, and what is not bound can move at once,
because its node will not get a permit any more.
"""

from collections.abc import Mapping

from ppdaemon.messages import DetectorsOfVisit, PermitRequest
from ppdaemon.relay import orders
from ppdaemon.relay.noderegistry import RegisteredNode
from ppdaemon.relay.openvisit import OpenVisit, ReservationState, VisitKey

__all__ = ("judge_permits",)

PERMITTED = ReservationState.PERMITTED

REFUSED = "the relay has ended it, or given it to another node"


def judge_permits(
    visits: Mapping[VisitKey, OpenVisit], node: RegisteredNode, request: PermitRequest
) -> orders.Effects:
    """Permit what the node holds in the attempt that it names; refuse all else. Repeating it is harmless."""
    effects, incarnation = orders.Effects(), node.incarnation
    permitted: list[DetectorsOfVisit] = []
    refused: list[DetectorsOfVisit] = []
    for asked in request.visits:
        visit = visits.get((asked.instrument, asked.group))
        held: dict[int, None] = {}  # ordered, and as fast for a node that names a million
        new: list[int] = []
        for detector in asked.detectors:
            reservation = None if visit is None else visit.reservations.get(detector)
            if reservation is None or (reservation.node, reservation.attempt) != (node.name, asked.attempt):
                continue
            held[detector] = None
            if (reservation.state, reservation.incarnation) != (PERMITTED, incarnation):
                reservation.state, reservation.incarnation = PERMITTED, incarnation
                new.append(detector)
        if visit is not None and new:
            effects.writes.append(orders.SetPermitted(visit.number, tuple(new), incarnation))
        others = tuple(detector for detector in asked.detectors if detector not in held)
        if held:
            permitted.append(asked.model_copy(update={"detectors": tuple(held)}))
        if others:
            refused.append(asked.model_copy(update={"detectors": others}))
    if permitted:
        effects.sends.append(orders.Permit(node.peer, incarnation, tuple(permitted)))
    if refused:
        effects.sends.append(orders.RefusePermit(node.peer, tuple(refused), REFUSED))
    return effects
