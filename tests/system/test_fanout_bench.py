# SPDX-License-Identifier: BSD-3-Clause
"""The bench of the fan-out runs against relay and nodes as they are."""

import pytest
from benchrun import run_bench

WORKLOAD = {"detectors": 6, "nodes": 2, "rounds": 2, "visits": 20, "complete": 1, "doors": 2}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_visits_are_measured_and_none_is_lost_or_doubled(tmp_path, socket_dir):
    results = run_bench("bench_fanout", tmp_path, socket_dir, **WORKLOAD)
    assert {results[name] for name in ("lost", "doubled", "complete_lost", "complete_doubled")} == {0}
    measured = (
        *("fanout_p50_ms", "paced_fanout_p50_ms", "cancel_p50_ms", "floor_p50_ms", "floor_workers_p50_ms"),
        *("relay_late_pss_mb", "crossing_p50_ms", "door_p50_ms", "door_without_relay_p50_ms"),
    )
    assert all(results[name] > 0 for name in measured), results
