# SPDX-License-Identifier: BSD-3-Clause
"""Reading a journal as an operator: selections, one row for each visit, without a daemon."""

import json
import os
import sqlite3
from contextlib import closing
from unittest.mock import Mock

import pytest

from ppdaemon import journalfile
from ppdaemon.ctl import cli
from ppdaemon.ctl.manpages import commands_of
from ppdaemon.errors import Unavailable, Unreadable
from ppdaemon.night.reading import is_journal, journals_at
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, JournalEntry, Requeue, Reserved, Retry, Update
from ppdaemon.reports import FALLBACK, LateRequest, VisitsRequest, VisitSummariesRequest
from ppdaemon.sqlitereader import reading
from ppdaemon.states import ExitCode, Outcome, Stage
from ppdaemon.visit import read_next_visit

READING = {
    "visits": (),
    "visit": ("latest",),
    "failed": ("--detector", "4"),
    "late": (),
    "timeline": ("g1",),
    "log": ("g1",),
}
"""Commands that are answered by the journal, with arguments."""
OF_PROCESSES = {"status", "workers", "top", "hosts"}
"""Commands that show what only a running program knows."""
CONTROLLING = {"requeue", "retry", "export", "drain", "resume", "reload", "restart", "kill"}
WITHOUT = {
    "import-config",
    "night",
    "catchup",
    "compare",
    "check",
    "size",
    "web",
    "send",
    "simulate",
    "keygen",
    "install-files",
    "demo",
}
"""Commands that need no daemon: the first two read the journal in any case."""


def entry(
    group, detector=0, *, tai=0.0, attempt=1, survey="S", instrument="DemoCam", outcome=None, **changes
):
    visit = read_next_visit({"groupId": group, "instrument": instrument, "survey": survey})
    made = JournalEntry(
        Key(instrument, group, detector, attempt), visit, received_tai=tai, stages={Stage.ACCEPTED: tai}
    )
    made.outcome, made.final = outcome, outcome is not None
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture
def write(path):
    journal = Journal(path)

    def write(*entries):
        for each in entries:
            if each.key.attempt == 1:
                journal.write(Accept(Reserved(None, {}), (each,)))
        journal.write(Update(tuple(each for each in entries if each.outcome is not None)))

    write.journal = journal
    yield write
    journal.close()


def selected(path, **fields):
    with reading(path) as db:
        return [(row.group, row.detector) for row in journalfile.visit_detectors(db, VisitsRequest(**fields))]


def summaries(path, **fields):
    with reading(path) as db:
        return journalfile.visit_summaries(db, VisitSummariesRequest(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["d", "c", "b", "a"]),
        ({"limit": 2}, ["d", "c"]),
        ({"since_tai": 20_000.0}, ["d", "c", "b"]),
        ({"until_tai": 20_000.0}, ["a"]),
        ({"since_tai": 20_000.0, "until_tai": 40_000.0}, ["c", "b"]),
        ({"since_tai": 90_000.0}, []),
        ({"until_tai": 1.0}, []),
        ({"instrument": "Other"}, ["d"]),
        ({"survey": "T"}, ["b"]),
        ({"detectors": (0, 3)}, ["c", "a"]),
        ({"outcomes": (Outcome.CRASHED, Outcome.FAILED)}, ["c"]),
        ({"group": "c"}, ["c"]),
        ({"group_prefix": "c"}, ["c"]),
        ({"detectors": (3,), "survey": "T"}, []),
    ],
)
def test_rows_are_selected(path, write, fields, expected):
    write(
        entry("a", 0, tai=10_000.0),
        entry("b", 1, tai=20_000.0, survey="T"),
        entry("c", 3, tai=30_000.0, outcome=Outcome.CRASHED),
        entry("d", 2, tai=40_000.0, instrument="Other"),
    )
    assert [group for group, _ in selected(path, **fields)] == expected


def test_a_clock_that_was_set_back_hides_no_row(path, write):
    """Rows are in the order of acceptance, which need not be that of their times."""
    tais = [10_000.0 + 60.0 * number for number in range(200)]
    tais[90:110] = [tai - 1800.0 for tai in tais[90:110]]
    write(*(entry(f"g{number:03}", tai=tai) for number, tai in enumerate(tais)))
    for since in (12_000.0, 15_000.0, 15_500.0, 17_000.0, 21_000.0):
        expected = {f"g{number:03}" for number, tai in enumerate(tais) if tai >= since}
        assert {group for group, _ in selected(path, since_tai=since, limit=1000)} == expected


def test_rows_that_were_pruned_leave_the_selection_by_time_right(path, write):
    write(*(entry(f"g{number}", tai=5000.0 * number) for number in range(20)))
    write.journal._db.execute("DELETE FROM attempt WHERE rowid < 4 OR rowid BETWEEN 9 AND 12")
    assert [group for group, _ in selected(path, since_tai=80_000.0)] == ["g19", "g18", "g17", "g16"]
    write.journal._db.execute("DELETE FROM attempt")
    assert selected(path, since_tai=1.0) == []


def test_a_visit_is_one_row_with_the_last_attempt_at_each_detector(path, write):
    done = {"stages": {Stage.ACCEPTED: 1.0, Stage.PROCESSED: 140.0}, "shutter_close_tai": 100.0}
    slower = done | {"stages": {Stage.ACCEPTED: 1.0, Stage.PROCESSED: 151.0}}
    write(
        entry("g", 0, tai=1.0, outcome=Outcome.SUCCEEDED, **done),
        entry("g", 1, tai=1.0, outcome=Outcome.SUCCEEDED, partial=True, **slower),
        entry("g", 2, tai=1.0, outcome=Outcome.FAILED, reason="no calibration"),
        entry("g", 3, tai=1.0),
        entry("g", 10, tai=1.0, outcome=Outcome.NO_IMAGE),
    )
    crashed = entry("g", 3, tai=1.0, outcome=Outcome.CRASHED, reason="SIGSEGV")
    crashed.final = False
    write.journal.write(Retry(crashed, entry("g", 3, tai=1.0, attempt=2)))
    (row,) = summaries(path)
    assert row.detectors == {
        0: "succeeded",
        1: "partial",
        2: "failed",
        3: "accepted",
        10: "no_image",
    }
    assert (row.slowest_s, row.failed_detector, row.reason) == (51.0, 2, "no calibration")


def test_a_visit_has_the_number_of_detectors_whose_last_attempt_ran_a_fallback(path, write):
    figures = {FALLBACK: {"first": "ApPipe", "reason": "no APDB"}}
    write(
        entry("g", 0, outcome=Outcome.SUCCEEDED, figures=figures),
        entry("g", 1, outcome=Outcome.SUCCEEDED),
        entry("g", 2, outcome=Outcome.FAILED, figures=figures),
    )
    again = entry("g", 3, outcome=Outcome.CRASHED, figures=figures)
    again.final = False
    write(again)
    write.journal.write(Retry(again, entry("g", 3, attempt=2)))
    assert summaries(path)[0].fallbacks == 2


def test_late_raws_are_counted_as_they_are_listed(path, write):
    write(
        entry("g", 0, outcome=Outcome.NO_IMAGE),
        entry("g", 1, outcome=Outcome.SUCCEEDED, exposures=(8,)),
        entry("g", 2, outcome=Outcome.NO_IMAGE),
    )
    for exposure, detector in ((7, 0), (8, 1), (9, 1), (7, 2)):
        write.journal._db.execute(
            "INSERT INTO late VALUES ('DemoCam', ?, ?, 'g', '/raw', 1.0)", (exposure, detector)
        )
    write.journal.write(
        Requeue(1, (entry("g", 2, outcome=Outcome.NO_IMAGE),), (entry("g", 2, attempt=2),), (), ())
    )
    write(entry("g", 2, attempt=2, outcome=Outcome.SUCCEEDED, exposures=(7,)))
    with reading(path) as db:
        listed = journalfile.late_raws(db, LateRequest())
        assert {(row.detector, row.exposure) for row in listed} == {(0, 7), (1, 9)}
        assert journalfile.count_late_raws(db) == 2
        assert journalfile.late_raws(db, LateRequest(outcomes=(Outcome.NO_IMAGE,), detectors=(2,))) == []
        (row,) = journalfile.late_raws(db, LateRequest(outcomes=(Outcome.NO_IMAGE,)))
        assert (row.detector, row.attempt, row.outcome) == (0, 1, Outcome.NO_IMAGE)


def test_a_raw_that_an_earlier_attempt_has_used_is_not_late(path, write):
    write(entry("g", 0, outcome=Outcome.FAILED, exposures=(7,)))
    write.journal._db.execute("INSERT INTO late VALUES ('DemoCam', 7, 0, 'g', '/raw', 1.0)")
    write.journal.write(
        Requeue(1, (entry("g", 0, outcome=Outcome.FAILED),), (entry("g", 0, attempt=2),), (), ())
    )
    write(entry("g", 0, attempt=2, outcome=Outcome.FAILED))
    with reading(path) as db:
        assert (journalfile.late_raws(db, LateRequest()), journalfile.count_late_raws(db)) == ([], 0)


def test_a_query_that_takes_too_long_is_ended_with_what_to_do(path, write):
    write(*(entry(f"g{number}") for number in range(50)))
    endless = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n) SELECT sum(k) FROM n"
    with (
        pytest.raises(Unavailable, match="select less, such as --since 1h"),
        reading(path, longest_s=-1.0) as db,
    ):
        db.execute(endless).fetchone()


def test_a_journal_that_this_user_may_not_read_is_an_error_that_names_it(path, write, monkeypatch):
    def refuse(self, **_options):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.exists", refuse)
    with pytest.raises(Unreadable, match=r"journal\.sqlite: permission denied") as caught, reading(path):
        pass
    assert caught.value.exit_code == ExitCode.PERMISSION


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"journal\.sqlite does not exist: has its program run yet"),
        (b"", r"journal\.sqlite is empty: the program whose file it is has never written to it"),
        (b"no database" * 1000, r"journal\.sqlite cannot be read: file is not a database"),
        (99, r"journal\.sqlite cannot be read: no such table: \w+; its schema version is 99: use the ppctl"),
    ],
)
def test_a_journal_that_cannot_be_read_is_an_error_with_the_reason(tmp_path, content, text):
    path = tmp_path / "journal.sqlite"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE visits (x)")
            db.execute(f"PRAGMA user_version = {content}")
    with pytest.raises(Unavailable, match=text), reading(path) as db:
        journalfile.visit(db, "g")


def test_a_file_that_this_user_may_not_read_is_an_error_that_names_it(path, write, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(sqlite3, "connect", Mock(side_effect=sqlite3.OperationalError("unable to open")))
    with pytest.raises(Unreadable, match=r"journal\.sqlite: permission denied"), reading(path):
        pass


@pytest.mark.parametrize("find", [is_journal, lambda folder: journals_at([folder])])
def test_a_folder_that_this_user_may_not_enter_is_an_error_that_names_it(tmp_path, monkeypatch, find):
    monkeypatch.setattr("pathlib.Path.exists", Mock(side_effect=PermissionError))
    with pytest.raises(Unreadable, match=f"{tmp_path}: permission denied"):
        find(tmp_path)


def test_one_detector_selects_its_visit_with_all_detectors(path, write):
    write(*(entry(group, detector) for group in "abc" for detector in range(3)))
    write(entry("d", 7, outcome=Outcome.FAILED))
    assert [row.group for row in summaries(path, detectors=(1,), limit=2)] == ["c", "b"]
    assert summaries(path, detectors=(1,), limit=1)[0].detectors == dict.fromkeys(range(3), "accepted")
    assert [row.group for row in summaries(path, outcomes=(Outcome.FAILED,))] == ["d"]


def test_visits_are_in_the_order_of_their_acceptance_whatever_is_tried_again(path, write):
    write(*(entry(group, detector, tai=1.0) for group in "abcd" for detector in range(2)))
    for group in "ab":
        crashed = entry(group, 0, tai=1.0, outcome=Outcome.CRASHED)
        crashed.final = False
        write.journal.write(Update((crashed,)))
        write.journal.write(Retry(crashed, entry(group, 0, tai=2.0, attempt=2)))
    assert [row.group for row in summaries(path)] == ["d", "c", "b", "a"]
    assert [row.group for row in summaries(path, limit=1)] == ["d"]
    assert [row.group for row in summaries(path, limit=3)] == ["d", "c", "b"]
    assert [row.group for row in summaries(path, since_tai=2.0)] == ["b", "a"]


def test_visits_whose_rows_are_mixed_are_all_found(path, write):
    write(*(entry(group, detector) for detector in range(3) for group in "ab"))
    write(*(entry("c", detector) for detector in range(3)))
    write(entry("a", 3), entry("c", 3))
    assert [row.group for row in summaries(path)] == ["c", "b", "a"]
    assert [row.group for row in summaries(path, limit=2)] == ["c", "b"]


def test_a_journal_is_read_without_a_daemon(path, write, tmp_path, capsys):
    write(entry("g1", 4, tai=1.0, outcome=Outcome.FAILED, reason="no calibration"))
    write.journal.close()
    config = tmp_path / "node.yaml"
    config.write_text(f"node: {{state_dir: {tmp_path}, control: {tmp_path}/none.sock}}\n")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["--config", str(config), *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    for command, words in READING.items():
        code, out, err = run(command, *words)
        assert (code, "the daemon does not run; this is read from its journal" in err) == (0, True), command
        assert "g1" in out or command in ("late", "log")
    assert json.loads(run("visits", "--json")[1])[0]["detectors"] == {"4": "failed"}
    assert run("visit", "g2")[:2] == (65, "")
    for command in OF_PROCESSES - {"hosts"}:
        code, out, err = run(command)
        assert (code, out) == (3 if command == "status" else 69, "")
        assert "is ppdaemon running?" in err
    path.unlink()
    code, out, err = run("failed")
    assert (code, out) == (69, "")
    assert f"is ppdaemon running? There is no journal {path} either" in err
    groups = (READING, OF_PROCESSES, CONTROLLING, WITHOUT)
    assert sorted(name for group in groups for name in group) == list(commands_of(cli._ppctl))
