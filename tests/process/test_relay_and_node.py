# SPDX-License-Identifier: BSD-3-Clause
"""The real relay with the real daemon, whose workers are scripted."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from node import make_node, observatory
from ramdisk import TEMPORARY

from ppdaemon import __version__
from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.reports import DrainRequest
from ppdaemon.states import SlotState
from ppdaemon.testing.node import TIMES
from ppdaemon.testing.waiting import wait_until

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory, module_leaves_nothing):
    """Return a relay, a node and a client, for tests that end neither of them."""
    with (
        tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY) as sockets,
        observatory(tmp_path_factory.mktemp("node"), Path(sockets), max=9) as made,
    ):
        yield made


def all_ended(client, group, outcome="succeeded", detectors=3):
    wait_until(
        lambda: list(client.outcomes(group).values()).count(outcome) == detectors,
        TIMEOUT_S,
        lambda: client.outcomes(group),
    )


def announce(client, node, group, number=1, *, detectors=9):
    answer = client.announce(group, nimages=1)
    assert (answer["status"], answer["detectors"]) == ("accepted", detectors)
    for detector in range(detectors):
        node.land(group, detector, number=number)


def test_the_relay_shows_the_worst_problem_of_each_node(tmp_path, socket_dir):
    with observatory(tmp_path, socket_dir) as (relay, node, _):
        daemon = RelayDaemon(relay.control)

        def shown() -> list[tuple[str, str, bool]]:
            return [(row.version, row.own_state, "drained by" in row.problem) for row in daemon.nodes()]

        wait_until(lambda: shown() == [(__version__, "running", False)], TIMEOUT_S, shown)
        node.daemon.ask(DrainRequest())
        wait_until(lambda: shown() == [(__version__, "draining", True)], TIMEOUT_S, shown)


def test_a_visit_passes_relay_and_node_and_its_status_is_requested(shared):
    _, node, client = shared
    announce(client, node, "passes", 1)
    all_ended(client, "passes", detectors=9)
    assert client.announce("passes", nimages=1)["status"] == "duplicate"
    assert node.marks("passes") == {f"passes~{detector}": 1 for detector in range(9)}


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["wait", pytest.param("cross", marks=pytest.mark.slow)])
def test_a_restarted_relay_receives_the_outcomes(tmp_path, socket_dir, alone):
    """Fault 47: the relay dies before the node has permits."""
    with observatory(tmp_path, socket_dir, alone, max=9, times=TIMES | {"run_s": 60}) as (
        relay,
        node,
        client,
    ):
        assert client.announce("g1", nimages=1)["status"] == "accepted"
        node.wait(lambda: node.status().open_visits == 9)
        relay.process.send_signal(signal.SIGKILL)
        relay.process.wait()
        for detector in range(9):
            node.land("g1", detector)
        waiting = 0 if alone == "cross" else 9
        node.wait(lambda: node.status().slots.get(SlotState.PROCESSING, 0) == waiting)
        node.wait(lambda: node.status().open_visits == waiting)
        relay.start()
        all_ended(client, "g1", detectors=9)
        assert node.marks() == {f"g1~{detector}": 1 for detector in range(9)}


def test_a_relay_that_hangs_for_a_while_loses_and_duplicates_no_visit(shared):
    relay, node, client = shared
    announce(client, node, "hangs1", 2)
    os.kill(relay.process.pid, signal.SIGSTOP)
    try:
        node.wait(lambda: "connecting" in node.status().relay)
    finally:
        os.kill(relay.process.pid, signal.SIGCONT)
    announce(client, node, "hangs2", 3)
    for group in ("hangs1", "hangs2"):
        all_ended(client, group, detectors=9)
        assert node.marks(group) == {f"{group}~{detector}": 1 for detector in range(9)}
    node.wait(lambda: node.status().relay.startswith("connected"))


def test_a_canceled_visit_ends_at_the_node_too(shared):
    _, node, client = shared
    client.announce("canceled", nimages=1)
    node.wait(lambda: node.status().open_visits == 9)
    assert client.request({"groupId": "canceled", "scriptSalIndex": 0})["status"] == "accepted"
    all_ended(client, "canceled", "cancelled", detectors=9)
    node.wait(lambda: node.status().open_visits == 0)


@pytest.mark.slow
def test_a_restarted_node_gets_again_what_it_handed_back_and_what_was_announced_meanwhile(
    tmp_path, socket_dir
):
    with observatory(tmp_path, socket_dir, max=9) as (_, node, client):
        client.announce("g1", nimages=1)
        node.wait(lambda: node.status().open_visits == 9)
        assert node.stop() == 0
        assert set(client.outcomes("g1").values()) == {None}
        announce(client, node, "g2", 2)
        node.start()
        for detector in range(9):
            node.land("g1", detector)
        for group in ("g1", "g2"):
            all_ended(client, group, detectors=9)
            assert node.marks(group) == {f"{group}~{detector}": 1 for detector in range(9)}


@pytest.mark.slow
def test_what_a_stopping_node_hands_back_runs_on_another(tmp_path, socket_dir):
    (other_sockets := socket_dir / "other").mkdir()
    (other_folder := tmp_path / "other").mkdir()
    with observatory(tmp_path, socket_dir, max=9) as (relay, node, client):
        other = make_node(other_folder, other_sockets, None, max=9)
        other.config["node"]["name"] = "n2"
        other.config["relay"] |= {"address": relay.nodes}
        other.config["arrivals"]["roots"] = node.config["arrivals"]["roots"]
        with other.start():
            other.wait(lambda: other.status().relay.startswith("connected"))
            client.announce("g1", nimages=1)
            other.wait(lambda: node.status().open_visits + other.status().open_visits == 9)
            assert node.stop() == 0
            other.wait(lambda: other.status().open_visits == 9)
            for detector in range(9):
                node.land("g1", detector)
            all_ended(client, "g1", detectors=9)
            assert other.marks() == {f"g1~{detector}": 1 for detector in range(9)}
            assert node.marks() == {}
