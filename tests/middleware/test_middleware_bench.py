# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_preload.py as a program, with a small central repo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_preload.py"
SMALL = {
    "workers": 1,
    "visits": 3,
    "crowd": 2,
    "database": "sqlite",
    "rounds": 1,
    "detectors": 4,
    "epochs": 2,
    "tracts": 1,
    "image-mb": 0.02,
    "table-mb": 0.001,
}


@pytest.mark.slow
def test_the_bench_measures_and_deletes_all_files(tmp_path: Path) -> None:
    folders = [tmp_path / "disk", tmp_path / "memory"]
    for folder in folders:
        folder.mkdir()
    options = SMALL | {"scratch": folders[0], "ramdisk": folders[1], "against": TOOL.parents[1]}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, TOOL, "--json", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    # Which one is smaller depends on the load of the machine.
    assert results["warm_ms"] > 0
    assert results["cold_ms"] > 0
    assert results["bytes_copied_warm"] == 0
    assert results["bytes_copied_cold"] >= 8 * 20_000, "four calibrations and the patches under a detector"
    assert (results["cold_samples"], results["warm_samples"], results["moved_samples"]) == (1, 2, 3)
    crowd = results["cold_2_sqlite"]
    assert crowd["p95_ms"] >= crowd["p50_ms"] > 0
    assert crowd["p95_of_copies"] > 0
    assert crowd["bytes_copied"] < crowd["bytes_asked"], "neighbors share patches"
    assert 0 < crowd["queries_of_each"] <= 1.1
    assert crowd["queries"] > 0
    assert crowd["asker_cpu_ms"] > 0, "the host has an asker"
    # The build is compared with itself.
    assert crowd["other_bytes_copied"] == crowd["bytes_copied"]
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
