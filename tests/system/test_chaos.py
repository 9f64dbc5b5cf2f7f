# SPDX-License-Identifier: BSD-3-Clause
"""The promise of the project, kept under random faults; tools/chaos.py plays them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "tools" / "chaos.py"
SECONDS = 50
SEED = 13
LIMIT_S = 170


@pytest.mark.timeout(180)
def test_whatever_is_killed_each_accepted_detector_gets_one_outcome_and_nothing_is_left():
    command = [sys.executable, CHAOS, "--seconds", str(SECONDS), "--seed", str(SEED), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert not report["violations"], json.dumps(report["violations"], indent=1)[:20_000]
    assert done.returncode == 0
    assert {report[kind] for kind in ("lost", "doubled", "leaked", "wrong")} == {0}
    assert report["accepted"] >= 50
    assert len(report["faults"]) >= 8
    assert report["lives"] >= 2
