# SPDX-License-Identifier: BSD-3-Clause
"""When a raw counts as complete."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.node.arrivals import pending as module
from ppdaemon.node.arrivals.pending import (
    Abandon,
    CompletenessCheck,
    Decision,
    Deliver,
    FileState,
    PendingRaw,
    PendingState,
    Recheck,
)
from ppdaemon.node.arrivals.roots import RawPath, Sighting
from ppdaemon.raws.path import Kind, RawName

HERE = RawPath("/raw", "/raw/x.fits")
MARKED = RawPath("/raw", "/raw/x.fits", "/raw/x.fits.done")
MISSING = FileState(None, problem="no such file")


def whole(size: int = 5760, *, placed: bool = False) -> FileState:
    return FileState(HERE, 1, size, 1000, 1001 if placed else 1000, whole=True)


def broken(size: int = 100) -> FileState:
    return FileState(HERE, 1, size, 1000 + size, 1000 + size, problem="the file ends within a header")


def stamps_of(file: FileState) -> FileState:
    return replace(file, read=file.file is None, whole=False, problem="")


def seen(check: CompletenessCheck, file: FileState, now: float, **facts: bool) -> Decision:
    """Look at a file as it is; its structure only if that is asked for."""
    decision = check.judge(stamps_of(file), now, **facts)
    if isinstance(decision, Recheck) and decision.structure:
        decision = check.judge(file, now, **facts | {"reported": False})
    return decision


def structures(
    check: CompletenessCheck, files: list[FileState], *, confirmed: bool = False, step_s: float = 0.1
) -> int:
    """Count how often the structure is asked for, one file after the other."""
    count = 0
    for number, file in enumerate(files):
        decision = check.judge(stamps_of(file), number * step_s, confirmed=confirmed)
        if isinstance(decision, Recheck) and decision.structure:
            count += 1
            check.judge(file, number * step_s, confirmed=confirmed)
    return count


def test_a_whole_file_that_was_closed_is_taken_at_once():
    assert seen(CompletenessCheck(10.0), whole(), 10.0, confirmed=True) == Deliver(HERE, whole=True)


def test_fault_20_a_whole_file_that_was_renamed_into_place_is_taken_at_once():
    assert seen(CompletenessCheck(10.0), whole(placed=True), 10.0) == Deliver(HERE, whole=True)


def test_a_whole_file_that_nobody_confirmed_must_be_quiet_first():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, whole(), 10.0), Recheck)
    assert isinstance(seen(check, whole(), 10.4), Recheck)
    assert isinstance(seen(check, whole(), 10.49), Recheck)
    assert seen(check, whole(), 10.5) == Deliver(HERE, whole=True)


def test_what_was_quiet_before_it_was_sighted_is_taken_at_once_where_the_stamps_tell():
    check = CompletenessCheck(10.0)
    assert check.judge(stamps_of(whole()), 10.0, age_s=0.5) == Recheck(0.0, structure=True)
    assert check.judge(whole(), 10.0, age_s=0.5) == Deliver(HERE, whole=True)
    check = CompletenessCheck(10.0)
    assert check.judge(stamps_of(whole()), 10.0, age_s=0.1) == Recheck(module.FIRST_PAUSE_S)


def test_a_file_that_is_written_to_between_stamps_and_structure_is_not_taken():
    check = CompletenessCheck(10.0)
    decision = check.judge(stamps_of(whole(placed=True)), 10.0, confirmed=True)
    assert decision == Recheck(0.0, structure=True)
    assert isinstance(check.judge(whole(8640), 10.0, confirmed=True), Recheck)
    # And what is no longer confirmed must be quiet.
    assert isinstance(seen(check, whole(8640), 10.4, confirmed=True), Recheck)
    assert seen(check, whole(8640), 10.5, confirmed=True) == Deliver(HERE, whole=True)


def test_fault_19_a_whole_file_that_was_seen_to_appear_waits_to_be_closed():
    check, stamps = CompletenessCheck(10.0), stamps_of(whole())
    for now in (10.0, 10.6, 15.0, 19.9):
        decision = check.judge(stamps, now, begun=True)
        assert isinstance(decision, Recheck)
        assert not decision.structure  # and costs nothing meanwhile
    assert seen(check, whole(), 19.95, confirmed=True, reported=True, begun=True) == Deliver(HERE, whole=True)


def test_a_whole_file_that_is_never_closed_is_taken_all_the_same():
    check = CompletenessCheck(10.0)
    for now in (10.0, 19.9):
        assert isinstance(check.judge(stamps_of(whole()), now, begun=True), Recheck)
    assert seen(check, whole(), 20.0, begun=True) == Deliver(HERE, whole=True)


def test_fault_19_growing_starts_the_quiet_time_anew():
    check = CompletenessCheck(10.0)
    for step in range(20):
        assert isinstance(seen(check, whole(2880 * step), 10.0 + 0.4 * step), Recheck)


def test_fault_19_a_file_that_is_closed_twice_is_taken_when_it_is_whole():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, broken(), 10.0, confirmed=True), Recheck)
    for step in range(1, 9):
        assert isinstance(seen(check, broken(100 * step), 10.0 + step, confirmed=True), Recheck)
    assert seen(check, whole(), 20.0, confirmed=True, reported=True) == Deliver(HERE, whole=True)


def test_fault_19_a_file_that_is_opened_again_is_not_taken_between_two_of_its_parts():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, broken(2880), 10.0, confirmed=True, reported=True), Recheck)
    for part in range(1, 9):
        # Up to here it is whole, and the next part takes a while.
        for pause_s in (0.0, 0.02, 0.2, 0.4):
            so_far = whole(2880 * part)
            assert isinstance(seen(check, so_far, 10.0 + part + pause_s, confirmed=True), Recheck)
    all_of_it = whole(2880 * 9)
    assert isinstance(seen(check, all_of_it, 20.0, confirmed=True), Recheck)
    assert seen(check, all_of_it, 20.01, confirmed=True, reported=True) == Deliver(HERE, whole=True)


def test_fault_18_a_broken_file_that_was_closed_is_taken_after_its_quiet_time():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, broken(), 10.0, confirmed=True), Recheck)
    assert isinstance(seen(check, broken(), 11.9, confirmed=True), Recheck)
    assert seen(check, broken(), 12.0, confirmed=True) == Deliver(HERE, whole=False)


def test_a_broken_file_that_nobody_confirmed_gets_more_time():
    check = CompletenessCheck(10.0)
    for now in (10.0, 12.1, 19.9):
        assert isinstance(seen(check, broken(), now), Recheck)
    assert seen(check, broken(), 20.0) == Deliver(HERE, whole=False)


def test_a_file_that_became_whole_under_the_same_stamps_is_taken_as_whole():
    check = CompletenessCheck(10.0)
    for now in (10.0, 11.0, 11.9):
        assert isinstance(seen(check, broken(5760), now, confirmed=True), Recheck)
    mended = replace(broken(5760), whole=True, problem="")
    assert seen(check, mended, 12.0, confirmed=True) == Deliver(HERE, whole=True)


def test_while_a_file_grows_its_structure_is_not_read():
    growing = [broken(2880 * step) for step in range(1, 100)]
    assert structures(CompletenessCheck(0.0), growing) == 0
    assert structures(CompletenessCheck(0.0), growing, confirmed=True) == 1


def test_the_structure_of_a_file_that_stays_the_same_is_looked_at_once_in_a_quiet_time():
    assert structures(CompletenessCheck(0.0), [broken()] * 19, confirmed=True) == 1
    assert structures(CompletenessCheck(0.0), [broken()] * 21, confirmed=True) == 2


def test_a_missing_file_is_given_up_after_a_while():
    check = CompletenessCheck(10.0)
    assert isinstance(check.judge(MISSING, 10.0, confirmed=True), Recheck)
    decision = check.judge(MISSING, 20.0, confirmed=True)
    assert isinstance(decision, Abandon)
    assert decision.kind == "vanished"


def test_a_file_that_never_stops_growing_is_given_up():
    check = CompletenessCheck(0.0)
    now, size, decision = 0.0, 0, Recheck(0.0)
    while isinstance(decision, Recheck):
        now, size = now + 1.0, size + 1
        decision = seen(check, broken(size), now)
    assert isinstance(decision, Abandon)
    assert decision.kind == "never_complete"
    assert now == pytest.approx(module.LIMIT_S)


def test_nothing_but_the_marker_confirms_where_there_is_to_be_one():
    check = CompletenessCheck(0.0)
    unmarked = FileState(MARKED, 1, 5760, 1000, 1001, marked=False, whole=True)
    for step in range(100):
        assert isinstance(seen(check, unmarked, 0.2 * step, confirmed=True, reported=True), Recheck)
    assert seen(check, replace(unmarked, marked=True), 21.0) == Deliver(MARKED, whole=True)


def test_a_file_whose_marker_never_comes_is_given_up():
    check = CompletenessCheck(0.0)
    unmarked = FileState(MARKED, 1, 5760, 1000, 1000, marked=False, whole=True)
    assert isinstance(seen(check, unmarked, module.LIMIT_S - 1.0), Recheck)
    decision = seen(check, unmarked, module.LIMIT_S)
    assert isinstance(decision, Abandon)
    assert decision.kind == "never_marked"


def test_a_marked_file_that_is_broken_is_taken_after_its_quiet_time():
    check = CompletenessCheck(0.0)
    marked = FileState(MARKED, 1, 100, 1000, 1000, problem="cut")
    for now in (0.0, 1.9):
        assert isinstance(seen(check, marked, now), Recheck)
    assert seen(check, marked, 2.0) == Deliver(MARKED, whole=False)


def test_pauses_grow_and_never_pass_the_time_of_decision():
    check = CompletenessCheck(0.0)
    now, pauses, decision = 0.0, [], seen(check, broken(), 0.0, confirmed=True)
    while isinstance(decision, Recheck):
        pauses.append(decision.pause_s)
        now += decision.pause_s
        decision = seen(check, broken(), now, confirmed=True)
    assert now == pytest.approx(module.QUIET_BROKEN_S)
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) <= module.LONGEST_PAUSE_S


looks = st.sampled_from([MISSING, whole(), whole(8640), whole(placed=True), broken(), broken(2000)])


@given(st.lists(st.tuples(looks, st.booleans(), st.booleans(), st.floats(0.001, 30.0)), max_size=60))
def test_whatever_is_seen_every_file_has_an_end(story):
    check, now = CompletenessCheck(0.0), 0.0
    for look, confirmed, reported, step in story:
        now += step
        decision = seen(check, look, now, confirmed=confirmed, reported=reported)
        if isinstance(decision, Recheck):
            assert 0.0 < decision.pause_s <= module.LONGEST_PAUSE_S
            assert now < module.LIMIT_S
        if isinstance(decision, Deliver):
            assert decision.whole is look.whole
            return
        if isinstance(decision, Abandon):
            return


# --- one raw, whichever sources sight it ---

NAME = RawName(Kind.IMAGE, "LSSTCam", 2025112100156, 20251121, 94)
ELSEWHERE = RawPath("/other", "/other/x.fits")


def sighting(file: RawPath = HERE, *, confirmed: bool = False, begun: bool = False) -> Sighting:
    return Sighting("inotify /raw", NAME, file, confirmed, begun)


def looked_at(pending: PendingRaw, file: FileState, now: float) -> Decision:
    """Take the next look at a raw, whose file is as it is."""
    if pending.state is PendingState.PAUSED:
        pending.look_again()
    _, structure = pending.order()
    decision = pending.judge(file if structure else stamps_of(file), now, 0.0)
    if isinstance(decision, Recheck) and decision.structure:
        return looked_at(pending, file, now)
    return decision


def test_a_slow_writer_s_file_is_not_delivered_before_it_is_closed():
    pending = PendingRaw.of(sighting(begun=True), 0.0, 0.0)
    for step in range(200):
        assert isinstance(looked_at(pending, whole(2880 * step), 0.15 * step), Recheck)
    assert pending.sighted_again(sighting(confirmed=True), 30.0)
    assert looked_at(pending, whole(2880 * 200), 30.0) == Deliver(HERE, whole=True)


def test_a_writer_that_stalls_between_two_parts_is_waited_for():
    """What it has written is a whole FITS file."""
    pending = PendingRaw.of(sighting(begun=True), 0.0, 0.0)
    for now in (0.0, 0.5, 1.0, 5.0, 9.9):
        assert isinstance(looked_at(pending, whole(), now), Recheck)
    pending.sighted_again(sighting(confirmed=True), 9.95)
    assert looked_at(pending, whole(8640), 9.95) == Deliver(HERE, whole=True)


def test_a_file_opened_twice_is_not_delivered_with_its_header_alone():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    for now in (0.0, 0.2, 1.9):
        assert isinstance(looked_at(pending, broken(2880), now), Recheck)
    # The second part is being written, and is whole up to here.
    assert isinstance(looked_at(pending, whole(5760), 1.95), Recheck)
    assert isinstance(looked_at(pending, whole(5760), 2.2), Recheck)
    pending.sighted_again(sighting(confirmed=True), 2.3)
    assert looked_at(pending, whole(8640), 2.3) == Deliver(HERE, whole=True)


def test_a_file_reported_as_finished_is_read_at_the_first_look():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    assert pending.order() == ((HERE,), True)
    assert pending.judge(whole(), 0.0, 0.0) == Deliver(HERE, whole=True)
    assert pending.state is PendingState.COMPLETE


def test_a_file_of_which_nothing_is_known_is_not_read_at_the_first_look():
    assert PendingRaw.of(sighting(), 0.0, 0.0).order() == ((HERE,), False)


def test_a_report_during_a_look_has_the_next_one_taken_at_once():
    pending = PendingRaw.of(sighting(), 0.0, 0.0)
    pending.order()
    assert not pending.sighted_again(sighting(confirmed=True), 1.0)
    assert pending.judge(stamps_of(broken()), 1.0, 0.0) == Recheck(0.0)
    pending.look_again()
    assert pending.order() == ((HERE,), True)


def test_a_report_between_looks_has_one_taken_at_once_and_a_sighting_does_not():
    pending = PendingRaw.of(sighting(), 0.0, 0.0)
    assert isinstance(looked_at(pending, broken(), 0.0), Recheck)
    assert not pending.sighted_again(sighting(), 1.0)
    assert pending.sighted_again(sighting(confirmed=True), 1.0)


def test_when_events_were_lost_nobody_waits_for_a_file_to_be_closed():
    pending = PendingRaw.of(sighting(begun=True), 0.0, 0.0)
    assert isinstance(looked_at(pending, whole(), 0.0), Recheck)
    pending.expect_no_end()
    assert looked_at(pending, whole(), 0.5) == Deliver(HERE, whole=True)


def test_a_raw_that_comes_back_while_it_is_abandoned_begins_again():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    assert isinstance(looked_at(pending, MISSING, 0.0), Recheck)
    pending.look_again()
    pending.order()
    pending.sighted_again(sighting(confirmed=True), 10.0)
    assert isinstance(pending.judge(MISSING, 10.0, 0.0), Abandon)
    assert not pending.conclude(delivered=False, mono=10.0)
    assert looked_at(pending, whole(), 10.0) == Deliver(HERE, whole=True)
    assert pending.conclude(delivered=True, mono=10.0)


def test_a_raw_whose_filesystem_does_not_answer_is_looked_for_at_its_other_path():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    pending.sighted_again(sighting(ELSEWHERE, confirmed=True), 0.0)
    assert pending.order() == ((HERE, ELSEWHERE), True)
    pending.not_answered()
    pending.look_again()
    assert pending.order() == ((ELSEWHERE, HERE), True)


def test_the_paths_of_one_raw_are_bounded():
    pending = PendingRaw.of(sighting(), 0.0, 0.0)
    for number in range(100):
        pending.sighted_again(sighting(RawPath("/raw", f"/raw/{number}.fits")), 0.0)
    assert len(pending.files) == module.MOST_FILES


def test_the_lag_is_from_the_last_change_to_the_report_of_it():
    pending = PendingRaw.of(sighting(begun=True), 0.0, 1000.0)
    pending.sighted_again(sighting(confirmed=True), 1002.5)
    pending.order()
    pending.judge(FileState(HERE, 1, 5760, 1_002_000_000_000, 1_002_000_000_000, whole=True), 3.0, 0.0)
    assert (pending.changed_unix, pending.lag_s) == (1002.0, 0.5)
