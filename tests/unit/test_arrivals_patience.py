# SPDX-License-Identifier: BSD-3-Clause
"""When a raw counts as complete."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.node.arrivals import patience as module
from ppdaemon.node.arrivals.patience import GiveUp, Look, LookAgain, Patience, Take, Verdict
from ppdaemon.node.arrivals.roots import RawPath

HERE = RawPath("/raw", "/raw/x.fits")
MARKED = RawPath("/raw", "/raw/x.fits", "/raw/x.fits.done")
MISSING = Look(None, problem="no such file")


def whole(size: int = 5760, *, placed: bool = False) -> Look:
    return Look(HERE, 1, size, 1000, 1001 if placed else 1000, whole=True)


def broken(size: int = 100) -> Look:
    return Look(HERE, 1, size, 1000 + size, 1000 + size, problem="the file ends within a header")


def seen(
    patience: Patience, file: Look, now: float, *, confirmed: bool = False, news: bool = False
) -> Verdict:
    """Look at a file as it is; its structure only if that is asked for."""
    stamps = replace(file, read=False, whole=False, problem="")
    look = patience.recall(stamps, confirmed, news)
    return patience.judge(file if look is None else look, confirmed, now)


def structures(patience: Patience, files: list[Look], *, confirmed: bool = False, step_s: float = 0.1) -> int:
    """Count how often the structure is looked at, one file after the other."""
    count = 0
    for number, file in enumerate(files):
        stamps = replace(file, read=False, whole=False, problem="")
        look = patience.recall(stamps, confirmed, news=False)
        count += look is None
        patience.judge(file if look is None else look, confirmed, number * step_s)
    return count


def test_a_whole_file_that_was_closed_is_taken_at_once():
    assert seen(Patience(10.0), whole(), 10.0, confirmed=True) == Take(HERE, whole=True)


def test_fault_20_a_whole_file_that_was_renamed_into_place_is_taken_at_once():
    assert seen(Patience(10.0), whole(placed=True), 10.0) == Take(HERE, whole=True)


def test_a_whole_file_that_nobody_confirmed_must_be_quiet_first():
    patience = Patience(10.0)
    assert isinstance(seen(patience, whole(), 10.0), LookAgain)
    assert isinstance(seen(patience, whole(), 10.4), LookAgain)
    assert isinstance(seen(patience, whole(), 10.5), LookAgain)
    assert seen(patience, whole(), 10.52) == Take(HERE, whole=True)


def test_fault_19_a_whole_file_that_was_seen_to_appear_waits_to_be_closed():
    patience, stamps = Patience(10.0), replace(whole(), read=False, whole=False)
    for now in (10.0, 10.6, 15.0, 19.9):
        assert patience.recall(stamps, False, False) is not None  # and costs nothing meanwhile
        assert isinstance(patience.judge(stamps, False, now, begun=True), LookAgain)
    assert patience.recall(stamps, True, True) is None
    assert patience.judge(whole(), True, 19.95, begun=True) == Take(HERE, whole=True)


def test_a_whole_file_that_is_never_closed_is_taken_all_the_same():
    patience, stamps = Patience(10.0), replace(whole(), read=False, whole=False)
    for now in (10.0, 20.0):
        assert patience.recall(stamps, False, False) is not None
        assert isinstance(patience.judge(stamps, False, now, begun=True), LookAgain)
    assert patience.recall(stamps, False, False) is None
    assert patience.judge(whole(), False, 20.02, begun=True) == Take(HERE, whole=True)


def test_fault_19_growing_starts_the_quiet_time_anew():
    patience = Patience(10.0)
    for step in range(20):
        assert isinstance(seen(patience, whole(2880 * step), 10.0 + 0.4 * step), LookAgain)


def test_fault_19_a_file_that_is_closed_twice_is_taken_when_it_is_whole():
    patience = Patience(10.0)
    assert isinstance(seen(patience, broken(), 10.0, confirmed=True), LookAgain)
    for step in range(1, 9):
        assert isinstance(seen(patience, broken(100 * step), 10.0 + step, confirmed=True), LookAgain)
    assert seen(patience, whole(), 20.0, confirmed=True, news=True) == Take(HERE, whole=True)


def test_fault_19_a_file_that_is_opened_again_is_not_taken_between_two_of_its_parts():
    patience = Patience(10.0)
    assert isinstance(seen(patience, broken(2880), 10.0, confirmed=True, news=True), LookAgain)
    for part in range(1, 9):
        # Up to here it is whole, and the next part takes a while.
        for pause_s in (0.0, 0.02, 0.2, 0.4):
            so_far = whole(2880 * part)
            assert isinstance(seen(patience, so_far, 10.0 + part + pause_s, confirmed=True), LookAgain)
    all_of_it = whole(2880 * 9)
    assert isinstance(seen(patience, all_of_it, 20.0, confirmed=True), LookAgain)
    assert seen(patience, all_of_it, 20.01, confirmed=True, news=True) == Take(HERE, whole=True)


def test_fault_18_a_broken_file_that_was_closed_is_taken_after_its_quiet_time():
    patience = Patience(10.0)
    assert isinstance(seen(patience, broken(), 10.0, confirmed=True), LookAgain)
    assert isinstance(seen(patience, broken(), 11.9, confirmed=True), LookAgain)
    assert isinstance(seen(patience, broken(), 12.0, confirmed=True), LookAgain)
    assert seen(patience, broken(), 12.02, confirmed=True) == Take(HERE, whole=False)


def test_a_broken_file_that_nobody_confirmed_gets_more_time():
    patience = Patience(10.0)
    for now in (10.0, 12.1, 19.9, 20.0):
        assert isinstance(seen(patience, broken(), now), LookAgain)
    assert seen(patience, broken(), 20.02) == Take(HERE, whole=False)


def test_a_file_that_became_whole_under_the_same_stamps_is_taken_as_whole():
    patience = Patience(10.0)
    for now in (10.0, 11.0, 12.0):
        assert isinstance(seen(patience, broken(5760), now, confirmed=True), LookAgain)
    mended = replace(broken(5760), whole=True, problem="")
    assert seen(patience, mended, 12.02, confirmed=True) == Take(HERE, whole=True)


def test_while_a_file_grows_its_structure_is_not_looked_at():
    growing = [broken(2880 * step) for step in range(1, 100)]
    assert structures(Patience(0.0), growing) == 0
    assert structures(Patience(0.0), growing, confirmed=True) == 1


def test_the_structure_of_a_file_that_stays_the_same_is_looked_at_once_in_a_quiet_time():
    assert structures(Patience(0.0), [broken()] * 19, confirmed=True) == 1
    assert structures(Patience(0.0), [broken()] * 22, confirmed=True) == 2


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
        verdict = seen(patience, broken(size), now)
    assert isinstance(verdict, GiveUp)
    assert verdict.kind == "never_complete"
    assert now == pytest.approx(module.LIMIT_S)


def test_nothing_but_the_marker_confirms_where_there_is_to_be_one():
    patience = Patience(0.0)
    unmarked = Look(MARKED, 1, 5760, 1000, 1001, marked=False, whole=True)
    for step in range(100):
        assert isinstance(seen(patience, unmarked, 0.2 * step, confirmed=True, news=True), LookAgain)
    assert seen(patience, replace(unmarked, marked=True), 21.0) == Take(MARKED, whole=True)


def test_a_file_whose_marker_never_comes_is_given_up():
    patience = Patience(0.0)
    unmarked = Look(MARKED, 1, 5760, 1000, 1000, marked=False, whole=True)
    assert isinstance(seen(patience, unmarked, module.LIMIT_S - 1.0), LookAgain)
    verdict = seen(patience, unmarked, module.LIMIT_S)
    assert isinstance(verdict, GiveUp)
    assert verdict.kind == "never_marked"


def test_a_marked_file_that_is_broken_is_taken_after_its_quiet_time():
    patience = Patience(0.0)
    marked = Look(MARKED, 1, 100, 1000, 1000, problem="cut")
    for now in (0.0, 1.9, 2.0):
        assert isinstance(seen(patience, marked, now), LookAgain)
    assert seen(patience, marked, 2.02) == Take(MARKED, whole=False)


def test_pauses_grow_and_never_pass_the_time_of_decision():
    patience = Patience(0.0)
    now, pauses, verdict = 0.0, [], seen(patience, broken(), 0.0, confirmed=True)
    while isinstance(verdict, LookAgain):
        pauses.append(verdict.pause_s)
        now += verdict.pause_s
        verdict = seen(patience, broken(), now, confirmed=True)
    assert now == pytest.approx(module.QUIET_BROKEN_S + module.FIRST_PAUSE_S)
    assert pauses[:-2] == sorted(pauses[:-2])
    assert max(pauses) <= module.LONGEST_PAUSE_S


looks = st.sampled_from([MISSING, whole(), whole(8640), whole(placed=True), broken(), broken(2000)])


@given(st.lists(st.tuples(looks, st.booleans(), st.booleans(), st.floats(0.001, 30.0)), max_size=60))
def test_whatever_is_seen_every_file_has_an_end(story):
    patience, now = Patience(0.0), 0.0
    for look, confirmed, news, step in story:
        now += step
        if look is MISSING:
            verdict = patience.judge(look, confirmed, now)
        else:
            verdict = seen(patience, look, now, confirmed=confirmed, news=news)
        if isinstance(verdict, LookAgain):
            assert 0.0 < verdict.pause_s <= module.LONGEST_PAUSE_S
            assert now < module.LIMIT_S
        if isinstance(verdict, Take):
            assert verdict.whole is look.whole
            return
        if isinstance(verdict, GiveUp):
            return
