# SPDX-License-Identifier: BSD-3-Clause
"""A relay whose ledger was replaced by an older one learns from its nodes what was done."""

import pytest

from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.ledgerfile import LEDGER_NAME
from ppdaemon.messages import EndedDetectors, Hello
from ppdaemon.testing.played import PlayedNode
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until


@pytest.fixture
def relay(socket_dir):
    with RelayProcess(socket_dir).start() as made:
        yield made


def test_an_announcement_of_what_a_node_has_done_is_a_duplicate(relay, wires, monkeypatch):
    node = PlayedNode(wires, relay.nodes, "n1")
    node.wait_for("welcome")
    client = SubmitClient(wires, relay.submit)
    client.announce("g1")
    visit = node.wait_for("visit")[0]
    node.ack(visit)
    node.finish(visit)
    wait_until(lambda: set(client.outcomes("g1").values()) == {"succeeded"}, TIMEOUT_S)
    assert RelayDaemon(relay.control).status().problem_texts == ()
    ended = EndedDetectors(
        instrument="DemoCam",
        group="g1",
        attempt=1,
        detectors=tuple(range(9)),
        outcome="succeeded",
        reported=True,
    )
    fields = {"incarnation": "run1", "instruments": {"DemoCam": range(9)}, "capacity": 9}
    monkeypatch.setattr(node, "hello", lambda: node.send(Hello, **fields, ended=[ended]))
    relay.stop()
    for path in relay.state_dir.glob(f"{LEDGER_NAME}*"):
        path.unlink()
    node.received.clear()
    relay.start()
    node.wait_for("welcome")
    assert client.announce("g1")["status"] == "duplicate"
    assert set(client.outcomes("g1").values()) == {"succeeded"}
    assert "9 visit-detectors were adopted" in str(RelayDaemon(relay.control).status().problem_texts)
    assert len(relay.events("the ledger is older than the journal of a node")) == 1
