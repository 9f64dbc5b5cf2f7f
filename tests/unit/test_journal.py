# SPDX-License-Identifier: BSD-3-Clause
"""The journal's file: acceptance, outcomes, late raws, queries."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from journalkit import late_of, rows_of, visit_of

from ppdaemon import journalfile
from ppdaemon.clock import Clock
from ppdaemon.errors import StateUnusable
from ppdaemon.messages import Raw, ResultEntry
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import journal as module
from ppdaemon.node.visits.journal import Journal, RowMissing
from ppdaemon.node.visits.model import (
    Accept,
    JournalEntry,
    MarkExported,
    MarkLost,
    MarkQuarantined,
    MarkReported,
    MarkUnreported,
    RecordLateRaws,
    Requeue,
    Reserved,
    Retry,
    Update,
)
from ppdaemon.node.visits.requeue import refusal_reason
from ppdaemon.reports import VisitRow, VisitsRequest
from ppdaemon.retries import QUARANTINED, WITHDRAWN
from ppdaemon.sqlitereader import reading
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.waiting import wait_until
from ppdaemon.visit import read_next_visit


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path):
    journal = Journal(path)
    yield journal
    journal.close()


def an_entry(group="g", detector=0, attempt=1, received_mono=0.0):
    visit = read_next_visit({"groupId": group, "instrument": "DemoCam", "survey": "S", "unknown": 7})
    key = Key("DemoCam", group, detector, attempt)
    return JournalEntry(
        key,
        visit,
        received_tai=5.0,
        stages={Stage.ACCEPTED: 6.0},
        asked=attempt,
        received_mono=received_mono,
    )


def ended(entry, outcome=Outcome.SUCCEEDED, *, final=True):
    entry.outcome, entry.final, entry.ended_tai, entry.reason = outcome, final, 9.0, "why"
    return entry


def accept(journal, entries):
    return journal.write(Accept(Reserved(None, {}), tuple(entries)))


def update(journal, entries):
    journal.write(Update(tuple(entries)))


def retry(journal, before, entry):
    journal.write(Retry(before, entry))


def requeue(journal, before, entries):
    journal.write(Requeue(1, tuple(before), tuple(entries), (), ()))


def test_a_visit_detector_is_accepted_once(journal):
    assert accept(journal, [an_entry(), an_entry(detector=1)]) == [1, 1]
    assert accept(journal, [an_entry(), an_entry(detector=2)]) == [None, 1]


def test_a_later_attempt_is_new_only_after_a_cancellation(journal):
    accept(journal, [an_entry("a"), an_entry("b")])
    update(journal, [ended(an_entry("a"), Outcome.CANCELLED), ended(an_entry("b"))])
    assert accept(journal, [an_entry("a", attempt=2), an_entry("b", attempt=2)]) == [2, None]


def test_written_rows_are_returned(journal):
    accept(journal, [an_entry()])
    entry = ended(an_entry())
    entry.stages[Stage.PREPARED] = 7.0
    entry.figures["query_ms"] = 40.5
    entry.pipeline, entry.slot, entry.pid, entry.exposures = "Ap", 3, 4, (11, 12)
    update(journal, [entry])
    (row,) = visit_of(journal, "g")
    assert row == VisitRow(
        instrument="DemoCam",
        group="g",
        detector=0,
        attempt=1,
        survey="S",
        outcome=Outcome.SUCCEEDED,
        reason="why",
        pipeline="Ap",
        slot=3,
        pid=4,
        exposures=(11, 12),
        stages={Stage.ACCEPTED: 6.0, Stage.PREPARED: 7.0},
        figures={"query_ms": 40.5},
        ended_tai=9.0,
    )
    assert rows_of(journal, 10) == [row]
    assert visit_of(journal, "other") == []


def test_no_image_is_a_failure_where_files_were_not_taken(journal):
    accept(journal, [an_entry(group) for group in ("none", "files", "good")])
    none, files, good = (an_entry(group) for group in ("none", "files", "good"))
    files.figures = good.figures = {"files_not_taken": 1}
    update(journal, [ended(none, Outcome.NO_IMAGE), ended(files, Outcome.NO_IMAGE), ended(good)])
    assert [row.group for row in rows_of(journal, 10, failed=True)] == ["files"]


def test_only_final_bad_outcomes_are_failures(journal):
    cases = {
        "good": (Outcome.SUCCEEDED, True),
        "none": (Outcome.NO_IMAGE, True),
        "bad": (Outcome.CRASHED, True),
        "retried": (Outcome.CRASHED, False),
    }
    accept(journal, [an_entry(group) for group in cases])
    update(
        journal, [ended(an_entry(group), outcome, final=final) for group, (outcome, final) in cases.items()]
    )
    assert [row.group for row in rows_of(journal, 10, failed=True)] == ["bad"]
    assert [row.group for row in rows_of(journal, 2)] == ["retried", "bad"]


def test_results_are_unreported_until_the_relay_confirms_them(journal):
    accept(journal, [an_entry()])
    assert journal.unreported(10) == []
    update(journal, [ended(an_entry())])
    result = ResultEntry(
        instrument="DemoCam", group="g", detector=0, outcome=Outcome.SUCCEEDED, reason="why", asked=1
    )
    assert journal.unreported(10) == [result]
    journal.write(MarkReported([("DemoCam", "g", 0, 1)]))
    assert journal.unreported(10) == []


def test_a_result_has_the_attempt_number_of_the_relay(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry())])
    journal.write(MarkReported([("DemoCam", "g", 0, 1)]))
    journal.write(MarkUnreported([Key("DemoCam", "g", 0, 3)]))
    assert journal.unreported(10)[0].attempt == 3
    journal.write(MarkReported([("DemoCam", "g", 0, 3)]))
    assert journal.unreported(10) == []


def test_an_outcome_that_did_not_count_counts_again_if_the_relay_asks_again(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry(), Outcome.CRASHED)])
    key = ("DemoCam", "g", 0, 1)
    journal.write(MarkReported([key], [key]))
    assert visit_of(journal, "g")[0].reason == f"{WITHDRAWN}; why"
    journal.write(MarkReported([key], [key]))
    assert visit_of(journal, "g")[0].reason == f"{WITHDRAWN}; why"
    journal.write(MarkUnreported([Key("DemoCam", "g", 0, 3)]))
    (result,) = journal.unreported(10)
    assert (result.outcome, result.reason, result.returned) == (Outcome.CRASHED, "why", None)


def test_only_the_last_attempt_is_reported_again(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry(), Outcome.CANCELLED)])
    accept(journal, [an_entry(attempt=3)])
    update(journal, [ended(an_entry(attempt=3))])
    journal.write(MarkReported([("DemoCam", "g", 0, 1), ("DemoCam", "g", 0, 3)]))
    journal.write(MarkUnreported([Key("DemoCam", "g", 0, 3)]))
    assert [(entry.attempt, entry.outcome) for entry in journal.unreported(10)] == [(3, Outcome.SUCCEEDED)]


def test_a_later_attempt_requested_during_a_run_is_recorded(journal):
    accept(journal, [an_entry()])
    assert accept(journal, [an_entry(attempt=4)]) == [None]
    assert journal.unfinished()[0].asked == 4


def test_a_later_attempt_that_was_canceled_is_not_accepted_again(journal):
    accept(journal, [an_entry()])
    accept(journal, [an_entry(attempt=3)])
    (entry,) = journal.unfinished()
    update(journal, [ended(entry, Outcome.CANCELLED)])
    assert accept(journal, [an_entry(attempt=3)]) == [None]
    journal.write(MarkUnreported([Key("DemoCam", "g", 0, 1)]))  # an older reservation is repeated
    assert accept(journal, [an_entry(attempt=3)]) == [None]
    assert accept(journal, [an_entry(attempt=4)]) == [4]


def test_unfinished_attempts_of_the_previous_run_are_returned(path):
    journal = Journal(path)
    accept(journal, [an_entry("open"), an_entry("done"), an_entry("between"), an_entry("second")])
    update(journal, [ended(an_entry("done"))])
    crashed = [ended(an_entry(group), Outcome.CRASHED, final=False) for group in ("between", "second")]
    update(journal, crashed[:1])
    retry(journal, crashed[1], an_entry("second", attempt=2))
    assert visit_of(journal, "second")[0].outcome == Outcome.CRASHED
    journal.close()
    journal = Journal(path)
    left = [entry.key for entry in journal.unfinished()]
    journal.close()
    assert [(key.group, key.attempt) for key in left] == [("open", 1), ("between", 1), ("second", 2)]


def test_unknown_fields_of_the_announcement_survive(journal):
    accept(journal, [an_entry()])
    (entry,) = journal.unfinished()
    assert entry.visit.to_sal()["unknown"] == 7
    assert entry.stages == {Stage.ACCEPTED: 6.0}


def test_the_time_of_export_is_added_to_the_stages(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry())])
    journal.write(MarkExported([Key("DemoCam", "g", 0)], 12.5))
    assert visit_of(journal, "g")[0].stages == {Stage.ACCEPTED: 6.0, Stage.CENTRAL: 12.5}


def test_what_was_not_exported_is_added_to_the_figures(journal):
    entries = [an_entry(detector=detector) for detector in (0, 1)]
    accept(journal, entries)
    for entry in entries:
        entry.figures["query_ms"] = 1.0
        update(journal, [ended(entry)])
    keys = tuple(entry.key for entry in entries)
    journal.write(MarkExported(keys, 12.5, {keys[1]: "detector 0 was first: summary"}))
    shown = [row.figures for row in visit_of(journal, "g")]
    assert shown == [{"query_ms": 1.0}, {"query_ms": 1.0, "not_exported": "detector 0 was first: summary"}]


def test_lost_outputs_are_failures_that_may_be_retried_after_a_boot_of_the_host(path):
    groups = ("lost", "written", "exported")
    with closing(Journal(path)) as journal:
        accept(journal, [an_entry(group) for group in groups])
        for group in groups:
            entry = ended(an_entry(group))
            entry.datasets, entry.no_return = 5, "alerts" if group == "written" else ""
            update(journal, [entry])
        journal.write(MarkExported([Key("DemoCam", "exported", 0)], 12.5))
        keys = tuple(journal.not_exported())
        assert [key.group for key in keys] == ["lost", "written"]
        journal.write(MarkLost(keys))
        assert not rows_of(journal, failed=True), "exported just before the daemon ended, perhaps"
    with closing(journal_at(path, 0.0, boot="next")) as journal:
        journal.write(MarkLost(keys))
        rows = {row.group: row for row in rows_of(journal, failed=True)}
        assert {(row.outcome, row.datasets) for row in rows.values()} == {(Outcome.INTERRUPTED, 0)}
        assert {group: row.retriable for group, row in rows.items()} == {"lost": True, "written": False}
        assert journal.not_exported() == []
        (entry,) = journal.last_attempts("lost")
        assert not refusal_reason(entry, force=False)
        (entry,) = journal.last_attempts("written")
        assert "point of no return" in refusal_reason(entry, force=False)


def test_quarantined_outputs_are_a_failure_until_they_are_exported(journal):
    """A success of which nothing is in the central repo must not be missing in the list for the daytime."""
    accept(journal, [an_entry(group) for group in ("plain", "fallback", "other")])
    plain, fallback, other = (ended(an_entry(group)) for group in ("plain", "fallback", "other"))
    plain.reason, fallback.reason, other.reason = "", "fell back", ""
    update(journal, [plain, fallback, other])
    keys = Key("DemoCam", "plain", 0), Key("DemoCam", "fallback", 0)
    for _ in range(2):  # the exporter names it again after each of its deaths
        journal.write(MarkQuarantined(keys))
    reasons = {row.group: row.reason for row in rows_of(journal, failed=True)}
    assert reasons == {"plain": QUARANTINED, "fallback": f"{QUARANTINED}; fell back"}
    (entry,) = journal.last_attempts("plain")
    assert not refusal_reason(entry, force=False)
    journal.write(MarkExported(keys, 12.5))
    assert not rows_of(journal, failed=True)
    reasons = {row.group: row.reason for row in rows_of(journal)}
    assert reasons == {"plain": "", "fallback": "fell back", "other": ""}


@pytest.mark.parametrize("moved_first", [True, False])
@pytest.mark.parametrize("reason", ["", "fell back"])
def test_quarantined_outputs_are_not_made_again_here_while_another_node_has_the_visit_detector(
    journal, reason, moved_first
):
    accept(journal, [an_entry()])
    entry = ended(an_entry())
    entry.reason = reason
    update(journal, [entry])
    writes = [MarkReported((), (entry.key,)), MarkQuarantined((entry.key,))]
    for write in writes if moved_first else reversed(writes):
        journal.write(write)
    (moved,) = journal.last_attempts("g")
    assert refusal_reason(moved, force=False)
    assert not rows_of(journal, failed=True)
    journal.write(MarkUnreported((entry.key,)))
    (row,) = rows_of(journal, failed=True)
    assert row.reason == "; ".join(filter(None, (QUARANTINED, reason)))
    journal.write(MarkExported((entry.key,), 12.5))
    assert [row.reason for row in rows_of(journal)] == [reason]


def test_a_corrupt_file_is_moved_aside_and_a_new_one_created(path):
    path.write_bytes(b"this is no database" * 1000)
    journal = Journal(path)
    assert journal.moved_aside.read_bytes().startswith(b"this is no database")
    assert accept(journal, [an_entry()]) == [True]
    journal.close()


def test_a_read_only_folder_is_an_error_and_not_corruption(tmp_path):
    with pytest.raises(StateUnusable, match=r"journal\.sqlite: No such file or directory"):
        Journal(tmp_path / "missing" / "journal.sqlite")


def a_raw(group="g", detector=0, exposure=1):
    return Raw(
        path=f"/raw/{exposure}_{detector}.fits",
        instrument="DemoCam",
        group=group,
        detector=detector,
        exposure=exposure,
        seen_tai=20.0,
    )


def test_a_raw_after_the_outcome_is_listed_once_and_other_raws_are_not(journal):
    accept(journal, [an_entry(group) for group in ("g", "used", "refused", "open", "unwanted")])
    gone = [ended(an_entry(group)) for group in ("g", "used", "refused")]
    gone[1].exposures, gone[2].seen = (1,), (1,)
    update(journal, [*gone, ended(an_entry("unwanted"), Outcome.IGNORED)])
    raws = [a_raw(group) for group in ("g#2", "used", "refused", "open", "unwanted", "unknown", "g#2")]
    assert journal.write(RecordLateRaws(raws)) == (1, 1)
    assert journal.write(RecordLateRaws(raws[:1])) == (0, 0)
    (row,) = late_of(journal, 10)
    assert (row.group, row.detector, row.exposure, row.path) == ("g", 0, 1, "/raw/1_0.fits")
    assert (row.attempt, row.outcome) == (1, Outcome.SUCCEEDED)


def test_a_late_raw_is_listed_until_an_attempt_has_used_it(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry(), Outcome.NO_IMAGE)])
    journal.write(RecordLateRaws([a_raw(exposure=7), a_raw(exposure=8)]))
    requeue(journal, [an_entry()], [an_entry(attempt=2)])
    assert [(row.exposure, row.attempt, row.outcome) for row in late_of(journal, 10)] == [
        (8, 2, None),
        (7, 2, None),
    ]
    used = ended(an_entry(attempt=2))
    used.exposures = (7,)
    update(journal, [used])
    assert [row.exposure for row in late_of(journal, 10)] == [8]
    assert late_of(journal, 1) == late_of(journal, 10)


def test_the_number_of_late_raws_is_bounded(journal, monkeypatch):
    monkeypatch.setattr(module, "MAX_LATE_RAWS", 5)
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry())])
    for exposure in range(20):
        journal.write(RecordLateRaws([a_raw(exposure=exposure)]))
    assert [row.exposure for row in late_of(journal, 10)] == [19, 18, 17, 16, 15]


def test_a_requeued_attempt_replaces_the_previous_outcome(journal):
    accept(journal, [an_entry(), an_entry(detector=1)])
    first = ended(an_entry(), Outcome.CRASHED)
    first.no_return = "alerts"
    update(journal, [first, ended(an_entry(detector=1))])
    assert [entry.key.detector for entry in journal.last_attempts("g")] == [0, 1]
    requeue(journal, [an_entry()], [an_entry(attempt=2)])
    again, other = journal.last_attempts("g")
    assert (again.key.attempt, again.outcome, again.final, again.no_return) == (2, None, False, "alerts")
    assert (other.key.attempt, other.outcome, other.final) == (1, Outcome.SUCCEEDED, True)
    assert [entry.detector for entry in journal.unreported(10)] == [1]
    assert [entry.key for entry in journal.unfinished()] == [again.key]
    assert rows_of(journal, 10, failed=True) == []
    assert accept(journal, [an_entry(), an_entry(attempt=2), an_entry(attempt=9)]) == [None] * 3


def test_the_same_attempt_is_not_requeued_twice(journal):
    accept(journal, [an_entry(), an_entry(detector=1)])
    update(journal, [ended(an_entry()), ended(an_entry(detector=1))])
    requeue(journal, [an_entry()], [an_entry(attempt=2)])
    with pytest.raises(sqlite3.IntegrityError):
        requeue(
            journal,
            [an_entry(detector=1), an_entry()],
            [an_entry(detector=1, attempt=2), an_entry(attempt=2)],
        )
    assert [entry.key.attempt for entry in journal.last_attempts("g")] == [2, 1]


def test_what_failed_is_found_without_reading_the_successes_also_in_a_file_of_the_version_before(path):
    Journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP INDEX quarantined; PRAGMA user_version = 4;")
    Journal(path).close()
    with reading(path) as db:
        queries = []
        db.set_trace_callback(queries.append)
        journalfile.visit_detectors(db, VisitsRequest(limit=9, failed=True))
        db.set_trace_callback(None)
        plan = [text for *_, text in db.execute(f"EXPLAIN QUERY PLAN {queries[-1]}")]
    searches = [text for text in plan if text.startswith("SEARCH attempt ")]
    assert [text.split()[4] for text in searches][:3] == ["bad", "bad", "quarantined"]


def test_a_file_of_a_version_that_is_not_read_any_more_is_left_alone(path):
    Journal(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 3")
    with pytest.raises(StateUnusable, match=r"older ppdaemon .*version 3, this one reads 4 and later.*move"):
        Journal(path)
    assert not list(path.parent.glob("*corrupt*"))


def test_a_file_of_a_newer_version_is_left_alone(path):
    Journal(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StateUnusable, match=r"newer ppdaemon .*version 99.*install"):
        Journal(path)
    assert not list(path.parent.glob("*corrupt*"))


def test_an_update_of_a_missing_row_is_an_error_and_writes_nothing(journal):
    accept(journal, [an_entry()])
    with pytest.raises(RowMissing, match="attempt 2"):
        update(journal, [ended(an_entry()), ended(an_entry(attempt=2))])
    assert visit_of(journal, "g")[0].outcome is None
    with pytest.raises(RowMissing, match="detector 5"):
        retry(journal, ended(an_entry(detector=5)), an_entry(detector=5, attempt=2))
    assert len(rows_of(journal, 10)) == 1


def test_acknowledged_visits_survive_a_kill(path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from test_journal import accept, an_entry
        from ppdaemon.node.visits.journal import Journal
        journal = Journal(Path(sys.argv[1]))
        for k in range(100_000):
            accept(journal, [an_entry(f"g{k}")])
            print(k, flush=True)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = path.with_name("output")
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=stream,
            env=environment,
            cwd=Path(__file__).parent,
        )
    wait_until(lambda: output.read_text().count("\n") > 50, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    acknowledged = int(output.read_text().split("\n")[-2])
    journal = Journal(path)
    found = len(journal.unfinished())
    journal.close()
    assert found >= acknowledged + 1


# --- pruning -------------------------------------------------------------------


def groups(journal):
    return {row.group for row in rows_of(journal, 100)}


def prune(journal, before_tai=100.0, *, reporting=True):
    after = 0
    while after is not None:
        after = journal.prune(before_tai, after, reporting=reporting)


def test_ended_and_reported_visits_are_pruned_and_no_others(journal):
    young = an_entry("young")
    entries = [an_entry("old"), an_entry("open"), an_entry("unreported"), an_entry("spooled"), young]
    accept(journal, entries)
    done = [ended(entry) for entry in entries if entry.key.group != "open"]
    for entry in done:
        entry.datasets = 3 if entry.key.group == "spooled" else 0
    young.ended_tai = 200.0
    update(journal, done)
    reported = [entry.key for entry in done if entry.key.group != "unreported"]
    journal.write(MarkReported(tuple(reported)))
    prune(journal)
    assert groups(journal) == {"open", "unreported", "spooled", "young"}
    journal.write(MarkExported((entries[3].key,), 50.0, {}))
    prune(journal)
    assert groups(journal) == {"open", "unreported", "young"}
    prune(journal, reporting=False)
    assert groups(journal) == {"open", "young"}


def test_all_attempts_of_a_visit_detector_are_pruned_together(journal, monkeypatch):
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)
    first, second = an_entry("tried"), an_entry("tried", attempt=2)
    accept(journal, [first])
    accept(journal, [an_entry("between", detector) for detector in range(3)])
    retry(journal, ended(first, Outcome.CRASHED, final=False), second)
    prune(journal)
    assert [row.attempt for row in visit_of(journal, "tried")] == [1, 2]
    update(journal, [ended(second)])
    prune(journal)
    assert len(visit_of(journal, "tried")) == 2
    journal.write(MarkReported((second.key,)))
    prune(journal)
    assert groups(journal) == {"between"}
    assert [entry.key.group for entry in journal.unfinished()] == ["between"] * 3


def test_a_canceled_attempt_stays_while_a_later_one_is_open(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry(), Outcome.CANCELLED)])
    again = an_entry(attempt=2)
    again.asked = 2
    assert accept(journal, [again]) == [2]
    prune(journal, reporting=False)
    assert [row.attempt for row in visit_of(journal, "g")] == [1, 2]
    update(journal, [ended(again)])
    prune(journal, reporting=False)
    assert visit_of(journal, "g") == []


def test_pruning_ends_at_the_first_rows_that_are_young(journal, monkeypatch):
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)
    accept(journal, [an_entry(f"g{number}") for number in range(5)])
    assert [journal.prune(100.0, 0, reporting=True), journal.prune(100.0, 2, reporting=True)] == [2, 4]
    assert journal.prune(5.0, 0, reporting=True) is None
    assert journal.prune(100.0, 5, reporting=True) is None


def test_late_raws_go_with_their_visit_detector(journal):
    accept(journal, [an_entry()])
    update(journal, [ended(an_entry(), Outcome.NO_IMAGE)])
    raw = Raw(path="/r", instrument="DemoCam", group="g", detector=0, exposure=1, seen_tai=9.0)
    journal.write(RecordLateRaws((raw,)))
    assert len(late_of(journal, 10)) == 1
    prune(journal, reporting=False)
    assert journal._db.execute("SELECT count(*) FROM late").fetchone() == (0,)


# --- ages ------------------------------------------------------------------------


def journal_at(path, mono_s, boot="boot1"):
    return Journal(path, Clock(mono=lambda: mono_s, tai=lambda: 0.0, boot=lambda: boot))


def test_two_reboots_in_a_row_do_not_make_an_open_visit_older(path):
    """The newest row is final, of the first boot, in which the host ran for days."""
    with closing(journal_at(path, 1_000_000.0)) as journal:
        entry, newest = an_entry("open"), an_entry("ended")
        entry.received_mono, newest.received_mono = 999_990.0, 999_995.0
        accept(journal, [entry, newest])
        update(journal, [ended(an_entry("ended"))])
    for boot in ("boot2", "boot3"):
        with closing(journal_at(path, 30.0, boot)) as journal:
            (found,) = journal.unfinished()
            assert 0.0 <= 30.0 - found.received_mono <= 10.0, boot


def test_open_visits_keep_their_age_over_a_reboot(path):
    for number, mono_s in enumerate((1000.0, 1300.0)):
        with closing(journal_at(path, mono_s)) as journal:
            accept(journal, [an_entry(detector=number, received_mono=mono_s)])
    for mono_s, ages in ((5.0, [300.0, 0.0]), (25.0, [320.0, 20.0])):
        with closing(journal_at(path, mono_s, "boot2")) as journal:
            assert [mono_s - entry.received_mono for entry in journal.unfinished()] == ages


def test_the_latest_outcomes_have_what_a_hello_lists(path):
    with closing(journal_at(path, 1000.0)) as journal:
        entries = [an_entry(detector=number, received_mono=900.0 + number) for number in range(3)]
        accept(journal, entries)
        update(journal, [ended(entries[0])])
        handed_back = replace(ended(entries[1]), outcome=Outcome.CANCELLED, reason="handed back: full")
        update(journal, [handed_back])
        found = journal.latest_outcomes(10)
    assert [(entry.detector, entry.returned, reported, age_s) for entry, reported, age_s in found] == [
        (0, False, False, 100.0),
        (1, True, False, 99.0),
    ]


def test_while_a_requeue_is_open_the_outcome_before_it_is_listed(path):
    """Otherwise the hello after a restart has it in neither list, and an older ledger would send it away."""
    with closing(journal_at(path, 1000.0)) as journal:
        first, other = an_entry(), an_entry(detector=1)
        accept(journal, [first, other])
        update(journal, [ended(first, Outcome.FAILED)])
        requeued = replace(an_entry(attempt=2), asked=1, figures={"requeued": True})
        journal.write(Requeue(1, (first,), (requeued,), (), ()))
        retried = replace(an_entry(detector=1, attempt=2), asked=1)
        retry(journal, ended(other, Outcome.CRASHED, final=False), retried)
        assert [
            (entry.detector, entry.attempt, entry.outcome) for entry, *_ in journal.latest_outcomes(10)
        ] == [(0, 1, Outcome.FAILED)]
        update(journal, [ended(requeued)])
        assert [
            (entry.detector, entry.attempt, entry.asked, entry.outcome)
            for entry, *_ in journal.latest_outcomes(10)
        ] == [(0, 2, 1, Outcome.SUCCEEDED)]


def test_the_spool_of_what_was_handed_back_is_not_exported_after_a_crash(journal):
    entries = [an_entry(detector=number) for number in range(4)]
    accept(journal, entries)
    for entry, reason in zip(entries, ("handed back: full", f"{WITHDRAWN}", "canceled", "why"), strict=True):
        update(journal, [replace(ended(entry, Outcome.CANCELLED), reason=reason)])
    retry(journal, ended(an_entry(detector=3), final=False), an_entry(detector=3, attempt=2))
    keys = [entry.key for entry in entries]
    assert journal.followed(keys) == {keys[0], keys[1], keys[3]}
