# SPDX-License-Identifier: BSD-3-Clause
"""The dispatcher with a bad network, crashing nodes and its own restarts.

Random sequences of losses, delays, restarts and cancellations; then all is
well for a while. Whatever happened, each detector has exactly one outcome.
"""

from collections import deque
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ppdaemon.messages import Heartbeat, Hello, ResultEntry, Results, VisitAccepted, VisitRefused
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.openvisit import Reservation, ReservationState, make_open_visit
from ppdaemon.relay.orders import (
    CloseVisit,
    ConfirmResults,
    RefuseHello,
    Reserve,
    SetAcknowledged,
    SetCancelled,
    SetOutcome,
    SetRoute,
    Withdraw,
)
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit

ENVELOPE = {"sent_tai": 0.0, "sequence": 1}
OFFERS = {"a": (0, 1, 2), "b": (1, 2, 3), "c": (4,)}
CAPACITY = {"a": 9, "b": 2, "c": 1}
DETECTORS = range(5)
EXPIRY_S = 60.0
STEP_S = 0.25


class SimulatedNode:
    """A node with a journal that outlives it; talks into a queue."""

    def __init__(self, name):
        self.name = name
        self.incarnation = 0
        self.words = deque()
        self.journal = {}
        self.confirmed = set()
        self.runs = []

    def hello(self):
        offer = {"DemoCam": OFFERS[self.name]}
        self._send(Hello, incarnation=str(self.incarnation), instruments=offer, capacity=CAPACITY[self.name])

    def _send(self, kind, **fields):
        self.words.append(kind(origin=self.name, **fields, **ENVELOPE))

    def receive(self, order):
        match order:
            case Reserve(_, visit, detectors, attempt, _) if detectors[0] == 3 and not self.journal:
                names = {"instrument": visit.instrument, "group": visit.group}
                self._send(
                    VisitRefused, **names, detectors=detectors, attempt=attempt, reason="full", final=False
                )
                self.journal[None] = None  # refuses only once
            case Reserve(_, visit, detectors, attempt, _):
                for detector in detectors:
                    self.journal.setdefault((visit.instrument, visit.group, detector, attempt), None)
                names = {"instrument": visit.instrument, "group": visit.group}
                self._send(VisitAccepted, **names, detectors=detectors, attempt=attempt)
            case Withdraw(_, instrument, group, detectors):
                for key, outcome in self.journal.items():
                    matching = key and key[:2] == (instrument, group) and key[2] in (detectors or DETECTORS)
                    if matching and outcome is None:
                        self.journal[key] = Outcome.CANCELLED
            case ConfirmResults(_, keys):
                self.confirmed.update(keys)
            case RefuseHello():
                self.hello()

    def work(self):
        """Finish one visit-detector, if there is one."""
        for key, outcome in self.journal.items():
            if key and outcome is None:
                self.journal[key] = Outcome.SUCCEEDED
                self.runs.append(key)
                return

    def beat(self):
        self._send(Heartbeat)
        entries = [
            ResultEntry(instrument=k[0], group=k[1], detector=k[2], attempt=k[3], outcome=outcome)
            for k, outcome in self.journal.items()
            if k and outcome and k not in self.confirmed
        ]
        if entries:
            self._send(Results, entries=tuple(entries))

    def restart(self):
        self.incarnation += 1
        self.words.clear()
        self.hello()


class World:
    """A relay, its ledger, three nodes and a network."""

    def __init__(self):
        self.now = 0.0
        self.visits = {}
        self.rows = {}
        self.outcomes = {}
        self.closed = []
        self.nodes = {name: SimulatedNode(name) for name in OFFERS}
        self.wires = {name: deque() for name in OFFERS}
        self.boot()
        for node in self.nodes.values():
            node.hello()

    def boot(self):
        self.dispatcher = Dispatcher(resend_s=0.5, silence_s=2.0, rejoin_s=1.0)
        for number, (visit, cancelled, received) in self.visits.items():
            rows = [replace(self.rows[number, d]) for d in DETECTORS if (number, d) not in self.outcomes]
            if rows:
                self.open(number, visit, rows, received, cancelled)

    def open(self, number, visit, rows, received, cancelled=False):
        times = {
            "received_tai": received,
            "expiry_s": EXPIRY_S,
            "now": self.now,
            "age_s": self.now - received,
        }
        self.perform(
            self.dispatcher.add(make_open_visit(number, visit, rows, cancelled=cancelled, **times), self.now)
        )

    def perform(self, effects):
        for write in effects.writes:
            self.record(write)
        for send in effects.sends:
            self.wires[send.peer.decode()].append(send)

    def record(self, write):
        match write:
            case SetRoute(number, node, attempt, detectors):
                for d in detectors:
                    row = self.rows[number, d]
                    assert row.state is not ReservationState.ACKNOWLEDGED, (
                        "moved although it was acknowledged"
                    )
                    former = row.previous_nodes | {row.node} if attempt > row.attempt else row.previous_nodes
                    self.rows[number, d] = Reservation(
                        d, ReservationState.SENT, node, attempt, previous_nodes=former
                    )
            case SetAcknowledged(number, detectors):
                for d in detectors:
                    self.rows[number, d].state = ReservationState.ACKNOWLEDGED
            case SetOutcome(number, detector, outcome, _, _):
                assert (number, detector) not in self.outcomes, "two outcomes"
                self.outcomes[number, detector] = outcome
            case SetCancelled(number):
                visit, _, received = self.visits[number]
                self.visits[number] = (visit, True, received)
            case CloseVisit(number):
                assert all((number, d) in self.outcomes for d in DETECTORS), "closed too early"
                assert number not in self.closed, "closed twice"
                self.closed.append(number)

    # --- what may happen ------------------------------------------------------

    def announce(self):
        number = len(self.visits) + 1
        visit = read_next_visit({"groupId": f"g{number}", "instrument": "DemoCam"})
        self.visits[number] = (visit, False, self.now)
        self.rows |= {(number, d): Reservation(d) for d in DETECTORS}
        self.open(number, visit, [Reservation(d) for d in DETECTORS], self.now)

    def cancel(self):
        if self.visits:
            self.perform(self.dispatcher.cancel(("DemoCam", f"g{len(self.visits)}"), self.now))

    def deliver(self, name):
        """Carry everything between the relay and a node."""
        node, wire = self.nodes[name], self.wires[name]
        while node.words or wire:
            while wire:
                node.receive(wire.popleft())
            while node.words:
                self.perform(self.dispatcher.receive(name.encode(), node.words.popleft(), self.now))

    def disconnect(self, name):
        """Lose everything under way to and from a node."""
        self.wires[name].clear()
        self.nodes[name].words.clear()

    def drop_messages(self, name):
        self.disconnect(name)
        self.dispatcher.disconnect(name.encode(), self.now)

    def tick(self):
        self.now += STEP_S
        for node in self.nodes.values():
            node.beat()
        self.perform(self.dispatcher.tick(self.now))

    def act(self, what, name):
        match what:
            case "announce":
                self.announce()
            case "cancel":
                self.cancel()
            case "deliver":
                self.deliver(name)
            case "disconnect":
                self.disconnect(name)
            case "hang up":
                self.drop_messages(name)
            case "node restarts":
                self.nodes[name].restart()
            case "work":
                self.nodes[name].work()
            case "relay restarts":
                for each in self.nodes:
                    self.disconnect(each)
                self.boot()
            case "tick":
                self.tick()


ACTIONS = ["announce", "cancel", "hang up", "node restarts", "work", "relay restarts", "disconnect"]
STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS + ["tick"] * 7 + ["deliver"] * 7), st.sampled_from(sorted(OFFERS))),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happened_each_detector_has_exactly_one_outcome_in_the_end(steps):
    world = World()
    world.announce()
    for what, name in steps:
        world.act(what, name)
    for _ in range(round(2 * EXPIRY_S / STEP_S)):
        world.tick()
        for name, node in world.nodes.items():
            world.deliver(name)
            node.work()
        if len(world.closed) == len(world.visits):
            break
    assert len(world.dispatcher) == 0
    assert (world.dispatcher.assignments.nodes, list(world.dispatcher.assignments.waiting())) == ((), [])
    assert set(world.outcomes) == {(number, d) for number in world.visits for d in DETECTORS}
    assert sorted(world.closed) == sorted(world.visits)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["disconnect", "tick", "deliver", "relay restarts"]), st.sampled_from("abc")
        )
    )
)
def test_a_lossy_network_alone_neither_loses_nor_doubles_work(steps):
    world = World()
    world.announce()
    for what, name in steps:
        if what != "deliver":
            world.act(what, name)
        for each in world.nodes:  # no node is silent for silence_s
            if (each, what) != (name, "disconnect"):
                world.deliver(each)
    for _ in range(200):
        world.tick()
        for name, node in world.nodes.items():
            world.deliver(name)
            node.work()
    assert {outcome for outcome in world.outcomes.values()} == {Outcome.SUCCEEDED}
    runs = [key[:3] for node in world.nodes.values() for key in node.runs]
    assert len(runs) == len(set(runs)) == len(DETECTORS)


def test_the_simulated_nodes_send_what_the_relay_accepts():
    world = World()
    for _ in range(2):
        for name in world.nodes:
            world.deliver(name)
        world.tick()
    assert all(name in world.dispatcher.registry for name in OFFERS)
