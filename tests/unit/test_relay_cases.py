# SPDX-License-Identifier: BSD-3-Clause
"""Events as they occur on the wire, and the visits that the submit server opens for them."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from ppdaemon.errors import Refused
from ppdaemon.messages import Hello, ResultEntry, Results
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.openvisit import ReservationState
from ppdaemon.relay.submitserver import EARLY_CANCEL_S, MAX_EARLY_CANCELS, SubmitServer
from ppdaemon.states import Outcome
from ppdaemon.throttle import Throttle

MESSAGES = Path(__file__).parent.parent / "data" / "messages"
GROUP = "2026-11-28T03:25:16.951"
ANNOUNCED_TAI = 1_795_836_317.0


def event(name, **changes):
    return json.loads((MESSAGES / f"{name}.json").read_text()) | changes


class DirectWriter:
    """Commits each change at once, in the order of `put`; `before` is called first."""

    def __init__(self, ledger):
        self._ledger = ledger
        self.before = lambda: None

    def put(self, commit):
        try:
            self.before()
        except Refused as error:
            commit.failed(error)
            return
        with self._ledger.transaction():
            result = commit.work(self._ledger)
        commit.done(result)


class World:
    """A submit server on a real ledger, without sockets."""

    def __init__(self, ledger, config, clock):
        self.ledger, self.config, self.clock = ledger, config, clock
        self.dispatcher = Dispatcher(resend_s=1.0, silence_s=5.0, rejoin_s=0.0, give_up_s=900.0)
        self.answers = []
        self.opened, self.writes, self.sent = [], [], []
        add = self.dispatcher.add
        self.dispatcher.add = lambda visit, now: self.opened.append(visit.visit) or add(visit, now)
        self.writer = DirectWriter(ledger)
        self.server = SubmitServer(
            config=config,
            dispatcher=self.dispatcher,
            writer=self.writer,
            throttle=Throttle(0.0, clock.mono),
            clock=clock,
            answer=lambda envelope, accepted: self.answers.append(accepted),
            apply_effects=self._apply,
        )

    def send(self, fields):
        self.server.serve([b"client", json.dumps(fields).encode()])
        return self.answers[-1]

    def states(self):
        return self.dispatcher.open_detectors(("LSSTCam", GROUP))

    def outcomes(self):
        with self.ledger.transaction():
            return {
                found.detector: found.outcome for visit in self.ledger.find(GROUP) for found in visit.outcomes
            }

    def connect(self, *nodes):
        """Connect nodes that serve all detectors."""
        self.dispatcher.tick(self.clock.mono())
        instruments = {"LSSTCam": tuple(range(189))}
        link = {
            "incarnation": "i",
            "instruments": instruments,
            "capacity": 200,
            "sent_tai": 0.0,
            "sequence": 1,
        }
        for node in nodes:
            self.dispatcher.receive(node.encode(), Hello(origin=node, **link), self.clock.mono())
        self.dispatcher.tick(self.clock.mono())

    def loads(self):
        return {node: self.dispatcher.assignments.load(node) for node in ("a", "b")}

    def _apply(self, effects, then):
        self.writes += effects.writes
        self.sent += effects.sends
        with self.ledger.transaction():
            for write in effects.writes:
                self.ledger.write(write)
        if then is not None:
            then()


@pytest.fixture
def world(tmp_path, clock):
    clock.advance(ANNOUNCED_TAI - clock.tai())
    instruments = {"LSSTCam": {"detectors": "0-188"}, "LATISS": {"detectors": 0}}
    config = RelayConfig.model_validate({"state_dir": tmp_path, "instruments": instruments})
    with closing(Ledger(tmp_path, clock)) as ledger:
        yield World(ledger, config, clock)


def test_a_message_of_one_detector_reserves_it_and_the_next_one_joins(world):
    first, second = event("fanned_out_detector_42_strings"), event("fanned_out_detector_43_strings")
    answer = world.send(first)
    assert (answer.status, answer.detectors) == ("accepted", 1)
    assert world.states() == {42: ReservationState.UNASSIGNED}
    assert world.send(second).status == "accepted"
    assert sorted(world.states()) == [42, 43]
    assert world.send(first).status == world.send(second).status == "duplicate"
    assert world.opened[0] == world.opened[1].model_copy(update={"detector": 42})


def test_a_message_of_all_detectors_adds_the_others(world):
    world.send(event("fanned_out_detector_42_strings"))
    answer = world.send(event("fanned_out_detector_42_strings", detector=None))
    assert (answer.status, answer.detectors) == ("accepted", 189)
    assert len(world.states()) == 189
    assert world.send(event("fanned_out_detector_43_strings")).status == "duplicate"


def test_a_detector_joins_a_canceled_visit_as_canceled(world):
    world.send(event("fanned_out_detector_42_strings"))
    assert world.send(event("cancel_before_its_visit")).status == "accepted"
    assert world.outcomes() == {42: Outcome.CANCELLED}
    assert world.send(event("fanned_out_detector_43_strings")).status == "accepted"
    assert world.outcomes() == {42: Outcome.CANCELLED, 43: Outcome.CANCELLED}


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("stamps_not_set", "neither private_sndStamp nor private_efdStamp: its age is unknown"),
        ("enums_not_set", "coordinateSystem, rotationSystem: the values"),
        ("duration_minus_one", "accepted without duration: the values sent are unset or invalid"),
        (
            "null_angle",
            "accepted without cameraAngle: the values sent are unset or invalid; nothing is preloaded",
        ),
    ],
)
def test_a_field_without_meaning_costs_no_visit_and_is_logged_once(world, caplog, name, warning):
    assert world.send(event(name)).status == "accepted"
    assert len(world.states()) == 189
    logged = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(logged) == 1
    assert warning in logged[0]


def test_an_event_is_stale_by_its_efd_stamp_alone(world):
    answer = world.send(event("stale_by_efd_stamp_only"))
    assert answer.status == "rejected"
    assert "stale" in answer.reason


def test_a_cancellation_that_overtakes_its_visit_cancels_it(world):
    answer = world.send(event("cancel_before_its_visit"))
    assert (answer.status, answer.detectors) == ("accepted", 0)
    world.clock.advance(EARLY_CANCEL_S)
    assert world.send(event("null_angle")).status == "accepted"
    assert set(world.outcomes().values()) == {Outcome.CANCELLED}
    assert world.states() == {}


def test_a_cancellation_is_not_remembered_for_longer(world):
    world.send(event("cancel_before_its_visit"))
    world.clock.advance(EARLY_CANCEL_S + 0.1)
    world.send(event("null_angle"))
    assert len(world.states()) == 189
    world.clock.advance(world.config.expiry_s)
    world.send({"groupId": "other"})
    assert list(world.server.early_cancels) == ["other"]


def test_a_cancellation_counts_for_a_visit_that_had_to_wait_since_before_it(world):
    arrived = world.clock.mono()
    world.send(event("cancel_before_its_visit"))
    world.clock.advance(EARLY_CANCEL_S + 100.0)
    world.send({"groupId": "other"})
    world.server.take([json.dumps(event("null_angle")).encode()], world.answers.append, arrived)
    assert world.answers[-1].status == "accepted"
    assert set(world.outcomes().values()) == {Outcome.CANCELLED}


@pytest.mark.parametrize(("index", "canceled"), [(42, True), (0, True), (None, True), (41, False)])
def test_a_cancellation_of_another_script_cancels_nothing(world, index, canceled):
    world.send({"groupId": GROUP, "scriptSalIndex": index})
    world.send(event("null_angle"))
    assert (world.states() == {}) == canceled


def test_remembered_cancellations_are_bounded(world):
    for number in range(MAX_EARLY_CANCELS + 10):
        world.send({"groupId": f"g{number}"})
    assert len(world.server.early_cancels) == MAX_EARLY_CANCELS


def test_a_node_that_leaves_while_the_visit_is_stored_gets_nothing(world):
    world.connect("a", "b")
    world.writer.before = lambda: world.dispatcher.disconnect(b"a", world.clock.mono())
    world.send(event("fanned_out_detector_42_strings", detector=None))
    assert {order.peer for order in world.sent} == {b"b"}
    assert sorted(detector for order in world.sent for detector in order.detectors) == [*range(189)]
    (visit,) = world.ledger.unfinished_visits()
    assert {each.node for each in visit.reservations} == {"b"}
    assert world.loads() == {"a": 0, "b": 189}


@pytest.mark.parametrize("open_", [True, False])
def test_a_repeated_announcement_costs_its_nodes_nothing(world, open_):
    world.connect("a")
    world.send(event("fanned_out_detector_42_strings"))
    if not open_:
        world.dispatcher.cancel(("LSSTCam", GROUP), world.clock.mono())
        results = {"instrument": "LSSTCam", "group": GROUP, "detector": 42, "outcome": Outcome.CANCELLED}
        message = Results(origin="a", sent_tai=0.0, sequence=2, entries=(ResultEntry(**results),))
        world._apply(world.dispatcher.receive(b"a", message, world.clock.mono()), None)
    assert world.loads()["a"] == open_
    assert world.send(event("fanned_out_detector_42_strings")).status == "duplicate"
    assert world.loads()["a"] == open_


def test_a_visit_that_cannot_be_stored_costs_its_nodes_nothing(world):
    def full():
        raise Refused("the ledger cannot be written: disk full")

    world.connect("a")
    world.writer.before = full
    assert world.send(event("fanned_out_detector_42_strings")).reason.endswith("disk full")
    assert (world.loads()["a"], world.states(), world.sent) == (0, {}, [])


def test_a_visit_whose_cancellation_came_first_is_sent_to_no_node(world):
    world.connect("a")
    world.send({"groupId": GROUP})
    assert world.send(event("fanned_out_detector_42_strings")).status == "accepted"
    assert (world.outcomes(), world.sent, world.loads()["a"]) == ({42: Outcome.CANCELLED}, [], 0)
