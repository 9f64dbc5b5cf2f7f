# SPDX-License-Identifier: BSD-3-Clause
"""The bench of what an operator waits for runs against a node as it is."""

import pytest
from benchrun import run_bench

WORKLOAD = {"detectors": 4, "rows": 2000, "rounds": 1}
COMMANDS = ("status", "workers", "visits", "visits_1000", "failed_night", "visit", "top", "floor_ppctl")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_command_is_timed_at_a_busy_node(tmp_path, socket_dir):
    results = run_bench("bench_operator", tmp_path, socket_dir, **WORKLOAD)
    assert all(results[f"{name}_ms"] > 0 and results[f"{name}_cpu_ms"] > 0 for name in COMMANDS), results
    assert results["supervisor_mb"] > 0
