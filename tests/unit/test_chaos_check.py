# SPDX-License-Identifier: BSD-3-Clause
"""tools/chaos.py: its plans, and the violations that its check finds."""

from dataclasses import replace
from io import StringIO

import controlserver
import pytest
from benchtools import part
from rich.console import Console

from ppdaemon.reports import StatusReport
from ppdaemon.states import Outcome
from ppdaemon.testing.work import FAULTS, STEPS

KEY = ("g1", 4)
check, plan = part("chaos_check"), part("chaos_plan")


@pytest.fixture
def row():
    return check.Row(KEY, 1, Outcome.SUCCEEDED, "", final=True, retriable=False, pid=77, no_return="db")


@pytest.fixture
def valid(row):
    """Return the records of one accepted visit-detector without violations."""
    return check.RunRecords(
        accepted=frozenset({KEY}),
        received={KEY: [check.ReceivedOutcome(Outcome.SUCCEEDED, 1)] * 3},
        rows=[row],
        writes={KEY: 1},
        exports={KEY: [1]},
    )


def found(records):
    return [(violation.kind, violation.description) for violation in check.find_violations(records)]


def test_complete_records_have_no_violation(valid):
    assert check.find_violations(valid) == []


def test_an_accepted_visit_without_an_outcome_is_lost(valid, row):
    lost = replace(valid, rows=[], received={}, writes={}, exports={})
    assert [kind for kind, _ in found(lost)] == ["lost", "lost"]
    unfinished = replace(valid, rows=[replace(row, final=False, outcome=None)])
    assert ("lost", "no final outcome in the journal (1 rows)") in found(unfinished)


def test_an_outcome_that_the_relay_never_received_is_lost(valid):
    assert found(replace(valid, received={})) == [("lost", "the relay received no outcome")]


def test_a_success_without_its_write_or_its_export_is_lost(valid):
    assert found(replace(valid, writes={})) == [("lost", "succeeded without its permanent write")]
    assert found(replace(valid, exports={})) == [("lost", "attempt 1 was not exported")]


def test_two_permanent_writes_two_final_rows_two_exports_are_doubled(valid, row):
    assert found(replace(valid, writes={KEY: 2})) == [("doubled", "2 permanent writes")]
    twice = replace(valid, rows=[row, replace(row, attempt=2)])
    assert found(twice) == [("doubled", "2 final rows")]
    ((kind, what),) = found(replace(valid, exports={KEY: [1, 2]}))
    assert (kind, what) == ("doubled", "exported attempts [2], the outcome is succeeded")


def test_contradictions_are_doubled(valid):
    received = {KEY: [check.ReceivedOutcome(Outcome.SUCCEEDED, 1), check.ReceivedOutcome(Outcome.CRASHED, 2)]}
    assert "doubled" in {kind for kind, _ in found(replace(valid, received=received))}
    other = {KEY: [check.ReceivedOutcome(Outcome.CRASHED, 1)]}
    assert found(replace(valid, received=other)) == [
        ("doubled", "the relay received crashed, the journal has succeeded")
    ]


def test_failures_need_a_fault_that_explains_them(valid, row):
    received = {KEY: [check.ReceivedOutcome(Outcome.CRASHED, 1)]}
    crashed = replace(valid, rows=[replace(row, outcome=Outcome.CRASHED)], received=received, exports={})
    assert [kind for kind, _ in found(crashed)] == ["wrong"]
    assert found(replace(crashed, harmed_pids=frozenset({77}))) == []
    assert found(replace(crashed, reasons={KEY: ["segv"]})) == []


def test_no_image_is_wrong_if_the_raw_was_written(valid, row):
    none = replace(row, outcome=Outcome.NO_IMAGE, no_return="")
    received = {KEY: [check.ReceivedOutcome(Outcome.NO_IMAGE, 1)]}
    without = replace(valid, rows=[none], received=received, writes={}, exports={})
    assert found(without) == []
    assert [kind for kind, _ in found(replace(without, raw_in_time=frozenset({KEY})))] == ["wrong"]


def test_retriable_after_a_permanent_write_is_wrong(valid, row):
    retriable_row = replace(valid, rows=[replace(row, retriable=True)])
    assert found(retriable_row) == [("wrong", "marked as retriable after a permanent write")]


def test_a_refusal_is_wrong(valid):
    assert found(replace(valid, refused={("g2", 0): "expired"})) == [("wrong", "refused: expired")]


def test_the_same_seed_gives_the_same_plan():
    assert plan.make_plan(5, 30.0, range(9)) == plan.make_plan(5, 30.0, range(9))
    assert plan.make_plan(5, 30.0, range(9)) != plan.make_plan(6, 30.0, range(9))


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_has_many_kinds_of_faults(seed):
    drawn = plan.make_plan(seed, 15.0, range(9))
    faults = {fault.fault for fault in drawn.process_faults}
    assert faults == set(plan.PROCESS_FAULTS)
    assert len({visit.worker_fault.name for visit in drawn.visits if visit.worker_fault}) >= 8
    assert len({visit.visit_fault for visit in drawn.visits if visit.visit_fault}) >= 3
    assert all(visit.survey.isprintable() and len(visit.survey) < 200 for visit in drawn.visits)


def test_chaos_knows_all_its_worker_faults():
    assert set(plan.WORKER_FAULTS) < FAULTS.keys()
    assert set(plan.STEPS) < set(STEPS)


@pytest.fixture
def a_status():
    return StatusReport.model_validate(controlserver.status(open_visits=0, spooled=0))


@pytest.mark.parametrize("state", ["running", "degraded"])
def test_a_daemon_without_open_visits_and_spools_is_quiet(a_status, state):
    assert check.is_quiet(a_status.model_copy(update={"state": state}))


@pytest.mark.parametrize("change", [{"state": "starting"}, {"open_visits": 1}, {"spooled": 1}])
def test_a_daemon_that_is_starting_or_has_open_work_is_not_quiet(a_status, change):
    assert not check.is_quiet(a_status.model_copy(update=change))
    assert not check.is_quiet(None)


def test_the_last_lines_are_all_violations_and_the_very_last_is_the_first_of_them():
    chaos = part("chaos")
    violations = [
        {
            "kind": "lost",
            "what": "attempt 1 was not exported",
            "visit": ("g1", 4),
            "story": ["received", "[x]"],
        },
        {
            "kind": "lost",
            "what": "attempt 1 was not exported",
            "visit": ("g1", 6),
            "story": ["received", "[x]"],
        },
        {"kind": "wrong", "what": "the daemon ended:\nits log", "visit": None, "story": []},
    ]
    values = {"seed": 7, "seconds": 8.0, "accepted": 9, "attempts": 9, "outcomes": {}, "faults": {}}
    values |= {
        "lost": 2,
        "doubled": 0,
        "leaked": 0,
        "wrong": 1,
        "killed_while": {},
        "violations": violations,
    }
    printed = StringIO()
    chaos.show(values, Console(file=printed))
    assert printed.getvalue().splitlines()[-8:] == [
        "story of g1:",
        "    received",
        "    [x]",
        "lost: g1 detector 4: attempt 1 was not exported",
        "lost: g1 detector 6: attempt 1 was not exported",
        "wrong: the daemon ended:",
        "its log",
        "seed 7: 2 lost, 0 doubled, 0 leaked, 1 wrong; the first: "
        "lost: g1 detector 4: attempt 1 was not exported",
    ]
    values["violations"] = [violations[-1]]
    assert chaos.result_lines(values)[-1].endswith("; the first: wrong: the daemon ended:")
