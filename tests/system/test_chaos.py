# SPDX-License-Identifier: BSD-3-Clause
"""The guarantees of the project under random faults from tools/chaos.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ppdaemon.testing.hosts import why_not

CHAOS = Path(__file__).parents[2] / "tools" / "chaos.py"
REASON = why_not()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_under_all_faults_each_accepted_detector_gets_one_outcome_and_nothing_is_left_over():
    command = [sys.executable, CHAOS, "--seconds", "50", "--seed", "13", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.stdout, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert not report["violations"], json.dumps(report["violations"], indent=1)[:20_000]
    assert done.returncode == 0
    assert {report[kind] for kind in ("lost", "doubled", "leaked", "wrong")} == {0}
    assert report["accepted"] >= 50
    assert len(report["faults"]) >= 8
    assert report["lives"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("seconds", "seed", "options"),
    [
        pytest.param(20, 2, (), id="one machine"),
        pytest.param(
            60,
            1,
            ("--namespaces",),
            id="hosts",
            marks=[
                pytest.mark.skipif(bool(REASON), reason=REASON),
            ],
        ),
    ],
)
def test_over_all_nodes_each_accepted_detector_gets_one_outcome_and_nothing_is_left_over(
    seconds, seed, options
):
    command = [
        sys.executable,
        CHAOS,
        "--nodes",
        "4",
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
        "--json",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=180)
    assert done.stdout, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert not report["violations"], json.dumps(report["violations"], indent=1)[:20_000]
    assert done.returncode == 0
    assert report["accepted"] >= 5 * seconds
    assert len(report["faults"]) >= 12
    assert report["lives"] > 4
