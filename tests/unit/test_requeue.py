# SPDX-License-Identifier: BSD-3-Clause
"""Which visit-detectors with an outcome may be requeued."""

import pytest
from test_journal import an_entry, ended

from ppdaemon.node.visits.requeue import refusal_reason
from ppdaemon.retries import WITHDRAWN
from ppdaemon.states import Outcome


def an_ended_one(outcome=Outcome.NO_IMAGE, **changes):
    entry = ended(an_entry(), outcome)
    for name, value in changes.items():
        setattr(entry, name, value)
    return entry


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.SUCCEEDED}))
def test_a_visit_that_has_not_succeeded_may_be_requeued(outcome):
    assert refusal_reason(an_ended_one(outcome), force=False) == ""


def test_a_partial_success_may_be_requeued():
    assert refusal_reason(an_ended_one(Outcome.SUCCEEDED, partial=True), force=False) == ""


def test_a_success_whose_outputs_are_lost_may_be_requeued_unless_something_permanent_was_written():
    assert refusal_reason(an_ended_one(Outcome.SUCCEEDED), force=False, lost=True) == ""
    permanent = an_ended_one(Outcome.SUCCEEDED, no_return="alert database")
    assert "point of no return" in refusal_reason(permanent, force=False, lost=True)
    assert refusal_reason(permanent, force=True, lost=True) == ""


@pytest.mark.parametrize("force", [False, True])
def test_a_complete_success_and_an_open_visit_are_never_requeued(force):
    assert refusal_reason(an_ended_one(Outcome.SUCCEEDED), force=force) == "it has succeeded"
    assert refusal_reason(an_entry(), force=force) == "it is under way"
    assert refusal_reason(an_ended_one(Outcome.CRASHED, final=False), force=force) == "it is under way"


def test_a_requeue_that_may_send_outputs_twice_needs_force_and_names_the_risk():
    permanent = an_ended_one(Outcome.CRASHED, no_return="alert database")
    text = refusal_reason(permanent, force=False)
    assert "point of no return (alert database)" in text
    assert "twice; --force accepts that" in text
    assert refusal_reason(permanent, force=True) == ""
    moved = an_ended_one(Outcome.CANCELLED, reason=WITHDRAWN)
    assert "two nodes would process it; --force accepts that" in refusal_reason(moved, force=False)
    assert refusal_reason(moved, force=True) == ""
