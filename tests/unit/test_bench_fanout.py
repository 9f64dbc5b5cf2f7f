# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_fanout.py: what workers recorded, memory, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("fanoutbench.results")


def test_lines_are_counted_as_they_are_appended(results, tmp_path):
    files = [tmp_path / "n1", tmp_path / "n2"]
    records = results.Records(files)
    records.read()
    files[0].write_text("g1 3 10.5\ng1 4 11")
    records.read()
    assert records.times["g1"] == [10.5]  # the second line is half written
    with files[0].open("a") as stream:
        stream.write(".25\n")
    files[1].write_text("g1 3 12.0\ng2 0 13.0\n")
    records.read()
    records.read()
    assert sorted(records.times["g1"]) == [10.5, 11.25, 12.0]
    assert (records.number("g1"), records.number("g2"), records.number("g3")) == (3, 1, 0)
    assert records.counts == {("g1", 3): 2, ("g1", 4): 1, ("g2", 0): 1}


def test_help_explains_the_workload():
    with program("bench_fanout") as tool:
        result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("--detectors", "--nodes", "--rounds", "--json"))
