# SPDX-License-Identifier: BSD-3-Clause
"""A worker that has not run is not measured again; what has run is, whichever thread or child it was."""

import os
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager

import psutil
import pytest

from ppdaemon.config import WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.meters import FULL_EVERY, REPO_EVERY, Meters
from ppdaemon.node.slots.runtimes import RunTimes
from ppdaemon.processes import has_one_thread, process_tree
from ppdaemon.testing.waiting import wait_until

GROWN_BYTES = 50_000_000

ALONE = f"""
print("ready", flush=True)
sys.stdin.readline()
content = b"x" * {GROWN_BYTES}
print("grown", flush=True)
"""
IN_THREAD = f"""
import threading
def grow():
    global content
    sys.stdin.readline()
    content = b"x" * {GROWN_BYTES}
    print("grown", flush=True)
    threading.Event().wait()
threading.Thread(target=grow, daemon=True).start()
print("ready", flush=True)
signal.pause()
"""
IN_CHILD = f"""
if os.fork() == 0:
    print("ready", flush=True)
    sys.stdin.readline()
    content = b"x" * {GROWN_BYTES}
    print("grown", flush=True)
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""


@contextmanager
def worker(script):
    """Run a script that waits for a line before it grows; yield its process once it waits."""
    command = [sys.executable, "-c", f"import os, signal, sys\n{script}\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        # On a busy host, this process continues before that one has come to its wait.
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
        try:
            yield process
        finally:
            process.stdin.close()
            process.kill()


def let_grow(process):
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"grown\n"


@pytest.fixture
def folders(tmp_path):
    folders = NodeFolders(tmp_path / "ram", tmp_path / "state")
    for folder in (folders.slots, folders.logs, folders.repo(0)):
        folder.mkdir(parents=True, exist_ok=True)
    return folders


@pytest.fixture
def meters(folders):
    with closing(Meters(WorkersConfig(), folders)) as meters:
        yield meters


def read_until_quiet(meters, pids):
    """Measure until nothing has run since the last time; return the last sample of each."""
    samples = {}
    while new := meters.read(pids, {}):
        samples |= new
    return samples


def test_a_worker_that_waits_is_measured_again_when_it_has_run(meters):
    with worker(ALONE) as process:
        before = read_until_quiet(meters, {0: process.pid})
        let_grow(process)
        after = read_until_quiet(meters, {0: process.pid})
        assert after[0].used_bytes - before[0].used_bytes > 0.9 * GROWN_BYTES


@pytest.mark.parametrize("script", [IN_THREAD, IN_CHILD], ids=["thread", "child"])
def test_a_worker_with_a_thread_or_a_child_is_measured_each_time(meters, script):
    with worker(script) as process:
        assert not has_one_thread(process.pid) or len(process_tree(process.pid)) > 1
        before = [meters.read({0: process.pid}, {})[0] for _ in range(3)][-1]
        let_grow(process)
        assert meters.read({0: process.pid}, {})[0].used_bytes - before.used_bytes > 0.9 * GROWN_BYTES


def test_a_repo_that_was_written_between_two_searches_counts(meters, folders):
    with worker(ALONE) as process:
        while meters._samples % REPO_EVERY != 1:
            meters.read({0: process.pid}, {})
        (folders.repo(0) / "own").write_bytes(bytes(8192))
        let_grow(process)
        found = [meters.read({0: process.pid}, {}) for _ in range(REPO_EVERY)]
        assert found[-1][0].repo_bytes == 8192


def test_a_worker_that_waits_is_measured_anew_now_and_then(meters, folders):
    with worker(ALONE) as process:
        read_until_quiet(meters, {0: process.pid})
        (folders.repo(0) / "left").write_bytes(bytes(8192))  # as when others delete their links to a file
        found = [
            sample
            for _ in range(FULL_EVERY + REPO_EVERY)
            for sample in meters.read({0: process.pid}, {}).values()
        ]
        assert found[-1].repo_bytes == 8192


@pytest.mark.parametrize(
    ("later", "samples"),
    [({0: 7}, REPO_EVERY), ({0: 8}, 1), ({}, 1)],
    ids=["no visit", "had a visit", "has a visit"],
)
def test_a_worker_without_a_visit_that_rests_is_looked_at_less_often(meters, later, samples):
    with worker(ALONE) as process:
        pids, looks = {0: process.pid}, []
        for _ in range(2 * REPO_EVERY):
            meters.read(pids, {0: 7})
        read = meters._run_times.read
        meters._run_times.read = lambda pid: looks.append(pid) or read(pid)
        for _ in range(2 * REPO_EVERY):
            assert meters.read(pids, {0: 7}) == {}
        assert len(looks) == 2
        meters.read(pids, {0: 7})  # the sample with all workers
        let_grow(process)
        found = [meters.read(pids, later) for _ in range(samples)]
        assert not any(found[:-1])
        assert found[-1][0].used_bytes > 0.9 * GROWN_BYTES


def test_changed_limits_are_applied_to_workers_that_wait(meters):
    with worker(ALONE) as process:
        samples = read_until_quiet(meters, {0: process.pid})
        meters.config = WorkersConfig()
        assert meters.read({0: process.pid}, {}) == samples


@pytest.fixture
def run_times():
    with closing(RunTimes()) as times:
        yield times


def test_the_file_of_a_process_that_has_ended_is_not_that_of_the_next_with_its_pid(run_times):
    with worker(ALONE) as process:
        assert run_times.read(process.pid)
        # The pid of this process is now one that was used before.
        run_times._descriptors[os.getpid()] = run_times._descriptors.pop(process.pid)
    assert run_times.read(os.getpid()) == b""
    assert run_times.read(os.getpid()) != b""


def test_only_the_files_of_present_workers_are_open_and_none_is_inherited(run_times):
    with ExitStack() as stack:
        first, second = (stack.enter_context(worker(ALONE)).pid for _ in range(2))
        assert run_times.read(first)
        assert run_times.read(second)
        run_times.keep({second})
        (descriptor,) = run_times._descriptors.values()
        assert os.readlink(f"/proc/self/fd/{descriptor}") == f"/proc/{second}/schedstat"
        assert not os.get_inheritable(descriptor)


def test_a_process_without_run_time_may_have_changed(run_times, monkeypatch):
    monkeypatch.setattr("os.pread", lambda *_: b"0 0 0\n")  # as of a kernel that does not count
    assert run_times.read(os.getpid()) == b""
