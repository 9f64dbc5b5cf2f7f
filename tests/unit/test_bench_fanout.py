# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_fanout.py: its memory and its command line."""

from benchtools import program
from click.testing import CliRunner


def test_help_explains_the_workload():
    with program("bench_fanout") as tool:
        result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("--detectors", "--nodes", "--rounds", "--json"))
