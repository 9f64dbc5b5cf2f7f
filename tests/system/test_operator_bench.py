# SPDX-License-Identifier: BSD-3-Clause
"""The bench of what an operator waits for runs against a node as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_operator.py"
WORKLOAD = {"detectors": 4, "rows": 2000, "rounds": 1}
COMMANDS = ("status", "workers", "visits", "visits_1000", "failed_night", "visit", "top", "floor_ppctl")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_command_is_timed_at_a_busy_node(tmp_path, socket_dir):
    options = [text for name, number in WORKLOAD.items() for text in (f"--{name}", str(number))]
    command = [sys.executable, TOOL, *options, "--scratch", tmp_path, "--ramdisk", socket_dir, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert all(results[f"{name}_ms"] > 0 and results[f"{name}_cpu_ms"] > 0 for name in COMMANDS), results
    assert results["supervisor_mb"] > 0
    assert list(tmp_path.iterdir()) == list(socket_dir.iterdir()) == []
