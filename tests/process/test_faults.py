# SPDX-License-Identifier: BSD-3-Clause
"""Failures of workers, disks and clocks that the pool survives, by number."""

import os
import signal
import sqlite3
import subprocess
import uuid
from pathlib import Path

import pytest
from node import make_node, running

from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.processes import alive, descendants
from ppdaemon.testing.waiting import TIMEOUT_S

CAN_MOUNT = (
    os.geteuid() == 0
    and subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False
    ).returncode
    == 0
)
FREEZER = Path("/sys/fs/cgroup/freezer")


def slot_of(node, group, state):
    """Wait until a visit's worker is in a state; return its row."""
    return node.wait(
        lambda: next((row for row in node.workers() if (row.group, row.state) == (group, state)), None)
    )


def test_a_killed_worker_is_replaced_and_its_visit_continues(tmp_path, socket_dir):
    """Fault 30: SIGKILL while idle and while waiting."""
    with running(tmp_path, socket_dir, min=1, max=1) as node:
        for number, state in enumerate((SlotState.IDLE, SlotState.WAITING), 1):
            group = f"g{number}"
            if state == SlotState.WAITING:
                node.relay.reserve(group)
            row = node.wait(lambda state=state: next((r for r in node.workers() if r.state == state), None))
            os.kill(row.pid, signal.SIGKILL)
            node.wait(lambda row=row: node.workers()[0].epoch == row.epoch + 1 and node.workers()[0].pid)
            if state == SlotState.IDLE:
                node.relay.reserve(group)
            node.land(group, number=number)
            assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
            assert node.workers()[0].pid != row.pid
            assert node.marks(group) == {f"{group}~0": 1}
            node.wait(lambda: node.workers()[0].state == SlotState.IDLE)


def test_a_worker_that_dies_before_its_spool_is_complete_has_not_succeeded(node, group):
    """Fault 30: SIGKILL while exporting, before the spool is complete."""
    node.relay.reserve(group, survey="export:die")
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.CRASHED
    assert node.marks(group) == {f"{group}~0": 1}
    assert not any(group in name for name in node.exported())


def test_an_endless_loop_is_killed_at_its_deadline_and_retried(tmp_path, socket_dir):
    """Fault 32: an endless loop."""
    with running(tmp_path, socket_dir, times={"run_s": 3}) as node:  # enough for the second attempt
        node.relay.reserve("g1", survey="process:spin@1")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        first, second = node.visit("g1")
        assert (first.outcome, second.outcome) == (Outcome.RUN_TIMEOUT, Outcome.SUCCEEDED)
        assert first.slot != second.slot


@pytest.mark.skipif(not os.access(FREEZER / "tasks", os.W_OK), reason="needs a writable cgroup v1 freezer")
def test_a_process_that_survives_kill_is_fenced_and_the_others_continue(tmp_path, socket_dir):
    """Fault 33: unkillable, as on a frozen filesystem."""
    group = FREEZER / f"ppdaemon-test-{uuid.uuid4().hex}"
    group.mkdir()
    try:
        times = {"run_s": 3, "grace_s": 0.2, "kill_s": 0.3}
        with running(tmp_path, socket_dir, times=times) as node:
            node.relay.reserve("g1", survey="process:hang")
            node.land("g1")
            row = slot_of(node, "g1", SlotState.PROCESSING)
            (group / "tasks").write_text(str(row.pid))
            (group / "freezer.state").write_text("FROZEN")
            try:
                entry = node.relay.outcome("g1")
                frozen = alive(row.pid)
                if frozen:
                    assert entry.outcome == Outcome.RUN_TIMEOUT
                    node.wait(lambda: node.workers()[row.slot].state == SlotState.UNKILLABLE)
                    assert f"slot {row.slot} is unkillable" in " ".join(node.status().problem_texts)
                node.relay.reserve("g2")
                node.land("g2", number=2)
                assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
            finally:
                (group / "freezer.state").write_text("THAWED")
            if not frozen:
                pytest.skip("this kernel kills frozen processes")
            node.wait(lambda: not alive(row.pid))
            node.wait(lambda: node.workers()[row.slot].state in (SlotState.IDLE, SlotState.STOPPED))
    finally:
        group.rmdir()


def test_a_worker_that_was_stopped_continues_with_its_next_visit(tmp_path, socket_dir):
    """Fault 34: stopped, and continued after its visit was canceled."""
    with running(tmp_path, socket_dir, min=1, max=1) as node:
        node.relay.reserve("g1")
        node.wait(lambda: node.workers()[0].state == SlotState.WAITING)
        pid = node.workers()[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            node.land("g1")
            node.relay.cancel("g1")
            assert node.relay.outcome("g1").outcome == Outcome.CANCELLED
            node.relay.reserve("g2")
            node.wait(lambda: node.workers()[0].group == "g2")
        finally:
            os.kill(pid, signal.SIGCONT)
        node.land("g2", number=2)
        assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
        assert node.workers()[0].pid == pid
        assert node.marks() == {"g2~0": 1}


def test_repos_of_the_previous_run_are_removed_and_unknown_files_left(tmp_path, socket_dir):
    """Fault 43: files on the RAM disk at the start."""
    relay = PlayedRelay()
    node = make_node(tmp_path, socket_dir, relay)
    ram = socket_dir / "ram" / "ppdaemon-n1"
    try:
        node.start()
        (ram / "photos").mkdir()
        node.kill()
        assert (ram / "slots").exists()
        node.start()
        status = node.status()
        assert status.leftovers_removed >= 2
        assert any(f"{ram}/photos does not belong to ppdaemon" in problem for problem in status.problem_texts)
        assert node.stop() == 0
        assert list(ram.iterdir()) == [ram / "photos"]
    finally:
        node.stop()
        relay.close()


def test_a_journal_that_cannot_be_written_stops_acceptance_and_nothing_else(tmp_path, socket_dir):
    """Fault 46: the journal cannot be written for a while."""
    with running(tmp_path, socket_dir) as node:
        lock = sqlite3.connect(node.state / "journal.sqlite", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        try:
            node.relay.reserve("g1")
            node.relay.wait(lambda: node.relay.naks)
            assert not node.relay.naks[0].final
            assert "the journal cannot be written" in node.relay.naks[0].reason
            assert not node.relay.acked
            assert any("the journal cannot be written" in problem for problem in node.status().problem_texts)
            node.relay.wait(lambda: node.relay.hellos[-1].capacity == 0)
        finally:
            lock.close()
        node.relay.wait(lambda: node.relay.hellos[-1].capacity == 6)
        node.relay.reserve("g1")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED


def test_a_corrupt_journal_is_moved_aside_at_start(tmp_path, socket_dir):
    """Fault 46: the journal is corrupt."""
    relay = PlayedRelay()
    node = make_node(tmp_path, socket_dir, relay)
    node.state.mkdir()
    (node.state / "journal.sqlite").write_bytes(b"no database" * 1000)
    try:
        node.start()
        assert list(node.state.glob("journal.corrupt-*.sqlite"))
        relay.reserve("g1")
        node.land("g1")
        assert relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.stop() == 0
    finally:
        node.stop()
        relay.close()


def test_nothing_is_left_when_the_daemon_was_killed_while_workers_hang(tmp_path, socket_dir):
    """Fault 51: workers in the middle of C code die with their supervisor."""
    relay = PlayedRelay()
    node = make_node(tmp_path, socket_dir, relay, times={"run_s": 60})
    try:
        node.start()
        for k in range(3):
            relay.reserve(f"g{k}", survey="process:deaf")
            node.land(f"g{k}", number=k + 1)
        node.wait(lambda: sum(row.state == SlotState.PROCESSING for row in node.workers()) == 3)
        family = descendants(node.process.pid)
        node.kill()
        relay.wait(lambda: not any(map(alive, family)), TIMEOUT_S)
    finally:
        node.stop()
        relay.close()


@pytest.mark.skipif(not CAN_MOUNT, reason="needs the right to mount")
def test_no_worker_gets_the_repo_of_one_whose_repo_cannot_be_deleted(tmp_path, socket_dir):
    """Fault 42: a repo that cannot be wiped, until it can."""
    with running(tmp_path, socket_dir, min=1, max=1) as node:
        repo = socket_dir / "ram" / "ppdaemon-n1" / "slots" / "0000"
        held = repo / "held"
        held.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", held], check=True)
        try:
            os.kill(node.workers()[0].pid, signal.SIGKILL)
            node.wait(lambda: "cannot be deleted" in node.workers()[0].note)
            assert node.workers()[0].state in (SlotState.BACKOFF, SlotState.STARTING)
        finally:
            # Lazily: the daemon may be reading it now.
            subprocess.run(["umount", "--lazy", held], check=True)
        node.wait(lambda: node.workers()[0].state == SlotState.IDLE)
        assert not held.exists()


def test_a_clock_that_is_set_by_an_hour_moves_no_deadline_and_refuses_no_visit(tmp_path, socket_dir):
    """Fault 55: the clock jumps an hour, forth and back."""
    program = (str(Path(__file__).parents[2] / "tools" / "chaos_daemon.py"),)
    with running(tmp_path, socket_dir, program=program, image_timeout_s=120) as node:
        node.relay.reserve("g0")
        for k in range(1, 5):
            waiting = slot_of(node, f"g{k - 1}", SlotState.WAITING)
            node.process.send_signal(signal.SIGUSR1)
            node.relay.reserve(f"g{k}")
            slot_of(node, f"g{k}", SlotState.WAITING)
            row = slot_of(node, f"g{k - 1}", SlotState.WAITING)
            assert row.since_s >= waiting.since_s
            assert 0 < row.deadline_s <= waiting.deadline_s
        for k in range(5):
            node.land(f"g{k}", number=k + 1)
        assert {node.relay.outcome(f"g{k}").outcome for k in range(5)} == {Outcome.SUCCEEDED}
