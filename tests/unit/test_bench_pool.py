# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_pool.py: its statistics, its goals, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("poolbench.results")


@pytest.fixture(scope="module")
def tool():
    with program("bench_pool") as module:
        yield module


def test_a_slope_is_per_thousand_and_ignores_the_start(results):
    counts = range(500, 2500, 100)
    assert results.per_thousand(counts, [4000 + 0.25 * n for n in counts]) == pytest.approx(250)
    assert results.per_thousand(counts, [7.0] * 20) == 0


def test_a_slope_is_the_least_squares_one(results):
    assert results.per_thousand([0, 1, 2, 3], [0, 2, 1, 3]) == pytest.approx(800)


@pytest.mark.parametrize(("counts", "values"), [([], []), ([5], [1]), ([5, 5], [1, 2]), ([1, 2], [1])])
def test_a_slope_through_too_little_is_refused(results, counts, values):
    with pytest.raises(ValueError, match="no slope"):
        results.per_thousand(counts, values)


def test_help_names_every_section(tool):
    result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(section in result.output for section in tool.SECTIONS)
