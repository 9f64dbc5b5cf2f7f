# SPDX-License-Identifier: BSD-3-Clause
"""A real node with real workers that need the permits of a played relay."""

import pytest
from node import running

from ppdaemon.messages import Permitted, Welcome
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.node import TIMES

BUSY = (SlotState.PROCESSING, SlotState.EXPORTING)


def at_door(node, group):
    """Wait until the worker of a visit waits for its permit."""
    node.land(group)
    node.relay.wait(lambda: node.relay.asked.count((group, 0)) > 1)
    (row,) = (row for row in node.workers() if row.group == group)
    assert row.state in BUSY


@pytest.fixture
def permits(node):
    """Return the played relay of the shared daemon, which grants permits again after the test."""
    yield node.relay
    node.relay.permits = "granted"


@pytest.fixture(scope="module")
def changes():
    """Return a time limit that a waiting worker does not reach."""
    return {"times": TIMES | {"run_s": 60}}


@pytest.mark.slow
def test_a_worker_waits_for_its_permit_and_the_node_asks_again(node, group, permits):
    permits.permits = "unanswered"
    permits.reserve(group)
    at_door(node, group)
    # Neither of another run of the node nor of a relay that was replaced.
    visits = ({"instrument": "DemoCam", "group": group, "attempt": 1, "detectors": (0,)},)
    run = permits.hellos[-1].incarnation
    permits.send(Permitted, epoch=1, incarnation="other", visits=visits)
    permits.send(Permitted, epoch=0, incarnation=run, visits=visits)
    asked = len(permits.asked)
    permits.wait(lambda: len(permits.asked) > asked + 1)
    assert not node.marks(group)
    assert not any(group in name for name in node.exported())
    permits.permits = "granted"
    assert permits.outcome(group).outcome == Outcome.SUCCEEDED
    assert node.marks(group) == {f"{group}~0": 1}


@pytest.mark.parametrize("survey", ["", "early"])
def test_a_visit_without_a_permit_ends_without_a_write(node, group, permits, survey):
    permits.permits = "refused"
    permits.reserve(group, survey=survey)
    node.land(group)
    permits.wait(lambda: group in {entry.group for entry in permits.returned})
    (row,) = node.visit(group)
    assert (row.outcome, row.reason.partition(":")[0]) == (Outcome.CANCELLED, "withdrawn")
    assert not node.marks(group)
    assert not any(group in name for name in node.exported())


@pytest.mark.slow
def test_a_visit_that_waited_for_its_permit_is_repeated_by_the_next_run(tmp_path, socket_dir):
    """Fault 59: the supervisor dies while a worker waits."""
    with running(tmp_path, socket_dir, times=TIMES | {"run_s": 60}) as node:
        node.relay.permits = "unanswered"
        node.relay.reserve("g1")
        at_door(node, "g1")
        node.kill()
        node.relay.permits = "granted"
        node.start()
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.marks() == {"g1~0": 1}
        held = {(held.group, held.state) for hello in node.relay.hellos for held in hello.holds}
        assert held >= {("g1", "held")}


def test_a_relay_of_a_lower_epoch_is_not_served(node):
    """Fault 49: a relay that was replaced comes back."""
    node.relay.epoch = 0
    try:
        node.relay.send(Welcome, incarnation="played", epoch=0)
        node.wait(lambda: "has epoch 0, lower than 1" in node.status().relay)
    finally:
        node.relay.epoch = 1
    node.wait(lambda: node.status().relay.startswith("connected"))
