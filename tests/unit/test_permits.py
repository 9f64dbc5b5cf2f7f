# SPDX-License-Identifier: BSD-3-Clause
"""Over the whole telescope: one permanent write, one export and one outcome at the most, whatever is
lost, doubled, delayed, stopped or restarted; and nothing waits for ever.
"""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telescope import GIVE_UP_S, Telescope
from visitworld import CHOSEN

from ppdaemon.messages import Done
from ppdaemon.node.visits.endedvisits import EndedVisits
from ppdaemon.node.visits.model import RequeueRequested, SlotsChanged
from ppdaemon.node.visits.permits import Permits
from ppdaemon.node.visits.requeue import refusal_reason
from ppdaemon.states import Outcome


@contextmanager
def telescope(**options):
    folder = Path(tempfile.mkdtemp(prefix="telescope-", dir="/dev/shm"))
    world = Telescope(folder, **options)
    try:
        yield world
    finally:
        world.ledger.close()
        for node in world.nodes:
            node.journal.close()
        shutil.rmtree(folder)


OF_NODES = {
    "up": lambda world, node: world.deliver_up(node),
    "down": lambda world, node: world.deliver_down(node),
    "commit": lambda world, node: node.uncommitted and node.commit(),
    "settle": lambda world, node: world.settle(node),
    "work": lambda world, node: node.work(),
    "flow": lambda world, node: world.flow(node),
    "lose up": lambda world, node: node.up and node.up.popleft(),
    "lose down": lambda world, node: node.down and node.down.popleft(),
    "double up": lambda world, node: node.up and node.up.append(node.up[0]),
    "double down": lambda world, node: node.down and node.down.append(node.down[0]),
    "cut up": lambda world, node: setattr(node, "cut_up", True),
    "cut down": lambda world, node: setattr(node, "cut_down", True),
    "mend": lambda world, node: (setattr(node, "cut_up", False), setattr(node, "cut_down", False)),
    "connect": lambda world, node: node.connect(),
    "restart": lambda world, node: node.restart(),
    "stop": lambda world, node: world.stop(node),
    "no slot": lambda world, node: node.handle(SlotsChanged("no memory", hand_back=True)),
    "slots": lambda world, node: node.handle(SlotsChanged("", hand_back=False)),
    "kill worker": lambda world, node: node.workers and node.worker_died(next(iter(node.workers))),
}
OF_ALL = {
    "announce": lambda world: len(world.groups) < 4 and world.announce(),
    "announce without alerts": lambda world: len(world.groups) < 4 and world.announce("images"),
    "cancel": lambda world: world.cancel(),
    "image": lambda world: world.take_image(),
    "relay commits": lambda world: world.commit(),
    "tick": lambda world: world.tick(),
    "pause": lambda world: world.tick(10.0),
    "long pause": lambda world: world.tick(3600.0),
    "restart relay": lambda world: world.restart_relay(),
}
OFTEN = ["flow"] * 30 + ["tick"] * 12 + ["image"] * 3 + ["up", "down", "work", "relay commits"] * 4
STEPS = st.lists(
    st.tuples(st.sampled_from([*OF_NODES, *OF_ALL, *OFTEN]), st.integers(0, 1)), min_size=10, max_size=150
)


def play(world, steps):
    world.announce()
    for what, number in steps:
        if what in OF_ALL:
            OF_ALL[what](world)
        else:
            OF_NODES[what](world, world.nodes[number])
        world.check_always()
    world.calm_down()
    world.check_in_the_end()


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happens_each_visit_detector_is_done_once(steps):
    with telescope() as world:
        play(world, steps)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_nodes_that_cross_alone_do_it_once_too(steps):
    with telescope(alone="cross") as world:
        play(world, steps)


OLD_LEDGER = {
    "copy ledger": lambda world: world.copy_ledger(),
    "put back ledger": lambda world: world.put_back_ledger(),
}
STEPS_WITH_COPIES = st.lists(
    st.tuples(st.sampled_from([*OF_NODES, *OF_ALL, *OFTEN, *[*OLD_LEDGER] * 4]), st.integers(0, 1)),
    min_size=10,
    max_size=150,
)


@settings(max_examples=120, deadline=None)
@given(STEPS_WITH_COPIES)
def test_an_older_copy_of_the_ledger_costs_no_second_write(steps):
    """Or none at all, with all visits announced again, if all nodes can be reached then."""
    with telescope() as world, patch.dict(OF_ALL, OLD_LEDGER):
        play(world, steps)


LOSSES = ["lose up", "lose down", "double up", "double down", "connect", "restart relay"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LOSSES), st.integers(0, 1)), max_size=40))
def test_a_lossy_network_alone_costs_no_visit(steps):
    with telescope() as world:
        world.announce()
        world.announce("images")
        for what, number in steps:
            if what in OF_ALL:
                OF_ALL[what](world)
            else:
                OF_NODES[what](world, world.nodes[number])
            run(world, 0.5)
            world.take_image()
        world.calm_down()
        world.check_in_the_end()
        outcomes = [row.outcome for group in "ab" for row in world.ledger.find(group)[0].outcomes]
        assert outcomes == [Outcome.SUCCEEDED] * 4
        assert world.decided == []


def test_a_calm_night_needs_each_node_once():
    with telescope() as world:
        world.announce()
        world.announce("images")
        world.calm_down()
        world.check_in_the_end()
        assert [row.outcome for group in "ab" for row in world.ledger.find(group)[0].outcomes] == [
            Outcome.SUCCEEDED
        ] * 4
        assert world.written == {("a", 0): 1, ("a", 1): 1}


# --- single scenes -----------------------------------------------------------------


def holder(world, group="a", detector=0):
    """Return the node that has a visit-detector, and another one."""
    (visit,) = world.ledger.find(group)
    nodes = {node.name: node for node in world.nodes}
    node = nodes.pop(visit.outcomes[detector].node)
    return node, next(iter(nodes.values()))


def run(world, seconds, nodes=None):
    for _ in range(round(seconds / 0.5)):
        world.tick()
        for node in nodes or world.nodes:
            for _ in range(3):
                world.flow(node)
        world.check_always()


def announced(world):
    """Announce a visit to connected nodes; return the node that has detector 0, and another one."""
    run(world, 2.0)
    world.announce()
    run(world, 1.0)
    return holder(world)


def run_until_written(world):
    """Stop when the first detector of the first visit has been written permanently."""
    while ("a", 0) not in world.written:
        world.tick()
        for node in world.nodes:
            world.flow(node)


def acknowledgements_lost(world):
    """What a node sends is lost, from before its acknowledgement on."""
    run(world, 2.0)
    for node in world.nodes:
        node.cut_up = True
    world.announce()
    run(world, 1.0)
    node, other = holder(world)
    other.cut_up = False
    world.take_image()
    run(world, 30.0)
    return node, other


@pytest.mark.parametrize("permits", [True, False])
def test_one_of_two_nodes_writes_though_both_have_the_visit(monkeypatch, permits):
    """Fault 58: nothing that a node sends arrives, so that its detectors go to another one."""
    if not permits:
        monkeypatch.setattr(Permits, "_needs_none", lambda permits, visit: True)
    with telescope() as world:
        if not permits:
            with pytest.raises(AssertionError, match="written twice"):
                acknowledgements_lost(world)
            return
        node, other = acknowledgements_lost(world)
        assert len(node.visits.open) > 0
        assert world.ledger.find("a")[0].outcomes[0].node == other.name
        world.calm_down()
        world.check_in_the_end()
        assert set(world.written.values()) == {1}


def test_an_answer_that_is_lost_binds_nevertheless():
    """Fault 58: the cut begins between the permit and its answer."""
    with telescope() as world:
        node, other = announced(world)
        node.cut_down = True
        world.take_image()
        run(world, 30.0)
        assert not world.exported["a", 0]
        assert len(other.visits.open) == 0
        world.calm_down()
        world.check_in_the_end()
        assert world.ledger.find("a")[0].outcomes[0].node == node.name


@pytest.mark.parametrize("image_first", [False, True])
def test_what_a_dead_host_only_held_runs_elsewhere_and_what_was_permitted_does_not(image_first):
    """Fault 62: a host dies for good."""
    with telescope() as world:
        node, other = announced(world)
        if image_first:
            node.cut_down = True  # its permits do not arrive
            world.take_image()
            run(world, 1.0)
        node.cut_up = node.cut_down = True
        if not image_first:
            world.take_image()
        run(world, 90.0, [other])
        rows = [row for row in world.ledger.find("a")[0].outcomes if row.node == node.name]
        if image_first:
            assert {(row.outcome, row.reason) for row in rows} == {
                (Outcome.INTERRUPTED, f"may have crossed: {node.name} is silent")
            }
        else:
            assert rows == []
            assert world.written == {("a", 0): 1, ("a", 1): 1}


def test_what_was_permitted_to_a_node_that_has_lost_its_journal_is_given_up():
    """Faults 46 and 62: the node is there, but its outcome never comes."""
    with telescope() as world:
        node, _ = announced(world)
        node.cut_down = True  # its permit does not arrive
        world.take_image()
        run(world, 2.0)
        node.journal._db.execute("DELETE FROM attempt")
        node.cut_down = False
        node.restart()
        run(world, GIVE_UP_S + 5.0)
        row = world.ledger.find("a")[0].outcomes[0]
        assert row.outcome is Outcome.INTERRUPTED
        assert row.reason == f"may have crossed: {node.name} no longer has it, and sent no outcome"
        world.calm_down()
        world.check_in_the_end()


def test_a_restarted_relay_has_its_permits():
    """Faults 47 and 58: the relay dies when the node has just written, and the node is silent."""
    with telescope() as world:
        announced(world)
        world.take_image()
        node, other = holder(world)
        run_until_written(world)
        node.cut_up = node.cut_down = True
        world.restart_relay()
        run(world, 30.0, [other])
        world.calm_down()
        world.check_in_the_end()


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("jump_s", [-86_400.0, -3600.0, 3600.0, 86_400.0])
def test_a_relay_whose_clock_has_jumped_invents_no_outcome(monkeypatch, restart, jump_s):
    """Fault 64: a visit that is sent to a node afterwards is neither expired nor new there."""
    with telescope() as world:
        for node in world.nodes:
            node.cut_up = True
            node.up.clear()
        world.announce()
        run(world, 20.0)
        wall = world.clock.tai
        monkeypatch.setattr(world.clock, "tai", lambda: wall() + jump_s)
        if restart:
            world.restart_relay()
        for node in world.nodes:
            node.cut_up = False
        world.calm_down()
        world.check_in_the_end()
        assert [row.outcome for row in world.ledger.find("a")[0].outcomes] == [Outcome.SUCCEEDED] * 2


@pytest.mark.parametrize("closed", [True, False])
def test_an_outcome_that_does_not_count_is_not_requeued(closed):
    """A node fails while it is silent; another one has the visit-detector, or has done it."""
    with telescope() as world:
        node, _ = announced(world)
        node.cut_up = node.cut_down = True
        while len(node.visits.open):
            for number in list(node.workers):
                node.worker_died(number)
            world.clock.now += 0.5
            node.tick()
            world.settle(node)
        if closed:
            world.take_image()
        run(world, 20.0)
        node.cut_up = node.cut_down = False
        run(world, 5.0)
        (entry,) = [entry for entry in node.journal.last_attempts("a") if entry.key.detector == 0]
        assert entry.outcome is Outcome.CRASHED
        assert entry.reported
        assert "two nodes would process it" in refusal_reason(entry, force=False)
        assert not refusal_reason(entry, force=True)


def test_a_late_outcome_of_a_node_replaces_that_of_the_relay():
    """Fault 63: the relay has given up the node, whose outcome comes later."""
    with telescope() as world:
        announced(world)
        world.take_image()
        node, _ = holder(world)
        run_until_written(world)
        node.cut_up = True
        run(world, 90.0)
        assert world.ledger.find("a")[0].outcomes[0].outcome is Outcome.INTERRUPTED
        world.calm_down()
        world.check_in_the_end()
        assert world.ledger.find("a")[0].outcomes[0].outcome is Outcome.SUCCEEDED


def test_what_an_operator_repeats_on_a_silent_node_is_written_once():
    """The relay has not received the outcome, and gives the detectors to another node."""
    with telescope() as world:
        node, other = announced(world)
        node.cut_up = node.cut_down = True
        world.take_image()
        run(world, 1.0, [node])
        for worker in node.workers.values():
            if worker.order is not None:
                worker.tell(Done(outcome=Outcome.FAILED))
        world.flow(node)
        failed = tuple(node.journal.last_attempts("a"))
        assert {entry.outcome for entry in failed} == {Outcome.FAILED}
        chosen = {entry.key: CHOSEN for entry in failed}
        node.handle(RequeueRequested(1, failed, chosen, {}, frozenset(), force=False))
        run(world, 30.0)
        world.calm_down()
        world.check_in_the_end()
        assert world.ledger.find("a")[0].outcomes[0].node == other.name


@pytest.mark.parametrize("adopts", [True, False])
def test_what_was_done_is_not_done_again_with_a_lost_ledger(monkeypatch, adopts):
    """One node has done both detectors, then the ledger is lost, and both are connected."""
    if not adopts:
        monkeypatch.setattr(EndedVisits, "listed", lambda ended: ())
    with telescope() as world:
        world.nodes[1].cut_up = True
        world.nodes[1].up.clear()
        announced(world)
        world.take_image()
        run(world, 10.0)
        assert len(world.dispatcher) == 0
        if not adopts:
            with pytest.raises(AssertionError, match="written twice"):
                world.put_back_ledger()
            return
        world.put_back_ledger()
        assert world.dispatcher.adopted == 2
        assert world.dispatcher.reservations == 0
        world.calm_down()
        world.check_in_the_end()
        assert [row.outcome for row in world.ledger.find("a")[0].outcomes] == [Outcome.SUCCEEDED] * 2


def test_what_a_node_holds_goes_on_with_an_older_ledger():
    """The copy is older than the visit, which its nodes have, one of them with a permit."""
    with telescope() as world:
        run(world, 2.0)
        world.copy_ledger()
        world.announce()
        run(world, 1.0)
        world.put_back_ledger(after_s=5.0)
        assert world.dispatcher.adopted == 2
        world.take_image()
        run(world, 10.0)
        world.check_in_the_end()
        assert [row.outcome for row in world.ledger.find("a")[0].outcomes] == [Outcome.SUCCEEDED] * 2
        assert world.written == {("a", 0): 1, ("a", 1): 1}
