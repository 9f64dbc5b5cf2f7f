# SPDX-License-Identifier: BSD-3-Clause
"""The real daemon with real, scripted workers under all kinds of failure."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from node import make_node, running, running_for_module

from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.reports import DrainRequest, ReloadRequest, RestartRequest, ResumeRequest
from ppdaemon.states import ExitCode, Outcome, SlotState, Stage
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.processes import alive, descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until


@pytest.fixture(scope="module")
def changes():
    """Return a limit that is short enough for the test that waits for it."""
    return {"times": {"export_s": 3}}


def test_a_visit_runs_from_announcement_to_export(node, group):
    node.relay.reserve(group, range(3))
    node.relay.wait(lambda: {(group, detector) for detector in range(3)} <= node.relay.acked)
    node.wait(lambda: [row.state for row in node.workers() if row.group == group] == [SlotState.WAITING] * 3)
    for detector in range(3):
        node.land(group, detector)
    for detector in range(3):
        assert node.relay.outcome(group, detector).outcome == Outcome.SUCCEEDED
    node.wait(lambda: all(Stage.CENTRAL in row.stages for row in node.visit(group)))
    for row in node.visit(group):
        assert list(row.stages) == list(Stage), row
        assert row.exposures == (node.raws.exposure(node.raws.number(group)),)
        assert sorted(row.stages.values()) == list(row.stages.values())
    assert node.marks(group) == {f"{group}~{detector}": 1 for detector in range(3)}


def test_workers_are_in_the_session_of_the_daemon_so_that_their_niceness_counts(node):
    pids = [row.pid for row in node.workers() if row.pid is not None]
    assert pids
    for pid in pids:
        assert os.getsid(pid) == os.getsid(node.pid)
        assert os.getpgid(pid) == pid


def test_a_child_leaves_the_terminal_of_the_daemon():
    """What asks at a terminal would be stopped there, as a process in the background."""
    program = (
        "import os; from ppdaemon.worker import childsetup; os.open('/dev/tty', os.O_RDWR); print('opened'); "
        "childsetup._new_group(None); childsetup._leave_terminal(None); os.open('/dev/tty', os.O_RDWR)"
    )
    ours, theirs = os.openpty()
    try:
        # The first process of a session gets the terminal that it opens; the second one has it from there.
        shell = [f': <{os.ttyname(theirs)}; {sys.executable} -c "{program}"; exit $?']
        ended = subprocess.run(
            ["sh", "-c", *shell], start_new_session=True, capture_output=True, text=True, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.stdout == "opened\n"
    assert ended.stderr.splitlines()[-1] == "OSError: [Errno 6] No such device or address: '/dev/tty'"


def test_the_names_of_all_processes_have_no_blanks(node):
    titles = {"ppdaemon supervisor n1", "ppdaemon zygote", "ppdaemon exporter", "ppdaemon worker 0"}

    def names() -> dict[str, str]:
        found = {}
        for pid in (node.pid, *descendants(node.pid)):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                found[title(pid)] = Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
        return found

    # A process that starts has the new title a moment before its name.
    node.wait(lambda: titles <= (found := names()).keys() and " " not in "".join(found.values()))


def test_two_snaps_run_once(node, group):
    node.relay.reserve(group, nimages=2)
    for snap in (1, 2):
        node.land(group, snap=snap, snaps=2)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    (row,) = node.visit(group)
    assert row.exposures == tuple(node.raws.exposure(node.raws.number(group, snap)) for snap in (1, 2))
    assert node.marks(group) == {f"{group}~0": 1}


def test_a_raw_before_its_announcement_is_used(node, group):
    before = node.status().counters.get("raw_without_visit", 0)
    node.land(group)
    node.wait(lambda: node.status().counters.get("raw_without_visit", 0) > before)
    node.relay.reserve(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED


def test_several_visits_of_one_detector_are_in_flight(node, group):
    groups = [f"{group}-{k}" for k in range(3)]
    for each in groups:
        node.relay.reserve(each, survey="process:hold")
    node.wait(lambda: {row.group for row in node.workers() if row.state == SlotState.WAITING} == {*groups})
    for each in (groups[2], groups[0], groups[1]):
        node.land(each)
    assert {node.relay.outcome(each).outcome for each in groups} == {Outcome.SUCCEEDED}


def test_the_same_reservation_again_runs_once_and_repeats_the_result(node, group):
    for _ in range(20):
        node.relay.reserve(group)
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    before = len(node.relay.results[group, 0])
    node.relay.reserve(group)
    node.relay.wait(lambda: len(node.relay.results[group, 0]) > before)
    assert node.marks(group) == {f"{group}~0": 1}


def test_a_visit_that_its_rule_ignores_uses_no_slot(node, group):
    node.relay.reserve(group, survey="ignore")
    entry = node.relay.outcome(group)
    assert (entry.outcome, entry.reason) == (
        Outcome.IGNORED,
        "its rule ignores the visit (survey 'ignore', filters '', no position)",
    )
    assert node.visit(group)[0].slot is None


def test_detectors_that_are_not_served_are_refused(node, group):
    node.relay.reserve(group, (3, 99))
    (nak,) = node.relay.wait(lambda: [nak for nak in node.relay.naks if nak.group == group])
    assert nak.detectors == (99,)
    acked = node.relay.wait(lambda: [detector for each, detector in node.relay.acked if each == group])
    assert acked == [3]


@pytest.mark.parametrize("fault", ["die", "segv", "abort", "exit", "system_exit"])
@pytest.mark.parametrize("stage", ["prepare", "ingest", "process"])
def test_a_crash_before_the_point_of_no_return_is_retried(node, group, stage, fault):
    """Faults 30 and 31: a worker dies in any stage, in any manner."""
    node.succeed(group, survey=f"{stage}:{fault}@1")
    first, second = node.visit(group)
    assert (first.outcome, first.attempt, second.attempt) == (Outcome.CRASHED, 1, 2)
    assert node.marks(group) == {f"{group}~0": 1}


def test_a_crash_after_the_point_of_no_return_is_final(node, group):
    """Fault 30: a worker dies after what cannot be repeated."""
    node.relay.reserve(group, survey="written:die")
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.CRASHED
    assert node.marks(group) == {f"{group}~0": 1}
    assert len(node.visit(group)) == 1


def test_partial_outputs_of_a_dead_worker_are_exported_and_are_no_success(node, group):
    """Fault 30: a worker dies after it has spooled what a failed task left."""
    node.relay.reserve(group, survey="failed:ordered spooled:die")
    node.land(group)
    entry = node.relay.outcome(group)
    assert (entry.outcome, entry.reason) == (Outcome.FAILED, "ordered")
    node.wait(lambda: f"DemoCam~{group}~0~1" in node.exported())


def test_a_visit_that_hangs_after_spooling_has_succeeded(node, group):
    """Fault 32: it hangs between the last rename and its last word."""
    node.succeed(group, survey="spooled:hang")
    node.wait(lambda: f"DemoCam~{group}~0~1" in node.exported())


def test_a_worker_that_dies_after_spooling_has_succeeded(node, group):
    """Fault 30: a worker dies while exporting."""
    node.succeed(group, survey="spooled:die")
    node.wait(lambda: f"DemoCam~{group}~0~1" in node.exported())


def test_a_pipeline_that_hangs_is_killed_at_its_deadline_and_retried(tmp_path, socket_dir):
    """Fault 32: an endless sleep, one that ignores the stop signal, an endless loop."""
    faults = ("hang", "deaf", "spin")
    with running(tmp_path, socket_dir, times={"run_s": 0.5}) as node:
        for number, fault in enumerate(faults, 1):
            node.relay.reserve(fault, survey=f"process:{fault}")
            node.land(fault, number=number)
        for fault in faults:
            entry = node.relay.outcome(fault)
            assert (entry.outcome, entry.reason) == (Outcome.RUN_TIMEOUT, "the pipeline took more than 0.5 s")
            assert [row.outcome for row in node.visit(fault)] == [Outcome.RUN_TIMEOUT] * 2
        node.wait(lambda: {row.state for row in node.workers()} <= {SlotState.IDLE, SlotState.STOPPED})


def test_an_invalid_message_on_the_channel_costs_only_that_worker(node, group):
    """Fault 36: garbage on the channel."""
    node.succeed(group, survey="process:invalid@1")
    assert node.visit(group)[0].reason.startswith("invalid message from the worker")


def test_an_exception_ends_the_visit_and_not_the_worker(node, group):
    node.relay.reserve(group, survey="process:raise")
    node.land(group)
    entry = node.relay.outcome(group)
    assert (entry.outcome, entry.reason) == (Outcome.FAILED, "ZeroDivisionError: division by zero")
    (visit,) = node.visit(group)
    row = node.workers()[visit.slot]
    assert (row.state, row.pid) == (SlotState.IDLE, visit.pid)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise_bytes", "FileNotFoundError: no file /data/\\udc80"),
        ("raise_without_text", "_WithoutText: "),
        ("refuse_at_length", "a long text a long"),
    ],
)
def test_an_exception_of_any_text_ends_the_visit_and_not_the_worker(node, group, fault, reason):
    node.relay.reserve(group, survey=f"process:{fault}")
    node.land(group)
    assert node.relay.outcome(group).reason.startswith(reason)
    (visit,) = node.visit(group)
    row = node.workers()[visit.slot]
    assert (row.state, row.pid) == (SlotState.IDLE, visit.pid)


def test_a_full_ram_disk_has_its_own_outcome(node, group):
    """Fault 42: the RAM disk is full."""
    node.relay.reserve(group, survey="prepare:fill")
    assert node.relay.outcome(group).outcome == Outcome.RAMDISK_FULL


def test_a_bad_raw_ends_its_visit_only(node, group):
    node.relay.reserve(group, survey="ingest:refuse")
    path = node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.BAD_RAW
    assert path.exists()
    other = f"{group}-other"
    node.succeed(other)


@pytest.mark.parametrize("fault", ["fork", "detach"])
def test_grandchildren_end_with_their_worker(node, group, fault):
    """Fault 39: grandchildren, double forks."""
    note = node.state / "grandchild"
    note.unlink(missing_ok=True)
    node.relay.reserve(group, survey=f"prepare:{fault} process:die@1")
    node.wait(note.exists)
    grandchild = int(node.wait(note.read_text))
    assert alive(grandchild)
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    wait_until(lambda: not alive(grandchild), TIMEOUT_S)


@pytest.mark.parametrize("fault", ["thread", "fork"])
def test_a_visit_that_changes_its_process_costs_only_a_fork(node, group, fault):
    """Fault 40: threads and children."""
    node.succeed(group, survey=f"process:{fault}")
    (visit,) = node.visit(group)

    def replaced():
        row = node.workers()[visit.slot]
        return row if row.state == SlotState.IDLE and row.pid != visit.pid else None

    assert node.wait(replaced).note.startswith("recycled: its visit left")
    assert node.status().counters["recycled.leftovers"] >= 1


def test_a_canceled_visit_that_leaves_a_thread_costs_its_worker(node, group):
    node.relay.reserve(group, survey="prepare:thread")
    (visit,) = node.wait(lambda: [row for row in node.workers() if row.state == SlotState.WAITING])
    node.relay.cancel(group)
    assert node.relay.outcome(group).outcome == Outcome.CANCELLED
    node.wait(lambda: node.workers()[visit.slot].pid not in (None, visit.pid))
    assert node.workers()[visit.slot].note == "recycled: its visit left thread left behind"


def test_the_next_visit_in_a_slot_finds_the_process_as_a_new_worker_does_and_a_canceled_one_frees_it(
    tmp_path, socket_dir
):
    """Fault 84: everything that a task can leave."""
    with running(tmp_path, socket_dir, min=1, max=1, preload=["ppdaemon.testing.leftovers"]) as node:
        for number, faults in enumerate(["describe", "prepare:leave process:leave", "describe"]):
            group = f"2026-11-28T03:00:0{number}.000"
            survey = "process:describe" if faults == "describe" else faults
            node.succeed(group, survey=survey)
        new, next_one = map(json.loads, (node.state / "described").read_text().splitlines())
        assert next_one == new
        assert node.workers()[0].epoch == 1
        node.relay.reserve("g1")
        node.relay.reserve("g2")
        node.wait(lambda: node.workers()[0].state == SlotState.WAITING)
        assert node.workers()[0].group == "g1"
        node.relay.cancel("g2")
        node.relay.cancel("g1")
        assert {node.relay.outcome(g).outcome for g in ("g1", "g2")} == {Outcome.CANCELLED}
        node.wait(lambda: node.workers()[0].state == SlotState.IDLE)


@pytest.mark.slow
def test_workers_that_cannot_boot_are_quarantined_and_the_daemon_continues(tmp_path, socket_dir):
    """Fault 35: a crash at every boot."""
    with running(tmp_path, socket_dir, min=1, max=1) as node:
        (node.state / "boot-fails").touch()
        os.kill(node.workers()[0].pid, signal.SIGKILL)
        node.wait(lambda: node.workers()[0].state == SlotState.QUARANTINED)
        status = node.status()
        assert status.state == "degraded"
        assert any("slot 0 is quarantined" in problem for problem in status.problem_texts)
        (node.state / "boot-fails").unlink()
        node.daemon.ask(RestartRequest(slot=0))
        node.wait(lambda: node.workers()[0].state == SlotState.IDLE)


def test_a_killed_zygote_is_replaced_and_running_visits_finish(tmp_path, socket_dir):
    """Faults 39 and 52: no unknown process is left below the supervisor."""
    with running(tmp_path, socket_dir, min=2, spare=0, max=2) as node:
        node.relay.reserve("g1")
        node.relay.reserve("g2", survey="prepare:detach process:die@1")
        node.wait(lambda: [row.state for row in node.workers()] == [SlotState.WAITING] * 2)
        note = node.state / "grandchild"
        grandchild = int(node.wait(lambda: note.exists() and note.read_text()))
        (zygote,) = node.zygotes()
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: not alive(zygote), TIMEOUT_S)
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert [row.attempt for row in node.visit("g1")] == [1]
        node.land("g2", number=2)
        assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
        wait_until(lambda: not alive(grandchild), TIMEOUT_S)
        node.relay.reserve("g3", range(2))
        node.land("g3", 0, number=3)
        node.land("g3", 1, number=3)
        assert {node.relay.outcome("g3", d).outcome for d in (0, 1)} == {Outcome.SUCCEEDED}


def test_workers_of_a_killed_supervisor_end_and_the_next_run_recovers_their_visits(tmp_path, socket_dir):
    """Faults 43 and 51: the supervisor is killed; workers in the middle of C code die with it. The next run
    removes their repos and leaves unknown files.
    """
    with PlayedRelay() as relay, make_node(tmp_path, socket_dir, relay, times={"run_s": 60}) as node:
        ram = node.ramdisk / "ppdaemon-n1"
        node.start()
        relay.reserve("g1", survey="early: process:hang")
        relay.reserve("g2")
        relay.reserve("g3", survey="process:deaf@1")
        node.land("g1")
        node.land("g3", number=3)
        node.wait(lambda: node.marks() == {"g1~0": 1})  # it has gone past the point of no return
        node.wait(lambda: sum(row.state == SlotState.PROCESSING for row in node.workers()) == 2)
        node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
        (ram / "photos").mkdir()
        family = descendants(node.process.pid)
        assert len(family) >= 5
        node.kill()
        wait_until(lambda: not any(map(alive, family)), story="workers outlive their supervisor")
        assert (ram / "slots").exists()
        node.start()
        status = node.status()
        assert status.leftovers_removed >= 2
        assert any(f"{ram}/photos does not belong to ppdaemon" in problem for problem in status.problem_texts)
        permanent = relay.outcome("g1")
        assert (permanent.outcome, permanent.attempt) == (Outcome.INTERRUPTED, 1)
        node.land("g2", number=2)
        for group in ("g2", "g3"):
            again = relay.outcome(group)
            assert (again.outcome, again.attempt) == (Outcome.SUCCEEDED, 2)
        assert node.marks() == {"g1~0": 1, "g2~0": 1, "g3~0": 1}
        node.wait(lambda: not list((node.state / "no_return").iterdir()))  # deleted after the result was sent
        assert node.stop() == 0
        assert list(ram.iterdir()) == [ram / "photos"]


def test_a_failure_before_the_point_of_no_return_is_retried(node, group):
    node.relay.reserve(group, survey="undone:1")
    node.land(group)
    again = node.relay.outcome(group)
    assert (again.outcome, again.attempt) == (Outcome.SUCCEEDED, 2)
    assert node.marks(group) == {f"{group}~0": 1}


def test_an_expected_failure_is_one_line_of_the_workers_log(tmp_path, socket_dir):
    """One with a traceback would hide those that are not expected."""
    with running(tmp_path, socket_dir, max=1, min=1, spare=0) as node:
        log = node.state / "logs" / "worker-0000.log"
        for number, (survey, tracebacks) in enumerate((("process:refuse", 0), ("process:raise", 1)), 1):
            node.relay.reserve(f"g{number}", survey=survey)
            node.land(f"g{number}", number=number)
            node.relay.outcome(f"g{number}")
            text = log.read_text()
            failed = [
                line for line in text.splitlines() if f"group=g{number}" in line and "[info" not in line
            ]
            assert len(failed) == 1, text
            assert text.count("Traceback") == tracebacks, text


def test_what_tasks_log_is_in_the_workers_log_with_the_visit_unless_its_level_is_off(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, max=1, min=1, spare=0) as node:
        log = node.state / "logs" / "worker-0000.log"
        node.relay.reserve("g1", survey="process:log")
        node.land("g1")
        node.relay.outcome("g1")
        (line,) = [line for line in log.read_text().splitlines() if "logged by a task" in line]
        assert "[lsst.scripted]" in line
        assert "group=g1" in line
        node.rewrite(log={"levels": {"lsst.scripted": "WARNING"}})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.relay.reserve("g2", survey="process:log")
        node.land("g2", number=2)
        assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
        assert log.read_text().count("logged by a task") == 1


def test_a_central_repo_that_is_down_costs_only_delay(node, group):
    """Fault 45: the central database is down."""
    node.wait(lambda: node.status().spooled == 0)  # those of earlier tests
    log = node.state / "logs" / "exporter.log"
    begin = log.stat().st_size

    def count(text):
        return log.read_bytes()[begin:].count(text)

    (node.state / "central-down").touch()
    try:
        node.succeed(group)
        node.wait(lambda: "export: ConnectionError: the central repo is down" in node.status().problem_texts)
        assert node.status().spooled == 1
        node.wait(lambda: count(b"export of 1 visits failed; it is tried again: ConnectionError") > 1)
        assert count(b"Traceback") == 1
    finally:
        (node.state / "central-down").unlink()
    node.wait(lambda: node.status().spooled == 0)
    node.wait(lambda: node.status().state == "running")


def test_a_stop_interrupts_what_has_written_something_and_hands_back_what_has_not(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, times={"stop_s": 0.5}) as node:
        node.relay.reserve("g1", survey="process:hang")
        node.relay.reserve("g2", survey="early: process:hang")
        node.land("g1")
        node.land("g2", number=2)
        node.wait(lambda: sum(row.state == SlotState.PROCESSING for row in node.workers()) == 2)
        node.wait(lambda: node.marks("g2"))
        node.process.send_signal(signal.SIGTERM)
        assert node.relay.outcome("g2").outcome == Outcome.INTERRUPTED
        node.relay.wait(lambda: {entry.group for entry in node.relay.returned} == {"g1"})
        # A second SIGTERM would end it in the midst of its last steps.
        assert node.process.wait(TIMEOUT_S) == 0


def test_a_draining_node_accepts_no_visit_and_finishes_its_own(node, group):
    refused = f"{group}-refused"
    node.relay.reserve(group)
    node.relay.wait(lambda: (group, 0) in node.relay.acked)
    node.daemon.ask(DrainRequest())
    try:
        node.relay.reserve(refused)
        (nak,) = node.relay.wait(lambda: [nak for nak in node.relay.naks if nak.group == refused])
        assert not nak.final
        assert node.status().state == "draining"
        node.land(group)
        assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    finally:
        node.daemon.ask(ResumeRequest())
    node.relay.reserve(refused)
    node.relay.wait(lambda: (refused, 0) in node.relay.acked)


def test_invalid_messages_from_the_relay_are_counted_and_ignored(node, group):
    kinds = [f"bad_message.{kind}" for kind in ("encoding", "depth", "field")]
    before = node.status().counters
    node.relay.send_raw(b"\xff\xfe")
    node.relay.send_raw(b"[" * 100_000)
    node.relay.send_raw(b'{"type": "visit"}')
    node.succeed(group)
    after = node.status().counters
    assert [after[kind] - before.get(kind, 0) for kind in kinds] == [1, 1, 1]


MEASURE = """import json, os
import numpy
from threadpoolctl import threadpool_info
def run():
    found = [pool["num_threads"] for pool in threadpool_info()], os.environ["OMP_NUM_THREADS"]
    with open(os.environ["FOUND"], "w") as stream:
        json.dump(found, stream)
"""


@pytest.fixture(scope="module")
def importing(tmp_path_factory, module_leaves_nothing):
    """Return a daemon whose workers can import modules of a site."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "heavy.py").write_text("import time\nimport heavy_part\ntime.sleep(0.25)\nrun = dict\n")
    (folder / "heavy_part.py").write_text("content = bytearray(30_000_000)\n")
    (folder / "measure.py").write_text(MEASURE)
    environment = {"PYTHONPATH": str(folder), "FOUND": str(folder / "found")}
    options = {"preload": ["measure"], "environment": environment, "threads": 3}
    with running_for_module(tmp_path_factory, min=2, max=2, **options) as node:
        yield node


def test_processes_that_serve_no_visit_have_a_folder_for_temporary_files_of_their_own(importing):
    (zygote,) = importing.zygotes()
    temporary = NodeFolders.of(NodeConfig.model_validate(importing.config)).temporary
    assert psutil.Process(zygote).environ()["TMPDIR"] == str(temporary)


def test_modules_that_workers_import_by_themselves_are_named_once(importing):
    for number in (1, 2):
        importing.relay.reserve(f"g{number}", survey="call:heavy.run")
    for number in (1, 2):
        importing.land(f"g{number}", number=number)
        assert importing.relay.outcome(f"g{number}").outcome == Outcome.SUCCEEDED
    importing.wait(lambda: importing.status().counters.get("late_imports") == 2)
    found = "a worker has imported modules by itself"
    importing.wait(lambda: found in importing.log.read_text())
    text = importing.log.read_text()
    assert text.count(found) == 1
    assert re.search(r"in its first visit \(0\.[2-9] s, [3-4]\d MB\): heavy\. In workers\.preload", text)


def test_numerical_libraries_have_the_configured_threads(importing):
    importing.relay.reserve("threads", survey="call:measure.run")
    importing.land("threads", number=3)
    assert importing.relay.outcome("threads").outcome == Outcome.SUCCEEDED
    found = Path(importing.config["workers"]["environment"]["FOUND"])
    pools, variable = json.loads(found.read_text())
    assert set(pools) == {3}
    assert variable == "3"


def test_a_second_daemon_with_the_same_folders_is_refused_clearly(node):
    second = NodeProcess(node.path.parent, node.config)
    second.launch()
    assert second.process.wait(TIMEOUT_S) == ExitCode.CANNOT_CREATE
    assert f"belongs to a running ppdaemon (process {node.process.pid})" in node.log.read_text()
