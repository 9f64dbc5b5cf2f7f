# SPDX-License-Identifier: BSD-3-Clause
"""Signals from outside, and the end of a daemon's visits."""

import os
import signal
from contextlib import suppress
from functools import partial

import pytest
from node import running

from ppdaemon.messages import Results
from ppdaemon.processes import GROUP_SIGNALS
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.processes import descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S


def signal_all(pids, number):
    """Send a signal; some processes may have ended, because the daemon stops."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
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
            signal_all(pids, number)
        assert node.status().slots.get("backoff", 0) == 0
        os.killpg(node.pid, signal.SIGTERM)
        signal_all(pids, signal.SIGTERM)
        node.wait(lambda: node.status().state == "stopping")
        node.open_gate("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.process.wait(TIMEOUT_S) == 0
        assert [name.partition("~")[0] for name in node.exported()] == ["DemoCam"], node.story()
        assert "ended by signal" not in node.log.read_text(), node.story()


def test_a_stop_hands_back_what_waits_and_lets_what_runs_end(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=3, max=3, times={"stop_s": TIMEOUT_S}) as node:
        node.relay.reserve("runs", survey="process:gate")
        node.land("runs")
        node.wait(lambda: node.at_gate("runs"))
        node.relay.reserve("prepares", survey="prepare:gate")
        node.wait(lambda: node.at_gate("prepares"))
        node.relay.reserve("waits", (0, 1))  # one of them is queued
        node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
        node.relay.wait(lambda: ("waits", 1) in node.relay.acked)
        node.process.send_signal(signal.SIGTERM)
        node.relay.wait(lambda: node.relay.acked == {("runs", 0)})
        assert {(entry.group, entry.detector) for entry in node.relay.returned} == {
            ("prepares", 0),
            ("waits", 0),
            ("waits", 1),
        }
        node.open_gate("runs")
        assert node.relay.outcome("runs").outcome == Outcome.SUCCEEDED
        assert node.process.wait(TIMEOUT_S) == 0
        assert node.relay.results.keys() == {("runs", 0)}


def store_results(relay, message):
    """Play a relay that confirms nothing."""
    if isinstance(message, Results):
        relay.returned += message.entries
    else:
        type(relay).on_message(relay, message)


@pytest.mark.slow
def test_what_was_handed_back_is_sent_until_the_relay_has_confirmed_it(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:
        node.relay.reserve("g1")
        node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
        answer, node.relay.on_message = node.relay.on_message, partial(store_results, node.relay)
        node.process.send_signal(signal.SIGTERM)
        node.relay.wait(lambda: node.relay.returned)
        assert node.process.wait(TIMEOUT_S) == 0
        node.relay.returned.clear()
        node.start()
        node.relay.wait(lambda: len(node.relay.returned) > 1)
        node.relay.on_message = answer
        node.relay.wait(lambda: not node.relay.acked)
        assert node.relay.results == {}
        assert node.marks() == {}
