# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_arrival.py with small numbers: nothing is missed, nothing comes twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench_arrival.py"
LIMIT_S = 380
WORKLOAD = {"exposures": 2, "detectors": 9, "within": 0.5, "races": 60, "storm": 600, "old": 5000}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_small_run_misses_nothing_and_leaves_nothing(tmp_path, socket_dir):
    options = [text for name, number in WORKLOAD.items() for text in (f"--{name}", str(number))]
    places = ["--scratch", tmp_path, "--ramdisk", socket_dir]
    command = [sys.executable, BENCH, "--json", *options, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    figures = json.loads(done.stdout)
    assert figures["files"] == 4 * 2 * 9
    counts = ("missed", "twice", "races_missed", "races_twice", "storm_missed", "storm_twice")
    assert {name: figures[name] for name in counts} == dict.fromkeys(counts, 0)
    for source in ("", "burst_", "zmq_", "poll_"):
        assert 0 < figures[f"{source}notice_p50_ms"] <= figures[f"{source}notice_p99_ms"]
    assert figures["old_tree_files"] == 5000
    assert list(tmp_path.iterdir()) == list(socket_dir.iterdir()) == []
