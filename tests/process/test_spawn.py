# SPDX-License-Identifier: BSD-3-Clause
"""The daemon with workers that are fresh interpreters instead of forks."""

import os
import signal

import pytest
from node import make_node, running

from ppdaemon.reports import ReloadRequest
from ppdaemon.states import ExitCode, Outcome, SlotState, Stage
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.processes import alive, descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

SPAWN = {"start": "spawn", "min": 1, "spare": 0, "max": 2, "times": {"boot_s": 40}}


@pytest.fixture(scope="module")
def changes():
    return SPAWN


def test_a_visit_runs_from_announcement_to_export(node, group):
    node.relay.reserve(group, range(2))
    for detector in range(2):
        node.land(group, detector)
    for detector in range(2):
        assert node.relay.outcome(group, detector).outcome == Outcome.SUCCEEDED
    node.wait(lambda: all(Stage.CENTRAL in row.stages for row in node.visit(group)))
    assert not any("zygote" in title(pid) for pid in descendants(node.process.pid))


@pytest.mark.parametrize("fault", ["die", "segv", "exit"])
def test_a_crash_is_tried_again(node, group, fault):
    node.succeed(group, survey=f"process:{fault}@1")
    first, second = node.visit(group)
    assert (first.outcome, first.attempt, second.attempt) == (Outcome.CRASHED, 1, 2)
    ends = {"die": "by signal 9 (SIGKILL)", "segv": "by signal 11 (SIGSEGV)", "exit": "with status 0"}
    expected = "ended " + ends[fault]
    assert expected in first.reason
    assert node.marks(group) == {f"{group}~0": 1}


@pytest.mark.slow
def test_workers_end_with_a_killed_supervisor(tmp_path, socket_dir):
    """Fault 51: the supervisor of spawned workers is killed."""
    with PlayedRelay() as relay, make_node(tmp_path, socket_dir, relay, **SPAWN) as node:
        node.start()
        relay.reserve("g1", survey="process:deaf")
        node.land("g1")
        node.wait(lambda: node.workers()[0].state == SlotState.PROCESSING)
        processes = descendants(node.process.pid)
        node.kill()
        wait_until(lambda: not any(map(alive, processes)), story="workers outlive their supervisor")


def test_no_dead_worker_stays_a_zombie(node):
    node.wait(node.is_ready)
    worker = next(row for row in node.workers() if row.state == SlotState.IDLE)
    os.kill(worker.pid, signal.SIGKILL)

    def replaced():
        row = node.workers()[worker.slot]
        return row if row.epoch > worker.epoch and row.state == SlotState.IDLE else None

    assert "ended by signal 9 (SIGKILL)" in node.wait(replaced).note
    assert not os.path.exists(f"/proc/{worker.pid}")


@pytest.mark.slow
def test_a_reload_may_go_from_fork_to_spawn(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=1, spare=0, max=1) as node:
        node.relay.reserve("g1")
        node.wait(lambda: node.workers()[0].state == SlotState.WAITING)
        node.rewrite(workers={"start": "spawn"})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        node.wait(
            lambda: (
                {title(pid) for pid in descendants(node.process.pid)}
                == {"ppdaemon spawner", "ppdaemon worker 0", "ppdaemon exporter"}
            )
        )


@pytest.mark.slow
def test_a_module_that_cannot_be_imported_ends_the_start_with_its_traceback(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir, None, preload=["no_such_module"], **SPAWN)
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    assert "No module named 'no_such_module'" in (tmp_path / "daemon.log").read_text()
