# SPDX-License-Identifier: BSD-3-Clause
"""A real node in shadow mode: it reports the mode, and a relay of the present service gives it nothing."""

from pathlib import Path

import pytest
from node import make_node

from ppdaemon.states import ExitCode
from ppdaemon.testing.played import ClientSockets
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S


@pytest.mark.slow
def test_a_node_in_shadow_mode_is_served_by_a_relay_of_its_mode_only(
    tmp_path: Path, socket_dir: Path
) -> None:
    relay_folder = socket_dir / "r"
    relay_folder.mkdir()
    relay, node = RelayProcess(relay_folder), make_node(tmp_path, socket_dir)
    node.config["relay"] |= {"address": relay.nodes, "silence_s": 2.0}
    node.config["shadow"] = True
    with relay.start(), node.start(), ClientSockets() as wires:
        node.wait(lambda: "shadow must be the same" in node.status().relay)
        client = SubmitClient(wires, relay.submit)
        assert client.announce("g1")["status"] == "accepted"
        report = node.status()
        assert report.shadow
        assert "shadow mode" in report.text
        assert report.open_visits == 0
        relay.stop()
        relay.configure(shadow=True)
        relay.launch()
        # What waits there is for nodes of the present service.
        assert relay.process.wait(TIMEOUT_S) == ExitCode.CANNOT_CREATE
        for path in relay.state_dir.glob("ledger*"):
            path.unlink()
        relay.start()
        node.wait(lambda: node.status().relay.startswith("connected"))
        client.announce("g2")
        node.wait(lambda: node.status().open_visits > 0)
    # Nobody can use its journal for the present service by mistake.
    node.config.pop("shadow")
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CANNOT_CREATE
    assert "has visits of shadow mode: use another node.state_dir" in node.story()
