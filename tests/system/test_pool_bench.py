# SPDX-License-Identifier: BSD-3-Clause
"""The bench of the pool runs with workers as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_pool.py"
SECTIONS = ("fork", "leftovers", "replace")
WORKLOAD = {"forks": 10, "spawns": 3, "kills": 3, "busy": 0}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_are_forked_and_replaced(tmp_path, socket_dir):
    options = [text for name in SECTIONS for text in ("--only", name)]
    options += [text for name, number in WORKLOAD.items() for text in (f"--{name}", str(number))]
    command = [sys.executable, TOOL, *options, "--scratch", tmp_path, "--ramdisk", socket_dir, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert 0 < results["fork_ready_ms"] < results["spawn_ready_ms"]
    assert results["ready_cpu_ms"] > 0
    assert results["replace_kills"] == 3
    assert list(tmp_path.iterdir()) == list(socket_dir.iterdir()) == []
