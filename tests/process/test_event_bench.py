# SPDX-License-Identifier: BSD-3-Clause
"""The bench of events runs against the pool as it is."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "bench_pool.py"


def test_what_an_event_costs_is_measured():
    run = subprocess.run(
        [sys.executable, TOOL, "--only", "event", "--json"], capture_output=True, text=True, timeout=100
    )
    assert json.loads(run.stdout)["event_us"] > 0, run.stderr
