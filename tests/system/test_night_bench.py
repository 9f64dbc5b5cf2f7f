# SPDX-License-Identifier: BSD-3-Clause
"""The bench of exposures runs against relay and node as they are."""

import pytest
from benchrun import run_bench

WORKLOAD = {"detectors": 6, "rows": 60, "exposures": 2, "flood": 3}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_exposures_are_measured_and_none_is_lost_or_doubled(tmp_path, socket_dir):
    night = run_bench("bench_night", tmp_path, socket_dir, **WORKLOAD)["rows_60"]
    assert (night["visit_detectors"], night["lost"], night["doubled"], night["flood_lost"]) == (12, 0, 0, 0)
    steps = (
        "relayed",
        "assigned",
        "prepared",
        "noticed",
        "ingested",
        "begun",
        "processed",
        "spooled",
        "exported",
    )
    assert night["whole_p50_ms"] > 0
    assert all(night[f"{step}_p50_ms"] <= night[f"{step}_p99_ms"] for step in steps), night
    assert all(night[f"{kind}_cpu_ms"] > 0 for kind in ("relay", "supervisor", "worker", "exporter")), night
    assert night["journal_rows_per_1000_visits"] == 6000
