# SPDX-License-Identifier: BSD-3-Clause
"""What tasks leave in a process: restored, or named."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ppdaemon.testing.leftovers import LEAVE
from ppdaemon.testing.waiting import wait_until
from ppdaemon.worker import leftovers as worker_leftovers
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder

RESTORE_EACH = """
import json, sys
from pathlib import Path
from ppdaemon import log
from ppdaemon.testing.leftovers import LEAVE, describe
from ppdaemon.testing.waiting import wait_until
from ppdaemon.worker import leftovers as worker_leftovers
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder
log.set_up("INFO", "json")
scratch = ScratchFolder(Path(sys.argv[1]))
scratch.use_for_temporary_files()
scratch.enter()
leftovers, output, found = Leftovers(["ppdaemon"]), sys.stdout, {}
for name, leave in LEAVE.items():
    before = describe()
    leave()
    left = describe()
    names = leftovers.restore()
    scratch.enter()
    after = describe()
    found[name] = before, left, after, *names
json.dump(found, output)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By name: the state before, with the leftovers, and after; what was restored; what remains."""
    command = [sys.executable, "-c", RESTORE_EACH, str(tmp_path_factory.mktemp("scratch"))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", LEAVE)
def test_what_a_task_leaves_is_removed(found, name):
    before, left, after, _, remaining = found[name]
    assert left[name] != before[name]
    assert after == before
    assert remaining == []


SILENT = {"directory", "files", "numpy random state", "random state"}


@pytest.mark.parametrize("name", sorted(LEAVE.keys() - SILENT))
def test_what_was_restored_is_named(found, name):
    named = {
        "captured warnings": "warnings",
        "level of a logger": "logging",
        "level of a new logger": "logging",
        "handlers of logging": "logging",
    }
    assert named.get(name, name) in found[name][3]


def test_nothing_is_restored_where_nothing_was_changed():
    assert Leftovers().restore() == ([], [])


@pytest.fixture
def event():
    event = threading.Event()
    yield event
    event.set()


def sleep_until(event):
    while not event.is_set():
        time.sleep(0.01)


def test_a_thread_that_works_is_named(event):
    leftovers = Leftovers()
    thread = threading.Thread(target=sleep_until, args=(event,), name="downloads-1", daemon=True)
    thread.start()
    assert leftovers.restore() == ([], ["thread downloads-1"])
    leftovers = Leftovers(allowed_threads=["downloads-*"])
    assert leftovers.restore() == ([], [])


@pytest.mark.parametrize("daemon", [True, False])
def test_threads_of_before_and_idle_threads_are_no_leftovers(event, daemon):
    threading.Thread(target=sleep_until, args=(event,), daemon=True).start()
    leftovers = Leftovers()
    started = threading.Event()

    def monitor():
        started.set()
        event.wait()

    threading.Thread(target=monitor, daemon=daemon).start()
    started.wait(10)
    wait_until(lambda: leftovers.restore() == ([], []))


def test_a_thread_that_does_something_from_time_to_time_is_named(event):
    leftovers = Leftovers()

    def report():
        while not event.wait(60):
            leftovers.restore()

    threading.Thread(target=report, name="reports", daemon=True).start()
    wait_until(lambda: leftovers.restore() == ([], ["thread reports"]))


def test_the_monitor_of_a_progress_bar_is_no_leftover(event):
    """It looks at its bars every ten seconds."""
    leftovers = Leftovers()
    monitor = type("TMonitor", (threading.Thread,), {"__module__": "tqdm._monitor"})
    monitor(target=event.wait, args=(60,), daemon=True).start()
    wait_until(lambda: leftovers.restore() == ([], []))


def test_state_that_cannot_be_compared_costs_the_worker_and_raises_nothing(monkeypatch):
    values = iter([np.zeros(3), np.ones(3), np.ones(3)])
    part = worker_leftovers._Part("colors", lambda: {"colors": next(values)}, lambda before: None)
    monkeypatch.setattr(worker_leftovers, "_PYTHON", (part,))
    assert Leftovers().restore() == ([], ["colors"])


def test_an_ordinary_temporary_file_is_no_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    scratch = ScratchFolder(tmp_path / "tmp")
    scratch.use_for_temporary_files()
    scratch.enter()
    leftovers = Leftovers()
    with tempfile.TemporaryFile():
        assert tempfile.gettempdir() == str(scratch.path)
    assert leftovers.restore() == ([], [])


def test_the_idle_threads_of_an_executor_are_no_leftovers():
    leftovers = Leftovers()
    with ThreadPoolExecutor(2) as executor:
        executor.submit(sum, (1, 2)).result()
        wait_until(lambda: leftovers.restore() == ([], []))


def test_a_timer_is_named(event):
    leftovers = Leftovers()
    timer = threading.Timer(600, event.set)
    timer.name = "upload"
    timer.start()
    assert leftovers.restore() == ([], ["thread upload"])
    timer.cancel()
    timer.join()
    assert leftovers.restore() == ([], [])


def test_a_process_that_a_task_has_left_is_named():
    leftovers = Leftovers()
    with subprocess.Popen(["sleep", "600"]) as child:
        wait_until(lambda: leftovers.restore() == ([], ["process sleep"]))
        child.kill()
    assert leftovers.restore() == ([], [])


def test_the_scratch_folder_is_emptied_and_entered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scratch = ScratchFolder(tmp_path / "tmp")
    scratch.enter()
    (scratch.path / "folder").mkdir()
    (scratch.path / "folder" / "file").touch()
    (scratch.path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    scratch.enter()
    assert list(scratch.path.iterdir()) == []
    assert scratch.path.samefile(".")
    assert tmp_path.exists()
