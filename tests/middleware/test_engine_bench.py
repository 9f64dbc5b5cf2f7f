# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_engine.py as a program, with small images and few visits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_engine.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_engines_are_measured_side_by_side_and_all_files_are_deleted(tmp_path: Path) -> None:
    folders = [tmp_path / "disk", tmp_path / "memory"]
    for folder in folders:
        folder.mkdir()
    arguments = [
        "--json",
        "--small",
        "--visits=2",
        "--only=images",
        f"--scratch={folders[0]}",
        f"--ramdisk={folders[1]}",
    ]
    done = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    names = {"direct_images", "separable_images", "direct_images_export", "separable_images_export"}
    assert set(results) == {*names, "host", "ratios", "goals", "goals_missed"}
    for name in names:
        assert results[name]["visits"] == 2
        assert 0 < results[name]["raw_to_first_task_ms"] < results[name]["total_ms"]
        assert results[name]["memory_peak_mb"] > 0
        assert 0 < results[name]["held_ms"] < results[name]["free_ms"] < results[name]["raw_to_free_ms"]
        assert results[name]["prepare_ms"] < results[name]["visit_ms"]
        assert results[name]["written_mb"] > 0
    assert set(results["ratios"]) == {"total_of_separable_images", "total_of_separable_images_export"}
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
