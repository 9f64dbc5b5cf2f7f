# SPDX-License-Identifier: BSD-3-Clause
"""What every open visit needs now: pure decisions of the relay.

Events come in as method calls with the monotonic time, a `Turn` comes out:
what to write into the ledger and what to send once that is on disk. Covers
routing, resending, refusals, cancellation, expiry and nodes that come and go.
Does not cover sockets, the ledger, or whether a visit is accepted at all.

A detector goes to one node. If that node refuses, or vanishes before it
acknowledged, the detector goes to another one with the next attempt number,
and the first is told to give it up as soon as it is heard of again. What a
node acknowledged stays with it: it alone knows what it did. It may even try
again what has ended: that opens no visit here, the ledger notes the outcome.
"""

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable

from ppdaemon.messages import Heartbeat, Hello, NodeMessage, ResultEntry, Results, VisitAccepted, VisitRefused
from ppdaemon.relay import orders
from ppdaemon.relay.noderegistry import NodeRegistry
from ppdaemon.relay.openvisit import OpenVisit, Reservation, ReservationState, VisitKey
from ppdaemon.states import Outcome

__all__ = ("Dispatcher",)

_LOG = logging.getLogger(__name__)

UNASSIGNED, SENT, ACKED = ReservationState.UNASSIGNED, ReservationState.SENT, ReservationState.ACKED

REFUSAL_S = 5.0
"""How long a node that did not take a detector is not asked again."""

MAX_RESERVATIONS = 200_000
"""Open reservations, a night of LSSTCam; about 100 MB of memory."""

VISITS_PER_TICK = 500
"""So many visits are looked at in a tick, some 10 ms; the others wait."""

MESSAGES_PER_TICK = 100
"""So many visits are sent to a node in a tick: a node that comes back to
thousands of visits gets them as fast as it can journal them."""

PAUSE_S = 1.0
"""A longer gap between ticks (every 0.1 s) means that the process was stopped:
then the nodes were not silent, nobody listened."""


class Dispatcher:
    """All open visits, and the nodes they can go to.

    Parameters
    ----------
    resend_s : `float`
        What is unacknowledged for so long is sent again.
    silence_s : `float`
        A node silent for so long is gone.
    settle_s : `float`
        For so long after the first tick nothing is routed: nodes that lost
        the former relay come back in this time, with what they hold.
    """

    def __init__(self, *, resend_s: float, silence_s: float, settle_s: float):
        self._resend_s = resend_s
        self._settle_s = settle_s
        self._settled_at = math.inf
        self._ticked_at: float | None = None
        self._visits: dict[VisitKey, OpenVisit] = {}
        self.reservations = 0
        """Number of detectors under way, of all visits (`int`)."""
        self._allowance: dict[str, int] = {}
        self.registry = NodeRegistry(silence_s)

    # --- what is there ------------------------------------------------------

    def __len__(self) -> int:
        return len(self._visits)

    def open_detectors(self, key: VisitKey) -> dict[int, ReservationState]:
        """Return what has not ended of a visit.

        Parameters
        ----------
        key : `VisitKey`
            Instrument and group.

        Returns
        -------
        states : `dict` [`int`, `ReservationState`]
            By detector; empty for a visit that is not open.
        """
        visit = self._visits.get(key)
        return {} if visit is None else {r.detector: r.state for r in visit.reservations.values()}

    # --- visits come and are cancelled --------------------------------------

    def add(self, visit: OpenVisit, now: float) -> orders.Turn:
        """Take a visit that the ledger has."""
        turn = orders.Turn()
        self._visits[visit.key] = visit
        self.reservations += len(visit.reservations)
        self._serve(visit, now, turn)
        return turn

    def has_room(self, detectors: int) -> bool:
        """Tell whether so many reservations more can be kept track of."""
        return self.reservations + detectors <= MAX_RESERVATIONS

    def make_room(self, detectors: int) -> orders.Turn:
        """Give up the oldest visits of which no node has anything, if need be.

        Parameters
        ----------
        detectors : `int`
            How many reservations are to come.

        Returns
        -------
        turn : `Turn`
            What was given up; see `has_room` for whether it suffices.
        """
        turn = orders.Turn()
        for visit in list(self._visits.values()):
            if self.has_room(detectors):
                break
            if len(visit.holding(UNASSIGNED)) == len(visit.reservations):
                for reservation in visit.holding(UNASSIGNED):
                    self._end(visit, reservation, Outcome.EXPIRED, "made room for newer visits", turn)
                self._close_if_ended(visit, turn)
        return turn

    def cancel(self, key: VisitKey, now: float) -> orders.Turn:
        """Call a visit off; one that is not open needs nothing."""
        turn = orders.Turn()
        visit = self._visits.get(key)
        if visit is not None and not visit.cancelled:
            visit.cancelled = True
            turn.writes.append(orders.SetCancelled(visit.number))
            self._serve(visit, now, turn)
        return turn

    # --- nodes speak --------------------------------------------------------

    def receive(self, peer: bytes, message: NodeMessage, now: float) -> orders.Turn:
        """Take a message of a node.

        Parameters
        ----------
        peer : `bytes`
            The connection it came on.
        message : `~ppdaemon.messages.NodeMessage`
            What it says.
        now : `float`
            Monotonic seconds.

        Returns
        -------
        turn : `Turn`
            What follows.
        """
        if isinstance(message, Hello):
            return self._greet(peer, message, now)
        node = self.registry.receive(peer, now)
        if node is None:
            return orders.Turn.of(
                orders.TurnAway(peer, "stranger", "this relay does not know the connection: say hello")
            )
        turn = orders.Turn()
        match message:
            case VisitAccepted():
                self._accepted_visit(node, peer, message, now, turn)
            case VisitRefused():
                self._refused_visit(node, message, now, turn)
            case Results():
                for entry in message.entries:
                    self._result(node, entry, now, turn)
                keys = tuple((e.instrument, e.group, e.detector, e.attempt) for e in message.entries)
                turn.sends.append(orders.ConfirmResults(peer, keys))
            case Heartbeat():
                pass
        return turn

    def lose(self, peer: bytes, now: float) -> None:
        """Note that a connection is gone; the next tick does what follows."""
        node = self.registry.lose(peer)
        if node is not None:
            _LOG.warning("node lost its connection", extra={"node": node})
            self._wake_all(now)

    def tick(self, now: float) -> orders.Turn:
        """Do what is due at this time."""
        turn = orders.Turn()
        if self._ticked_at is None:
            self._settled_at = now + self._settle_s
            self._wake_all(now)
        elif now - self._ticked_at > PAUSE_S:
            pause_s = now - self._ticked_at
            _LOG.warning("this process did not run for a while", extra={"pause_s": round(pause_s, 3)})
            self.registry.excuse(pause_s)
        self._ticked_at = now
        silent = self.registry.drop_silent(now)
        for node in silent:
            _LOG.warning("node is silent", extra={"node": node})
        if silent:
            self._wake_all(now)
        self._allowance.clear()
        due = (visit for visit in self._visits.values() if visit.due <= now)
        for visit in list(itertools.islice(due, VISITS_PER_TICK)):
            self._serve(visit, now, turn)
        return turn

    def _greet(self, peer: bytes, hello: Hello, now: float) -> orders.Turn:
        holder = self.registry.holder_of(hello, peer)
        if holder is not None:
            reason = f"another node named {hello.origin} is connected: names must differ"
            # Sending proves at once whether the holder is still connected: a restarted
            # node need not wait until its former life counts as silent.
            return orders.Turn.of(orders.Beat(holder), orders.TurnAway(peer, "taken", reason))
        _LOG.info("node is there", extra={"node": hello.origin, "capacity": hello.capacity})
        self.registry.admit(hello, peer, now)
        turn = orders.Turn.of(orders.Greet(peer))
        for visit in self._visits.values():
            moved = []
            for reservation in visit.reservations.values():
                if reservation.node == hello.origin:
                    reservation.sent_at = -math.inf
                elif hello.origin in reservation.former:
                    moved.append(reservation.detector)
            if moved:
                turn.sends.append(orders.Withdraw(peer, *visit.key, tuple(moved)))
        self._wake_all(now)
        return turn

    def _accepted_visit(
        self, node: str, peer: bytes, ack: VisitAccepted, now: float, turn: orders.Turn
    ) -> None:
        visit = self._visits.get((ack.instrument, ack.group))
        acked, astray = [], []
        for detector in ack.detectors:
            reservation = None if visit is None else visit.reservations.get(detector)
            if reservation is None or reservation.node != node:
                astray.append(detector)
            elif reservation.state is not ACKED and reservation.attempt == ack.attempt:
                # Held: it refused one copy of the message and took a later one.
                reservation.state = ACKED
                acked.append(detector)
        if astray:  # ended without it, or another node has it by now
            turn.sends.append(orders.Withdraw(peer, ack.instrument, ack.group, tuple(astray)))
        if visit is not None and acked:
            turn.writes.append(orders.SetAcked(visit.number, tuple(acked)))
            self._plan(visit, now)

    def _refused_visit(self, node: str, nak: VisitRefused, now: float, turn: orders.Turn) -> None:
        visit = self._visits.get((nak.instrument, nak.group))
        if visit is None:
            return
        for detector in nak.detectors:
            reservation = visit.reservations.get(detector)
            if (
                reservation is None
                or (reservation.node, reservation.attempt) != (node, nak.attempt)
                or reservation.state is not SENT
            ):
                continue
            if nak.final:
                self._end(visit, reservation, _outcome_of(nak.reason), nak.reason, turn, node)
            else:
                reservation.state = UNASSIGNED
                reservation.refused_until[node] = now + REFUSAL_S
        _LOG.info(
            "node refused a visit",
            extra={"node": node, "group": nak.group, "detectors": len(nak.detectors), "reason": nak.reason},
        )
        self._serve(visit, now, turn)

    def _result(self, node: str, entry: ResultEntry, now: float, turn: orders.Turn) -> None:
        """Take an outcome; that of a former node counts only if it succeeded."""
        visit = self._visits.get((entry.instrument, entry.group))
        reservation = None if visit is None else visit.reservations.get(entry.detector)
        if visit is None or reservation is None:
            # Repeated, which the ledger tells by its attempt; a first one always is.
            if entry.attempt > 1:
                place = (entry.instrument, entry.group, entry.detector)
                turn.writes.append(
                    orders.AmendOutcome(*place, node, entry.attempt, entry.outcome, entry.reason)
                )
            return
        holds = reservation.node == node and entry.attempt >= reservation.attempt
        if not holds and entry.outcome is not Outcome.SUCCEEDED:
            _LOG.info(
                "outcome of a node that has the detector no more",
                extra={"node": node, "group": entry.group, "detector": entry.detector},
            )
            return
        if reservation.node != node and reservation.node in self.registry:
            peer = self.registry.peer_of(reservation.node)
            turn.sends.append(orders.Withdraw(peer, *visit.key, (entry.detector,)))
        self._end(visit, reservation, entry.outcome, entry.reason, turn, node)
        self._close_if_ended(visit, turn)

    # --- what a visit needs -------------------------------------------------

    def _wake_all(self, now: float) -> None:
        """Have all visits looked at, since a node came or went."""
        for visit in self._visits.values():
            visit.due = now

    def _serve(self, visit: OpenVisit, now: float, turn: orders.Turn) -> None:
        """Do all that a visit needs now; doing it twice does no harm."""
        if now >= visit.expires_at:
            self._expire(visit, now, turn)
        if visit.cancelled:
            self._call_off(visit, now, turn)
        else:
            self._route(visit, now, turn)
        self._send(visit, now, turn)
        if visit.cancelled:
            self._send_cancel(visit, turn)
        self._close_if_ended(visit, turn)
        self._plan(visit, now)

    def _expire(self, visit: OpenVisit, now: float, turn: orders.Turn) -> None:
        outcome = Outcome.CANCELLED if visit.cancelled else Outcome.EXPIRED
        withdrawn: dict[str, list[int]] = defaultdict(list)
        for reservation in visit.holding(UNASSIGNED, SENT):
            reason = f"no node served detector {reservation.detector} in time"
            if reservation.state is SENT:
                reason = f"{reservation.node} did not acknowledge it in time"
                withdrawn[reservation.node].append(reservation.detector)
            self._end(visit, reservation, outcome, reason, turn)
        for node, detectors in withdrawn.items():
            if node in self.registry:
                turn.sends.append(orders.Withdraw(self.registry.peer_of(node), *visit.key, tuple(detectors)))
        if now >= visit.abandon_at:
            for reservation in visit.holding(ACKED):
                reason = f"{reservation.node} acknowledged it and never told its outcome"
                self._end(visit, reservation, Outcome.INTERRUPTED, reason, turn)

    def _call_off(self, visit: OpenVisit, now: float, turn: orders.Turn) -> None:
        """End what no node that is there can have; the others will answer."""
        for reservation in visit.holding(UNASSIGNED, SENT):
            if reservation.state is UNASSIGNED or (
                now >= self._settled_at and reservation.node not in self.registry
            ):
                reason = "cancelled before a node acknowledged it"
                self._end(visit, reservation, Outcome.CANCELLED, reason, turn)

    def _route(self, visit: OpenVisit, now: float, turn: orders.Turn) -> None:
        """Give detectors to nodes: those without one, and those whose node is
        gone without having acknowledged.
        """
        if now < self._settled_at:
            return
        routed: dict[tuple[str, int], list[int]] = defaultdict(list)
        for reservation in visit.holding(UNASSIGNED, SENT):
            if reservation.state is SENT and reservation.node in self.registry:
                continue
            barred = [node for node, until in reservation.refused_until.items() if now < until]
            node = self.registry.routes.choose(visit.visit.instrument, reservation.detector, barred)
            if node is None:
                continue
            if reservation.node not in ("", node):
                reservation.former |= {reservation.node}
                reservation.attempt += 1
            reservation.state = SENT
            reservation.node = node
            reservation.sent_at = -math.inf
            routed[node, reservation.attempt].append(reservation.detector)
        for (node, attempt), detectors in routed.items():
            turn.writes.append(orders.SetRoute(visit.number, node, attempt, tuple(detectors)))

    def _send(self, visit: OpenVisit, now: float, turn: orders.Turn) -> None:
        """Send, and send again, what is unacknowledged: one message a node."""
        parcels: dict[tuple[str, int], list[int]] = defaultdict(list)
        for reservation in visit.holding(SENT):
            if reservation.node in self.registry and now >= reservation.sent_at + self._resend_s:
                reservation.sent_at = now
                parcels[reservation.node, reservation.attempt].append(reservation.detector)
        for (node, attempt), detectors in parcels.items():
            allowance = self._allowance.get(node, MESSAGES_PER_TICK)
            if allowance:  # else it is sent as if this one had been lost
                self._allowance[node] = allowance - 1
                peer = self.registry.peer_of(node)
                turn.sends.append(
                    orders.Reserve(peer, visit.visit, tuple(detectors), attempt, visit.received_tai)
                )

    def _send_cancel(self, visit: OpenVisit, turn: orders.Turn) -> None:
        for node in sorted({reservation.node for reservation in visit.holding(SENT, ACKED)}):
            if node in self.registry:
                turn.sends.append(orders.Withdraw(self.registry.peer_of(node), *visit.key))

    def _plan(self, visit: OpenVisit, now: float) -> None:
        """Set when the visit has to be looked at again, if nothing happens."""
        if visit.cancelled:
            visit.due = now + self._resend_s
            return
        dues = [visit.expires_at if now < visit.expires_at else visit.abandon_at]
        if now < self._settled_at:
            dues.append(self._settled_at)
        for reservation in visit.holding(UNASSIGNED, SENT):
            if reservation.state is SENT and reservation.node in self.registry:
                dues.append(reservation.sent_at + self._resend_s)
            dues.extend(until for until in reservation.refused_until.values() if now < until)
        visit.due = min(dues)

    def _end(
        self,
        visit: OpenVisit,
        reservation: Reservation,
        outcome: Outcome,
        reason: str,
        turn: orders.Turn,
        node: str | None = None,
    ) -> None:
        del visit.reservations[reservation.detector]
        self.reservations -= 1
        turn.writes.append(orders.SetOutcome(visit.number, reservation.detector, outcome, reason, node))

    def _close_if_ended(self, visit: OpenVisit, turn: orders.Turn) -> None:
        if not visit.reservations and self._visits.pop(visit.key, None) is not None:
            turn.writes.append(orders.CloseVisit(visit.number))


def _outcome_of(reason: str) -> Outcome:
    """Read the outcome off a final refusal such as ``no_pipeline: no rule``."""
    word = reason.partition(":")[0].strip()
    known: Iterable[str] = Outcome
    return Outcome(word) if word in known else Outcome.EXPIRED
