# SPDX-License-Identifier: BSD-3-Clause
"""tools/chaos.py: its plans, and that its judge finds what it is to find."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import controlserver
import pytest
from rich.console import Console

from ppdaemon.reports import StatusReport
from ppdaemon.states import Outcome
from ppdaemon.testing.work import FAULTS, STEPS

TOOLS = Path(__file__).parents[2] / "tools"
KEY = ("g1", 4)


@pytest.fixture(scope="module", autouse=True)
def tools():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield


@pytest.fixture
def check():
    import chaos_check

    return chaos_check


@pytest.fixture
def plan():
    import chaos_plan

    return chaos_plan


@pytest.fixture
def row(check):
    return check.Row(KEY, 1, Outcome.SUCCEEDED, "", final=True, retriable=False, pid=77, no_return="db")


@pytest.fixture
def kept(check, row):
    """Give the evidence of one promise that was kept."""
    return check.Evidence(
        promised=frozenset({KEY}),
        told={KEY: [check.Told(Outcome.SUCCEEDED, 1)] * 3},
        rows=[row],
        writes={KEY: 1},
        exports={KEY: [1]},
    )


def found(check, evidence):
    return [(violation.kind, violation.what) for violation in check.judge(evidence)]


def test_a_kept_promise_is_no_violation(check, kept):
    assert check.judge(kept) == []


def test_a_promise_without_an_outcome_is_lost(check, kept, row):
    gone = replace(kept, rows=[], told={}, writes={}, exports={})
    assert [kind for kind, _ in found(check, gone)] == ["lost", "lost"]
    under_way = replace(kept, rows=[replace(row, final=False, outcome=None)])
    assert ("lost", "no final outcome in the journal (1 rows)") in found(check, under_way)


def test_an_outcome_that_the_relay_was_never_told_is_lost(check, kept):
    assert found(check, replace(kept, told={})) == [("lost", "no outcome was told to the relay")]


def test_a_success_without_its_write_or_its_export_is_lost(check, kept):
    assert found(check, replace(kept, writes={})) == [("lost", "succeeded without its permanent write")]
    assert found(check, replace(kept, exports={})) == [("lost", "attempt 1 was not exported")]


def test_two_permanent_writes_two_final_rows_two_exports_are_doubled(check, kept, row):
    assert found(check, replace(kept, writes={KEY: 2})) == [("doubled", "2 permanent writes")]
    twice = replace(kept, rows=[row, replace(row, attempt=2)])
    assert found(check, twice) == [("doubled", "2 final rows")]
    ((kind, what),) = found(check, replace(kept, exports={KEY: [1, 2]}))
    assert (kind, what) == ("doubled", "exported attempts [2], the outcome is succeeded")


def test_contradictions_are_doubled(check, kept):
    told = {KEY: [check.Told(Outcome.SUCCEEDED, 1), check.Told(Outcome.CRASHED, 2)]}
    assert "doubled" in {kind for kind, _ in found(check, replace(kept, told=told))}
    other = {KEY: [check.Told(Outcome.CRASHED, 1)]}
    assert found(check, replace(kept, told=other)) == [("doubled", "told crashed, but journaled succeeded")]


def test_outcomes_need_an_explanation(check, kept, row):
    told = {KEY: [check.Told(Outcome.CRASHED, 1)]}
    crashed = replace(kept, rows=[replace(row, outcome=Outcome.CRASHED)], told=told, exports={})
    assert [kind for kind, _ in found(check, crashed)] == ["wrong"]
    assert found(check, replace(crashed, hurt=frozenset({77}))) == []
    assert found(check, replace(crashed, reasons={KEY: ["segv"]})) == []


def test_no_image_is_wrong_where_the_raw_was_there(check, kept, row):
    none = replace(row, outcome=Outcome.NO_IMAGE, no_return="")
    told = {KEY: [check.Told(Outcome.NO_IMAGE, 1)]}
    without = replace(kept, rows=[none], told=told, writes={}, exports={})
    assert found(check, without) == []
    assert [kind for kind, _ in found(check, replace(without, raw_in_time=frozenset({KEY})))] == ["wrong"]


def test_retriable_after_a_permanent_write_is_wrong(check, kept, row):
    lie = replace(kept, rows=[replace(row, retriable=True)])
    assert found(check, lie) == [("wrong", "called retriable after a permanent write")]


def test_a_refusal_is_wrong(check, kept):
    assert found(check, replace(kept, refused={("g2", 0): "expired"})) == [("wrong", "refused: expired")]


def test_the_same_seed_gives_the_same_plan(plan):
    assert plan.make_plan(5, 30.0, range(9)) == plan.make_plan(5, 30.0, range(9))
    assert plan.make_plan(5, 30.0, range(9)) != plan.make_plan(6, 30.0, range(9))


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_has_many_kinds_of_fault_from_within_and_from_without(plan, seed):
    made = plan.make_plan(seed, 15.0, range(9))
    faults = {fault.fault for fault in made.process_faults}
    assert faults == set(plan.PROCESS_FAULTS)
    assert len({visit.worker_fault.name for visit in made.visits if visit.worker_fault}) >= 8
    assert len({visit.visit_fault for visit in made.visits if visit.visit_fault}) >= 3
    assert all(visit.survey.isprintable() and len(visit.survey) < 200 for visit in made.visits)


def test_chaos_knows_all_its_worker_faults(plan):
    assert set(plan.WORKER_FAULTS) < FAULTS.keys()
    assert set(plan.STEPS) < set(STEPS)


@pytest.fixture
def a_status():
    return StatusReport.model_validate(controlserver.status(open_visits=0, spooled=0))


@pytest.mark.parametrize("state", ["running", "degraded"])
def test_a_daemon_without_open_visits_and_spools_is_quiet(check, a_status, state):
    assert check.is_quiet(a_status.model_copy(update={"state": state}))


@pytest.mark.parametrize("change", [{"state": "starting"}, {"open_visits": 1}, {"spooled": 1}])
def test_a_daemon_that_has_something_to_do_or_does_not_know_yet_is_not_quiet(check, a_status, change):
    assert not check.is_quiet(a_status.model_copy(update=change))
    assert not check.is_quiet(None)


def test_the_last_lines_are_all_violations_and_the_very_last_is_the_first_of_them():
    import chaos

    violations = [
        {"kind": "lost", "what": "attempt 1 was not exported", "visit": ("g1", 4), "story": ["told", "[x]"]},
        {"kind": "lost", "what": "attempt 1 was not exported", "visit": ("g1", 6), "story": ["told", "[x]"]},
        {"kind": "wrong", "what": "the daemon ended:\nits log", "visit": None, "story": []},
    ]
    told = {"seed": 7, "seconds": 8.0, "accepted": 9, "attempts": 9, "outcomes": {}, "faults": {}}
    told |= {"lost": 2, "doubled": 0, "leaked": 0, "wrong": 1, "killed_while": {}, "violations": violations}
    printed = StringIO()
    chaos.show(told, Console(file=printed))
    assert printed.getvalue().splitlines()[-8:] == [
        "story of g1:",
        "    told",
        "    [x]",
        "lost: g1 detector 4: attempt 1 was not exported",
        "lost: g1 detector 6: attempt 1 was not exported",
        "wrong: the daemon ended:",
        "its log",
        "seed 7: 2 lost, 0 doubled, 0 leaked, 1 wrong; the first: "
        "lost: g1 detector 4: attempt 1 was not exported",
    ]
    told["violations"] = [violations[-1]]
    assert chaos.verdict(told)[-1].endswith("; the first: wrong: the daemon ended:")
