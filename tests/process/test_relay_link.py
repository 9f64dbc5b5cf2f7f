# SPDX-License-Identifier: BSD-3-Clause
"""A real pprelay between clients and nodes: acceptance, sending, reconnecting."""

import json
import os
import signal
import socket
import sqlite3
import time
from contextlib import closing

import psutil
import pytest
import zmq

from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.testing.played import PlayedNode
from ppdaemon.testing.relay import SILENCE_S, RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until


@pytest.fixture
def relay(socket_dir):
    with RelayProcess(socket_dir).start() as made:
        yield made


@pytest.fixture
def node(relay, wires):
    peer = PlayedNode(wires, relay.nodes, "n1")
    peer.wait_for("welcome")
    return peer


def all_of(outcome):
    return dict.fromkeys(range(9), outcome)


def test_a_visit_goes_through_a_node_and_back(client, node):
    assert client.announce("g")["status"] == "accepted"
    order = node.wait_for("visit")[0]
    assert (order.visit.group, order.detectors, order.attempt) == ("g", tuple(range(9)), 1)
    assert client.outcomes("g") == all_of(None)
    node.ack(order)
    node.finish(order)
    [seen] = node.wait_for("results_seen")
    assert seen.entries == tuple(("DemoCam", "g", detector, 1) for detector in range(9))
    assert client.outcomes("g") == all_of("succeeded")


def test_the_same_event_a_hundred_times_is_one_visit(relay, client, node):
    first = client.announce("g")
    again = [client.announce("g", survey="other") for _ in range(50)]
    node.ack(node.wait_for("visit")[0])
    node.finish(node.wait_for("visit")[0])
    node.wait_for("results_seen")
    again += [client.announce("g") for _ in range(50)]
    assert first["status"] == "accepted"
    assert {answer["status"] for answer in again} == {"duplicate"}
    assert {message.visit.group for message in node.wait_for("visit")} == {"g"}
    assert len(relay.events("duplicate visit with different content")) == 1


def test_an_unacknowledged_visit_is_sent_again_and_an_acknowledged_one_is_not(client, node):
    client.announce("g")
    first, second = node.wait_for("visit", 2)[:2]
    assert first.sequence < second.sequence
    assert first.detectors == second.detectors
    node.ack(second)
    client.announce("h")

    def groups():
        return [message.visit.group for message in node.wait_for("visit")]

    wait_until(lambda: groups().count("h") >= 4, TIMEOUT_S, groups)
    groups_sent = groups()
    # A last copy may have crossed the acknowledgement.
    after = [k for k, group in enumerate(groups_sent) if group == "h"][1]
    assert set(groups_sent[after:]) == {"h"}


def test_junk_is_refused_with_a_reason_counted_and_logged_once(relay, client):
    for data, words in (
        (b"junk", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "empty message"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"groupId": "g", "instrument": "DemoCam", "detector": "R22"}', "detector"),
        (b'{"groupId": "g", "groupId": "h"}', "occurs twice"),
        (b'"' + b"x" * 70_000 + b'"', "more than the 65536 accepted"),
    ):
        for _ in range(20):
            answer = client.request(data)
            assert answer["status"] == "rejected"
            assert words in answer["reason"]
    assert client.announce("g")["status"] == "accepted"
    refusals = [
        json.loads(line)
        for line in relay.log.read_text().splitlines()
        if "refused a request on the submit socket" in line
    ]
    assert sorted(line["kind"] for line in refusals) == [
        "depth",
        "empty",
        "encoding",
        "field",
        "json",
        "size",
    ]
    assert {line["kind"]: line["sample"] for line in refusals}["json"] == "junk"
    assert max(len(line["sample"]) for line in refusals) == 300


def test_a_message_of_several_frames_is_refused_also_from_a_dealer(relay, wires):
    dealer = wires.connect(zmq.DEALER, relay.submit)
    for frames in ([b"{}", b"{}"], [b"", b"{}", b"{}"], [b""]):
        dealer.send_multipart(frames)
        answer = json.loads(dealer.recv_multipart()[-1])
        assert answer["status"] == "rejected"
        assert "frame" in answer["reason"] or "empty" in answer["reason"]


def test_a_huge_message_costs_its_sender_the_connection_and_the_relay_nothing(relay, client, wires):
    process = psutil.Process(relay.process.pid)
    before_bytes = process.memory_info().rss
    dealer = wires.connect(zmq.DEALER, relay.submit)
    dealer.send(b'"' + b"x" * 10_000_000 + b'"')
    assert dealer.poll(300) == 0
    assert client.announce("g")["status"] == "accepted"
    assert process.memory_info().rss < before_bytes + 20_000_000


def test_unknown_blank_and_stale_are_answered_and_reach_no_node(client, node):
    assert client.announce("a", instrument="HSC")["status"] == "rejected"
    assert client.announce("b", instrument="")["status"] == "ignored"
    assert client.announce("c", private_sndStamp=time.time() - 4000)["status"] == "rejected"
    assert client.announce("d", private_sndStamp=time.time() + 4000)["status"] == "accepted"
    node.wait_for("visit")
    assert {message.visit.group for message in node.received if message.type == "visit"} == {"d"}


def test_junk_of_a_node_is_dropped_and_the_link_continues(relay, client, node):
    for frames in ((b"junk",), (b"{}",), (b"a", b"b"), (b"",), (b'{"type": "dance"}',)):
        node.send_raw(*frames)
    client.announce("g")
    node.ack(node.wait_for("visit")[0])
    wait_until(lambda: relay.events("ignored an invalid message from a node"), TIMEOUT_S, relay.events)


def test_a_cancelled_visit_that_no_node_has_ends_at_once(client):
    client.announce("g")
    assert client.request({"groupId": "g"}) == {
        "status": "accepted",
        "groupId": "g",
        "detectors": 9,
        "reason": "",
    }
    assert client.outcomes("g") == all_of("cancelled")
    assert client.request({"groupId": "g"})["status"] == "ignored"
    assert "within 60 s" in client.request({"groupId": "unknown"})["reason"]


def test_a_cancellation_is_repeated_until_the_node_has_sent_the_outcomes(client, node):
    client.announce("g", scriptSalIndex=7)
    order = node.wait_for("visit")[0]
    node.ack(order)
    assert client.request({"groupId": "g", "scriptSalIndex": 8})["status"] == "rejected"
    assert client.request({"groupId": "g", "scriptSalIndex": 7})["status"] == "accepted"
    assert client.request({"groupId": "g", "scriptSalIndex": 7})["status"] == "duplicate"
    node.wait_for("cancel", 3)
    node.finish(order, Outcome.CANCELLED)
    node.wait_for("results_seen")
    assert client.outcomes("g") == all_of("cancelled")


def test_a_final_refusal_is_the_outcome(client, node):
    client.announce("g")
    node.nak(node.wait_for("visit")[0], "expired: announced too long ago", final=True)
    wait_until(lambda: client.outcomes("g") == all_of("expired"), TIMEOUT_S)


def test_a_killed_relay_loses_nothing_that_it_accepted(relay, client, wires):
    node = PlayedNode(wires, relay.nodes, "n1")
    node.wait_for("welcome")
    client.announce("g")
    order = node.wait_for("visit")[0]
    node.ack(order)
    assert client.announce("held", instrument="DemoCam")["status"] == "accepted"
    relay.kill()
    relay.start()
    assert SubmitClient(wires, relay.submit).announce("g")["status"] == "duplicate"
    started = time.monotonic()
    node.wait_for("welcome", 2)
    assert time.monotonic() - started < 15.0
    wait_until(lambda: "held" in {each.visit.group for each in node.wait_for("visit")}, TIMEOUT_S)
    node.finish(order)
    node.wait_for("results_seen")
    assert SubmitClient(wires, relay.submit).outcomes("g") == all_of("succeeded")


def test_visits_wait_for_a_node_that_starts_last(relay, client, wires):
    for k in range(20):
        assert client.announce(f"g{k}")["status"] == "accepted"
    node = PlayedNode(wires, relay.nodes, "late")
    wanted = {f"g{k}" for k in range(20)}
    wait_until(lambda: {message.visit.group for message in node.wait_for("visit")} == wanted, TIMEOUT_S)


def test_detectors_of_a_node_that_vanished_unacknowledged_go_to_another(client, node, wires, relay):
    client.announce("g")
    node.wait_for("visit")
    other = PlayedNode(wires, relay.nodes, "n2")
    other.wait_for("welcome")
    node.disconnect()
    order = other.wait_for("visit")[0]
    assert order.attempt == 2
    other.ack(order)
    other.finish(order)
    wait_until(lambda: client.outcomes("g") == all_of("succeeded"), TIMEOUT_S)


@pytest.mark.slow
def test_a_partition_shorter_and_longer_than_the_silence_doubles_nothing(relay, client, node):
    client.announce("g")
    order = node.wait_for("visit")[0]
    node.ack(order)
    os.kill(relay.process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: psutil.Process(relay.process.pid).status() == psutil.STATUS_STOPPED)
        deadline = time.monotonic() + 1.5 * SILENCE_S
        wait_until(lambda: time.monotonic() > deadline, 3.0 * SILENCE_S)
        node.finish(order)
    finally:
        os.kill(relay.process.pid, signal.SIGCONT)
    node.wait_for("results_seen")
    assert client.outcomes("g") == all_of("succeeded")
    assert relay.events("pprelay did not run for a time")
    assert not relay.events("no message from node")


def test_a_second_node_of_a_name_is_refused_until_the_first_is_gone(relay, node, wires):
    second = PlayedNode(wires, relay.nodes, "n1", incarnation="other")
    refusal = second.wait_for("sorry")[0]
    assert refusal.code == "taken"
    assert "another node named n1" in refusal.reason
    node.disconnect()

    def welcomed():
        second.hello()
        second.listen()
        return [message for message in second.received if message.type == "welcome"]

    wait_until(welcomed, TIMEOUT_S)


def test_the_service_manager_is_informed_of_ready_status_watchdog_and_stop(socket_dir):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_dir / "notify"))
        manager.settimeout(30.0)
        relay = RelayProcess(socket_dir).start(NOTIFY_SOCKET=str(socket_dir / "notify"))
        states = [manager.recv(1000).decode()]
        while "WATCHDOG=1" not in states[-1]:
            states.append(manager.recv(1000).decode())
        assert relay.stop() == 0
        assert relay.stop_duration_s() < 5.0
        while "STOPPING=1" not in states[-1]:
            states.append(manager.recv(1000).decode())
    assert states[0].startswith("READY=1\nSTATUS=0 nodes, 0 open visits")


def test_the_service_manager_is_informed_why_the_relay_ended(socket_dir):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_dir / "notify"))
        manager.settimeout(30.0)
        relay = RelayProcess(socket_dir, expiry_s="soon")
        relay.launch(NOTIFY_SOCKET=str(socket_dir / "notify"))
        assert relay.process.wait(TIMEOUT_S) == ExitCode.CONFIG
        text = manager.recv(1000).decode()
    assert text.startswith("STATUS=ended: ")
    assert "expiry_s" in text


def test_a_ledger_that_cannot_be_written_refuses_and_recovers(relay, client):
    assert client.announce("before")["status"] == "accepted"
    with closing(sqlite3.connect(relay.state_dir / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.announce("locked")
        other.execute("ROLLBACK")
    assert answer["status"] == "rejected"
    assert "ledger cannot be written" in answer["reason"]
    assert client.announce("after")["status"] == "accepted"
    assert client.announce("locked")["status"] == "accepted"


def test_a_node_of_another_version_is_named_once_with_what_to_do(relay, wires):
    old = wires.connect(zmq.DEALER, relay.nodes)
    for _ in range(3):
        old.send(json.dumps({"schema": 1, "type": "heartbeat", "origin": "n7", "sequence": 0}).encode())
    client = RelayDaemon(relay.control)
    wait_until(lambda: client.status().counters.get("node protocol") == 3, TIMEOUT_S)
    text = "n7 sends messages of version 1, this program of version 2: install the same version of ppdaemon"
    assert (
        len(relay.events(text)) == len([each for each in client.status().problem_texts if text in each]) == 1
    )
