# SPDX-License-Identifier: BSD-3-Clause
"""Assigns the detectors of open visits to nodes: the relay's decisions, as pure code.

Events are method calls with the monotonic time; each returns an `Effects`: what
to write into the ledger, and what to send when that is on disk. Covers routing,
resending, refusals, cancellation, expiry, and nodes that connect or disconnect.
Does not cover sockets, the ledger, or whether a visit is accepted.

A detector is sent to one node. If that node refuses it, returns it, or is silent,
the detector is sent to another node with the next attempt number, and it is canceled
at the first node as soon as that one connects again. A detector for which its node has
a permit (`ppdaemon.relay.permits`) stays there: only that node knows what was written.
The node may process a detector again that has an outcome: this opens no visit here,
the ledger records the new outcome.

A detector whose nodes are all full waits here, so that a node with room again gets
the newest visit that waits, whose image arrives next.
"""

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable

from ppdaemon import log
from ppdaemon.messages import (
    Heartbeat,
    Hello,
    NodeMessage,
    PermitRequest,
    ResultEntry,
    Results,
    VisitAccepted,
    VisitRefused,
)
from ppdaemon.relay import orders
from ppdaemon.relay.assignments import WAITING, Assignments
from ppdaemon.relay.comparison import compare_held, unknown_outcomes
from ppdaemon.relay.demand import Demand
from ppdaemon.relay.noderegistry import NodeRegistry
from ppdaemon.relay.openvisit import OpenVisit, Reservation, ReservationState, VisitKey
from ppdaemon.relay.permits import judge_permits
from ppdaemon.relay.routing import Preferences
from ppdaemon.states import Outcome

__all__ = ("Dispatcher",)

_LOG = logging.getLogger(__name__)

UNASSIGNED, SENT, ACKNOWLEDGED, PERMITTED = (
    ReservationState.UNASSIGNED,
    ReservationState.SENT,
    ReservationState.ACKNOWLEDGED,
    ReservationState.PERMITTED,
)

REFUSAL_S = 5.0
"""A detector is not sent again to a node that refused it within this time. Short
against a visit, long enough that a full node is not asked at every tick."""

MAX_RESERVATIONS = 200_000
"""Open reservations, a night of LSSTCam; about 100 MB of memory."""

VISITS_PER_TICK = 500
"""Visits that are checked in one tick, about 10 ms; the others wait for the next one."""

FILLS_PER_TICK = 20
"""Waiting visits that are checked in one tick for each node that has room again, about 10 ms."""

MESSAGES_PER_TICK = 100
"""Visits that are sent to one node in one tick: a node for which thousands of
visits wait gets them about as fast as it can write its journal."""

PAUSE_S = 1.0
"""A longer gap between ticks (every 0.1 s) means that this process did not run and
received nothing: the gap does not count as silence of the nodes."""


class Dispatcher:
    """All open visits, and the nodes that they can be sent to.

    What is not acknowledged within `resend_s` is sent again; a node that sends
    nothing for `silence_s` is removed, and after `give_up_s` no outcome is expected
    from it. Nothing is routed in the first `rejoin_s` seconds, in which nodes connect
    again that were connected to the previous run of the relay, with the detectors
    that they have.
    """

    def __init__(
        self, *, resend_s: float, silence_s: float, rejoin_s: float, give_up_s: float, shadow: bool = False
    ):
        self._shadow = shadow
        self._resend_s = resend_s
        self._rejoin_s = rejoin_s
        self._silence_s = silence_s
        self._compared: set[str] = set()
        """Nodes with whose journals the ledger has been compared."""
        self._expected: set[str] = set()
        """Nodes of the previous run that have not connected yet."""
        self.adopted = 0
        """Visit-detectors of nodes that the ledger did not know: it is an older copy."""
        self._give_up_s = give_up_s
        self._routing_starts_at = math.inf
        self._ticked_at: float | None = None
        self._visits: dict[VisitKey, OpenVisit] = {}
        self.reservations = 0
        """Number of detectors without an outcome, of all visits."""
        self._allowance: dict[str, int] = {}
        self.registry = NodeRegistry(silence_s)
        self.assignments = Assignments()
        self.demand = Demand()

    # --- queries ------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._visits)

    def is_new(self, peer: bytes, hello: Hello) -> bool:
        """Return whether a hello is the first one of a node since the start, with whose journal the ledger
        must be compared. Later ones are not believed: what the ledger does not know then is not true.
        """
        if self._has_other_mode(hello) or self.registry.conflicting_peer(hello, peer) is not None:
            return False  # it is refused
        return hello.complete and hello.origin not in self._compared

    def _has_other_mode(self, hello: Hello) -> bool:
        return bool(hello.shadow) != self._shadow

    def open_detectors(self, key: VisitKey) -> dict[int, ReservationState]:
        """Return the detectors of a visit without an outcome; empty if it is not open."""
        visit = self._visits.get(key)
        return {} if visit is None else {r.detector: r.state for r in visit.reservations.values()}

    # --- new and canceled visits --------------------------------------------

    def add(self, visit: OpenVisit, now: float, *, serve: bool = True) -> orders.Effects:
        """Open a visit that is in the ledger, or add its reservations to the open visit of its group. Without
        `serve` it is served with the next tick: the hello of its node follows at once.
        """
        self._allow_for_pause(now)
        effects = orders.Effects()
        self.reservations += len(visit.reservations)
        if (present := self._visits.get(visit.key)) is not None:
            present.reservations |= visit.reservations
            present.cancelled |= visit.cancelled
            if present.adopted and not visit.adopted:
                present.visit, present.adopted = visit.visit, False
            visit = present
        elif not visit.adopted:
            self.demand.add_visit(visit.visit.instrument, visit.received_at, len(visit.reservations))
        self._visits[visit.key] = visit
        if serve:
            self._serve(visit, now, effects)
        else:
            visit.due = now
        return effects

    def has_room(self, detectors: int) -> bool:
        """Return whether this number of reservations can be added."""
        return self.reservations + detectors <= MAX_RESERVATIONS

    def make_room(self, detectors: int) -> orders.Effects:
        """Expire the oldest visits that no node has, until there is room.

        Call `has_room` afterwards: it may still be `False`.
        """
        effects = orders.Effects()
        for visit in list(self._visits.values()):
            if self.has_room(detectors):
                break
            # A visit of which a node may have a detector stays open, or the outcome that
            # the node sends would be lost.
            if len(visit.in_state(UNASSIGNED)) == len(visit.reservations):
                for reservation in visit.in_state(UNASSIGNED):
                    self._end(visit, reservation, Outcome.EXPIRED, "made room for newer visits", effects)
                self._close_if_ended(visit, effects)
        return effects

    def expect(self, nodes: Iterable[str]) -> None:
        """Route nothing before these nodes have connected, at most for twice `silence_s`: what they have
        done may not be in the ledger. Called before the first tick.
        """
        self._expected.update(nodes)

    def cancel(self, key: VisitKey, now: float) -> orders.Effects:
        """Cancel a visit; no effects if it is not open or canceled already."""
        self._allow_for_pause(now)
        effects = orders.Effects()
        visit = self._visits.get(key)
        if visit is not None and not visit.cancelled:
            visit.cancelled = True
            effects.writes.append(orders.SetCancelled(visit.number))
            self._serve(visit, now, effects)
        return effects

    # --- operators ----------------------------------------------------------

    def set_drained(self, nodes: Iterable[str], now: float) -> None:
        """Set which nodes get nothing new; what they have stays with them."""
        self.registry.set_drained(nodes)
        self._schedule_all(now)

    def set_preferences(self, preferences: Preferences, now: float) -> None:
        """Set the table of nodes and detectors; it counts for what is sent from now on."""
        self.registry.set_preferences(preferences)
        self._schedule_all(now)

    # --- messages of nodes --------------------------------------------------

    def receive(self, peer: bytes, message: NodeMessage, now: float) -> orders.Effects:
        """Handle a message that arrived on the connection `peer`."""
        self._allow_for_pause(now)
        if isinstance(message, Hello):
            return self._on_hello(peer, message, now)
        sender = self.registry.receive(peer, now)
        if sender is None:
            return orders.Effects.of(
                orders.RefuseHello(
                    peer, "stranger", "this connection is not registered at the relay: send hello"
                )
            )
        node, effects = sender.name, orders.Effects()
        if sender.sequence.received(message.sequence, now):  # messages before it were lost
            effects.sends.append(orders.RequestHello(peer))
        match message:
            case VisitAccepted():
                self._accepted_visit(node, peer, message, now, effects)
            case VisitRefused():
                self._refused_visit(node, message, now, effects)
            case PermitRequest():
                effects.add(judge_permits(self._visits, sender, message))
            case Results():
                counted = [self._result(node, entry, now, effects) for entry in message.entries]
                # Confirmed even if an entry had no effect, or the node would repeat it
                # without end. It is sent when the writes above are on disk.
                keys = tuple((e.instrument, e.group, e.detector, e.attempt) for e in message.entries)
                moved = tuple(key for key, counts in zip(keys, counted, strict=True) if not counts)
                effects.sends.append(orders.ConfirmResults(peer, keys, moved))
            case Heartbeat(state=state, problem=problem):
                sender.state, sender.problem = state, problem
        return effects

    def disconnect(self, peer: bytes, now: float) -> None:
        """Remove the node of a closed connection; the next tick does the rest."""
        node = self.registry.disconnect(peer)
        if node is not None:
            _LOG.warning(
                "node disconnected; what it has not acknowledged is sent to other nodes now, what it may"
                " not write yet if it stays silent",
                extra={"node": node},
            )
            self._schedule_all(now)

    def tick(self, now: float) -> orders.Effects:
        """Check nodes and visits that are due at this time."""
        effects = orders.Effects()
        # Counted from the first tick, not from the start: opening a large ledger takes
        # time in which no node can register.
        if self._ticked_at is None:
            self._routing_starts_at = now + self._rejoin_s
            if self._expected:
                self._routing_starts_at = now + max(self._rejoin_s, 2 * self._silence_s)
            self.registry.started_at = now
            self._schedule_all(now)
        self._allow_for_pause(now)
        self._ticked_at = now
        silent = self.registry.drop_silent(now)
        for node in silent:
            _LOG.warning(
                "no message from node; detectors for which it has no permit are sent to other nodes",
                extra={"node": node},
            )
        if silent:
            self._schedule_all(now)
        self._allowance.clear()
        # The newest first: when capacity is short, its images are the next to arrive.
        due = (visit for visit in reversed(self._visits.values()) if visit.due <= now)
        # A list, because serving a visit may remove it from the dictionary.
        for visit in list(itertools.islice(due, VISITS_PER_TICK)):
            self._serve(visit, now, effects)
        if now >= self._routing_starts_at:
            self.assignments.freed = {
                node for node in self.assignments.freed if not self._fill(node, now, effects)
            }
        return effects

    def _allow_for_pause(self, now: float) -> None:
        """Extend the silence of nodes by a time in which this process did not run. Called before each
        decision: the first event after a pause may be another one than a tick.
        """
        if self._ticked_at is not None and now - self._ticked_at > PAUSE_S:
            pause_s, self._ticked_at = now - self._ticked_at, now
            _LOG.warning(
                "pprelay did not run for a time, which does not count as silence of nodes",
                extra={"pause_s": round(pause_s, 3)},
            )
            self.registry.extend_silence(pause_s)

    def _fill(self, node: str, now: float, effects: orders.Effects) -> bool:
        """Send the newest waiting visits to a node that has room again; return `False` if the next
        tick must continue.
        """
        offer = self.registry.offer_of(node)
        served: set[VisitKey] = set()
        while offer is not None and not self.assignments.is_full(offer):
            if len(served) >= FILLS_PER_TICK:
                return False
            visit = self.assignments.newest_waiting(offer, served)
            if visit is None:
                break
            served.add(visit.key)  # the node may have refused its detectors recently
            self._serve(visit, now, effects)
        return True

    def _on_hello(self, peer: bytes, hello: Hello, now: float) -> orders.Effects:
        if self._has_other_mode(hello):
            # Its outcomes would count although nothing of them is in the central repo, or the reverse.
            modes = ("is not in shadow mode, but this relay is", "is in shadow mode, but this relay is not")
            reason = f"node {hello.origin} {modes[not self._shadow]}: shadow must be the same in both files"
            return orders.Effects.of(orders.RefuseHello(peer, "taken", reason))
        conflict = self.registry.conflicting_peer(hello, peer)
        if conflict is not None:
            reason = f"another node named {hello.origin} is connected: give each node its own node.name"
            # The heartbeat shows at once whether the other connection is still open: a
            # restarted node need not wait until its previous run counts as silent.
            return orders.Effects.of(
                orders.SendHeartbeat(conflict), orders.RefuseHello(peer, "taken", reason)
            )
        if not hello.complete and hello.origin not in self._compared:
            # The relay has started again, which the node has not noticed: it has to list its outcomes, too.
            return orders.Effects.of(
                orders.RefuseHello(peer, "stranger", "the relay has started again: send hello")
            )
        _LOG.info("node connected", extra={"node": hello.origin, "capacity": hello.capacity})
        self.registry.register(hello, peer, now)
        self._arrived(hello.origin, now)
        effects = orders.Effects.of(orders.SendWelcome(peer))
        is_first = hello.origin not in self._compared
        self._compared.add(hello.origin)
        if is_first:
            self._adopt_outcomes(hello, effects)
        corrected, own, adopted = compare_held(self._visits, hello, peer, now, adopt=is_first)
        effects.add(corrected)
        self.adopted += adopted
        # Before other visits are routed: it may be full already. Only its own visits are checked, and
        # what waits for it: a node sends hello whenever its capacity changes.
        for visit, reservation in own:
            self._place(visit, reservation, now)
            visit.due = now
        self.assignments.freed.add(hello.origin)
        return effects

    def _arrived(self, node: str, now: float) -> None:
        """Begin to route when the last expected node has connected."""
        if node in self._expected:
            self._expected.discard(node)
            if not self._expected and now < self._routing_starts_at < math.inf:
                self._routing_starts_at = max(now, self.registry.started_at + self._rejoin_s)
                self._schedule_all(now)

    def _adopt_outcomes(self, hello: Hello, effects: orders.Effects) -> None:
        """End what a node has ended, and the ledger does not know."""
        for visit, reservation, ended in unknown_outcomes(self._visits, hello):
            detectors = (reservation.detector,)
            effects.writes.append(orders.SetRoute(visit.number, hello.origin, ended.attempt, detectors))
            # Without the node: its own message, if one follows, has the reason and replaces this.
            self._end(visit, reservation, ended.outcome, orders.ADOPTED, effects)
            self.adopted += 1
            self._close_if_ended(visit, effects)

    def _accepted_visit(
        self, node: str, peer: bytes, ack: VisitAccepted, now: float, effects: orders.Effects
    ) -> None:
        visit = self._visits.get((ack.instrument, ack.group))
        acked, not_reserved = [], []
        for detector in ack.detectors:
            reservation = None if visit is None else visit.reservations.get(detector)
            if reservation is None or (reservation.node, reservation.attempt) != (node, ack.attempt):
                not_reserved.append(detector)
            elif reservation.state is SENT:
                reservation.state, reservation.acknowledged_at = ACKNOWLEDGED, now
                acked.append(detector)
        if not_reserved:  # it has an outcome already, or another node has it
            effects.sends.append(
                orders.Withdraw(peer, ack.instrument, ack.group, tuple(not_reserved), ack.attempt)
            )
        if visit is not None and acked:
            effects.writes.append(orders.SetAcknowledged(visit.number, tuple(acked)))
            self._schedule(visit, now)

    def _refused_visit(self, node: str, nak: VisitRefused, now: float, effects: orders.Effects) -> None:
        visit = self._visits.get((nak.instrument, nak.group))
        if visit is None:
            return
        released: dict[int, list[int]] = defaultdict(list)
        for detector in nak.detectors:
            reservation = visit.reservations.get(detector)
            if reservation is None or (reservation.node, reservation.attempt) != (node, nak.attempt):
                continue
            if nak.final and reservation.state is SENT:
                # Not in the node's journal: an outcome that follows nevertheless replaces it.
                self._end(visit, reservation, _outcome_of(nak.reason), nak.reason, effects)
            elif not nak.final and reservation.state is not PERMITTED:
                reservation.refused_until[node] = now + REFUSAL_S
                reservation.release()
                released[reservation.attempt].append(detector)
        _write_released(visit, released, effects)
        with log.about(instrument=nak.instrument, group=nak.group, node=node, reason=nak.reason):
            _LOG.info("node refused a visit", extra={"detectors": len(nak.detectors)})
        self._serve(visit, now, effects)

    def _result(self, node: str, entry: ResultEntry, now: float, effects: orders.Effects) -> bool:
        """Record an outcome of the node that has the detector; return `False` if another one has it.
        For a visit that is closed the ledger decides.
        """
        visit = self._visits.get((entry.instrument, entry.group))
        reservation = None if visit is None else visit.reservations.get(entry.detector)
        if visit is None or reservation is None:
            if not entry.returned:
                key = (entry.instrument, entry.group, entry.detector)
                effects.writes.append(
                    orders.UpdateOutcome(*key, node, entry.attempt, entry.outcome, entry.reason)
                )
            return True
        asked = entry.attempt if entry.asked is None else entry.asked
        if (reservation.node, reservation.attempt) != (node, asked):
            fields = entry.model_dump(include={"instrument", "group", "detector", "attempt", "outcome"})
            with log.about(**fields, node=node):
                _LOG.info("ignored an outcome: the detector was moved to another node")
            return entry.returned is True or reservation.node == node
        if entry.returned:
            reservation.refused_until[node] = now + REFUSAL_S
            reservation.release()
            effects.writes.append(
                orders.ClearRoute(visit.number, (reservation.detector,), reservation.attempt)
            )
            self._serve(visit, now, effects)
        else:
            if entry.outcome == Outcome.SUCCEEDED and reservation.acknowledged_at is not None:
                self.demand.add_success(entry.instrument, now - reservation.acknowledged_at)
            self._end(visit, reservation, entry.outcome, entry.reason, effects, node)
            self._close_if_ended(visit, effects)
        return True

    # --- open visits --------------------------------------------------------

    def _schedule_all(self, now: float) -> None:
        """Let the next tick check all visits, because the set of nodes has changed."""
        for visit in self._visits.values():
            visit.due = now

    def _serve(self, visit: OpenVisit, now: float, effects: orders.Effects) -> None:
        """Do everything that is due for a visit; repeating it is harmless."""
        if now >= visit.expires_at:
            self._expire(visit, now, effects)
        self._give_up(visit, now, effects)
        # Before sending: a new route is sent in the same tick, after its write.
        if visit.cancelled:
            self._end_cancelled(visit, now, effects)
        else:
            self._route(visit, now, effects)
        self._send(visit, now, effects)
        if visit.cancelled:
            self._send_cancel(visit, effects)
        self._close_if_ended(visit, effects)
        for reservation in visit.reservations.values():
            self._place(visit, reservation, now)
        self._schedule(visit, now)

    def _expire(self, visit: OpenVisit, now: float, effects: orders.Effects) -> None:
        outcome = Outcome.CANCELLED if visit.cancelled else Outcome.EXPIRED
        withdrawn: dict[tuple[str, int], list[int]] = defaultdict(list)
        for reservation in visit.in_state(UNASSIGNED, SENT):
            reason = f"no node served detector {reservation.detector} in time"
            if reservation.state is SENT:
                reason = f"{reservation.node} did not acknowledge it in time"
                withdrawn[reservation.node, reservation.attempt].append(reservation.detector)
            self._end(visit, reservation, outcome, reason, effects)
        for (node, attempt), detectors in withdrawn.items():
            if node in self.registry:
                peer = self.registry[node].peer
                effects.sends.append(orders.Withdraw(peer, *visit.key, tuple(detectors), attempt))

    def _give_up(self, visit: OpenVisit, now: float, effects: orders.Effects) -> None:
        """End the detectors whose nodes are silent for so long that no outcome is expected."""
        for reservation in visit.in_state(ACKNOWLEDGED, PERMITTED):
            if now >= visit.abandon_at:
                reason = f"{reservation.node} acknowledged it and sent no outcome"
            elif now >= self.registry.last_message_at(reservation.node) + self._give_up_s:
                reason = f"{reservation.node} is silent"
                if reservation.state is not PERMITTED and not reservation.alone:
                    reason = f"{reason}; it has written nothing permanent"
            elif now >= reservation.missing_since + self._give_up_s:
                reason = f"{reservation.node} no longer has it, and sent no outcome"
            else:
                continue
            if reservation.state is PERMITTED or reservation.alone:
                reason = f"may have crossed: {reason}"
            self._end(visit, reservation, Outcome.INTERRUPTED, reason, effects)

    def _end_cancelled(self, visit: OpenVisit, now: float, effects: orders.Effects) -> None:
        """End the detectors that no connected node has; the nodes send the others' outcomes."""
        for reservation in visit.in_state(UNASSIGNED, SENT, ACKNOWLEDGED):
            if reservation.state is UNASSIGNED or self._may_move(reservation, now):
                reason = "canceled before a node acknowledged it"
                if reservation.state is ACKNOWLEDGED:
                    reason = f"canceled while {reservation.node} is silent"
                self._end(visit, reservation, Outcome.CANCELLED, reason, effects)

    def _may_move(self, reservation: Reservation, now: float) -> bool:
        """Return whether a detector that was sent to a node may be given to another one."""
        if now < self._routing_starts_at or reservation.node in self.registry or reservation.alone:
            return False
        # What is acknowledged has cost its node work: a connection that was only
        # interrupted is open again before the node counts as silent.
        return reservation.state is SENT or now >= self.registry.silent_at(reservation.node)

    def _route(self, visit: OpenVisit, now: float, effects: orders.Effects) -> None:
        """Choose nodes for detectors without one, and for those whose node is silent
        and has no permit.
        """
        if now < self._routing_starts_at or now >= visit.expires_at:  # a node would refuse it
            return
        if visit.adopted:
            return
        routed: dict[tuple[str, int], list[int]] = defaultdict(list)
        released: dict[int, list[int]] = defaultdict(list)
        full = {node.offer.node for node in self.registry.nodes if self.assignments.is_full(node.offer)}
        for reservation in visit.in_state(UNASSIGNED, SENT, ACKNOWLEDGED):
            if not self._needs_node(reservation, now):
                continue
            excluded = full | {node for node, until in reservation.refused_until.items() if now < until}
            node = self.registry.routes.choose(visit.visit.instrument, reservation.detector, excluded)
            if node is None:
                continue
            if reservation.node:
                reservation.release()
                released[reservation.attempt].append(reservation.detector)
            reservation.state = SENT
            reservation.node = node
            reservation.alone = self.registry[node].alone
            reservation.sent_at = -math.inf
            self.assignments.place(visit, reservation, node)
            offer = self.registry.offer_of(node)
            if offer is not None and self.assignments.is_full(offer):
                full.add(node)
            routed[node, reservation.attempt].append(reservation.detector)
        _write_released(visit, released, effects)
        for (node, attempt), detectors in routed.items():
            alone = self.registry[node].alone
            effects.writes.append(orders.SetRoute(visit.number, node, attempt, tuple(detectors), alone))

    def _place(self, visit: OpenVisit, reservation: Reservation, now: float) -> None:
        """Count a reservation where it is now."""
        place = WAITING if self._needs_node(reservation, now) else reservation.node
        self.assignments.place(visit, reservation, place)

    def _needs_node(self, reservation: Reservation, now: float) -> bool:
        """Return whether a detector may be sent to a node."""
        return reservation.state is UNASSIGNED or (
            reservation.state is not PERMITTED and self._may_move(reservation, now)
        )

    def _send(self, visit: OpenVisit, now: float, effects: orders.Effects) -> None:
        """Send what is not acknowledged, for the first time or again: one message per node."""
        to_send: dict[tuple[str, int], list[int]] = defaultdict(list)
        for reservation in visit.in_state(SENT) if not visit.adopted else ():
            if reservation.node in self.registry and now >= reservation.sent_at + self._resend_s:
                reservation.sent_at = now
                to_send[reservation.node, reservation.attempt].append(reservation.detector)
        for (node, attempt), detectors in to_send.items():
            allowance = self._allowance.get(node, MESSAGES_PER_TICK)
            if allowance:  # else it is sent after resend_s, like a lost message
                self._allowance[node] = allowance - 1
                peer = self.registry[node].peer
                effects.sends.append(
                    orders.Reserve(peer, visit.visit, tuple(detectors), attempt, visit.received_at)
                )

    def _send_cancel(self, visit: OpenVisit, effects: orders.Effects) -> None:
        states = (SENT, ACKNOWLEDGED, PERMITTED)
        for node in sorted({reservation.node for reservation in visit.in_state(*states)}):
            if node in self.registry:
                effects.sends.append(orders.Withdraw(self.registry[node].peer, *visit.key))

    def _schedule(self, visit: OpenVisit, now: float) -> None:
        """Set when a visit must be checked again if no event comes before."""
        if visit.cancelled:
            visit.due = now + self._resend_s
            return
        dues = [visit.expires_at if now < visit.expires_at else visit.abandon_at]
        if now < self._routing_starts_at:
            dues.append(self._routing_starts_at)
        for reservation in visit.reservations.values():
            if reservation.state in (ACKNOWLEDGED, PERMITTED):
                if reservation.node not in self.registry:
                    silent_at = self.registry.silent_at(reservation.node)
                    given_up_at = self.registry.last_message_at(reservation.node) + self._give_up_s
                    dues.append(silent_at if now < silent_at else given_up_at)
                if reservation.missing_since < math.inf:
                    dues.append(reservation.missing_since + self._give_up_s)
            elif reservation.state is SENT and reservation.node in self.registry:
                dues.append(reservation.sent_at + self._resend_s)
            if reservation.refused_until:
                dues.extend(until for until in reservation.refused_until.values() if now < until)
        visit.due = min(dues)

    def _end(
        self,
        visit: OpenVisit,
        reservation: Reservation,
        outcome: Outcome,
        reason: str,
        effects: orders.Effects,
        node: str | None = None,
    ) -> None:
        self.assignments.remove(visit, reservation)
        del visit.reservations[reservation.detector]
        self.reservations -= 1
        effects.writes.append(orders.SetOutcome(visit.number, reservation.detector, outcome, reason, node))
        effects.ended.append(
            orders.Ended(
                *visit.key,
                reservation.detector,
                visit.visit.survey,
                visit.received_tai,
                reservation.node,
                reservation.attempt,
                outcome,
                reason,
            )
        )

    def _close_if_ended(self, visit: OpenVisit, effects: orders.Effects) -> None:
        if not visit.reservations and self._visits.pop(visit.key, None) is not None:
            effects.writes.append(orders.CloseVisit(visit.number))


def _write_released(visit: OpenVisit, released: dict[int, list[int]], effects: orders.Effects) -> None:
    for attempt, detectors in released.items():
        effects.writes.append(orders.ClearRoute(visit.number, tuple(detectors), attempt))


def _outcome_of(reason: str) -> Outcome:
    """Return the outcome that a final refusal begins with, as in ``no_pipeline: no rule``."""
    word = reason.partition(":")[0].strip()
    known: Iterable[str] = Outcome
    return Outcome(word) if word in known else Outcome.EXPIRED
