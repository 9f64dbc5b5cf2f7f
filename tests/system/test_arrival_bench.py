# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_arrival.py with small numbers: nothing is missed, nothing comes twice."""

import pytest
from benchrun import run_bench

WORKLOAD = {"exposures": 2, "detectors": 9, "within": 0.5, "races": 60, "storm": 600, "old": 5000}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_small_run_misses_nothing_and_leaves_nothing(tmp_path, socket_dir):
    figures = run_bench("bench_arrival", tmp_path, socket_dir, **WORKLOAD)
    assert figures["files"] == 4 * 2 * 9
    counts = ("missed", "twice", "races_missed", "races_twice", "storm_missed", "storm_twice")
    assert {name: figures[name] for name in counts} == dict.fromkeys(counts, 0)
    for source in ("", "burst_", "zmq_", "poll_"):
        assert 0 < figures[f"{source}notice_p50_ms"] <= figures[f"{source}notice_p99_ms"]
    assert figures["old_tree_files"] == 5000
