# SPDX-License-Identifier: BSD-3-Clause
"""The parts of all benches: results beside goals, folders that are deleted, exit statuses."""

import sys

import click
import pytest
from benchtools import part

from ppdaemon.errors import Unavailable


@pytest.fixture(scope="module")
def results():
    return part("benching.results")


@pytest.fixture(scope="module")
def cli():
    return part("benching.cli")


@pytest.fixture
def goals(results):
    return {
        "late_ms": results.Goal(50, "below"),
        "ready_ms": results.Goal(100, floor="start_ms"),
        "gain": results.Goal(15, "at least"),
    }


@pytest.mark.parametrize(("percent", "value"), [(1, 1.0), (50, 10.0), (95, 19.0), (95.1, 20.0), (100, 20.0)])
def test_a_percentile_is_the_nearest_rank(results, percent, value):
    assert results.percentile([float(n) for n in range(20, 0, -1)], percent) == value


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_an_invalid_percentile_is_refused(results, values, percent):
    with pytest.raises(ValueError, match="no percentile"):
        results.percentile(values, percent)


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ({"late_ms": 49.9, "ready_ms": 100.0, "gain": 15, "cores": 2}, []),
        ({"gain": 14.9, "late_ms": 50, "ready_ms": 100.1}, ["late_ms", "ready_ms", "gain"]),
        ({"late_ms": None}, []),
    ],
)
def test_goals_are_met_or_missed_at_their_limit(results, goals, measured, missed):
    assert results.missed(measured, goals) == missed


def test_the_table_has_a_row_for_each_result(results, goals):
    shown = results.table({"ready_ms": 55.5, "late_ms": 999.0, "start_ms": 20.0}, goals)
    assert [[str(cell) for cell in column.cells] for column in shown.columns] == [
        ["ready_ms", "late_ms", "start_ms"],
        ["55.5", "999", "20"],
        ["at most 100", "below 50", ""],
        ["met", "missed", ""],
        ["start_ms: 20", "", ""],
    ]


def test_what_is_missed_is_explained_beside_its_floor(results, goals):
    goal = goals["ready_ms"].beside_floor({"ready_ms": 120.0, "start_ms": 60.0})
    assert results.explain("ready_ms", 120.0, goal) == (
        "ready_ms: 120, goal at most 100 (absolute); start_ms: 60"
    )


def test_python_is_started_for_the_floor():
    floors = part("benching.floors")
    found = floors.results(floors.python_starts(2))
    assert set(found) == {name.removeprefix("host.") for name in (floors.PYTHON_START, floors.PYTHON_CPU)}
    assert found["python_cpu_ms"] > 0
    assert found["python_start_ms"] > 0


def test_groups_of_results_are_listed_with_both_names(results):
    found = results.flatten({"direct": {"total_ms": 3.5, "visits": 2}, "cores": 4})
    assert found == {"direct.total_ms": 3.5, "direct.visits": 2, "cores": 4}


def test_json_has_the_goals_of_what_was_measured(results, goals):
    found = results.as_json({"pool": {"any": 1}, "start_ms": 20, "ready_ms": 101, "gain": None}, goals)
    ready = {"value": 101, "limit": 100, "sense": "at most", "kind": "absolute", "floor": "start_ms: 20"}
    assert found == {
        "pool": {"any": 1},
        "start_ms": 20,
        "ready_ms": 101,
        "gain": None,
        "goals": {"ready_ms": ready},
        "goals_missed": ["ready_ms"],
    }


@pytest.mark.parametrize(
    ("sense", "value", "factor"),
    [("at most", 0.3, 1.5), ("below", 0.1, 0.5), ("at least", 0.1, 2.0), ("at most", 0.2, 1.0)],
)
def test_a_ratio_is_worse_by_a_factor(results, sense, value, factor):
    assert results.Goal(1, sense, "ratio").worsening(value, 0.2) == pytest.approx(factor)


def test_a_ratio_that_was_zero_is_worse_if_it_is_not(results):
    goal = results.Goal(1, kind="ratio")
    assert (goal.worsening(0, 0), goal.worsening(0.1, 0)) == (1, float("inf"))


@pytest.fixture
def baseline(results):
    ratios = {"engine": {"first": 0.10, "gain": 20.0, "noisy": 1.0}, "pool": {"spawn": 15.0}}
    return results.baseline_of({"tolerance": 0.25, "ratios": ratios, "tolerances": {"noisy": 1.0}})


def ratio(results, value, sense="at most"):
    return value, results.Goal(1, sense, "ratio")


def test_only_what_is_worse_by_more_than_its_tolerance_is_named(results, baseline):
    measured = {
        "first": ratio(results, 0.13),
        "gain": ratio(results, 15.9, "at least"),
        "noisy": ratio(results, 1.9),
        "new": ratio(results, 99),
    }
    assert baseline.worse("engine", measured) == pytest.approx({"first": 1.3, "gain": 20 / 15.9})
    within = {"first": ratio(results, 0.124), "gain": ratio(results, 16.1, "at least")}
    assert baseline.worse("engine", within) == {}
    assert baseline.worse("night", measured) == {}


def test_a_renewed_baseline_keeps_the_benches_that_were_not_run(results, baseline):
    measured = {"first": ratio(results, 0.123456), "late_ms": (9.0, results.Goal(50))}
    renewed = baseline.renewed({"engine": measured, "night": {"lost": (0, results.Goal(0, kind="count"))}})
    assert renewed.ratios == {"engine": {"first": 0.123}, "pool": {"spawn": 15.0}}
    assert (renewed.tolerance, renewed.tolerances) == (0.25, {"noisy": 1.0})


def test_memory_is_added_up_by_kind():
    mb = part("benching.processes").smaps_mb
    smaps = (
        "55d0-7ffe ---p 00000000 00:00 0    [rollup]\n"
        "Rss:              300000 kB\nPss:              30000 kB\nPss_Dirty:        20000 kB\n"
        "Shared_Clean:      50000 kB\nShared_Dirty:     220000 kB\n"
        "Private_Clean:     10000 kB\nPrivate_Dirty:     20000 kB\nPrivate_Hugetlb:       0 kB\n"
    )
    assert (mb(smaps, "Pss:"), mb(smaps, "Private_")) == (pytest.approx(30.72), pytest.approx(30.72))


def test_folders_are_deleted_even_after_a_failure(tmp_path):
    def fail():
        with part("benching.folders").FolderRoots(tmp_path, tmp_path).temporary() as folders:
            (folders.scratch / "file").touch()
            (folders.ramdisk / "folder").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def failing_with(error):
    @click.command(name="bench_any")
    @click.option("--only", type=click.Choice(["one"]))
    def command(only):
        raise error

    return command


@pytest.mark.parametrize(
    ("arguments", "error", "status", "message"),
    [
        (["--only", "all"], None, 64, "'all' is not 'one'"),
        ([], click.Abort(), 1, ""),
        ([], Unavailable("no daemon"), Unavailable.exit_code, "bench_any: no daemon\n"),
    ],
)
def test_a_bench_ends_with_the_status_of_its_error(
    cli, monkeypatch, capsys, arguments, error, status, message
):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench_any", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(failing_with(error))
    assert ended.value.code == status
    assert message in capsys.readouterr().err
