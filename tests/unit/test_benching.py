# SPDX-License-Identifier: BSD-3-Clause
"""The parts of all benches: results beside goals, folders that are deleted, exit statuses."""

import json
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
        "ready_ms": results.Goal(100),
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
    shown = results.table({"ready_ms": 55.5, "late_ms": 999.0, "cores": 2}, goals)
    assert [list(column.cells) for column in shown.columns] == [
        ["ready_ms", "late_ms", "cores"],
        ["55.5", "999", "2"],
        ["at most 100", "below 50", ""],
        ["[green]met", "[red]missed", ""],
    ]


def test_json_names_the_missed_goals_beside_the_results(cli, goals, capsys):
    cli.print_results({"ready_ms": 101}, goals, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"ready_ms": 101, "goals_missed": ["ready_ms"]}


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
