# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_arrival.py: its arithmetic, its goals, its command line."""

import json
import sys

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("arrivalbench.results")


@pytest.fixture(scope="module")
def tool():
    with program("bench_arrival") as module:
        yield module


def test_a_source_that_found_nothing_has_no_percentiles(results):
    counts = results.Samples()
    counts.add({0: 1.0}, [])
    assert set(results.source_results("zmq", counts).values()) == {None}
    assert set(results.source_results("zmq", counts)) == {
        "zmq_notice_p50_ms",
        "zmq_notice_p99_ms",
        "zmq_notice_worst_ms",
    }


def test_bursts_are_measured_by_default_and_their_worst_raw_has_a_goal(results, tool):
    assert "burst" in tool.SECTIONS
    goals = results.goals(0.4)
    found = results.source_results("burst", results.Samples(1, latencies_ms=[600.0]))
    assert [name for name, value in found.items() if name in goals and not goals[name].met(value)] == [
        "burst_notice_p99_ms",
        "burst_notice_worst_ms",
    ]


def test_polling_may_take_a_period_and_a_little(results):
    goals = results.goals(0.25)
    assert (str(goals["poll_notice_p99_ms"]), str(goals["missed"])) == ("below 350", "at most 0")


def test_help_names_every_section(tool):
    result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(section in result.output for section in tool.SECTIONS)


@pytest.fixture
def measured(tool, monkeypatch):
    """Replace the measurement; return its arguments, and take the results from it."""
    seen = {}

    def measure(sections, folder_roots, workload):
        seen["sections"], seen["workload"] = sections, workload
        return seen.get("results", {})

    monkeypatch.setattr(tool, "measure", measure)
    return seen


def test_options_set_by_the_user_replace_quick_numbers(tool, measured):
    assert CliRunner().invoke(tool.command, ["--quick", "--races", "7"]).exit_code == 0
    workload = measured["workload"]
    assert (workload.races, workload.detectors, workload.old, workload.poll_s) == (7, 205, 50_000, 0.4)
    assert measured["sections"] == set(tool.SECTIONS)
    assert CliRunner().invoke(tool.command, ["--only", "old"]).exit_code == 0
    assert measured["workload"].old == 1_000_000
    assert measured["sections"] == {"old"}


@pytest.mark.parametrize(("arguments", "status"), [(["--json"], 0), (["--json", "--check"], 1)])
def test_missed_goals_fail_if_they_are_checked(tool, measured, monkeypatch, capsys, arguments, status):
    measured["results"] = {"missed": 1, "twice": 0, "notice_p99_ms": 1e6}
    monkeypatch.setattr(sys, "argv", ["bench_arrival", *arguments])
    with pytest.raises(SystemExit) as ended:
        part("benching.cli").run(tool.command)
    assert (ended.value.code or 0) == status
    printed = capsys.readouterr()
    assert json.loads(printed.out)["goals_missed"] == ["missed", "notice_p99_ms"]
    assert ("missed: missed: 1, goal at most 0 (count)\n" in printed.err) is bool(status)
