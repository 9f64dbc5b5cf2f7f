# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl compare`` of journals, and what counts as a difference."""

import csv
import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ppdaemon.clock import night_limits
from ppdaemon.ctl import cli
from ppdaemon.ctl.compare import compare_csv, compare_json, compare_view
from ppdaemon.ctl.offline import SHOWN
from ppdaemon.journalfile import NightRow
from ppdaemon.night.compare import CompareOutcomes, CompareOutputs, CompareReport, Run, compare, compare_rows
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, JournalEntry, Reserved, Update
from ppdaemon.states import ExitCode, Outcome, Stage
from ppdaemon.visit import read_next_visit

DAY = 20261129
BEGIN, _ = night_limits(DAY)


def row(detector: int, outcome: Outcome | None = Outcome.SUCCEEDED, *, seconds: float = 30.0, **changes: Any):
    usual = NightRow(
        "DemoCam", "g", detector, 1, outcome, (1,), {Stage.PROCESSED: 60.0 + seconds}, {}, "", "S", False, 4,
        60.0, "ApPipe",
    )  # fmt: skip
    return usual._replace(**changes)


def of_journal(*rows: NightRow) -> Run:
    run = Run(["journal"], has_journal=True)
    for each in rows:
        run.add(each)
    return run


def of_repo(**outputs: dict[str, int]) -> Run:
    keys = {("DemoCam", "g", int(name.removeprefix("d"))): counts for name, counts in outputs.items()}
    return Run(["repo"], has_repo=True, outputs=keys)


def compared(a: Run, b: Run, *, all_rows: bool = False) -> CompareReport:
    rows = tuple(compare_rows(a, b, all_rows=all_rows))
    return compare(DAY, a, b).model_copy(update={"rows": rows})


def test_what_differs_is_named_for_each_visit_detector_and_latencies_are_none() -> None:
    a = of_journal(row(0), row(1), row(2, Outcome.FAILED, reason="no stars"), row(3), row(4, seconds=10.0))
    b = of_journal(row(0, seconds=50.0), row(2), row(3, pipeline="Isr"), row(4, datasets=3), row(5, None))
    report = compared(a, b)
    assert {each.detector: each.differs for each in report.rows} == {
        1: ("missing in B",),
        2: ("outcome",),
        3: ("pipeline",),
        4: ("outputs",),
        5: ("missing in A",),
    }
    assert (report.both, report.only_a, report.only_b, report.differ) == (4, 1, 1, 5)
    assert report.compared == ("outcome", "exported", "latency")
    assert CompareOutcomes(a="failed", b="succeeded", count=1) in report.outcomes
    assert CompareOutcomes(a="missing", b="open", count=1) in report.outcomes
    assert report.slower is not None
    assert (report.slower.max_ms, report.slower.count) == (20_000.0, 3)
    assert [each.detector for each in compared(a, b, all_rows=True).rows] == [0, 1, 2, 3, 4, 5]


def test_outputs_are_compared_by_type_and_number() -> None:
    a = of_repo(d0={"x": 1, "y": 2}, d1={"x": 1}, d2={"x": 1})
    report = compared(a, of_repo(d0={"x": 1, "y": 3}, d1={"x": 1}))
    assert report.compared == ("outputs",)
    assert report.outcomes == ()
    assert report.outputs == (
        CompareOutputs(dataset_type="x", a=2, b=2, differ=0),
        CompareOutputs(dataset_type="y", a=2, b=3, differ=1),
    )
    assert [(each.detector, each.differs) for each in report.rows] == [
        (0, ("outputs",)),
        (2, ("missing in B",)),
    ]
    assert (report.a.datasets, report.b.datasets) == (5, 5)


def test_what_one_run_does_not_tell_is_not_compared() -> None:
    report = compared(of_repo(d0={"x": 1}), of_journal(row(0, Outcome.FAILED)))
    assert (report.compared, report.differ) == ((), 0)
    # With a repo on both sides, a visit-detector of the journal without outputs has none.
    own = of_journal(row(0), row(1))
    own.has_repo, own.outputs = True, {("DemoCam", "g", 0): {"x": 1}}
    report = compared(of_repo(d0={"x": 1}, d1={"x": 1}), own)
    assert [(each.detector, each.differs) for each in report.rows] == [(1, ("outputs",))]


def test_what_only_a_repo_is_known_of_and_left_no_outputs_is_no_difference() -> None:
    own = of_journal(row(0, Outcome.CANCELLED, datasets=0), row(1))
    assert [each.detector for each in compared(of_repo(), own).rows] == [1]  # own repo not read
    own.has_repo, own.outputs = True, {("DemoCam", "g", 1): {"x": 1}}
    for report in (compared(of_repo(), own), compared(own, of_repo())):
        assert ([each.detector for each in report.rows], report.differ) == ([1], 1)
    # A journal would have it.
    assert compared(of_journal(), of_journal(row(0, Outcome.CANCELLED, datasets=0))).differ == 1


def make_journal(path: Path, *outcomes: Outcome, shadow: bool = False, begin: float = BEGIN) -> Path:
    path.parent.mkdir(exist_ok=True)
    with closing(Journal(path, shadow=shadow)) as journal:
        for detector, outcome in enumerate(outcomes):
            visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "survey": "S"})
            entry = JournalEntry(Key("DemoCam", "g", detector, 1), visit, received_tai=begin + 5.0)
            entry.outcome, entry.final, entry.shutter_close_tai = outcome, True, begin + 60.0
            entry.stages = {Stage.PROCESSED: begin + 90.0}
            journal.write(Accept(Reserved(None, {}), (entry,)))
            journal.write(Update((entry,)))
    return path


@pytest.fixture
def journals(tmp_path: Path) -> tuple[str, str]:
    good, bad = Outcome.SUCCEEDED, Outcome.FAILED
    present = make_journal(tmp_path / "present" / "journal.sqlite", good, good, good)
    own = make_journal(tmp_path / "own.sqlite", good, bad, shadow=True)
    return str(present.parent), str(own)


def test_the_command_compares_two_journals_of_both_modes(
    journals: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["compare", *journals, "--json"]) == ExitCode.FAILED
    report = json.loads(capsys.readouterr().out)
    assert report["day_obs"] == DAY
    assert [(each["detector"], each["differs"]) for each in report["rows"]] == [
        (1, ["outcome"]),
        (2, ["missing in B"]),
    ]
    assert cli._run(["compare", *journals, "--format", "csv", "--all"]) == ExitCode.FAILED
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(each["outcome_a"], each["outcome_b"]) for each in rows] == [
        ("succeeded", "succeeded"),
        ("succeeded", "failed"),
        ("succeeded", "missing"),
    ]
    assert rows[0]["latency_s_a"] == "30.000"
    assert cli._run(["compare", *journals]) == ExitCode.FAILED
    text = capsys.readouterr().out
    assert "only in A 1" in text
    assert "missing in B" in text
    assert cli._run(["compare", journals[0], journals[0]]) == ExitCode.OK


def test_sources_that_cannot_be_read_are_named(
    journals: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["compare", "/no/repo", "/no/other"]) == ExitCode.USAGE
    assert "name the night with --night" in capsys.readouterr().err
    assert cli._run(["compare", journals[0], "/no/journal.sqlite"]) == ExitCode.UNAVAILABLE
    assert "/no/journal.sqlite" in capsys.readouterr().err
    assert cli._run(["compare", *journals, "--night", "x"]) == ExitCode.USAGE


def test_the_night_is_one_that_both_runs_can_have(
    journals: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = make_journal(tmp_path / "newer.sqlite", Outcome.SUCCEEDED, begin=BEGIN + 86400.0)
    for arguments in ((newer, journals[1]), (journals[1], newer)):
        cli._run(["compare", *map(str, arguments), "--json"])
        assert json.loads(capsys.readouterr().out)["day_obs"] == DAY


def test_rows_have_no_numbers_of_their_own_where_visit_detectors_share_them() -> None:
    counts, fewer = {"x": 1, "y": 2}, {"x": 1}
    report = compared(of_repo(d0=counts, d1=counts), of_repo(d0=fewer, d1=fewer))
    cells = [each for row in report.rows for each in (row.a, row.b) if each is not None]
    assert [each.outputs is counts or each.outputs is fewer for each in cells] == [True] * 4


def test_a_night_of_which_nothing_is_known_is_no_agreement(
    journals: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["compare", *journals, "--night", "20261101"]) == ExitCode.DATA
    assert "no source has a visit-detector of the night 20261101" in capsys.readouterr().err


def test_journals_of_both_modes_are_not_one_run(
    journals: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["compare", *journals, "--also-a", journals[1]]) == ExitCode.UNAVAILABLE
    assert "some of these journals are of shadow mode" in capsys.readouterr().err


def test_visits_of_the_same_name_are_told_apart_in_the_table() -> None:
    b = of_journal(row(0, instrument="ToyCam"))
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as captured:
        console.print(compare_view(compared(of_journal(row(0)), b)))
    rows = [line.split()[:3] for line in captured.get().splitlines()]
    assert ["DemoCam", "g", "0"] in rows
    assert ["ToyCam", "g", "0"] in rows


def test_commas_in_reasons_and_groups_stay_in_their_cells() -> None:
    run = of_journal(row(0, group="a,b"))
    (_, line) = csv.reader(compare_csv(compare_rows(run, of_journal())))
    assert line[1] == "a,b"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_is_the_same_in_parts(count: int) -> None:
    a, b = of_journal(*map(row, range(count))), of_journal()
    whole = compared(a, b)
    assert "".join(compare_json(compare(DAY, a, b), whole.rows)) == f"{whole.model_dump_json(indent=2)}\n"


def test_rows_are_made_one_by_one() -> None:
    """A night has 200,000; the text as a whole, and all rows, would need 1 GB."""
    rows = compare_rows(of_journal(row(0), row(1)), of_journal())
    assert next(rows).detector == 0
    parts = compare_json(compare(DAY, of_journal(row(0)), of_journal()), rows)
    assert "rows" in next(parts)
    assert '"detector": 1' in next(parts)


def test_a_table_says_how_many_more_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = make_journal(tmp_path / "many.sqlite", *[Outcome.SUCCEEDED] * (SHOWN + 5))
    none = make_journal(tmp_path / "none.sqlite", Outcome.SUCCEEDED)
    cli._run(["compare", str(many), str(none)])
    assert "and 4 more, see --json" in capsys.readouterr().out
