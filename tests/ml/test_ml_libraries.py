# SPDX-License-Identifier: BSD-3-Clause
"""Classifiers and compiled code in forked workers of the real daemon."""

import importlib.util
import os
from pathlib import Path

import pytest
from node import make_node, running

from ppdaemon.states import ExitCode, Outcome, SlotState
from ppdaemon.testing.waiting import TIMEOUT_S

pytestmark = pytest.mark.ml

HERE = Path(__file__).parent
MODEL_BYTES = 76_000_000
VISITS = 3
# A session of CI would hide the telemetry thread of onnxruntime.
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
TIMES = {"boot_s": 60, "run_s": 60, "prepare_s": 60}

IN_TASK = ["torch", "onnxruntime", "numba", "sklearn", "duckdb", "polars"]
MODULES = {
    "torch": "torchmodel",
    "onnxruntime": "onnxmodel",
    "numba": "numbamodel",
    "sklearn": "sklearnmodel",
    "duckdb": "duckdb",
}
"""By library: the module that can be preloaded, with its model."""
MORE = ["numexpr", "dask", "tqdm"]
"""Libraries that keep threads which wait for work."""


@pytest.fixture(autouse=True)
def without_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)


def process(node, task, visits=VISITS, first=1):
    """Run visits one after the other, each of two detectors."""
    for number in range(first, first + visits):
        group = f"2026-11-28T03:00:0{number}.000"
        node.relay.reserve(group, range(2), survey=f"call:mltasks.{task}")
        for detector in range(2):
            node.land(group, detector, number=number)
        for detector in range(2):
            entry = node.relay.outcome(group, detector)
            assert entry.outcome == Outcome.SUCCEEDED, entry.reason


def start(tmp_path, socket_dir, **changes):
    return running(
        tmp_path,
        socket_dir,
        min=2,
        max=2,
        environment=ENVIRONMENT,
        times=TIMES | changes.pop("times", {}),
        **changes,
    )


@pytest.mark.parametrize("library", IN_TASK + MORE)
def test_a_task_may_import_a_library_and_its_worker_stays(tmp_path, socket_dir, library):
    assert importlib.util.find_spec(library), "see the extra ml of setup.py"
    with start(tmp_path, socket_dir) as node:
        process(node, f"run_{library}")
        assert [row.epoch for row in node.workers()] == [1, 1]
        assert "recycled.leftovers" not in node.status().counters


@pytest.mark.parametrize("library", MODULES)
def test_workers_share_a_preloaded_model(tmp_path, socket_dir, library):
    with start(tmp_path, socket_dir, preload=["mltasks", MODULES[library]]) as node:
        process(node, f"run_{library}")
        rows = node.wait(
            lambda: (rows := node.workers()) and all(row.state == SlotState.IDLE for row in rows) and rows
        )
        assert [row.epoch for row in rows] == [1, 1]
        assert "late_imports" not in node.status().counters


def test_a_library_that_starts_threads_when_it_is_imported_is_refused(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir, None, preload=["polars"], environment=ENVIRONMENT)
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    line = (tmp_path / "daemon.log").read_text().splitlines()[-1]
    assert "workers.preload.0: polars: " in line
    assert "starts a thread when it is imported" in line


def test_processes_that_a_task_leaves_cost_the_worker(tmp_path, socket_dir):
    with start(tmp_path, socket_dir) as node:
        process(node, "run_joblib", visits=1)
        node.wait(lambda: [row.epoch for row in node.workers()] == [2, 2])
        assert node.workers()[0].note.startswith("recycled: its visit left process python")
        assert node.status().counters["recycled.leftovers"] == 2


def test_a_deadline_ends_a_task_in_compiled_code(tmp_path, socket_dir):
    changes = {"times": {"run_s": 10, "grace_s": 2}, "attempts": 1, "preload": ["mltasks", "torchmodel"]}
    with start(tmp_path, socket_dir, **changes) as node:
        node.relay.reserve("g1", survey="call:mltasks.run_torch_without_end")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.RUN_TIMEOUT
        process(node, "run_torch", visits=1, first=2)


def test_a_stop_ends_a_task_in_compiled_code(tmp_path, socket_dir):
    with start(tmp_path, socket_dir, times={"stop_s": 2, "grace_s": 2}) as node:
        node.relay.reserve("g1", survey="call:mltasks.run_torch_without_end")
        node.land("g1")
        node.wait(lambda: any(row.state == SlotState.PROCESSING for row in node.workers()))
    # The end of `running` has waited for the daemon and for all its processes.
