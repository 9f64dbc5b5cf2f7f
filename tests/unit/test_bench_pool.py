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


def test_help_names_every_section(tool):
    result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(section in result.output for section in tool.SECTIONS)
