# SPDX-License-Identifier: BSD-3-Clause
"""The report of a night: what is added up, which attempts count, and what is drawn of it."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ppdaemon.clock import Clock, day_obs, night_limits
from ppdaemon.ctl import cli
from ppdaemon.errors import Unavailable
from ppdaemon.messages import Raw
from ppdaemon.night import charts
from ppdaemon.night.page import night_sections, report_page
from ppdaemon.night.reading import copy_night, journals_at, names_of, read_night
from ppdaemon.night.report import (
    ALERT_SPAN,
    Latency,
    NightCache,
    NightDetector,
    NightExports,
    NightFallback,
    NightHistogram,
    NightReason,
    NightReport,
    NightVisit,
)
from ppdaemon.night.tables import facts
from ppdaemon.night.totals import NightTotals
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import (
    Accept,
    CountRecycled,
    JournalEntry,
    RecordLateRaws,
    Requeue,
    Reserved,
    Retry,
    Update,
)
from ppdaemon.reports import FALLBACK, REQUEUED, VisitRow
from ppdaemon.retries import HANDED_BACK, WITHDRAWN
from ppdaemon.states import ExitCode, Outcome, Stage
from ppdaemon.timescales import TAI_MINUS_UTC_S
from ppdaemon.visit import read_next_visit

DAY = 20261129
BEGIN, END = night_limits(DAY)
DONE = {
    Stage.ARRIVED: 4.0,
    Stage.FIRST_TASK: 4.5,
    Stage.PROCESSED: 30.0,
    Stage.SPOOLED: 31.0,
    Stage.CENTRAL: 36.0,
}
"""Seconds after shutter close."""


def row(group="g", detector=0, outcome=Outcome.SUCCEEDED, *, tai=BEGIN, attempt=1, done=DONE, **changes):
    close = tai + 60.0
    stages = {Stage.ACCEPTED: tai, Stage.ASSIGNED: tai + 0.5, Stage.PREPARED: tai + 8.5}
    if outcome == Outcome.SUCCEEDED:
        stages |= {stage: close + seconds for stage, seconds in done.items()}
        changes = {"datasets": 3, "shutter_close_tai": close} | changes
    fields = {"instrument": "DemoCam", "group": group, "detector": detector, "attempt": attempt}
    return VisitRow(**fields | {"outcome": outcome, "stages": stages, "survey": "S"} | changes)


def report(*rows, **changes):
    totals = NightTotals()
    totals.add(rows)
    return NightReport(**totals.fields() | {"day_obs": DAY} | changes)


def latency(seconds, count=1):
    ms = 1e3 * seconds
    return Latency(p50_ms=ms, p95_ms=ms, p99_ms=ms, max_ms=ms, count=count)


# --- what is added up ---------------------------------------------------------


def test_an_empty_night_has_zeros_and_can_be_shown():
    found = report()
    assert (found.visits, found.accepted, found.succeeded, found.failed, found.over_budget) == (0, 0, 0, 0, 0)
    assert (found.outcomes, found.latencies, found.reasons, found.visit_list, found.detector_list) == (
        {},
        {},
        (),
        (),
        (),
    )
    assert found.histogram == NightHistogram(step_s=1.0, counts=(0,) * 61)
    assert dict(facts(found)) == {
        "visits": "0 with 0 visit-detectors", "succeeded": "none", "failed": "none", "outcomes": "none",
        "retried": "0", "exported": "nothing",
    }  # fmt: skip
    assert "nothing succeeded" in night_sections(found)
    assert "all succeeded" not in night_sections(found)


def test_a_night_with_one_visit_has_its_exact_times():
    found = report(row(detector=0), row(detector=1, done=DONE | {Stage.PROCESSED: 75.0}))
    assert found.latencies["queue_ms"] == latency(0.5, 2)
    assert found.latencies["prepare_ms"] == latency(8.0, 2)
    assert found.latencies["shutter_to_raw_ms"] == latency(4.0, 2)
    assert found.latencies["raw_to_first_task_ms"] == latency(0.5, 2)
    assert found.latencies["central_ms"] == latency(5.0, 2)
    assert found.latencies[ALERT_SPAN] == Latency(
        p50_ms=52_500.0, p95_ms=72_750.0, p99_ms=74_550.0, max_ms=75_000.0, count=2
    )
    assert found.over_budget == 1
    assert found.visit_list == (
        NightVisit(
            instrument="DemoCam", group="g", survey="S", received_tai=BEGIN, outcomes={"succeeded": 2},
            median_s=52.5, slowest_s=75.0, slowest_detector=1, failed_detector=None, reason="",
            spooled=2, exported=2,
        ),
    )  # fmt: skip
    assert [(each.detector, each.over_budget, each.latency) for each in found.detector_list] == [
        (1, 1, latency(75.0)),
        (0, 0, latency(30.0)),
    ]


def test_a_night_with_only_failures_has_reasons_and_no_times():
    found = report(
        row("g", 3, Outcome.FAILED, reason="task isr of visit 7: no 5.25 flat"),
        row("g", 2, Outcome.CRASHED),
        row("h", 0, Outcome.FAILED, tai=BEGIN + 40.0, reason="task isr of visit 8: no 1 flat"),
        row("h", 1, Outcome.NO_IMAGE, tai=BEGIN + 40.0, reason="no raw"),
        row("h", 2, None, tai=BEGIN + 40.0),
    )
    assert (found.failed, found.succeeded, found.latencies, found.over_budget) == (3, 0, {}, 0)
    assert found.outcomes == {Outcome.NO_IMAGE: 1, Outcome.FAILED: 2, Outcome.CRASHED: 1}
    assert found.reasons == (
        NightReason(
            outcome=Outcome.FAILED, count=2, reason="task isr of visit 7: no 5.25 flat", group="g", detector=3
        ),
        NightReason(outcome=Outcome.NO_IMAGE, count=1, reason="no raw", group="h", detector=1),
    )
    first, second = found.visit_list
    assert (first.failed_detector, first.reason, first.median_s) == (2, "crashed", None)
    assert second.outcomes == {"failed": 1, "no_image": 1, "open": 1}
    assert found.detector_list[0] == NightDetector(
        instrument="DemoCam", detector=0, outcomes={"failed": 1}, latency=None, over_budget=0
    )
    assert dict(facts(found))["outcomes"] == "1 no_image, 2 failed, 1 crashed, 1 without one yet"


def test_half_a_night_without_exports_is_seen():
    without = {stage: s for stage, s in DONE.items() if stage != Stage.CENTRAL}
    rows = [row(f"g{k}", tai=BEGIN + 3600.0 * k, done=DONE if k < 5 else without) for k in range(10)]
    found = report(*rows, row("other", figures={"not_exported": "2 datasets of visit 5"}))
    assert found.exports == NightExports(spooled=11, exported=6, datasets=33, not_exported=1)
    assert found.latencies["central_ms"].count == 6
    assert [(visit.spooled, visit.exported) for visit in found.visit_list][-5:] == [(1, 0)] * 5
    drawn, _, words = charts.export_chart(found).partition("<ul")
    assert "not yet" in words
    assert drawn.count('class="c-open"') == drawn.count('class="c-good"') == 5


def test_fallbacks_are_counted_by_pipeline_with_their_first_reason():
    def fell_back(detector, reason, **changes):
        figures = {FALLBACK: {"first": "ApPipe", "reason": reason}}
        return row(detector=detector, figures=figures, **{"pipeline": "Isr"} | changes)

    found = report(
        row(detector=0, pipeline="ApPipe"),
        fell_back(1, "other", pipeline="Single"),
        fell_back(2, "no APDB"),
        fell_back(3, "no <APDB> 2"),
    )
    assert found.fallbacks == (
        NightFallback(first="ApPipe", pipeline="Isr", count=2, reason="no APDB", group="g", detector=2),
        NightFallback(first="ApPipe", pipeline="Single", count=1, reason="other", group="g", detector=1),
    )
    assert dict(facts(found))["fallback pipelines"] == "2 Isr for ApPipe, 1 Single for ApPipe"
    assert "no APDB" in night_sections(found)
    assert "Fallback pipelines" not in night_sections(report(row()))


def test_times_leave_out_what_an_operator_requested_and_waits_for_a_second_snap():
    found = report(row("g", 0, figures={REQUEUED: True}), row("g", 1, exposures=(1, 2)))
    assert found.succeeded == 2
    assert found.latencies == {ALERT_SPAN: latency(30.0)}


def test_partial_ones_succeeded_and_the_last_attempt_counts():
    found = report(row("g", 0, Outcome.CRASHED, reason="SIGSEGV"), row("g", 0, attempt=2, partial=True))
    assert (found.succeeded, found.partial, found.failed, found.retried, found.reasons) == (1, 1, 0, 1, ())
    assert found.visit_list[0].outcomes == {"partial": 1}


def test_the_cache_is_added_up_over_all_workers():
    figures = {"hits": 3, "misses": 1, "bytes": 4_000_000, "fetched_bytes": 500_000, "evicted": 2}
    found = report(row("g", 0, figures=figures), row("g", 1, figures=figures), row("g", 2))
    assert found.cache == NightCache(hits=6, misses=2, taken_mb=8.0, fetched_mb=1.0, evicted=4)
    assert found.cache.hit_rate == 0.75
    assert report().cache.hit_rate is None


def test_steps_of_the_histogram_are_round_and_reach_beyond_the_budget():
    assert NightHistogram.of([0.2, 59.9, 60.0, -0.1]).counts == (2, *[0] * 58, 1, 1)
    longer = NightHistogram.of([12.0, 395.0])
    assert (longer.step_s, len(longer.counts), longer.counts[2], longer.counts[-1]) == (5.0, 80, 1, 1)
    assert len(NightHistogram.of([90_000.0]).counts) == 80


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "id=01a22c2e-ec0f-7a1b-a4bd-0123456789ab) failed",
            "id=fa22cd2e-ec0f-7a1b-a4bd-fedcba987654) failed",
        ),
        ("cut id=01a22c2e-ec0f-7a1b-a4", "cut id=ba22cd2e-ec0f-7b1b-ab"),
        ("<Task object at 0x7f00aabb1c>", "<Task object at 0x7f11ccdd2e>"),
        ("detector 3 lacks 1.5", "detector 12 lacks 2"),
    ],
)
def test_reasons_that_differ_by_ids_and_numbers_are_counted_together(one, other):
    """All detectors of an exposure fail in the same way, and each names its own dataset."""
    rows = row("g", 1, Outcome.FAILED, reason=one), row("g", 2, Outcome.FAILED, reason=other)
    (found,) = report(*rows).reasons
    assert (found.count, found.reason) == (2, one)
    apart = row("g", 1, Outcome.FAILED, reason="no flat"), row("g", 2, Outcome.FAILED, reason="no dark")
    assert len(report(*apart).reasons) == 2


def test_many_different_reasons_are_bounded(monkeypatch):
    monkeypatch.setattr("ppdaemon.night.totals.MAX_REASONS", 2)
    texts = ("a", "b", "c", "b")
    found = report(*(row("g", k, Outcome.FAILED, reason=text) for k, text in enumerate(texts)))
    assert [(each.reason, each.count) for each in found.reasons] == [("b", 2), ("a", 1)]


# --- which rows of a journal ------------------------------------------------------


def entry(group, detector=0, *, tai=BEGIN, attempt=1, outcome=Outcome.SUCCEEDED, final=True, **changes):
    made = row(group, detector, outcome, tai=tai)
    visit = read_next_visit({"groupId": group, "instrument": "DemoCam", "survey": "S"})
    found = JournalEntry(
        Key("DemoCam", group, detector, attempt), visit, received_tai=tai, stages=dict(made.stages)
    )
    values = {"outcome": outcome, "final": final, "shutter_close_tai": tai + 60.0, "datasets": made.datasets}
    for name, value in (values | changes).items():
        setattr(found, name, value)
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path):
    with closing(Journal(path)) as journal:
        yield journal


def write(journal, *entries):
    for each in entries:
        journal.write(Accept(Reserved(None, {}), (each,)))
    journal.write(Update(entries))


def read(path, day=DAY):
    return read_night([path], day, Clock())


def test_a_night_is_between_two_noons_of_tai(path, journal):
    tais = (BEGIN - 1.0, BEGIN, END - 1.0, END)
    write(journal, *(entry(f"g{k}", tai=tai) for k, tai in enumerate(tais)))
    assert [visit.group for visit in read(path).visit_list] == ["g1", "g2"]
    assert read(path).outcomes == {Outcome.SUCCEEDED: 2}
    newest = read(path, None)
    assert (newest.day_obs, newest.visits) == (20261130, 1)
    assert read(path, 20261128).visits == 1
    assert day_obs(END - 1.0) == DAY


def test_without_any_visit_the_night_is_tonight(path, journal):
    found = read(path, None)
    assert (found.day_obs, found.visits, found.recycled, found.late_raws) == (
        day_obs(Clock().tai()),
        0,
        {},
        0,
    )


def test_a_later_attempt_belongs_to_the_night_of_the_first(path, journal):
    crashed = entry("g", outcome=Outcome.CRASHED, final=False)
    failed = entry("h", outcome=Outcome.FAILED, tai=BEGIN + 40.0)
    write(journal, crashed, failed)
    journal.write(Retry(crashed, entry("g", attempt=2, tai=BEGIN + 5.0)))
    journal.write(Update((entry("g", attempt=2, tai=BEGIN + 5.0),)))
    assert read(path).outcomes == {Outcome.SUCCEEDED: 1, Outcome.FAILED: 1}
    # An operator requests it in the daytime, after the end of the night.
    again = entry("h", attempt=2, tai=END + 10.0, figures={REQUEUED: True})
    journal.write(Requeue(1, (failed,), (again,), (), ()))
    journal.write(Update((again,)))
    found = read(path)
    assert (found.outcomes, found.retried, found.accepted) == ({Outcome.SUCCEEDED: 2}, 2, 2)
    assert found.latencies[ALERT_SPAN].count == 1
    assert read(path, 20261130).visits == 0


def test_a_canceled_visit_that_came_back_counts_once(path, journal):
    write(journal, entry("g", outcome=Outcome.CANCELLED))
    journal.write(Accept(Reserved(None, {}), (entry("g", attempt=2, tai=BEGIN + 9.0),)))
    journal.write(Update((entry("g", attempt=2, tai=BEGIN + 9.0),)))
    assert read(path).outcomes == {Outcome.SUCCEEDED: 1}
    write(journal, entry("late", outcome=Outcome.CANCELLED, tai=END - 5.0))
    back = entry("late", attempt=2, tai=END + 5.0)
    journal.write(Accept(Reserved(None, {}), (back,)))
    journal.write(Update((back,)))
    assert read(path).outcomes == {Outcome.SUCCEEDED: 2}
    assert read(path, 20261130).visits == 0


def test_replaced_workers_and_late_raws_are_those_of_the_night(path, journal):
    for cause, tai in (("age", BEGIN), ("memory", END - 1.0), ("age", BEGIN + 5.0), ("age", END)):
        journal.write(CountRecycled(cause, tai))
    write(journal, entry("g", outcome=Outcome.NO_IMAGE))
    raws = [
        Raw(instrument="DemoCam", group="g", exposure=k, detector=0, path="/r", seen_tai=tai)
        for k, tai in enumerate((BEGIN + 5.0, END + 5.0))
    ]
    journal.write(RecordLateRaws(raws))
    found = read(path)
    assert (found.recycled, found.late_raws) == ({"age": 2, "memory": 1}, 1)
    assert read(path, 20261130).recycled == {"age": 1}


# --- several nodes ------------------------------------------------------------------


@pytest.fixture
def two_nodes(tmp_path):
    """Return journals of two nodes that shared a night: n2 got what n1 handed back, and lost a result."""
    paths = [tmp_path / "n1.sqlite", tmp_path / "n2.sqlite"]
    slow = dict(entry("g").stages) | {Stage.PROCESSED: BEGIN + 60.0 + 75.0}
    with closing(Journal(paths[0])) as n1, closing(Journal(paths[1])) as n2:
        write(n1, entry("g", 0), entry("g", 1), entry("h", 0, tai=BEGIN + 40.0))
        write(n1, entry("g", 2, outcome=Outcome.CANCELLED, reason=f"{HANDED_BACK}: the node is full"))
        write(n2, entry("g", 2, attempt=2, stages=slow), entry("g", 3, outcome=Outcome.FAILED, reason="r"))
        write(n2, entry("h", 0, attempt=2, tai=BEGIN + 45.0, outcome=Outcome.CANCELLED, reason=WITHDRAWN))
        for journal in (n1, n2):
            journal.write(CountRecycled("age", BEGIN))
        n2.write(CountRecycled("memory", BEGIN))
    return paths


def test_of_several_nodes_each_visit_detector_counts_once(two_nodes):
    found = read_night(two_nodes, DAY, Clock())
    assert (found.visits, found.accepted, found.succeeded, found.failed) == (2, 5, 4, 1)
    assert found.outcomes == {Outcome.SUCCEEDED: 4, Outcome.FAILED: 1}
    assert [(each.name, each.accepted, each.succeeded, each.bad) for each in found.nodes] == [
        ("n1", 3, 3, 0),
        ("n2", 2, 1, 1),
    ]
    assert [each.latency.max_ms for each in found.nodes] == [30_000.0, 75_000.0]
    assert [each.over_budget for each in found.nodes] == [0, 1]
    assert found.latencies[ALERT_SPAN].count == 4
    assert found.recycled == {"age": 2, "memory": 1}
    assert found.visit_list[0].outcomes == {"succeeded": 3, "failed": 1}
    assert read_night(two_nodes[:1], DAY, Clock()).nodes == ()


def test_what_was_withdrawn_from_a_node_hides_no_outcome_of_another(two_nodes):
    with closing(Journal(two_nodes[0])) as n1, closing(Journal(two_nodes[1])) as n2:
        write(n1, entry("k", outcome=Outcome.FAILED, reason="r"))
        write(
            n2, entry("k", attempt=2, outcome=Outcome.INTERRUPTED, reason=f"{WITHDRAWN}; the daemon stopped")
        )
    found = read_night(two_nodes, DAY, Clock())
    assert found.outcomes == {Outcome.SUCCEEDED: 4, Outcome.FAILED: 2}


def test_a_copied_night_gives_the_same_report(tmp_path, two_nodes):
    with closing(Journal(two_nodes[0])) as journal:
        write(journal, entry("before", tai=BEGIN - 9.0), entry("after", tai=END + 9.0))
        write(journal, entry("late", outcome=Outcome.NO_IMAGE))
        raw = Raw(instrument="DemoCam", group="late", exposure=1, detector=0, path="/r", seen_tai=BEGIN + 5.0)
        journal.write(RecordLateRaws([raw]))
    copies = [tmp_path / "copies" / path.name for path in two_nodes]
    copies[0].parent.mkdir()
    for path, copy in zip(two_nodes, copies, strict=True):
        copy.write_text("an old one")
        assert copy_night(path, DAY, Clock(), copy) == DAY
    found = read_night(copies, DAY, Clock())
    assert found == read_night(two_nodes, DAY, Clock())
    assert (found.visits, found.late_raws) == (3, 1)
    assert read(copies[0], 20261128).visits == 0
    with closing(Journal(copies[0])) as journal:  # one of this version, with its indexes
        assert len(journal.last_attempts("g")) == 3


def test_a_folder_is_a_state_folder_or_has_copies(tmp_path, two_nodes):
    assert journals_at([tmp_path]) == two_nodes
    (tmp_path / "journal.sqlite").touch()
    (tmp_path / "empty").mkdir()
    assert journals_at([tmp_path, two_nodes[0]]) == [tmp_path / "journal.sqlite", two_nodes[0]]
    with pytest.raises(Unavailable, match="empty has no journal"):
        journals_at([tmp_path / "empty"])
    states = [tmp_path / name / "journal.sqlite" for name in ("a", "b")]
    assert names_of(states) == ["a", "b"]
    assert names_of([Path("/x/n1.sqlite"), Path("/y/n1.sqlite")]) == ["/x/n1.sqlite", "/y/n1.sqlite"]


def test_the_command_reports_several_nodes_and_copies_a_night(tmp_path, two_nodes, capsys):
    copy = tmp_path / "c" / "n1.sqlite"
    copy.parent.mkdir()
    code, shown = run(capsys, str(DAY), "--journal", str(two_nodes[0]), "--copy", str(copy))
    assert (code, shown.out, shown.err) == (0, "", f"wrote night {DAY} to {copy}\n")
    page = tmp_path / "night.html"
    arguments = (str(DAY), "--journal", str(copy.parent), "--journal", str(two_nodes[1]))
    code, shown = run(capsys, *arguments)
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["n2", "2", "1", "1", "75.00", "75.00", "75.00", "1"] in lines
    assert run(capsys, *arguments, "--html", str(page))[0] == 0
    assert "<h2>Nodes</h2>" in page.read_text()
    assert ">n1, n2 on " in page.read_text()
    code, shown = run(capsys, *arguments, "--copy", str(copy))
    assert (code, "--copy is for one journal" in shown.err) == (ExitCode.USAGE, True)
    code, shown = run(capsys, "--journal", str(two_nodes[0]), "--copy", str(tmp_path))
    assert code == ExitCode.USAGE
    before = two_nodes[0].read_bytes()
    code, shown = run(capsys, "--journal", str(two_nodes[0]), "--copy", str(two_nodes[0]))
    assert (code, "is the journal itself" in shown.err) == (ExitCode.CANNOT_CREATE, True)
    assert two_nodes[0].read_bytes() == before
    code, shown = run(capsys, "--journal", str(two_nodes[0]), "--copy", "/none/n1.sqlite")
    assert (code, "Traceback" in shown.err) == (ExitCode.CANNOT_CREATE, False)


def test_a_night_without_visits_is_one_line(path, journal, capsys):
    """As other commands that find nothing."""
    code, shown = run(capsys, "20261128", "--journal", str(path))
    assert (code, shown.out) == (0, "night 20261128\nno visits\n")


def test_what_is_no_journal_is_named(tmp_path):
    with pytest.raises(Unavailable, match=r"none\.sqlite does not exist: has its program run yet"):
        read(tmp_path / "none.sqlite")


def test_a_journal_of_another_version_is_named_with_what_can_be_done(path, journal):
    journal.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE recycled")
    with pytest.raises(Unavailable, match=r"no such table: recycled; its schema version is \d+: use"):
        read(path)


def test_no_label_of_an_axis_is_cut_at_the_right():
    """The last time of the day is at the end of the axis, and half of it is beyond."""
    # The last visit is one minute before a full hour of UTC.
    begin = BEGIN // 3600.0 * 3600.0 + 3600.0 + TAI_MINUS_UTC_S - 60.0
    rows = [row(f"g{k}", tai=begin + 3600.0 * k) for k in range(6)]
    svg = charts.latency_chart(report(*rows))
    ticks = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="middle"[^>]*>(\d\d:\d\d)<', svg)
    assert len(ticks) >= 5
    assert max(float(x) + 3.5 * len(text) for x, text in ticks) <= charts.WIDTH


# --- what is drawn -----------------------------------------------------------------


def test_charts_have_the_numbers_of_the_report():
    slow = DONE | {Stage.PROCESSED: 75.0}
    rows = [
        row(f"g{k}", d, tai=BEGIN + 600.0 * k, done=slow if d == 4 else DONE)
        for k in range(6)
        for d in range(9)
    ]
    found = report(*rows, row("h", 7, Outcome.FAILED, tai=BEGIN + 3600.0))
    histogram = charts.histogram_chart(found)
    assert re.findall(r"<title>(.+?)</title>", histogram) == ["30 to 31 s: 48", "75 to 76 s: 6"]
    assert re.findall(r'class="(c-\w+)"', histogram) == ["c-good", "c-late"]
    assert charts.latency_chart(found).count("c-late-dot") == 6
    assert "detector 4, 75.0 s" in charts.latency_chart(found)
    assert re.findall(r'class="(c-\w+)"', charts.outcome_chart(found).partition("<ul")[0]) == ["c-bad"]
    cells = re.findall(
        r"<title>(\d+) .*?: (.+?)</title>.*?<text[^>]*>(\d*)</text>", charts.failure_map(found, "DemoCam")
    )
    assert len(cells) == 9
    assert ("7", "6 succeeded, 1 failed", "1") in cells
    assert ("4", "6 succeeded", "0") in cells
    assert 'class="m3"' in charts.latency_map(found, "DemoCam")
    assert "DemoCam: failures" in charts.failure_map(found, "DemoCam")


def test_a_camera_without_a_table_gets_a_grid_and_a_few_very_late_ones_do_not_flatten_the_others():
    rows = [row("g", d, instrument="Other") for d in (0, 5, 8)]
    assert charts.latency_map(report(*rows), "Other").count('class="cell"') == 3
    many = [row(f"g{k}", tai=BEGIN + 40.0 * k) for k in range(200)]
    found = report(*many, row("last", tai=BEGIN + 8000.0, done=DONE | {Stage.PROCESSED: 9000.0}))
    chart = charts.latency_chart(found)
    assert "9000" not in re.sub("<title>.*?</title>", "", chart)
    assert "l-3.5-7z" in chart  # a triangle at the edge


def test_the_page_is_one_file_without_scripts_in_light_and_dark_and_for_paper():
    page = report_page(report(row(reason="<b>\x1b"), row("g", 1, Outcome.FAILED, reason="<i>")), "<u>")
    assert not re.search(r"<(script|link|img|iframe|b|i|u)\b", page)
    assert not re.search(r"(src|href|@import|url\((?!#)|https?:)", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "&lt;i&gt;" in page


# --- the command -------------------------------------------------------------------


def run(capsys, *arguments):
    code = 0
    try:
        cli.main(["night", *arguments])
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr()


def test_without_daemon_and_journal_the_option_for_it_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--socket", str(tmp_path / "control.sock"), "night"])
    assert ended.value.code == ExitCode.UNAVAILABLE
    assert "Its journal is not known: use --config" in capsys.readouterr().err


def test_the_command_prints_a_table_json_or_writes_a_page(tmp_path, path, journal, capsys):
    write(journal, entry("g"), entry("g", 1, outcome=Outcome.FAILED, reason="task isr: \x1b[31mno flat"))
    code, shown = run(capsys, str(DAY), "--journal", str(path))
    assert code == 0
    assert "night 20261129" in shown.out
    assert "1 of 2 (50.00%)" in shown.out
    assert "task isr: ?[31mno flat" in shown.out
    code, shown = run(capsys, "2026-11-29", "--journal", str(path), "--json")
    found = json.loads(shown.out)
    assert (code, found["schema_version"], found["day_obs"], found["succeeded"]) == (0, 1, DAY, 1)
    assert NightReport.model_validate(found) == read(path)
    page = tmp_path / "night.html"
    assert run(capsys, "--journal", str(path), "--html", str(page))[0] == 0
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("yesterday",), ExitCode.USAGE, "'yesterday' is no night"),
        (("20261340",), ExitCode.USAGE, "'20261340' is no night"),
        (("--journal", "{path}", "--html", "/none/night.html"), ExitCode.CANNOT_CREATE, "/none/night.html"),
        (("--journal", "/none/journal.sqlite"), ExitCode.UNAVAILABLE, "/none/journal.sqlite"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(path, journal, capsys, arguments, code, text):
    exited, shown = run(capsys, *(each.format(path=path) for each in arguments))
    assert exited == code
    assert text in shown.err
    assert "Traceback" not in shown.err
