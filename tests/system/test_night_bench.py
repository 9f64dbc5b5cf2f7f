# SPDX-License-Identifier: BSD-3-Clause
"""The bench of exposures runs against relay and node as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_night.py"
WORKLOAD = {"detectors": 6, "rows": 60, "exposures": 2, "flood": 3}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_exposures_are_measured_and_none_is_lost_or_doubled(tmp_path, socket_dir):
    options = [text for name, number in WORKLOAD.items() for text in (f"--{name}", str(number))]
    command = [sys.executable, TOOL, *options, "--scratch", tmp_path, "--ramdisk", socket_dir, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert run.returncode == 0, run.stderr
    night = json.loads(run.stdout)["rows_60"]
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
    assert list(tmp_path.iterdir()) == list(socket_dir.iterdir()) == []
