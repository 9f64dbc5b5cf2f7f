# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_operator.py: its journal, its times, its command line."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from benchtools import part, program
from click.testing import CliRunner

from ppdaemon import journalfile
from ppdaemon.reports import VisitsRequest, VisitSummariesRequest
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit


def test_the_journal_has_rows_as_a_node_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    group = part("operatorbench.journal").fill(path, 1000, 9, "LSSTCam")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM attempt").fetchone() == (1000,)
        assert NextVisit.model_validate_json(db.execute("SELECT visit FROM attempt").fetchone()[0]).instrument
        newest, before, *others = journalfile.visit_summaries(db, VisitSummariesRequest(limit=1000))
        failed = journalfile.visit_detectors(db, VisitsRequest(failed=True))
    assert (newest.group, len(newest.detectors), len(before.detectors)) == (group, 1, 9)
    assert len(others) == 110
    assert newest.received_tai - before.received_tai == pytest.approx(35)
    assert newest.slowest_s == pytest.approx(70.5)
    assert {row.outcome for row in failed} == {Outcome.FAILED}
    assert len(failed) == 10
    assert list(failed[0].stages) == list(Stage)


def test_times_of_a_command_are_those_of_its_process() -> None:
    commands = part("operatorbench.commands")
    times = commands.Times()
    commands.run((sys.executable, "-c", "print('x' * 1_000_000)"), times)
    results = times.results("any")
    assert results["any_ms"] == results["any_min_ms"] >= results["any_cpu_ms"] > 0
    with pytest.raises(commands.BenchFailed, match="exited with 3"):
        commands.run((sys.executable, "-c", "raise SystemExit(3)"), times)


def test_commands_do_not_compile_the_package_each_time(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    commands = part("operatorbench.commands")
    commands.run((sys.executable, "-c", "import sys; assert not sys.dont_write_bytecode"), commands.Times())


def test_the_first_frame_ends_when_a_text_is_shown() -> None:
    commands = part("operatorbench.commands")
    times, listened = commands.Times(), []
    script = "import sys, tty; tty.setcbreak(0); print('shown', flush=True); assert sys.stdin.read(1) == 'q'"
    commands.first_frame((sys.executable, "-c", script), b"shown", times, lambda: listened.append(1))
    assert times.wall_ms[0] > 0
    assert listened == [1]


def test_help_explains_the_workload() -> None:
    with program("bench_operator") as tool:
        result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("--detectors", "--rows", "--rounds", "--json"))
