# SPDX-License-Identifier: BSD-3-Clause
"""tools/chaos.py --nodes: its plans, and the violations that its check finds."""

from dataclasses import replace

import pytest
from benchtools import part

from ppdaemon.states import Outcome

KEY = ("g1", 4)
check, plan = part("chaos_storm_check"), part("chaos_plan")


@pytest.fixture
def row():
    return check.Row(KEY, 1, Outcome.SUCCEEDED, "", final=True, retriable=False, pid=77, no_return="db")


@pytest.fixture
def valid(row):
    """Return the records of a visit-detector that was moved from one node to another."""
    moved = replace(row, outcome=Outcome.CANCELLED, reason="withdrawn", no_return="")
    return check.StormRecords(
        accepted=frozenset({KEY}),
        ledger={KEY: check.LedgerEntry("n2", Outcome.SUCCEEDED, "", 2)},
        journals={"n1": [moved], "n2": [replace(row, outcome=None, final=False), row], "n3": []},
        writes={"n1": {}, "n2": {KEY: 1}},
        exports={"n2": {KEY: [1]}},
    )


def found(records):
    return {violation.kind for violation in check.find_storm_violations(records)}


def test_a_visit_that_was_moved_and_done_once_has_no_violation(valid):
    assert check.find_storm_violations(valid) == []


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.EXPIRED, Outcome.INTERRUPTED])
@pytest.mark.parametrize("node", [None, "n1"])
def test_the_relay_may_end_what_no_node_has_or_what_it_has_withdrawn(valid, node, outcome):
    journals = {"n1": valid.journals["n1"]}
    entry = check.LedgerEntry(node, outcome, "no node", 1)
    records = replace(valid, ledger={KEY: entry}, journals=journals, writes={}, exports={})
    assert check.find_storm_violations(records) == []


def test_an_accepted_visit_that_the_ledger_does_not_have_is_lost(valid):
    assert found(replace(valid, ledger={})) == {"lost"}


def test_a_visit_without_an_outcome_is_open(valid):
    records = replace(valid, ledger={KEY: check.LedgerEntry("n2", None, "", 1)}, journals={})
    assert found(records) == {"open"}


def test_a_success_without_its_write_or_its_export_is_lost(valid):
    assert found(replace(valid, writes={})) == {"lost"}
    assert found(replace(valid, exports={})) == {"lost"}


@pytest.mark.parametrize("writes", [{"n2": {KEY: 2}}, {"n1": {KEY: 1}, "n2": {KEY: 1}}])
def test_two_writes_on_one_node_or_on_two_are_doubled(valid, writes):
    assert found(replace(valid, writes=writes)) == {"doubled"}


@pytest.mark.parametrize("exports", [{"n2": {KEY: [1, 2]}}, {"n1": {KEY: [1]}, "n2": {KEY: [1]}}])
def test_two_exports_on_one_node_or_on_two_are_doubled(valid, exports):
    assert found(replace(valid, exports=exports)) == {"doubled"}


@pytest.mark.parametrize(
    "entry",
    [
        ("n2", Outcome.CANCELLED),  # closed by the relay before the node's first outcome
        ("n1", Outcome.CANCELLED),  # of the node from which it was moved
        (None, Outcome.INTERRUPTED),
        ("n3", Outcome.SUCCEEDED),  # which has no row
    ],
)
def test_a_ledger_that_contradicts_a_journal_is_wrong(valid, entry):
    node, outcome = entry
    records = replace(valid, ledger={KEY: check.LedgerEntry(node, outcome, "", 1)})
    assert "wrong" in found(records)


def test_a_success_that_no_journal_has_is_wrong(valid):
    assert found(replace(valid, journals={})) == {"wrong"}


def test_a_write_of_a_node_that_does_not_have_the_outcome_is_wrong(valid):
    records = replace(valid, writes={"n1": {KEY: 1}}, exports={"n2": {KEY: [1]}})
    assert found(records) == {"wrong"}


@pytest.mark.parametrize("seed", range(1, 11))
def test_every_storm_of_a_minute_has_all_faults_of_nodes_and_is_the_same_again(seed):
    faults = (*plan.NODE_FAULTS, *plan.CUTS)
    drawn = plan.make_plan(seed, 60.0, range(9), process_faults=faults, more_faults=plan.CUTS)
    assert {fault.fault for fault in drawn.process_faults} == set(faults)
    assert all(fault.length_s < 10 for fault in drawn.process_faults)
    assert drawn == plan.make_plan(seed, 60.0, range(9), process_faults=faults, more_faults=plan.CUTS)
