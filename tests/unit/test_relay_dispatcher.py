# SPDX-License-Identifier: BSD-3-Clause
"""What the relay decides: exact effects for each event, with a clock made of numbers."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdaemon.messages import (
    DetectorsOfVisit,
    EndedDetectors,
    Heartbeat,
    HeldDetectors,
    Hello,
    PermitRequest,
    ResultEntry,
    Results,
    VisitAccepted,
    VisitRefused,
)
from ppdaemon.relay import dispatcher as dispatcher_module
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.noderegistry import NodeRegistry
from ppdaemon.relay.openvisit import Reservation, ReservationState, make_open_visit
from ppdaemon.relay.orders import (
    ADOPTED,
    ClearRoute,
    CloseVisit,
    ConfirmResults,
    Effects,
    Ended,
    Permit,
    RefuseHello,
    RefusePermit,
    RequestHello,
    Reserve,
    SendHeartbeat,
    SendWelcome,
    SetAcknowledged,
    SetCancelled,
    SetOutcome,
    SetPermitted,
    SetRoute,
    UpdateOutcome,
    Withdraw,
)
from ppdaemon.relay.permits import REFUSED
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit

VISIT = read_next_visit({"groupId": "g", "instrument": "DemoCam"})
KEY = ("DemoCam", "g")
ENVELOPE = {"sent_tai": 0.0, "sequence": 1}
NAMES = {"instrument": "DemoCam", "group": "g"}
UNASSIGNED, SENT, ACKNOWLEDGED, PERMITTED = (
    ReservationState.UNASSIGNED,
    ReservationState.SENT,
    ReservationState.ACKNOWLEDGED,
    ReservationState.PERMITTED,
)

RESEND_S = 0.5
SILENCE_S = 4.0
GIVE_UP_S = 900.0
EXPIRY_S = 3600.0


def hello(name, detectors=(0, 1), incarnation="run1", capacity=9, **fields):
    return Hello(
        origin=name,
        incarnation=incarnation,
        instruments={"DemoCam": detectors},
        capacity=capacity,
        **ENVELOPE | fields,
    )


def of_visit(*detectors, attempt=1):
    return DetectorsOfVisit(detectors=detectors, attempt=attempt, **NAMES)


def holds(state, *detectors, attempt=1):
    return HeldDetectors(detectors=detectors, attempt=attempt, state=state, **NAMES)


def ask(name, *visits):
    return PermitRequest(origin=name, visits=visits, **ENVELOPE)


def ack(name, *detectors, attempt=1):
    return VisitAccepted(origin=name, detectors=detectors, attempt=attempt, **NAMES, **ENVELOPE)


def nak(name, *detectors, reason="full", final=False, attempt=1, handed_back=False):
    fields = {"attempt": attempt, "reason": reason, "final": final, "handed_back": handed_back}
    return VisitRefused(origin=name, detectors=detectors, **fields, **NAMES, **ENVELOPE)


def results(name, *detectors, outcome=Outcome.SUCCEEDED, attempt=1, **fields):
    entries = tuple(
        ResultEntry(detector=d, attempt=attempt, outcome=outcome, **fields, **NAMES) for d in detectors
    )
    return Results(origin=name, entries=entries, **ENVELOPE)


def confirm(peer, *detectors, attempt=1):
    return ConfirmResults(peer, tuple((*KEY, d, attempt) for d in detectors))


def reserve(peer, *detectors, attempt=1):
    return Reserve(peer, VISIT, detectors, attempt, 0.0)


def ended(detector, outcome, reason="", node=None):
    return SetOutcome(1, detector, outcome, reason, node)


@pytest.fixture
def dispatcher():
    return Dispatcher(resend_s=RESEND_S, silence_s=SILENCE_S, rejoin_s=0.0, give_up_s=GIVE_UP_S)


def open_visit(*detectors, now=0.0, **fields):
    reservations = [Reservation(detector) for detector in detectors or (0, 1)]
    times = {"received_tai": 0.0, "age_s": now, "expiry_s": EXPIRY_S}
    return make_open_visit(1, VISIT, reservations, now=now, **times, **fields)


def join(dispatcher, name, detectors=(0, 1), now=0.0, **fields):
    """Register a node on the connection of its name; return the effects."""
    effects = dispatcher.receive(name.encode(), hello(name, detectors, **fields), now)
    after = dispatcher.tick(now)
    return Effects(effects.writes + after.writes, effects.sends + after.sends)


def alive(dispatcher, now, *names):
    for name in names:
        assert dispatcher.receive(name.encode(), Heartbeat(origin=name, **ENVELOPE), now) == Effects()


def test_what_a_node_reports_of_itself_is_that_of_its_last_heartbeat(dispatcher):
    join(dispatcher, "a", version="1.2.3")
    (node,) = dispatcher.registry.nodes
    assert (node.version, node.state, node.problem) == ("1.2.3", "", "")
    told = Heartbeat(origin="a", **ENVELOPE, state="degraded", problem="the disk is full")
    dispatcher.receive(b"a", told, 1.0)
    assert (node.state, node.problem) == ("degraded", "the disk is full")
    alive(dispatcher, 2.0, "a")  # an older node, or one without a problem
    assert (node.state, node.problem) == ("", "")


# --- routing ---------------------------------------------------------------


def test_a_visit_goes_to_the_node_at_once_in_one_message(dispatcher):
    join(dispatcher, "a")
    effects = dispatcher.add(open_visit(), 0.0)
    assert effects == Effects.of(reserve(b"a", 0, 1), writes=[SetRoute(1, "a", 1, (0, 1))])


def test_each_node_gets_one_message_with_its_own_detectors(dispatcher):
    join(dispatcher, "a", (0, 2))
    join(dispatcher, "b", (1, 3))
    effects = dispatcher.add(open_visit(0, 1, 2, 3), 0.0)
    assert effects == Effects.of(
        reserve(b"a", 0, 2),
        reserve(b"b", 1, 3),
        writes=[SetRoute(1, "a", 1, (0, 2)), SetRoute(1, "b", 1, (1, 3))],
    )


def test_a_visit_is_held_until_a_node_sends_hello(dispatcher):
    assert dispatcher.add(open_visit(), 0.0) == Effects()
    assert dispatcher.tick(100.0) == Effects()
    effects = join(dispatcher, "a", now=200.0)
    assert effects == Effects.of(SendWelcome(b"a"), reserve(b"a", 0, 1), writes=[SetRoute(1, "a", 1, (0, 1))])


def test_after_the_start_nothing_is_routed_until_nodes_had_time_to_come_back():
    dispatcher = Dispatcher(resend_s=RESEND_S, silence_s=SILENCE_S, rejoin_s=2.0, give_up_s=GIVE_UP_S)
    dispatcher.tick(0.0)
    join(dispatcher, "a", now=0.1)
    assert dispatcher.add(open_visit(), 0.2) == Effects()
    join(dispatcher, "b", now=0.3)
    assert dispatcher.tick(1.9) == Effects()
    assert dispatcher.tick(2.1).sends


def test_detectors_that_no_node_serves_expire_and_the_others_do_not_wait(dispatcher):
    join(dispatcher, "a", (0,))
    dispatcher.add(open_visit(), 0.0)
    dispatcher.receive(b"a", ack("a", 0), 0.1)
    effects = dispatcher.tick(EXPIRY_S)
    assert effects.writes == [ended(1, Outcome.EXPIRED, "no node served detector 1 in time")]
    assert dispatcher.open_detectors(KEY) == {0: ACKNOWLEDGED}


# --- full, drained and spare nodes --------------------------------------------


def add_visits(dispatcher, numbers, detectors=(0,), now=0.0):
    """Add visits named by their numbers; return what is sent."""
    sends = []
    for number in numbers:
        visit = read_next_visit({"groupId": f"g{number}", "instrument": "DemoCam"})
        times = {"received_tai": 0.0, "expiry_s": EXPIRY_S, "age_s": 0.0, "now": now}
        opened = make_open_visit(number, visit, [Reservation(d) for d in detectors], **times)
        sends += dispatcher.add(opened, now).sends
    return sends


def sent_to(sends):
    """Return group and detectors of each visit that is sent, by connection and in order."""
    found = {}
    for send in sends:
        if isinstance(send, Reserve):
            found.setdefault(send.peer.decode(), []).append((send.visit.group, *send.detectors))
    return found


def finish(dispatcher, node, group, *detectors, now):
    entries = tuple(
        ResultEntry(instrument="DemoCam", group=group, detector=d, outcome=Outcome.SUCCEEDED)
        for d in detectors
    )
    return dispatcher.receive(node.encode(), Results(origin=node, entries=entries, **ENVELOPE), now)


def test_a_full_node_gets_no_more_and_its_detectors_go_to_the_next(dispatcher):
    join(dispatcher, "a", (0, 1, 2), capacity=2)
    join(dispatcher, "b", (0, 1, 2), capacity=2)
    sent = sent_to(add_visits(dispatcher, [1], (0, 1, 2)))
    assert sorted(len(detectors) - 1 for [detectors] in sent.values()) == [1, 2]
    more = sent_to(add_visits(dispatcher, [2], (0, 1)))
    assert [len(detectors) - 1 for [detectors] in more.values()] == [1]
    assert [dispatcher.assignments.load(node) for node in "ab"] == [2, 2]


def test_what_waits_for_a_full_node_is_sent_when_it_has_room_the_newest_first(dispatcher):
    join(dispatcher, "a", capacity=1)
    assert sent_to(add_visits(dispatcher, [1, 2, 3])) == {"a": [("g1", 0)]}
    finish(dispatcher, "a", "g1", 0, now=1.0)
    assert sent_to(dispatcher.tick(1.1).sends) == {"a": [("g3", 0)]}
    finish(dispatcher, "a", "g3", 0, now=2.0)
    assert sent_to(dispatcher.tick(2.1).sends) == {"a": [("g2", 0)]}


def test_what_waits_goes_to_a_node_that_serves_it(dispatcher):
    join(dispatcher, "a", (0,), capacity=1)
    join(dispatcher, "b", (1,), capacity=1)
    assert sent_to(add_visits(dispatcher, [1, 2], (0, 1))) == {"a": [("g1", 0)], "b": [("g1", 1)]}
    add_visits(dispatcher, [3], (0,))
    finish(dispatcher, "b", "g1", 1, now=0.1)
    assert sent_to(dispatcher.tick(0.2).sends) == {"b": [("g2", 1)]}
    finish(dispatcher, "a", "g1", 0, now=0.2)
    assert sent_to(dispatcher.tick(0.3).sends) == {"a": [("g3", 0)]}


def test_of_several_detectors_that_wait_the_one_of_the_newest_visit_is_next(dispatcher):
    join(dispatcher, "a", (0, 1), capacity=1)
    for number, detector in ((1, 0), (2, 0), (3, 1), (4, 0)):
        add_visits(dispatcher, [number], (detector,))
    order = []
    for group, detector in (("g1", 0), ("g4", 0), ("g3", 1)):
        finish(dispatcher, "a", group, detector, now=0.1)
        order += sent_to(dispatcher.tick(0.2).sends)["a"]
    assert order == [("g4", 0), ("g3", 1), ("g2", 0)]


def test_what_waits_too_long_expires(dispatcher):
    join(dispatcher, "a", capacity=1)
    add_visits(dispatcher, [1, 2])
    alive(dispatcher, EXPIRY_S, "a")
    writes = dispatcher.tick(EXPIRY_S).writes
    assert SetOutcome(2, 0, Outcome.EXPIRED, "no node served detector 0 in time", None) in writes
    assert list(dispatcher.assignments.waiting()) == []


def test_a_node_that_offers_more_than_before_gets_what_waits(dispatcher):
    join(dispatcher, "a", capacity=1)
    add_visits(dispatcher, [1, 2])
    assert ("g2", 0) in sent_to(join(dispatcher, "a", capacity=2, now=0.2).sends)["a"]
    assert [dispatcher.assignments.load("a"), list(dispatcher.assignments.waiting())] == [2, []]


def test_a_hello_of_a_node_costs_nothing_for_visits_that_it_has_no_part_in(dispatcher, monkeypatch):
    join(dispatcher, "a", (0,))
    join(dispatcher, "b", (1,))
    add_visits(dispatcher, range(100), (0,))
    dispatcher.tick(0.0)
    served = []
    monkeypatch.setattr(dispatcher, "_serve", lambda visit, *_: served.append(visit))
    join(dispatcher, "b", (1,), capacity=8, now=0.1)
    assert served == []


def test_a_freed_node_that_has_refused_the_newest_visit_gets_an_older_one(dispatcher):
    join(dispatcher, "a", capacity=1)
    add_visits(dispatcher, [1, 2])
    finish(dispatcher, "a", "g1", 0, now=1.0)
    add_visits(dispatcher, [3], now=1.0)
    refusal = nak("a", 0).model_copy(update={"group": "g3"})
    dispatcher.receive(b"a", refusal, 1.05)
    assert sent_to(dispatcher.tick(1.1).sends) == {"a": [("g2", 0)]}


def test_a_drained_node_gets_nothing_new_and_keeps_what_it_has(dispatcher):
    join(dispatcher, "a")
    add_visits(dispatcher, [1])
    dispatcher.receive(b"a", ack("a", 0).model_copy(update={"group": "g1"}), 0.1)
    dispatcher.set_drained({"a"}, 0.2)
    assert add_visits(dispatcher, [2], now=0.3) == []
    assert dispatcher.tick(0.4) == Effects()
    assert dispatcher.open_detectors(("DemoCam", "g1")) == {0: ACKNOWLEDGED}
    dispatcher.set_drained((), 0.5)
    assert sent_to(dispatcher.tick(0.6).sends) == {"a": [("g2", 0)]}


def test_the_detectors_of_a_drained_node_go_to_the_next(dispatcher):
    join(dispatcher, "a")
    join(dispatcher, "b")
    for drained, other in ("ab", "ba"):
        dispatcher.set_drained({drained}, 0.0)
        assert list(sent_to(add_visits(dispatcher, [ord(drained)], (0, 1)))) == [other]


def test_a_node_that_is_drained_stays_so_when_it_connects_again(dispatcher):
    dispatcher.set_drained({"a"}, 0.0)
    join(dispatcher, "a")
    assert add_visits(dispatcher, [1]) == []


def test_a_spare_node_gets_only_what_no_other_can(dispatcher):
    join(dispatcher, "s", (0, 1), spare=True)
    join(dispatcher, "a", (0, 1), capacity=2)
    assert sent_to(add_visits(dispatcher, [1], (0, 1))) == {"a": [("g1", 0, 1)]}
    assert sent_to(add_visits(dispatcher, [2], (0, 1))) == {"s": [("g2", 0, 1)]}


def test_the_table_of_the_configuration_comes_before_the_hash(dispatcher):
    for node in "abc":
        join(dispatcher, node)
    for node in "abc":
        dispatcher.set_preferences({"DemoCam": {0: (node,)}}, 0.0)
        assert list(sent_to(add_visits(dispatcher, [ord(node)]))) == [node]
    dispatcher.set_preferences({"DemoCam": {0: ("a", "b")}}, 0.0)
    dispatcher.set_drained({"a"}, 0.0)
    assert list(sent_to(add_visits(dispatcher, [9]))) == ["b"]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "finish", "refuse", "join", "disconnect", "drain", "resume", "tick"]),
            st.sampled_from("abc"),
        ),
        max_size=60,
    )
)
def test_counts_agree_with_the_reservations_and_no_node_gets_more_than_it_offers(steps):
    dispatcher = Dispatcher(resend_s=RESEND_S, silence_s=SILENCE_S, rejoin_s=0.0, give_up_s=GIVE_UP_S)
    offers = {"a": ((0, 1), 1), "b": ((0, 1, 2), 3), "c": ((2,), 2)}
    now, opened, at_node = 0.0, [], {}
    for what, name in steps:
        now += 0.1
        peer, effects = name.encode(), Effects()
        match what:
            case "add":
                visit = read_next_visit({"groupId": f"g{len(opened)}", "instrument": "DemoCam"})
                times = {"received_tai": 0.0, "expiry_s": EXPIRY_S, "age_s": 0.0, "now": now}
                opened.append(make_open_visit(len(opened), visit, map(Reservation, range(3)), **times))
                effects = dispatcher.add(opened[-1], now)
            case "finish" | "refuse" if at_node.get(name):
                group, detector, attempt = at_node[name].pop()
                if what == "finish":
                    entry = ResultEntry(
                        instrument="DemoCam",
                        group=group,
                        detector=detector,
                        attempt=attempt,
                        outcome="failed",
                    )
                    message = Results(origin=name, entries=(entry,), **ENVELOPE)
                else:
                    message = nak(name, detector, attempt=attempt).model_copy(update={"group": group})
                effects = dispatcher.receive(peer, message, now)
            case "join":
                detectors, capacity = offers[name]
                effects = dispatcher.receive(peer, hello(name, detectors, capacity=capacity), now)
            case "disconnect":
                dispatcher.disconnect(peer, now)
            case "drain":
                dispatcher.set_drained({name}, now)
            case "resume":
                dispatcher.set_drained((), now)
        before = {node: dispatcher.assignments.load(node) for node in "abc"}
        for node in "abc":
            if node in dispatcher.registry:
                dispatcher.receive(node.encode(), Heartbeat(origin=node, **ENVELOPE), now)
        ticked = dispatcher.tick(now)
        for send in effects.sends + ticked.sends:
            if isinstance(send, Reserve):
                node = send.peer.decode()
                keys = {(send.visit.group, d, send.attempt) for d in send.detectors}
                at_node.setdefault(node, [])
                at_node[node] += [key for key in keys if key not in at_node[node]]
        loads = Counter(
            r.node
            for visit in opened
            for r in visit.reservations.values()
            if r.state is not UNASSIGNED and r.node in dispatcher.registry
        )
        for node in dispatcher.registry.nodes:
            name, capacity = node.offer.node, node.offer.capacity
            assert dispatcher.assignments.load(name) == loads[name]
            assert loads[name] <= max(capacity, before[name])
        # What waits although a node has room was refused by it a moment ago.
        for instrument, detector, _, oldest in dispatcher.assignments.waiting():
            for offer in dispatcher.registry.routes.ranking(instrument, detector):
                if not dispatcher.assignments.is_full(offer):
                    assert offer.node in oldest.reservations[detector].refused_until


# --- lost messages -----------------------------------------------------------


def test_a_gap_in_the_numbers_of_a_node_is_counted_and_its_state_requested(dispatcher):
    join(dispatcher, "a")

    def beat(sequence, now):
        return dispatcher.receive(b"a", Heartbeat(origin="a", **ENVELOPE | {"sequence": sequence}), now).sends

    assert beat(2, 0.1) == []
    assert beat(5, 0.2) == [RequestHello(b"a")]
    assert beat(9, 0.3) == []  # the answer is under way
    [node] = dispatcher.registry.nodes
    assert node.sequence.lost == 5
    dispatcher.receive(b"a", hello("a", sequence=10), 0.4)
    assert beat(11, 6.0) == []
    [node] = dispatcher.registry.nodes
    assert node.sequence.lost == 5


def test_a_gap_before_a_request_for_permits_is_repaired_too(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    request = PermitRequest(origin="a", visits=(of_visit(0, 0, 7, 7),), **ENVELOPE | {"sequence": 5})
    assert dispatcher.receive(b"a", request, 0.2).sends == [
        RequestHello(b"a"),
        Permit(b"a", "run1", (of_visit(0),)),  # a detector that is named twice is answered once
        refused(b"a", of_visit(7, 7)),
    ]


# --- resending and acknowledging -------------------------------------------


def test_what_is_unacknowledged_is_sent_again_after_the_interval(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(), 0.0)
    assert dispatcher.tick(0.4) == Effects()
    assert dispatcher.tick(0.5) == Effects.of(reserve(b"a", 0, 1))
    assert dispatcher.receive(b"a", ack("a", 0), 0.6) == Effects.of(writes=[SetAcknowledged(1, (0,))])
    assert dispatcher.tick(1.0) == Effects.of(reserve(b"a", 1))
    assert dispatcher.receive(b"a", ack("a", 1), 1.1) == Effects.of(writes=[SetAcknowledged(1, (1,))])
    assert dispatcher.tick(2.0) == Effects()


def test_an_acknowledgement_that_comes_twice_changes_nothing(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(), 0.0)
    dispatcher.receive(b"a", ack("a", 0, 1), 0.1)
    assert dispatcher.receive(b"a", ack("a", 0, 1), 0.2) == Effects()


def test_thousands_of_held_visits_reach_a_node_little_by_little(dispatcher, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MESSAGES_PER_TICK", 2)
    for number in range(5):
        visit = read_next_visit({"groupId": f"g{number}", "instrument": "DemoCam"})
        dispatcher.add(
            make_open_visit(
                number, visit, [Reservation(0)], received_tai=0.0, expiry_s=60.0, now=0.0, age_s=0.0
            ),
            0.0,
        )
    sent = [len([s for s in join(dispatcher, "a").sends if isinstance(s, Reserve)])]
    acked = 0
    for k in range(1, 30):
        effects = dispatcher.tick(k * 0.1)
        sent.append(len(effects.sends))
        for send in effects.sends:
            name = send.visit.group
            message = VisitAccepted(origin="a", instrument="DemoCam", group=name, detectors=(0,), **ENVELOPE)
            acked += len(dispatcher.receive(b"a", message, k * 0.1).writes)
    assert max(sent) == 2
    assert acked == 5


# --- results ----------------------------------------------------------------


def test_results_are_confirmed_and_the_last_one_closes_the_visit(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(), 0.0)
    dispatcher.receive(b"a", ack("a", 0, 1), 0.1)
    first = dispatcher.receive(b"a", results("a", 0), 1.0)
    assert first.sends == [confirm(b"a", 0)]
    assert first.writes == [ended(0, Outcome.SUCCEEDED, node="a")]
    assert first.ended == [Ended(*KEY, 0, "", 0.0, "a", 1, Outcome.SUCCEEDED, "")]
    last = dispatcher.receive(b"a", results("a", 1, outcome=Outcome.FAILED), 2.0)
    assert last.writes == [ended(1, Outcome.FAILED, node="a"), CloseVisit(1)]
    assert (len(dispatcher), dispatcher.reservations) == (0, 0)


def test_a_repeated_result_is_confirmed_again_and_nothing_else(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(), 0.0)
    dispatcher.receive(b"a", results("a", 0, 1), 1.0)
    again = [UpdateOutcome(*KEY, d, "a", 1, Outcome.SUCCEEDED, "") for d in (0, 1)]  # refused by the ledger
    assert dispatcher.receive(b"a", results("a", 0, 1), 2.0) == Effects.of(confirm(b"a", 0, 1), writes=again)


def test_a_detector_that_its_node_tries_again_is_not_sent_and_its_outcome_noted(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", results("a", 0, outcome=Outcome.NO_IMAGE), 1.0)
    effects = dispatcher.receive(b"a", results("a", 0, attempt=2), 2.0)
    again = UpdateOutcome("DemoCam", "g", 0, "a", 2, Outcome.SUCCEEDED, "")
    assert effects == Effects.of(confirm(b"a", 0, attempt=2), writes=[again])
    assert (len(dispatcher), dispatcher.reservations) == (0, 0)
    assert dispatcher.tick(3.0) == Effects()


def test_a_result_without_an_acknowledgement_counts(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    assert (
        ended(0, Outcome.NO_IMAGE, node="a")
        in dispatcher.receive(b"a", results("a", 0, outcome=Outcome.NO_IMAGE), 1.0).writes
    )


def test_a_result_of_an_unknown_visit_is_confirmed(dispatcher):
    join(dispatcher, "a")
    again = UpdateOutcome(*KEY, 0, "a", 1, Outcome.SUCCEEDED, "")
    assert dispatcher.receive(b"a", results("a", 0), 1.0) == Effects.of(confirm(b"a", 0), writes=[again])


def test_what_was_acknowledged_and_never_answered_is_given_up_after_a_day(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", ack("a", 0), 0.1)
    assert dispatcher.tick(EXPIRY_S + 1.0) == Effects()
    effects = dispatcher.tick(86_400.0)
    reason = "a acknowledged it and sent no outcome"
    assert effects.writes == [ended(0, Outcome.INTERRUPTED, reason), CloseVisit(1)]


# --- refusals ---------------------------------------------------------------


def test_a_refused_detector_goes_elsewhere_as_the_next_attempt(dispatcher):
    join(dispatcher, "a")
    join(dispatcher, "b")
    [first] = {send.peer for send in dispatcher.add(open_visit(0), 0.0).sends}
    other = {b"a": b"b", b"b": b"a"}[first]
    effects = dispatcher.receive(first, nak(first.decode(), 0), 0.1)
    assert effects == moved(other)


def test_a_node_that_refuses_one_copy_of_a_message_and_takes_the_next_must_return_it(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", nak("a", 0), 0.1)
    assert dispatcher.receive(b"a", ack("a", 0), 0.2) == Effects.of(Withdraw(b"a", *KEY, (0,), 1))
    assert dispatcher.tick(5.2).sends == [reserve(b"a", 0, attempt=2)]


def test_a_refused_detector_that_no_other_node_serves_is_offered_again_later(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    assert dispatcher.receive(b"a", nak("a", 0), 0.1) == Effects.of(writes=[ClearRoute(1, (0,), 2)])
    alive(dispatcher, 3.0, "a")
    assert dispatcher.tick(5.0) == Effects()
    assert dispatcher.tick(5.2).sends == [reserve(b"a", 0, attempt=2)]


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("too old", Outcome.EXPIRED),
        ("no_pipeline: no rule matches", Outcome.NO_PIPELINE),
        ("ignored", Outcome.IGNORED),
        ("", Outcome.EXPIRED),
    ],
)
def test_a_final_refusal_is_the_outcome(dispatcher, reason, outcome):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    effects = dispatcher.receive(b"a", nak("a", 0, reason=reason, final=True), 0.1)
    # Not as an outcome of the node: one that it sends nevertheless replaces this one.
    assert effects.writes == [ended(0, outcome, reason), CloseVisit(1)]


def test_a_final_refusal_of_what_was_acknowledged_or_is_unknown_is_not_heeded(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", ack("a", 0), 0.1)
    assert dispatcher.receive(b"a", nak("a", 0, 7, final=True), 0.2) == Effects()
    assert dispatcher.open_detectors(KEY) == {0: ACKNOWLEDGED}


def pass_time(dispatcher, start, end):
    """Let time pass; return the writes."""
    return [write for k in range(int(start * 2), int(end * 2)) for write in dispatcher.tick(k / 2).writes]


def moved(peer):
    """Return the effects of a move of detector 0 to another node."""
    return Effects.of(
        reserve(peer, 0, attempt=2), writes=[ClearRoute(1, (0,), 2), SetRoute(1, peer.decode(), 2, (0,))]
    )


def refused(peer, *visits):
    return RefusePermit(peer, visits, REFUSED)


# --- nodes connect and disconnect --------------------------------------------------------


def two_nodes_and_a_visit(dispatcher):
    """Return the connection that got detector 0, and the other one."""
    join(dispatcher, "a")
    join(dispatcher, "b")
    [first] = {send.peer for send in dispatcher.add(open_visit(0), 0.0).sends}
    return first, {b"a": b"b", b"b": b"a"}[first]


def stop_messages(dispatcher, silent, other):
    """Stop the messages of one of two nodes; return the effects of the tick that removes it."""
    for k in range(41):
        assert all(send.peer == silent for send in dispatcher.tick(k / 10).sends)
    alive(dispatcher, 4.0, other.decode())
    return dispatcher.tick(4.2)


def test_what_a_silent_node_did_not_acknowledge_goes_to_another_as_the_next_attempt(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    assert stop_messages(dispatcher, silent, other) == moved(other)


def test_a_node_that_reconnects_receives_the_list_of_what_it_lost(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    stop_messages(dispatcher, silent, other)
    effects = dispatcher.receive(silent, hello(silent.decode(), holds=[holds("held", 0, 7)]), 6.0)
    assert effects.sends == [SendWelcome(silent), Withdraw(silent, *KEY, (0, 7), 1)]


def test_what_a_node_had_before_it_was_configured_to_go_on_alone_does_not_move_either(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    name = silent.decode()
    dispatcher.receive(silent, ack(name, 0), 0.1)
    effects = dispatcher.receive(
        silent, hello(name, incarnation="run2", alone=True, holds=[holds("held", 0)]), 0.2
    )
    assert effects.writes == [
        SetRoute(1, name, 1, (0,), True),
        SetAcknowledged(1, (0,)),
        SetPermitted(1, (0,), ""),
    ]
    assert stop_messages(dispatcher, silent, other) == Effects()
    assert dispatcher.open_detectors(KEY) == {0: ACKNOWLEDGED}


def test_a_late_acknowledgement_of_the_former_node_is_answered_with_a_withdrawal(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    stop_messages(dispatcher, silent, other)
    dispatcher.receive(silent, hello(silent.decode()), 6.0)
    assert dispatcher.receive(silent, ack(silent.decode(), 0), 6.1) == Effects.of(
        Withdraw(silent, *KEY, (0,), 1)
    )


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.CANCELLED])
def test_a_result_of_a_node_that_does_not_have_the_detector_is_confirmed_and_not_counted(dispatcher, outcome):
    silent, other = two_nodes_and_a_visit(dispatcher)
    stop_messages(dispatcher, silent, other)
    dispatcher.receive(silent, hello(silent.decode()), 6.0)
    effects = dispatcher.receive(silent, results(silent.decode(), 0, outcome=outcome), 6.1)
    moved = ((*KEY, 0, 1),)
    assert effects == Effects.of(ConfirmResults(silent, moved, moved))
    assert dispatcher.open_detectors(KEY) == {0: SENT}


# --- permits -------------------------------------------------------------------


def test_what_a_silent_node_has_only_acknowledged_goes_to_another_and_is_refused_a_permit(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    dispatcher.receive(silent, ack(silent.decode(), 0), 0.1)
    assert stop_messages(dispatcher, silent, other) == moved(other)
    listed = hello(silent.decode(), holds=[holds("held", 0)])
    assert Withdraw(silent, *KEY, (0,), 1) in dispatcher.receive(silent, listed, 6.0).sends
    effects = dispatcher.receive(silent, ask(silent.decode(), of_visit(0)), 6.1)
    assert effects == Effects.of(refused(silent, of_visit(0)))


def test_what_was_permitted_stays_with_its_node(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    name = silent.decode()
    dispatcher.receive(silent, ack(name, 0), 0.1)
    effects = dispatcher.receive(silent, ask(name, of_visit(0)), 0.2)
    permit = Permit(silent, "run1", (of_visit(0),))
    assert effects == Effects.of(permit, writes=[SetPermitted(1, (0,), "run1")])
    assert dispatcher.receive(silent, ask(name, of_visit(0)), 0.3) == Effects.of(permit)
    assert dispatcher.receive(silent, nak(name, 0), 0.4) == Effects()  # a late message
    assert stop_messages(dispatcher, silent, other) == Effects()
    assert dispatcher.open_detectors(KEY) == {0: PERMITTED}
    assert pass_time(dispatcher, 5.0, GIVE_UP_S) == []
    assert pass_time(dispatcher, GIVE_UP_S, GIVE_UP_S + 1.0) == [
        ended(0, Outcome.INTERRUPTED, f"may have crossed: {name} is silent"),
        CloseVisit(1),
    ]


def test_a_permit_is_for_the_node_and_attempt_that_have_the_detector(dispatcher):
    first, other = two_nodes_and_a_visit(dispatcher)
    dispatcher.receive(first, ack(first.decode(), 0), 0.1)
    asked = (
        of_visit(0, 7),
        of_visit(0, attempt=2),
        DetectorsOfVisit(instrument="DemoCam", group="other", attempt=1, detectors=(0,)),
    )
    effects = dispatcher.receive(first, ask(first.decode(), *asked), 0.2)
    assert effects.sends == [
        Permit(first, "run1", (of_visit(0),)),
        refused(first, of_visit(7), *asked[1:]),
    ]
    assert dispatcher.receive(other, ask(other.decode(), of_visit(0)), 0.3).sends == [
        refused(other, of_visit(0))
    ]


def test_a_permit_of_an_earlier_run_is_void(dispatcher):
    """Its process has ended, and its journal has the visit-detector as held: it did not cross."""
    silent, other = two_nodes_and_a_visit(dispatcher)
    name = silent.decode()
    dispatcher.receive(silent, ask(name, of_visit(0)), 0.2)
    dispatcher.disconnect(silent, 0.3)
    again = hello(name, incarnation="run2", holds=[holds("held", 0)])
    effects = dispatcher.receive(silent, again, 0.4)
    assert effects.writes == [SetAcknowledged(1, (0,)), SetPermitted(1, (0,), "")]
    assert pass_time(dispatcher, 0.5, 3.9) == []
    alive(dispatcher, 3.9, other.decode())
    assert pass_time(dispatcher, 4.0, 5.0) == moved(other).writes


def test_a_permit_whose_answer_was_lost_is_not_void(dispatcher):
    silent, _ = two_nodes_and_a_visit(dispatcher)
    name = silent.decode()
    dispatcher.receive(silent, ask(name, of_visit(0)), 0.2)
    assert dispatcher.receive(silent, hello(name, holds=[holds("held", 0)]), 0.3).writes == []
    assert dispatcher.open_detectors(KEY) == {0: PERMITTED}


def test_what_a_node_no_longer_has_is_sent_again_unless_it_was_permitted(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0, 1), 0.0)
    dispatcher.receive(b"a", ack("a", 0, 1), 0.1)
    dispatcher.receive(b"a", ask("a", of_visit(1)), 0.2)
    assert join(dispatcher, "a", now=0.3, incarnation="run2").sends == [SendWelcome(b"a"), reserve(b"a", 0)]
    assert dispatcher.open_detectors(KEY) == {0: SENT, 1: PERMITTED}


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_node_that_crosses_alone_loses_nothing(dispatcher, acknowledged):
    join(dispatcher, "a", alone=True)
    join(dispatcher, "b", (1,))
    effects = dispatcher.add(open_visit(0), 0.0)
    assert effects.writes == [SetRoute(1, "a", 1, (0,), alone=True)]
    join(dispatcher, "b", (0, 1))
    if acknowledged:
        dispatcher.receive(b"a", ack("a", 0), 0.1)
    alive(dispatcher, 4.0, "b")
    for k in range(60):
        assert not dispatcher.tick(k / 10).writes
    dispatcher.receive(b"a", hello("a", alone=True, holds=[holds("crossed", 0)]), 6.0)
    assert dispatcher.open_detectors(KEY) == {0: PERMITTED}


def test_what_a_node_returns_goes_to_another(dispatcher):
    first, other = two_nodes_and_a_visit(dispatcher)
    name = first.decode()
    dispatcher.receive(first, ask(name, of_visit(0)), 0.2)
    returned = results(name, 0, outcome=Outcome.CANCELLED, attempt=2, asked=1, returned=True)
    effects = dispatcher.receive(first, returned, 0.3)
    assert effects == Effects.of(
        *moved(other).sends, confirm(first, 0, attempt=2), writes=moved(other).writes
    )
    assert dispatcher.receive(first, returned, 0.4) == Effects.of(confirm(first, 0, attempt=2))


def test_a_held_detector_of_a_dead_node_that_no_other_serves_ends_in_the_end(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", ack("a", 0), 0.1)
    assert pass_time(dispatcher, 0.2, GIVE_UP_S) == []
    reason = "a is silent; it has written nothing permanent"
    assert pass_time(dispatcher, GIVE_UP_S, GIVE_UP_S + 1.0) == [
        ended(0, Outcome.INTERRUPTED, reason),
        CloseVisit(1),
    ]


def test_what_only_a_silent_node_serves_waits_for_it_in_the_same_attempt(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    for k in range(60):
        dispatcher.tick(k / 10)
    effects = join(dispatcher, "a", now=6.0)
    assert effects == Effects.of(SendWelcome(b"a"), reserve(b"a", 0))


def test_a_lost_connection_is_like_silence_but_at_once(dispatcher):
    first, other = two_nodes_and_a_visit(dispatcher)
    dispatcher.disconnect(first, 0.2)
    assert dispatcher.tick(0.3).sends == [reserve(other, 0, attempt=2)]


def test_an_unknown_node_is_asked_for_a_hello(dispatcher):
    for message in (ack("a", 0), results("a", 0), Heartbeat(origin="a", **ENVELOPE)):
        [order] = dispatcher.receive(b"x", message, 0.0).sends
        assert isinstance(order, RefuseHello)
        assert (order.peer, order.code) == (b"x", "stranger")


def test_a_second_node_of_a_name_is_turned_away_while_the_first_is_connected(dispatcher):
    join(dispatcher, "a")
    effects = dispatcher.receive(b"second", hello("a", incarnation="other"), 1.0)
    assert [type(order) for order in effects.sends] == [SendHeartbeat, RefuseHello]
    assert effects.sends[0].peer == b"a"
    assert (effects.sends[1].peer, effects.sends[1].code) == (b"second", "taken")
    assert "another node named a" in effects.sends[1].reason


def test_a_second_node_of_a_name_is_admitted_when_the_first_is_gone(dispatcher):
    join(dispatcher, "a")
    dispatcher.disconnect(b"a", 1.0)
    assert dispatcher.receive(b"second", hello("a", incarnation="other"), 1.1).sends == [
        SendWelcome(b"second")
    ]
    [order] = dispatcher.receive(b"a", Heartbeat(origin="a", **ENVELOPE), 1.2).sends
    assert order.code == "stranger"


def test_the_same_run_of_a_node_may_change_its_connection(dispatcher):
    join(dispatcher, "a")
    assert dispatcher.receive(b"new", hello("a"), 1.0).sends == [SendWelcome(b"new")]
    assert dispatcher.add(open_visit(0), 1.1).sends == [reserve(b"new", 0)]


def test_a_new_run_on_the_same_connection_is_the_node_restarted(dispatcher):
    join(dispatcher, "a")
    assert dispatcher.receive(b"a", hello("a", incarnation="run2"), 1.0).sends == [SendWelcome(b"a")]


def test_a_connection_that_sends_hello_under_another_name_gives_up_the_first(dispatcher):
    join(dispatcher, "a")
    dispatcher.receive(b"a", hello("z"), 1.0)
    assert "a" not in dispatcher.registry
    assert [node.peer for node in dispatcher.registry.nodes] == [b"a"]


def test_nodes_are_not_silent_if_it_was_the_relay_that_did_not_listen(dispatcher):
    join(dispatcher, "a")
    for k in range(10):
        dispatcher.tick(k / 10)
    dispatcher.tick(31.0)
    assert "a" in dispatcher.registry
    for k in range(311, 360):
        dispatcher.tick(k / 10)
    assert "a" not in dispatcher.registry


@pytest.mark.parametrize("first", ["heartbeat", "visit", "cancellation"])
def test_a_pause_is_no_silence_whatever_comes_first_afterwards(dispatcher, first):
    join(dispatcher, "a")
    join(dispatcher, "b")
    dispatcher.add(open_visit(0, 1), 0.0)
    for name in ("a", "b"):
        dispatcher.receive(name.encode(), ack(name, 0, 1), 0.1)
        dispatcher.receive(name.encode(), ask(name, of_visit(0, 1)), 0.1)
    dispatcher.tick(0.2)
    later = 0.2 + 2 * GIVE_UP_S
    if first == "heartbeat":
        alive(dispatcher, later, "a")
        effects = dispatcher.receive(b"a", nak("a", 0, 1), later)
    elif first == "visit":
        again = open_visit(2)
        effects = dispatcher.add(again, later)
    else:
        effects = dispatcher.cancel(KEY, later)
    assert not [write for write in effects.writes if isinstance(write, SetOutcome)]
    dispatcher.tick(later + 0.1)
    assert {"a", "b"} <= {node.offer.node for node in dispatcher.registry.nodes}
    assert dispatcher.open_detectors(KEY).keys() >= {0, 1}


def test_a_disconnected_node_is_forgotten_after_a_day():
    registry = NodeRegistry(SILENCE_S)
    for number, name in enumerate(("a", "b", "a")):
        registry.register(hello(name), name.encode(), float(number))
        registry.disconnect(name.encode())
    registry.drop_silent(86_401.5)
    assert registry.departed.keys() == {"a"}
    registry.drop_silent(86_403.0)
    assert not registry.departed


# --- cancellation -------------------------------------------------------------


def test_cancelling_ends_at_once_what_no_node_has(dispatcher):
    dispatcher.add(open_visit(), 0.0)
    reason = "canceled before a node acknowledged it"
    assert dispatcher.cancel(KEY, 1.0).writes == [
        SetCancelled(1),
        ended(0, Outcome.CANCELLED, reason),
        ended(1, Outcome.CANCELLED, reason),
        CloseVisit(1),
    ]


def test_a_cancellation_is_sent_again_until_the_outcome_comes(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", ack("a", 0), 0.1)
    assert dispatcher.cancel(KEY, 1.0) == Effects.of(Withdraw(b"a", *KEY), writes=[SetCancelled(1)])
    assert dispatcher.tick(1.4) == Effects()
    assert dispatcher.tick(1.5) == Effects.of(Withdraw(b"a", *KEY))
    effects = dispatcher.receive(b"a", results("a", 0, outcome=Outcome.CANCELLED), 1.6)
    assert effects.writes == [ended(0, Outcome.CANCELLED, node="a"), CloseVisit(1)]
    assert dispatcher.tick(2.5) == Effects()


def test_a_node_that_may_have_the_visit_gets_it_again_with_its_cancellation(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    assert dispatcher.cancel(KEY, 0.1).sends == [Withdraw(b"a", *KEY)]
    assert dispatcher.tick(0.6).sends == [reserve(b"a", 0), Withdraw(b"a", *KEY)]


def test_a_cancelled_visit_does_not_move_to_another_node(dispatcher):
    silent, other = two_nodes_and_a_visit(dispatcher)
    dispatcher.cancel(KEY, 0.1)
    effects = stop_messages(dispatcher, silent, other)
    reason = "canceled before a node acknowledged it"
    assert effects.writes == [ended(0, Outcome.CANCELLED, reason), CloseVisit(1)]
    assert effects.sends == []
    assert effects.ended == [Ended(*KEY, 0, "", 0.0, silent.decode(), 1, Outcome.CANCELLED, reason)]


def test_a_cancellation_reaches_a_node_that_comes_back(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    dispatcher.receive(b"a", ack("a", 0), 0.1)
    dispatcher.disconnect(b"a", 0.2)
    assert dispatcher.cancel(KEY, 0.3).sends == []
    again = join(dispatcher, "a", now=0.4, holds=[holds("held", 0)])
    assert again.sends == [SendWelcome(b"a"), Withdraw(b"a", *KEY)]


def test_cancelling_twice_or_what_is_not_open_does_nothing(dispatcher):
    dispatcher.add(open_visit(), 0.0)
    dispatcher.cancel(KEY, 1.0)
    assert dispatcher.cancel(KEY, 2.0) == Effects()


# --- expiry, restart, room ------------------------------------------------------


def test_what_a_live_node_never_acknowledged_expires_and_is_withdrawn(dispatcher):
    join(dispatcher, "a")
    dispatcher.add(open_visit(0), 0.0)
    alive(dispatcher, EXPIRY_S, "a")
    effects = dispatcher.tick(EXPIRY_S)
    assert effects.writes == [ended(0, Outcome.EXPIRED, "a did not acknowledge it in time"), CloseVisit(1)]
    assert effects.sends == [Withdraw(b"a", *KEY, (0,), 1)]


def test_expiry_counts_from_publication_if_that_is_known():
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "private_sndStamp": 60.0})
    times = {"expiry_s": 3600.0, "now": 5.0, "age_s": 10.0}
    assert make_open_visit(1, visit, [], received_tai=100.0, **times).expires_at == 5.0 + 3600.0 - 50.0
    assert make_open_visit(1, visit, [], received_tai=50.0, **times).expires_at == 5.0 + 3600.0 - 10.0


def test_a_restored_visit_continues_where_it_was():
    dispatcher = Dispatcher(resend_s=RESEND_S, silence_s=SILENCE_S, rejoin_s=2.0, give_up_s=GIVE_UP_S)
    dispatcher.tick(0.0)
    visit = open_visit(0)
    visit.reservations = {
        0: Reservation(0, ACKNOWLEDGED, "a"),
        1: Reservation(1, SENT, "a", attempt=2),
        2: Reservation(2),
        3: Reservation(3, PERMITTED, "a", incarnation="run0"),
    }
    assert dispatcher.add(visit, 0.0) == Effects()
    theirs = holds("held", 1)
    assert join(dispatcher, "b", now=0.1, holds=[theirs]).sends == [
        SendWelcome(b"b"),
        Withdraw(b"b", *KEY, (1,), 1),
    ]
    again = join(dispatcher, "a", now=0.2, holds=[holds("held", 0)])
    assert again.sends == [SendWelcome(b"a"), reserve(b"a", 1, attempt=2)]
    dispatcher.receive(b"a", ack("a", 1, attempt=2), 0.3)
    assert dispatcher.tick(2.1).sends == []
    assert join(dispatcher, "c", (2,), now=2.2).sends[1:] == [reserve(b"c", 2)]


def restarted(*expected):
    made = Dispatcher(resend_s=RESEND_S, silence_s=SILENCE_S, rejoin_s=2.0, give_up_s=GIVE_UP_S)
    made.expect(expected)
    made.tick(0.0)
    return made


def test_nothing_is_sent_before_the_nodes_of_the_previous_run_have_connected():
    dispatcher = restarted("a", "b")
    dispatcher.add(open_visit(0), 0.0)
    assert join(dispatcher, "a", now=2.5).sends == [SendWelcome(b"a")]
    assert join(dispatcher, "c", now=2.6).sends == [SendWelcome(b"c")]
    assert [type(send) for send in join(dispatcher, "b", now=2.7).sends] == [SendWelcome, Reserve]


def test_a_node_that_does_not_come_back_delays_the_others_for_a_bounded_time():
    dispatcher = restarted("dead")
    dispatcher.add(open_visit(0), 0.0)
    join(dispatcher, "a", now=0.1)
    for tenths in range(1, 81):
        alive(dispatcher, tenths / 10, "a")
        sends = dispatcher.tick(tenths / 10).sends
        assert bool(sends) == (tenths == 80), tenths


def of_ended(*detectors, attempt=1, reported=True, outcome=Outcome.SUCCEEDED):
    return EndedDetectors(detectors=detectors, attempt=attempt, reported=reported, outcome=outcome, **NAMES)


def test_what_a_node_has_in_an_attempt_that_an_older_ledger_cannot_know_is_adopted():
    dispatcher = restarted()
    visit = open_visit(0, 1, 2, 3, 4)
    visit.reservations[1] = Reservation(1, ACKNOWLEDGED, "a")
    visit.reservations[2] = Reservation(2, SENT, "a")
    visit.reservations[3] = Reservation(3, PERMITTED, "a", attempt=2, incarnation="run1")
    visit.reservations[4] = Reservation(4, ACKNOWLEDGED, "b", attempt=5)
    dispatcher.add(visit, 0.0)
    effects = dispatcher.receive(
        b"b",
        hello(
            "b", ended=[of_ended(0, 1, 3, 4), of_ended(4, attempt=5)], holds=[holds("crossed", 2, attempt=2)]
        ),
        0.1,
    )
    assert effects.writes == [
        SetRoute(1, "b", 1, (0,)),
        ended(0, Outcome.SUCCEEDED, ADOPTED),
        SetRoute(1, "b", 1, (1,)),
        ended(1, Outcome.SUCCEEDED, ADOPTED),
        SetRoute(1, "b", 5, (4,)),
        ended(4, Outcome.SUCCEEDED, ADOPTED),
        SetRoute(1, "b", 2, (2,)),
        SetAcknowledged(1, (2,)),
        SetPermitted(1, (2,), "run1"),
    ]
    assert dispatcher.adopted == 4
    assert {detector: state for detector, state in dispatcher.open_detectors(KEY).items()} == {
        2: PERMITTED,
        3: PERMITTED,
    }
    assert dispatcher.assignments.load("b") == 1


def test_what_a_node_lists_twice_as_ended_is_adopted_once():
    dispatcher = restarted()
    dispatcher.add(open_visit(0, 1), 0.0)
    listed = [of_ended(0, 0), of_ended(0, outcome=Outcome.FAILED)]
    effects = dispatcher.receive(b"b", hello("b", ended=listed), 0.1)
    assert effects.writes == [SetRoute(1, "b", 1, (0,)), ended(0, Outcome.SUCCEEDED, ADOPTED)]
    assert dispatcher.adopted == 1


def test_a_node_that_has_not_noticed_the_new_relay_is_asked_for_its_outcomes():
    """Its hello, of a capacity that changed, has none; it must not count as compared."""
    dispatcher = restarted()
    dispatcher.add(open_visit(0), 0.0)
    hasty = hello("b", complete=False)
    assert not dispatcher.is_new(b"b", hasty)
    (refused,) = dispatcher.receive(b"b", hasty, 0.1).sends
    assert (refused.peer, refused.code) == (b"b", "stranger")
    complete = hello("b", ended=[of_ended(0)])
    assert dispatcher.is_new(b"b", complete)
    effects = dispatcher.receive(b"b", complete, 0.2)
    assert ended(0, Outcome.SUCCEEDED, ADOPTED) in effects.writes
    changed = dispatcher.receive(b"b", hello("b", complete=False, capacity=4), 0.3)
    assert SendWelcome(b"b") in changed.sends


@pytest.mark.parametrize("state", ["held", "permitted"])
def test_what_a_late_node_holds_is_not_given_up_before_its_hello(state):
    """The ledger is an older copy, and the node connects after ``give_up_s``."""
    dispatcher = restarted()
    now = GIVE_UP_S + 100.0
    dispatcher.tick(now)
    visit = open_visit(0, now=now)
    visit.reservations[0] = Reservation(
        0, PERMITTED if state == "permitted" else ACKNOWLEDGED, "b", incarnation="run1"
    )
    assert dispatcher.add(visit, now, serve=False) == Effects()
    effects = dispatcher.receive(b"b", hello("b", holds=[holds(state, 0)]), now)
    after = dispatcher.tick(now)
    assert not [each for each in (*effects.writes, *after.writes) if isinstance(each, SetOutcome)]
    assert not [each for each in (*effects.sends, *after.sends) if isinstance(each, Withdraw)]


def test_only_the_first_hello_of_a_node_since_the_start_is_compared():
    """What the ledger does not know later is not true: it would end the work of another node."""
    dispatcher = restarted()
    dispatcher.receive(b"b", hello("b"), 0.1)
    visit = open_visit(0, 1)
    visit.reservations[0] = Reservation(0, ACKNOWLEDGED, "a")
    visit.reservations[1] = Reservation(1, ACKNOWLEDGED, "a")
    dispatcher.add(visit, 0.2)
    late = hello("b", ended=[of_ended(0, attempt=9)], holds=[holds("crossed", 1, attempt=9)])
    assert not dispatcher.is_new(b"b2", late)
    effects = dispatcher.receive(b"b", late, 0.3)
    assert effects.writes == []
    assert dispatcher.adopted == 0
    assert set(dispatcher.open_detectors(KEY)) == {0, 1}


def test_a_ledger_that_is_no_older_copy_adopts_nothing():
    dispatcher = restarted()
    visit = open_visit(0, 1)
    visit.reservations[0] = Reservation(0, ACKNOWLEDGED, "a")
    visit.reservations[1] = Reservation(1, ACKNOWLEDGED, "b", attempt=2)
    dispatcher.add(visit, 0.0)
    # An outcome that is not confirmed follows with its reason; that of an earlier attempt does not count.
    effects = dispatcher.receive(b"a", hello("a", ended=[of_ended(0, reported=False), of_ended(1)]), 0.1)
    assert effects.writes == []
    assert dispatcher.adopted == 0
    assert dispatcher.open_detectors(KEY) == {0: SENT, 1: ACKNOWLEDGED}


def test_a_visit_without_its_content_is_sent_to_no_node_until_it_is_announced():
    dispatcher = restarted()
    visit = open_visit(0)
    visit.adopted = True
    dispatcher.add(visit, 0.0)
    join(dispatcher, "a", now=2.1)
    assert dispatcher.tick(2.2).sends == []
    assert [send.detectors for send in dispatcher.add(open_visit(1), 2.3).sends] == [(0, 1)]


def test_the_oldest_visits_that_no_node_has_make_room_for_new_ones(dispatcher, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MAX_RESERVATIONS", 3)
    dispatcher.add(open_visit(0, 1), 0.0)
    assert dispatcher.has_room(1)
    assert dispatcher.make_room(1) == Effects()
    assert not dispatcher.has_room(2)
    assert dispatcher.make_room(2).writes == [
        ended(0, Outcome.EXPIRED, "made room for newer visits"),
        ended(1, Outcome.EXPIRED, "made room for newer visits"),
        CloseVisit(1),
    ]
    assert dispatcher.has_room(2)


def test_visits_that_nodes_have_make_no_room(dispatcher, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MAX_RESERVATIONS", 3)
    join(dispatcher, "a")
    dispatcher.add(open_visit(0, 1), 0.0)
    assert dispatcher.make_room(2) == Effects()
    assert not dispatcher.has_room(2)
