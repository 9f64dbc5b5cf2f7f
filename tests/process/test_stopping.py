# SPDX-License-Identifier: BSD-3-Clause
"""Signals from outside, and the end of a daemon's visits."""

import os
import signal

import pytest
from node import running

from ppdaemon.processes import GROUP_SIGNALS
from ppdaemon.states import Outcome
from ppdaemon.testing.processes import descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_signal_to_all_processes_ends_only_the_daemon_and_its_running_visit_succeeds(
    tmp_path, socket_dir, start
):
    with running(tmp_path, socket_dir, start=start, times={"stop_s": TIMEOUT_S}) as node:
        node.wait(lambda: any(title(pid) == "ppdaemon exporter" for pid in descendants(node.pid)))
        node.relay.reserve("g1", survey="process:gate")
        node.land("g1")
        node.wait(lambda: node.at_gate("g1"))
        pids = descendants(node.pid)
        for number in GROUP_SIGNALS:
            for pid in pids:
                os.kill(pid, number)
        assert node.status().slots.get("backoff", 0) == 0
        os.killpg(node.pid, signal.SIGTERM)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        node.wait(lambda: node.status().state == "stopping")
        node.open_gate("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.process.wait(TIMEOUT_S) == 0
        assert [name.partition("~")[0] for name in node.exported()] == ["DemoCam"], node.story()
        assert "killed by" not in node.log.read_text(), node.story()
