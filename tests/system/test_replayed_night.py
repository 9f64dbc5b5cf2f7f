# SPDX-License-Identifier: BSD-3-Clause
"""A night is replayed with the real relay and nodes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ppdaemon.testing.telescope import running_telescope

TOOL = Path(__file__).parents[2] / "tools" / "replay_night.py"


def run(tmp_path, socket_dir, *options):
    """Replay with two own nodes; return the report."""
    report, scratch = tmp_path / "report" / "report.json", tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, TOOL, "--nodes", "2", "--scratch", scratch, "--ramdisk", socket_dir]
    command += ["--detectors", "6", "--report", report, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(scratch.iterdir()) == list(socket_dir.iterdir()) == []
    return json.loads(report.read_text())


@pytest.mark.slow
def test_a_replayed_night_has_each_visit_detector_once(tmp_path, socket_dir):
    report = run(tmp_path, socket_dir, "--visits", "30")
    counted = {
        name: report[name] for name in ("visits", "announced", "succeeded", "lost", "doubled", "differing")
    }
    expected = {"visits": 30, "announced": 180, "succeeded": 180, "lost": 0, "doubled": 0, "differing": 0}
    assert counted == expected
    assert report["latencies"]["answer_ms"]["count"] == 30
    assert report["latencies"]["accepted_to_ended_ms"]["count"] == 180
    assert report["memory"]["relay_late_mb"] > 0
    assert report["camera"]["lateness_s"] is None


@pytest.mark.slow
def test_a_night_in_a_file_is_replayed_with_raws_at_its_times(tmp_path, socket_dir):
    night = tmp_path / "night.jsonl"
    subprocess.run([sys.executable, TOOL, "--visits", "3", "--save", night], check=True, timeout=100)
    report = run(tmp_path, socket_dir, "--night", night, "--speed", "30", "--raws")
    assert (report["source"], report["succeeded"], report["lost"], report["doubled"]) == (
        "file night.jsonl",
        18,
        0,
        0,
    )
    # Of 30 times the speed: two visits apart, then lead, exposure and readout.
    assert report["total_s"] > (2 * 40 + 52) / 30
    assert report["camera"]["lateness_s"]["count"] == 3
    assert report["latencies"]["tasks_ms"]["count"] == 18


@pytest.mark.slow
def test_recorded_cancellations_are_replayed(tmp_path, socket_dir):
    night = tmp_path / "night.jsonl"
    subprocess.run([sys.executable, TOOL, "--visits", "3", "--save", night], check=True, timeout=100)
    lines = [json.loads(line) for line in night.read_text().splitlines()]
    lines[1]["cancelled_tai"] = lines[1]["received_tai"] + 15.0
    night.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = run(tmp_path, socket_dir, "--night", night, "--speed", "20", "--raws")
    assert (report["cancelled"], report["lost"], report["doubled"], report["differing"]) == (1, 0, 0, 0)
    assert report["outcomes"] == {"succeeded": 12, "cancelled": 6}
    assert report["camera"]["lateness_s"]["count"] == 2


@pytest.mark.slow
def test_a_night_is_replayed_at_a_relay_that_runs(tmp_path, socket_dir):
    report = tmp_path / "report.json"
    with running_telescope(tmp_path, socket_dir, ["n1"], arrivals={"image_timeout_s": 20}) as (telescope, _):
        command = [sys.executable, TOOL, "--relay", telescope.relay.submit, "--raw-root", telescope.raws.root]
        command += ["--instrument", "DemoCam", "--detectors", "2", "--visits", "2", "--speed", "20"]
        done = subprocess.run([*command, "--report", report], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr + done.stdout
        written = telescope.writes()
    found = json.loads(report.read_text())
    # The relay waits for all nine detectors; seven are not read out.
    assert (found["visits"], found["announced"], found["succeeded"], found["lost"]) == (2, 18, 4, 0)
    assert found["outcomes"] == {"succeeded": 4, "no_image": 14}
    assert (found["doubled"], found["own_nodes"], found["memory"]) == (None, None, None)
    assert sorted(written.values()) == [1] * 4
