# SPDX-License-Identifier: BSD-3-Clause
"""What an operator sees of a node that cannot work, or should not: health, drains, restarts of slots."""

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from node import make_node, running

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.night.reading import read_night
from ppdaemon.reports import DrainRequest, RestartRequest, Resumed, ResumeRequest
from ppdaemon.states import Outcome
from ppdaemon.testing.waiting import TIMEOUT_S

AWAY = {"address": "tcp://127.0.0.1:1", "heartbeat_s": 0.1, "silence_s": 0.3}


def problems_of(node, source):
    return [problem for problem in node.status().problems if problem.source == source]


def status_lines(listener):
    """Return the values of STATUS that were sent to a service manager since the last call."""
    lines = "\n".join(messages_of(listener)).splitlines()
    return [line.removeprefix("STATUS=") for line in lines if line.startswith("STATUS=")]


def messages_of(listener):
    """Return what was sent to a service manager since the last call."""
    listener.setblocking(False)
    messages = []
    while True:
        try:
            messages.append(listener.recv(65_536).decode())
        except BlockingIOError:
            return messages


def test_fault_77_a_relay_that_is_not_there_degrades_the_node_until_it_is(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir)
    node.config["relay"] |= AWAY
    with node:
        node.launch()
        (problem,) = node.wait(lambda: problems_of(node, "relay"))
        assert "no relay answers at tcp://127.0.0.1:1" in problem.text
        node.wait(lambda: node.status().state == "degraded")
        assert not node.status().healthy
        (later,) = problems_of(node, "relay")
        assert later.since_tai == problem.since_tai
        assert later.since_tai < node.status().tai - 0.3


def test_fault_77_workers_that_cannot_be_prepared_degrade_the_node_until_they_can(tmp_path, socket_dir):
    """The start is repeated by the daemon, which can be asked meanwhile, not by the service manager."""
    node = make_node(tmp_path, socket_dir, variables={"NOTIFY_SOCKET": str(socket_dir / "notify")})
    node.state.mkdir(mode=0o750)
    (node.state / "template-fails").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_dir / "notify"))
        with node:
            node.launch()
            (problem,) = node.wait(lambda: problems_of(node, "zygote"))
            assert "no worker can start: the template repo was not created" in problem.text
            assert node.status().state == "degraded"
            lines = []
            node.wait(
                lambda: (
                    lines.extend(status_lines(manager))
                    or any("no worker can start" in line for line in lines)
                ),
                8,
            )
            (node.state / "template-fails").unlink()
            node.wait(node.is_ready)
            node.wait(lambda: node.status().state == "running")
            assert not problems_of(node, "zygote")


def test_the_service_manager_sees_the_stage_of_the_start_and_why_it_ended(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir, variables={"NOTIFY_SOCKET": str(socket_dir / "notify")})
    node.config["workers"]["preload"] = ["there.is.no.such.module"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_dir / "notify"))
        node.launch()
        assert node.process.wait(TIMEOUT_S) == 78
        lines = status_lines(manager)
    assert "starting: importing the modules of the workers" in lines[0]
    assert "workers.preload.0: there.is.no.such.module cannot be imported" in lines[-1]


def test_the_service_manager_waits_until_spools_are_moved_from_the_ramdisk(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir, variables={"NOTIFY_SOCKET": str(socket_dir / "notify")})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_dir / "notify"))
        node.launch()
        node.wait(node.is_ready)
        ramdisk = node.ramdisk / "ppdaemon-n1" / "spool"
        (ramdisk / "DemoCam~g~0~1").mkdir()
        (ramdisk / "DemoCam~g~0~1" / "manifest.json").write_text("{}")
        assert node.stop() == 0
        assert "\nEXTEND_TIMEOUT_USEC=3" in "\n" + "\n".join(messages_of(manager))
    assert (node.state / "spool" / "DemoCam~g~0~1" / "manifest.json").read_text() == "{}"


def test_a_drain_that_cannot_be_written_names_the_folder_and_what_else_helps(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:
        (node.state / "drained").mkdir()
        with pytest.raises(Refused) as refused:
            node.daemon.ask(DrainRequest())
        assert f"cannot be written to {node.state}: " in str(refused.value)
        assert "ppctl --relay drain n1)" in str(refused.value)
        with pytest.raises(Refused) as refused:
            node.daemon.ask(ResumeRequest())
        assert f"cannot be written to {node.state}: " in str(refused.value)
        assert "out of service" not in str(refused.value)
        (node.state / "drained").rmdir()
        node.daemon.ask(DrainRequest())


def test_a_resume_names_what_still_keeps_visits_away(tmp_path, socket_dir):
    def resumed():
        return Resumed.model_validate(node.daemon.ask(ResumeRequest(), timeout_s=TIMEOUT_S))

    with running(tmp_path, socket_dir) as node:
        node.daemon.ask(DrainRequest())
        assert resumed() == Resumed()
        node.daemon.ask(DrainRequest())
        with closing(sqlite3.connect(node.state / "journal.sqlite", isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            assert ["the journal" in text for text in resumed().closed] == [True]
        node.wait(lambda: resumed() == Resumed())


@pytest.mark.slow
def test_a_drain_lasts_until_it_is_resumed(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:
        node.daemon.ask(DrainRequest())
        node.relay.wait(lambda: node.relay.hellos[-1].capacity == 0)
        since = problems_of(node, "capacity")[0].since_tai
        assert node.stop() == 0
        node.launch()
        node.wait(lambda: node.status().state == "draining")
        node.relay.wait(lambda: node.relay.hellos[-1].capacity == 0)
        (problem,) = problems_of(node, "capacity")
        assert (problem.degrades, abs(problem.since_tai - since) < 0.1) == (False, True)
        node.daemon.ask(ResumeRequest())
        node.relay.wait(lambda: node.relay.hellos[-1].capacity)
        node.succeed("g1")
        assert node.stop() == 0
        node.launch()
        node.wait(node.is_ready)
        assert node.status().state == "running"


def test_a_slot_restarts_after_its_visit_unless_it_has_to_now(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=1, max=1, attempts=1) as node:
        node.relay.reserve("g1")
        (row,) = node.wait(lambda: [row for row in node.workers() if row.state == "waiting"])
        assert node.daemon.ask(RestartRequest(slot=0)) == "slot 0 restarts after its visit, g1 detector 0"
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        node.wait(lambda: [new for new in node.workers() if new.state == "idle" and new.epoch > row.epoch])
        assert node.status().counters["recycled.operator"] == 1
        assert read_night([node.daemon.journal_path()], None, Clock()).recycled == {"operator": 1}
        node.relay.reserve("g2")
        node.wait(lambda: [row for row in node.workers() if row.state == "waiting"])
        assert node.daemon.ask(RestartRequest(slot=0, now=True)) == "slot 0 restarts"
        assert node.relay.outcome("g2").outcome == Outcome.INTERRUPTED


def test_two_daemons_of_one_name_do_not_share_a_ram_disk(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:
        other = make_node(tmp_path, socket_dir)
        other.config["node"] |= {
            "state_dir": str(tmp_path / "other"),
            "control": str(Path(socket_dir, "other")),
        }
        other.launch()
        assert other.process.wait(TIMEOUT_S) == 73
        assert f"belongs to a running ppdaemon (process {node.pid})" in other.log.read_text()
        node.succeed("g1")
