# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_pool.py: its statistics, its goals, its command line."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from click.testing import CliRunner

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        from poolbench import figures
    return figures


@pytest.fixture(scope="module")
def tool():
    spec = spec_from_file_location("bench_pool", TOOLS / "bench_pool.py")
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("percent", "value"), [(1, 1.0), (50, 10.0), (95, 19.0), (95.1, 20.0), (100, 20.0)])
def test_a_percentile_is_the_nearest_rank(figures, percent, value):
    assert figures.percentile([float(n) for n in range(20, 0, -1)], percent) == value


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_that_means_nothing_is_refused(figures, values, percent):
    with pytest.raises(ValueError, match="no percentile"):
        figures.percentile(values, percent)


def test_a_slope_is_per_thousand_and_ignores_the_start(figures):
    counts = range(500, 2500, 100)
    assert figures.per_thousand(counts, [4000 + 0.25 * n for n in counts]) == pytest.approx(250)
    assert figures.per_thousand(counts, [7.0] * 20) == 0


def test_a_slope_is_the_least_squares_one(figures):
    assert figures.per_thousand([0, 1, 2, 3], [0, 2, 1, 3]) == pytest.approx(800)


@pytest.mark.parametrize(("counts", "values"), [([], []), ([5], [1]), ([5, 5], [1, 2]), ([1, 2], [1])])
def test_a_slope_through_too_little_is_refused(figures, counts, values):
    with pytest.raises(ValueError, match="no slope"):
        figures.per_thousand(counts, values)


def test_private_memory_is_clean_and_dirty_but_not_shared(figures):
    smaps = (
        "55d0-7ffe ---p 00000000 00:00 0    [rollup]\n"
        "Rss:              300000 kB\nShared_Clean:      50000 kB\nShared_Dirty:     220000 kB\n"
        "Private_Clean:     10000 kB\nPrivate_Dirty:     20000 kB\nPrivate_Hugetlb:       0 kB\n"
    )
    assert figures.private_mb(smaps) == pytest.approx(30.72)


def test_goals_are_met_at_their_limit_and_missed_beyond(figures):
    met = {"fork_ready_ms": 100.0, "fork_over_spawn": 15.0, "idle_private_mb": 3, "cores": 2}
    assert figures.missed(met) == []
    assert figures.missed({"fork_over_spawn": 14.9, "fork_ready_ms": 100.1}) == [
        "fork_ready_ms",
        "fork_over_spawn",
    ]


def test_the_table_has_a_row_for_each_figure(figures):
    shown = figures.table({"fork_ready_ms": 55.5, "reserve_205_ms": 999.0, "cores": 2})
    assert [list(column.cells) for column in shown.columns] == [
        ["fork_ready_ms", "reserve_205_ms", "cores"],
        ["55.5", "999", "2"],
        ["at most 100", "at most 250", ""],
        ["[green]met", "[red]missed", ""],
    ]


def test_help_names_every_section(tool):
    result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(section in result.output for section in tool.SECTIONS)


def test_an_unknown_section_is_a_usage_error(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_pool", "--only", "everything"])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == 64
    assert "everything" in capsys.readouterr().err


def test_folders_are_gone_even_after_a_failure(tool, tmp_path):
    def fail():
        with tool.Ground(tmp_path, tmp_path).places() as places:
            (places.scratch / "file").touch()
            (places.ramdisk / "folder").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
