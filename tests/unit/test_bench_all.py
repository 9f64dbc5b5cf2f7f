# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_all.py: what is missed or worse than the baseline, and its exit status."""

import json
import sys
from pathlib import Path

import pytest
from benchtools import TOOLS, part, program

RATIOS = {"tolerance": 0.5, "ratios": {"bench_engine": {"first": 0.1}}, "tolerances": {}}


@pytest.fixture
def tool():
    with program("bench_all") as module:
        yield module


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(RATIOS))
    return path


def measured(value, limit=1.0):
    return {"first": (value, part("benching.results").Goal(limit, kind="ratio"))}


def run(tool, baseline, monkeypatch, found, *arguments):
    """Run the program with results instead of measurements; return its exit status."""
    monkeypatch.setattr(tool, "run_bench", lambda name, folders: found.get(name, {}))
    monkeypatch.setattr(sys, "argv", ["bench_all", "--baseline", str(baseline), *arguments])
    with pytest.raises(SystemExit) as ended:
        part("benching.cli").run(tool.command)
    return ended.value.code or 0


@pytest.mark.parametrize(
    ("found", "status", "named"),
    [
        (measured(0.14), 0, ""),
        (measured(0.2), 1, "bench_engine: first 2 times worse"),
        (measured(0.14, limit=0.1), 1, "bench_engine: first missed"),
        (measured(0.9, limit=0.1), 1, "bench_engine: first missed, 9 times worse"),
        ("exited with 1", 1, "bench_engine: exited with 1"),
    ],
)
def test_what_is_missed_or_worse_is_named(tool, baseline, monkeypatch, capsys, found, status, named):
    assert run(tool, baseline, monkeypatch, {"bench_engine": found}) == status
    printed = capsys.readouterr()
    assert named in printed.err
    assert f"1 of {len(tool.SECONDS)}: bench_engine" in printed.err
    assert printed.out.split()[-1] == (named or "met").split()[-1]
    assert "[" not in printed.out
    assert json.loads(baseline.read_text()) == RATIOS


def test_json_has_each_result_beside_goal_and_baseline(tool, baseline, monkeypatch, capsys):
    assert run(tool, baseline, monkeypatch, {"bench_engine": measured(0.2)}, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "results": [
            {
                "bench": "bench_engine",
                "result": "first",
                "value": 0.2,
                "goal": "at most 1",
                "kind": "ratio",
                "floor": "",
                "baseline": 0.1,
                "good": False,
                "verdict": "2 times worse",
            }
        ],
        "good": False,
    }


def test_a_baseline_is_renewed_with_what_was_measured(tool, baseline, monkeypatch):
    found = {"bench_engine": measured(0.2), "bench_pool": "exited with 1"}
    run(tool, baseline, monkeypatch, found, "--renew", "--only", "bench_engine", "--only", "bench_pool")
    assert json.loads(baseline.read_text())["ratios"] == {"bench_engine": {"first": 0.2}}


def test_each_bench_is_run(tool):
    programs = {path.stem for path in TOOLS.glob("bench_*.py")} - {"bench_all"}
    assert set(tool.SECONDS) == programs
    assert sum(tool.SECONDS.values()) <= 630


def test_the_baseline_has_ratios_of_benches_only(tool):
    found = part("benching.results").baseline_of(json.loads(Path(tool.BASELINE).read_text()))
    assert found.ratios.keys() <= tool.SECONDS.keys()
    assert 0 < found.tolerance < 1
    assert set(found.tolerances) <= {name for ratios in found.ratios.values() for name in ratios}


def test_a_printed_goal_is_read_as_it_was():
    shared, goal = part("benching.results"), part("benching.results").Goal(15, "at least", "ratio")
    printed = json.loads(json.dumps(shared.as_json({"gain": 14.0}, {"gain": goal})))
    assert part("benching.suite").measured_by(printed) == {"gain": (14.0, goal)}


def all_goals():
    """Yield name and goal of each result that a bench may have."""
    for bench in ("operator", "pool", "fanout", "sources", "preload", "engine"):
        yield from part(f"{bench}bench.results").GOALS.items()
    yield from part("nightbench.results").GOALS.items()
    yield from part("arrivalbench.results").goals(0.2).items()
    yield from part("exportbench.results").goals().items()


def test_each_absolute_goal_of_a_time_has_a_floor_beside_it():
    """A busy machine misses it: only the floor of the same run tells whether the code is slower."""
    timed = [
        (name, goal)
        for name, goal in all_goals()
        if goal.kind == "absolute" and name.endswith(("_ms", "_s", "cpu_percent"))
    ]
    assert len(timed) > 25
    assert [name for name, goal in timed if not goal.floor] == []
