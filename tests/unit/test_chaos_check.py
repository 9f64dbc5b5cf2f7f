# SPDX-License-Identifier: BSD-3-Clause
"""tools/chaos.py: its plans, and that its judge finds what it is to find."""

from dataclasses import replace
from pathlib import Path

import pytest

from ppdaemon.states import Outcome

TOOLS = Path(__file__).parents[2] / "tools"
PLACE = ("g1", 4)


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
    return check.Row(PLACE, 1, Outcome.SUCCEEDED, "", final=True, retriable=False, pid=77, no_return="db")


@pytest.fixture
def kept(check, row):
    """Give the evidence of one promise that was kept."""
    return check.Evidence(
        promised=frozenset({PLACE}),
        told={PLACE: [check.Told(Outcome.SUCCEEDED, 1)] * 3},
        rows=[row],
        writes={PLACE: 1},
        exports={PLACE: [1]},
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


def test_an_outcome_that_the_relay_never_heard_is_lost(check, kept):
    assert found(check, replace(kept, told={})) == [("lost", "no outcome was told to the relay")]


def test_a_success_without_its_write_or_its_export_is_lost(check, kept):
    assert found(check, replace(kept, writes={})) == [("lost", "succeeded without its permanent write")]
    assert found(check, replace(kept, exports={})) == [("lost", "attempt 1 was not exported")]


def test_two_permanent_writes_two_final_rows_two_exports_are_doubled(check, kept, row):
    assert found(check, replace(kept, writes={PLACE: 2})) == [("doubled", "2 permanent writes")]
    twice = replace(kept, rows=[row, replace(row, attempt=2)])
    assert found(check, twice) == [("doubled", "2 final rows")]
    ((kind, what),) = found(check, replace(kept, exports={PLACE: [1, 2]}))
    assert (kind, what) == ("doubled", "exported attempts [2], the outcome is succeeded")


def test_contradictions_are_doubled(check, kept):
    told = {PLACE: [check.Told(Outcome.SUCCEEDED, 1), check.Told(Outcome.CRASHED, 2)]}
    assert "doubled" in {kind for kind, _ in found(check, replace(kept, told=told))}
    other = {PLACE: [check.Told(Outcome.CRASHED, 1)]}
    assert found(check, replace(kept, told=other)) == [("doubled", "told crashed, but journaled succeeded")]


def test_outcomes_need_an_explanation(check, kept, row):
    told = {PLACE: [check.Told(Outcome.CRASHED, 1)]}
    crashed = replace(kept, rows=[replace(row, outcome=Outcome.CRASHED)], told=told, exports={})
    assert [kind for kind, _ in found(check, crashed)] == ["wrong"]
    assert found(check, replace(crashed, hurt=frozenset({77}))) == []
    assert found(check, replace(crashed, reasons={PLACE: ["segfault"]})) == []


def test_no_image_is_wrong_where_the_raw_was_there(check, kept, row):
    none = replace(row, outcome=Outcome.NO_IMAGE, no_return="")
    told = {PLACE: [check.Told(Outcome.NO_IMAGE, 1)]}
    without = replace(kept, rows=[none], told=told, writes={}, exports={})
    assert found(check, without) == []
    assert [kind for kind, _ in found(check, replace(without, raw_in_time=frozenset({PLACE})))] == ["wrong"]


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
    strikes = {strike.fault for strike in made.strikes}
    assert strikes == set(plan.STRIKES)
    assert len({visit.deed.name for visit in made.visits if visit.deed}) >= 8
    assert len({visit.twist for visit in made.visits if visit.twist}) >= 3
    assert all(visit.survey.isprintable() and len(visit.survey) < 200 for visit in made.visits)


def test_a_deed_is_read_as_it_is_written():
    from chaos_work import Deed

    for deed in (Deed("hang", "process", 3, 1), Deed("leak", "spooled", None, None)):
        assert Deed.read(str(deed)) == deed
    assert Deed("hang", "process", None, 1).concerns("process", 8, 1)
    assert not Deed("hang", "process", 3, 1).concerns("process", 3, 2)
