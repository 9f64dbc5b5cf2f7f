# SPDX-License-Identifier: BSD-3-Clause
"""A real pprelay and ``ppctl --relay``: what an operator sees and does."""

import json
import os
import signal

import pytest

from ppdaemon.ctl import cli
from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.messages import Heartbeat
from ppdaemon.testing.played import PlayedNode
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until


@pytest.fixture
def relay(socket_dir):
    with RelayProcess(socket_dir).start() as made:
        yield made


@pytest.fixture
def ppctl(relay, capsys):
    """Run ppctl in this process; return exit status, stdout and stderr."""

    def run(*arguments, options=("--config", str(relay.config))):
        code = cli._run(["--relay", *options, *arguments])
        out, err = capsys.readouterr()
        return int(code), out, err

    return run


def a_node(wires, relay, name="n1", **fields):
    node = PlayedNode(wires, relay.nodes, name, **fields)
    node.wait_for("welcome")
    return node


def knows_its_drain(node):
    node.listen()
    beats = [message for message in node.received if message.type == "heartbeat"]
    return bool(beats) and beats[-1].drained


def states(relay):
    return {row.node: row.state for row in RelayDaemon(relay.control).nodes()}


def test_an_operator_sees_what_waits_and_why_and_who_has_what(relay, client, wires, ppctl):
    answer = client.announce("g1", survey="BLOCK-1")
    assert (answer["status"], answer["unserved"]) == ("accepted", list(range(9)))
    node = a_node(wires, relay, detectors=range(6), capacity=4)
    a_node(wires, relay, "n2", spare=True, detectors=(7,))
    code, out, _ = ppctl("status", "--json")
    report = json.loads(out)
    assert (code, report["state"], report["unserved"]) == (0, "degraded", {"DemoCam": [6, 8]})
    node.ack(node.wait_for("visit")[0])
    wait_until(lambda: states(relay) == {"n1": "full", "n2": "ready"}, TIMEOUT_S, lambda: states(relay))
    rows = {row["node"]: row for row in json.loads(ppctl("hosts", "--json")[1])}
    assert [rows["n1"][key] for key in ("open", "capacity", "detectors", "messages_lost")] == [
        4,
        4,
        {"DemoCam": "0-5"},
        0,
    ]
    assert rows["n2"]["spare"]
    reports = {row["detector"]: row["reason"] for row in json.loads(ppctl("status", "--json")[1])["waits"]}
    assert reports.keys() == {4, 5, 6, 8}
    assert (reports[6], "full" in reports[4]) == ("no node serves it", True)
    code, out, _ = ppctl("status")
    assert (code, "DemoCam 4-6,8, since" in out) == (0, True)
    assert "not enough for one whole visit of DemoCam" in out
    [visit] = json.loads(ppctl("visits", "--json")[1])
    wait_until(
        lambda: (
            json.loads(ppctl("visits", "--json")[1])[0]["open"]
            == {"acknowledged": 4, "sent": 1, "waiting": 4}
        ),
        TIMEOUT_S,
    )
    assert (visit["group"], visit["survey"], visit["detectors"], visit["outcomes"]) == (
        "g1",
        "BLOCK-1",
        9,
        {},
    )
    assert ppctl("visit", "unknown")[0] == 65
    assert "acknowledged" in ppctl("visit", "g1")[1]


def test_a_drained_node_gets_nothing_new_also_after_a_restart_of_the_relay(relay, client, wires, ppctl):
    node = a_node(wires, relay)
    assert ppctl("drain", "n2")[0] == 65
    assert ppctl("drain", "n1") == (0, "n1 gets nothing new\n", "")
    assert client.announce("g1")["unserved"] == list(range(9))
    relay.kill()
    relay.start()
    node.wait_for("welcome", 2)
    wait_until(lambda: states(relay) == {"n1": "draining"}, TIMEOUT_S)
    assert not [message for message in node.received if message.type == "visit"]
    wait_until(lambda: knows_its_drain(node), TIMEOUT_S)
    assert ppctl("resume", "n1") == (0, "n1 gets visits\n", "")
    assert node.wait_for("visit")[0].detectors == tuple(range(9))
    wait_until(lambda: not knows_its_drain(node), TIMEOUT_S)


def test_a_node_that_takes_no_visits_all_the_same_is_no_success_of_a_resume(relay, wires, ppctl):
    node = a_node(wires, relay, capacity=0)
    node.send(Heartbeat, state="degraded", problem="the journal cannot be written")
    done = "the drain has ended; no visits are taken yet"
    why = "n1 takes none (degraded: the journal cannot be written): see ppctl status on its host"
    wait_until(lambda: ppctl("resume", "n1") == (1, f"{done}: {why}\n", ""), TIMEOUT_S, lambda: states(relay))
    node.disconnect()
    wait_until(lambda: states(relay) == {"n1": "disconnected"}, TIMEOUT_S)
    code, out, _ = ppctl("resume", "n1", "--json")
    assert (code, json.loads(out)["data"]["closed"][0][:23]) == (1, "n1 is not connected: st")


def test_detectors_surveys_and_nodes_are_switched_without_a_restart(relay, client, wires, ppctl):
    nodes = {name: a_node(wires, relay, name) for name in ("a", "b")}
    instruments = {"DemoCam": {"detectors": "0-8", "nodes": {"b": "0-8"}}}
    off = {"surveys": ["dark"], "detectors": {"DemoCam": "1-8"}}
    relay.configure(instruments=instruments, switched_off=off)
    assert ppctl("reload")[:2] == (0, "the configuration is in use\n")
    assert client.announce("g1", survey="dark")["status"] == "ignored"
    assert client.announce("g2")["detectors"] == 1
    assert nodes["b"].wait_for("visit")[0].detectors == (0,)
    relay.configure(switched_off={}, instruments={"DemoCam": {"detectors": "0-8", "nodes": {"a": "0-8"}}})
    relay.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(relay.events("configuration reloaded")) == 2, TIMEOUT_S)
    assert client.announce("g3", survey="dark")["detectors"] == 9
    assert nodes["a"].wait_for("visit")[0].visit.group == "g3"


def test_a_reload_changes_the_levels_of_loggers(relay, ppctl):
    relay.configure(log={"levels": {"ppdaemon.reloading": "ERROR"}})
    assert ppctl("reload")[0] == 0
    assert not relay.events("configuration reloaded")
    relay.configure(log={})
    assert ppctl("reload")[0] == 0
    assert len(relay.events("configuration reloaded")) == 1


def test_a_configuration_with_errors_or_another_address_changes_nothing(relay, client, ppctl):
    relay.configure(keep_days=-1)
    code, _, err = ppctl("reload")
    assert (code, "keep_days" in err) == (78, True)
    os.kill(relay.process.pid, signal.SIGHUP)
    wait_until(
        lambda: any("reload refused" in text for text in RelayDaemon(relay.control).status().problem_texts)
    )
    relay.configure(keep_days=1, resend_s=9.0)
    code, _, err = ppctl("reload")
    assert (code, err) == (
        78,
        "ppctl: resend_s: cannot change while the daemon runs; restart it instead\n",
    )
    assert client.announce("g1")["status"] == "accepted"


def test_visits_are_read_from_the_ledger_while_the_relay_does_not_run(relay, client, ppctl):
    client.announce("g1")
    relay.kill()
    for end in ("killed", "stopped"):
        code, out, err = ppctl("visits", "--json")
        assert (code, [row["open"] for row in json.loads(out)]) == (0, [{"waiting": 9}]), end
        assert "read from its ledger" in err
        code, out, _ = ppctl("visit", "g1", options=("--socket", str(relay.control)))
        assert (code, out.count("waiting")) == (0, 10)
        assert ppctl("visit", "g2")[0] == 65
        assert ppctl("status")[0] == 3
        assert ppctl("hosts")[0] == 69
        if end == "killed":  # now there is no WAL beside it
            relay.start()
            relay.stop()


def test_a_gap_in_the_messages_of_a_node_is_repaired_by_its_hello(relay, wires):
    node = a_node(wires, relay)
    node._sequence += 3
    node.wait_for("send_hello")
    node.wait_for("welcome", 2)
    [row] = RelayDaemon(relay.control).nodes()
    assert row.messages_lost == 3


def test_the_messages_to_each_node_are_numbered_without_gaps(relay, client, wires):
    nodes = [a_node(wires, relay, name) for name in ("a", "b")]
    for number in range(5):
        client.announce(f"g{number}")
    for node in nodes:
        node.wait_for("visit", 3)
        numbers = [message.sequence for message in node.received]
        assert numbers == list(range(1, len(numbers) + 1))
