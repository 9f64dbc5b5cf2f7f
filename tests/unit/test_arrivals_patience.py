# SPDX-License-Identifier: BSD-3-Clause
"""When a raw counts as complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.node.arrivals import patience as module
from ppdaemon.node.arrivals.patience import GiveUp, Look, LookAgain, Patience, Take
from ppdaemon.node.arrivals.tree import Place

HERE = Place("/raw", "/raw/x.fits")
MISSING = Look(None, problem="no such file")


def whole(size: int = 5760, *, placed: bool = False) -> Look:
    return Look(HERE, size, 1000, 1001 if placed else 1000, whole=True)


def broken(size: int = 100) -> Look:
    return Look(HERE, size, 1000 + size, 1000 + size, problem="the file ends within a header")


def test_a_whole_file_that_was_closed_is_taken_at_once():
    assert Patience(10.0).judge(whole(), True, 10.0) == Take(HERE, whole=True)


def test_a_whole_file_that_was_renamed_into_place_is_taken_at_once():
    assert Patience(10.0).judge(whole(placed=True), False, 10.0) == Take(HERE, whole=True)


def test_a_whole_file_that_nobody_confirmed_must_be_quiet_first():
    patience = Patience(10.0)
    assert isinstance(patience.judge(whole(), False, 10.0), LookAgain)
    assert isinstance(patience.judge(whole(), False, 10.4), LookAgain)
    assert patience.judge(whole(), False, 10.5) == Take(HERE, whole=True)


def test_growing_starts_the_quiet_time_anew():
    patience = Patience(10.0)
    for step in range(20):
        assert isinstance(patience.judge(whole(2880 * step), False, 10.0 + 0.4 * step), LookAgain)


def test_a_broken_file_that_was_closed_is_taken_after_its_quiet_time():
    patience = Patience(10.0)
    assert isinstance(patience.judge(broken(), True, 10.0), LookAgain)
    assert isinstance(patience.judge(broken(), True, 11.9), LookAgain)
    assert patience.judge(broken(), True, 12.0) == Take(HERE, whole=False)


def test_a_broken_file_that_nobody_confirmed_gets_more_time():
    patience = Patience(10.0)
    assert isinstance(patience.judge(broken(), False, 10.0), LookAgain)
    assert isinstance(patience.judge(broken(), False, 19.9), LookAgain)
    assert patience.judge(broken(), False, 20.0) == Take(HERE, whole=False)


def test_a_missing_file_is_given_up_after_a_while():
    patience = Patience(10.0)
    assert isinstance(patience.judge(MISSING, True, 10.0), LookAgain)
    verdict = patience.judge(MISSING, True, 20.0)
    assert isinstance(verdict, GiveUp)
    assert verdict.kind == "vanished"


def test_a_file_that_never_stops_growing_is_given_up():
    patience = Patience(0.0)
    now, size, verdict = 0.0, 0, LookAgain(0.0)
    while isinstance(verdict, LookAgain):
        now, size = now + 1.0, size + 1
        verdict = patience.judge(broken(size), False, now)
    assert isinstance(verdict, GiveUp)
    assert verdict.kind == "never_complete"
    assert now == pytest.approx(module.LIMIT_S)


def test_pauses_grow_and_never_pass_the_time_of_decision():
    patience = Patience(0.0)
    now, pauses, verdict = 0.0, [], patience.judge(broken(), True, 0.0)
    while isinstance(verdict, LookAgain):
        pauses.append(verdict.pause_s)
        now += verdict.pause_s
        verdict = patience.judge(broken(), True, now)
    assert now == pytest.approx(module.QUIET_BROKEN_S)
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) <= module.LONGEST_PAUSE_S


looks = st.sampled_from([MISSING, whole(), whole(8640), whole(placed=True), broken(), broken(2000)])


@given(st.lists(st.tuples(looks, st.booleans(), st.floats(0.001, 30.0)), min_size=1, max_size=60))
def test_whatever_is_seen_every_file_has_an_end(story):
    patience, now = Patience(0.0), 0.0
    for look, confirmed, step in story:
        now += step
        verdict = patience.judge(look, confirmed, now)
        if isinstance(verdict, LookAgain):
            assert 0.0 < verdict.pause_s <= module.LONGEST_PAUSE_S
            assert now < module.LIMIT_S
        if isinstance(verdict, Take):
            assert verdict.whole is look.whole
            return
        if isinstance(verdict, GiveUp):
            return
