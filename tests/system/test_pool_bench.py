# SPDX-License-Identifier: BSD-3-Clause
"""The bench of the pool runs with workers as they are."""

import pytest
from benchrun import run_bench

SECTIONS = ("fork", "leftovers", "replace")
WORKLOAD = {"forks": 10, "spawns": 3, "kills": 3, "busy": 0}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_are_forked_and_replaced(tmp_path, socket_dir):
    options = [text for name in SECTIONS for text in ("--only", name)]
    results = run_bench("bench_pool", tmp_path, socket_dir, *options, **WORKLOAD)
    assert 0 < results["fork_ready_ms"] < results["spawn_ready_ms"]
    assert results["ready_cpu_ms"] > 0
    assert results["replace_kills"] == 3
