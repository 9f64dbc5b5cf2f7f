# SPDX-License-Identifier: BSD-3-Clause
"""Failures of workers, disks and clocks that the pool survives, by number."""

import os
import signal
import sqlite3
import subprocess
import uuid
from pathlib import Path

import pytest
from node import make_node, running, running_for_module

from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.processes import alive

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


@pytest.fixture(scope="module")
def single_node(tmp_path_factory, module_leaves_nothing):
    with running_for_module(tmp_path_factory, min=1, max=1) as node:
        yield node


@pytest.fixture
def single(single_node):
    """Return a daemon with one slot, which is idle."""
    single_node.wait(single_node.is_ready)
    return single_node


def test_a_killed_worker_is_replaced_and_its_visit_continues(single):
    """Fault 30: SIGKILL while idle and while waiting."""
    for number, state in enumerate((SlotState.IDLE, SlotState.WAITING), 1):
        group = f"killed-{state}"
        if state == SlotState.WAITING:
            single.relay.reserve(group)
        row = single.wait(lambda state=state: next((r for r in single.workers() if r.state == state), None))
        os.kill(row.pid, signal.SIGKILL)
        single.wait(lambda row=row: single.workers()[0].epoch == row.epoch + 1 and single.workers()[0].pid)
        if state == SlotState.IDLE:
            single.relay.reserve(group)
        single.land(group, number=number)
        assert single.relay.outcome(group).outcome == Outcome.SUCCEEDED
        assert single.workers()[0].pid != row.pid
        assert single.marks(group) == {f"{group}~0": 1}
        single.wait(lambda: single.workers()[0].state == SlotState.IDLE)


def test_a_worker_that_dies_before_its_spool_is_complete_has_not_succeeded(node, group):
    """Fault 30: SIGKILL while exporting, before the spool is complete."""
    node.relay.reserve(group, survey="export:die")
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.CRASHED
    assert node.marks(group) == {f"{group}~0": 1}
    assert not any(group in name for name in node.exported())


@pytest.mark.slow
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


def test_a_worker_that_was_stopped_continues_with_its_next_visit(single):
    """Fault 34: stopped, and continued after its visit was canceled."""
    single.relay.reserve("stopped")
    single.wait(lambda: single.workers()[0].state == SlotState.WAITING)
    pid = single.workers()[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        single.land("stopped", number=11)
        single.relay.cancel("stopped")
        assert single.relay.outcome("stopped").outcome == Outcome.CANCELLED
        single.relay.reserve("next")
        single.wait(lambda: single.workers()[0].group == "next")
    finally:
        os.kill(pid, signal.SIGCONT)
    single.land("next", number=12)
    assert single.relay.outcome("next").outcome == Outcome.SUCCEEDED
    assert single.workers()[0].pid == pid
    assert (single.marks("stopped"), single.marks("next")) == ({}, {"next~0": 1})


@pytest.mark.slow
def test_a_journal_that_cannot_be_written_stops_acceptance_and_nothing_else(node, group):
    """Fault 46: the journal cannot be written for a while."""
    lock = sqlite3.connect(node.state / "journal.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        node.relay.reserve(group)
        (nak,) = node.relay.wait(lambda: [nak for nak in node.relay.naks if nak.group == group])
        assert not nak.final
        assert "the journal cannot be written" in nak.reason
        assert (group, 0) not in node.relay.acked
        assert any("the journal cannot be written" in problem for problem in node.status().problem_texts)
        node.relay.wait(lambda: node.relay.hellos[-1].capacity == 0)
    finally:
        lock.close()
    node.relay.wait(lambda: node.relay.hellos[-1].capacity == 6)
    node.succeed(group)


def test_a_corrupt_journal_is_moved_aside_at_start(tmp_path, socket_dir):
    """Fault 46: the journal is corrupt."""
    with PlayedRelay() as relay, make_node(tmp_path, socket_dir, relay) as node:
        node.state.mkdir()
        (node.state / "journal.sqlite").write_bytes(b"no database" * 1000)
        node.start()
        assert list(node.state.glob("journal.corrupt-*.sqlite"))
        node.succeed("g1")


@pytest.mark.skipif(not CAN_MOUNT, reason="needs the right to mount")
def test_no_worker_gets_the_repo_of_one_whose_repo_cannot_be_deleted(single):
    """Fault 42: a repo that cannot be wiped, until it can."""
    held = single.ramdisk / "ppdaemon-n1" / "slots" / "0000" / "held"
    held.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", held], check=True)
    try:
        os.kill(single.workers()[0].pid, signal.SIGKILL)
        single.wait(lambda: "cannot be deleted" in single.workers()[0].note)
        assert single.workers()[0].state in (SlotState.BACKOFF, SlotState.STARTING)
    finally:
        # Lazily: the daemon may be reading it now.
        subprocess.run(["umount", "--lazy", held], check=True)
    single.wait(lambda: single.workers()[0].state == SlotState.IDLE)
    assert not held.exists()


@pytest.mark.slow
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
