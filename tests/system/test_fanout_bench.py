# SPDX-License-Identifier: BSD-3-Clause
"""The bench of the fan-out runs against relay and nodes as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_fanout.py"
WORKLOAD = {"detectors": 6, "nodes": 2, "rounds": 2, "visits": 20, "complete": 1, "doors": 2}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_visits_are_measured_and_none_is_lost_or_doubled(tmp_path, socket_dir):
    options = [text for name, number in WORKLOAD.items() for text in (f"--{name}", str(number))]
    command = [sys.executable, TOOL, *options, "--scratch", tmp_path, "--ramdisk", socket_dir, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert {results[name] for name in ("lost", "doubled", "complete_lost", "complete_doubled")} == {0}
    measured = (
        *("fanout_p50_ms", "paced_fanout_p50_ms", "cancel_p50_ms", "floor_p50_ms", "floor_workers_p50_ms"),
        *("relay_late_pss_mb", "crossing_p50_ms", "door_p50_ms", "door_without_relay_p50_ms"),
    )
    assert all(results[name] > 0 for name in measured), results
    assert list(tmp_path.iterdir()) == list(socket_dir.iterdir()) == []
