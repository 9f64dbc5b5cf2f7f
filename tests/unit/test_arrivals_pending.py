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
from ppdaemon.raws.path import RawFileKind, RawName

HERE = RawPath("/raw", "/raw/x.fits")
MARKED = RawPath("/raw", "/raw/x.fits", "/raw/x.fits.done")
MISSING = FileState(None, problem="no such file")


def intact(size: int = 5760, *, changed_since: bool = False) -> FileState:
    return FileState(HERE, 1, size, 1000, 1001 if changed_since else 1000, intact=True)


def broken(size: int = 100) -> FileState:
    return FileState(HERE, 1, size, 1000 + size, 1000 + size, problem="the file ends within a header")


def stamps_of(file: FileState) -> FileState:
    return replace(file, read=file.file is None, intact=False, problem="")


def seen(check: CompletenessCheck, file: FileState, now: float, **facts: bool) -> Decision:
    """Return the state of a file; its structure only if requested."""
    decision = check.evaluate(stamps_of(file), now, **facts)
    if isinstance(decision, Recheck) and decision.structure:
        decision = check.evaluate(file, now, **facts | {"reported": False})
    return decision


def structures(
    check: CompletenessCheck, files: list[FileState], *, confirmed: bool = False, step_s: float = 0.1
) -> int:
    """Count how often the structure is asked for, one file after the other."""
    count = 0
    for number, file in enumerate(files):
        decision = check.evaluate(stamps_of(file), number * step_s, confirmed=confirmed)
        if isinstance(decision, Recheck) and decision.structure:
            count += 1
            check.evaluate(file, number * step_s, confirmed=confirmed)
    return count


def test_an_intact_file_that_was_closed_is_taken_at_once():
    assert seen(CompletenessCheck(10.0), intact(), 10.0, confirmed=True) == Deliver(HERE, intact=True)


def test_fault_20_an_intact_file_that_was_renamed_into_place_is_taken_at_once():
    assert seen(CompletenessCheck(10.0), intact(changed_since=True), 10.0) == Deliver(HERE, intact=True)


def test_an_intact_file_that_nobody_writes_is_taken_at_once():
    state = replace(intact(), written=False)
    assert CompletenessCheck(10.0).evaluate(state, 10.0, close_expected=True) == Deliver(HERE, intact=True)


def test_what_changed_after_the_last_write_is_no_proof_while_the_file_is_open_for_writing():
    check, state = CompletenessCheck(10.0), replace(intact(changed_since=True), written=True)
    assert isinstance(seen(check, state, 10.0), Recheck)
    assert isinstance(seen(check, state, 10.4), Recheck)
    assert seen(check, replace(state, written=False), 10.41) == Deliver(HERE, intact=True)


def test_an_unusual_file_is_taken_at_once_if_it_was_closed_and_must_be_quiet_longer_otherwise():
    unusual = replace(intact(), unusual=True)
    taken = Deliver(HERE, intact=True)
    assert seen(CompletenessCheck(10.0), unusual, 10.0, confirmed=True) == taken
    check = CompletenessCheck(10.0)
    seen(check, unusual, 10.0)
    assert isinstance(seen(check, unusual, 11.9), Recheck)
    assert seen(check, unusual, 12.1) == taken


def test_an_intact_file_without_confirmation_must_be_quiet_first():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, intact(), 10.0), Recheck)
    assert isinstance(seen(check, intact(), 10.4), Recheck)
    assert isinstance(seen(check, intact(), 10.49), Recheck)
    assert seen(check, intact(), 10.5) == Deliver(HERE, intact=True)


def test_what_was_quiet_before_it_was_sighted_is_taken_at_once_where_the_stamps_show_it():
    check = CompletenessCheck(10.0)
    assert check.evaluate(stamps_of(intact()), 10.0, age_s=0.5) == Recheck(0.0, structure=True)
    assert check.evaluate(intact(), 10.0, age_s=0.5) == Deliver(HERE, intact=True)
    check = CompletenessCheck(10.0)
    assert check.evaluate(stamps_of(intact()), 10.0, age_s=0.1) == Recheck(module.FIRST_PAUSE_S)


def test_a_file_that_is_written_to_between_stamps_and_structure_is_not_taken():
    check = CompletenessCheck(10.0)
    decision = check.evaluate(stamps_of(intact(changed_since=True)), 10.0, confirmed=True)
    assert decision == Recheck(0.0, structure=True)
    assert isinstance(check.evaluate(intact(8640), 10.0, confirmed=True), Recheck)
    # And what is no longer confirmed must be quiet.
    assert isinstance(seen(check, intact(8640), 10.4, confirmed=True), Recheck)
    assert seen(check, intact(8640), 10.5, confirmed=True) == Deliver(HERE, intact=True)


def test_fault_19_an_intact_file_that_was_created_while_watched_waits_to_be_closed():
    check, stamps = CompletenessCheck(10.0), stamps_of(intact())
    for now in (10.0, 10.6, 15.0, 19.9):
        decision = check.evaluate(stamps, now, close_expected=True)
        assert isinstance(decision, Recheck)
        assert not decision.structure  # and costs nothing meanwhile
    assert seen(check, intact(), 19.95, confirmed=True, reported=True, close_expected=True) == Deliver(
        HERE, intact=True
    )


def test_an_intact_file_that_is_never_closed_is_taken_all_the_same():
    check = CompletenessCheck(10.0)
    for now in (10.0, 19.9):
        assert isinstance(check.evaluate(stamps_of(intact()), now, close_expected=True), Recheck)
    assert seen(check, intact(), 20.0, close_expected=True) == Deliver(HERE, intact=True)


def test_fault_19_growing_starts_the_quiet_time_anew():
    check = CompletenessCheck(10.0)
    for step in range(20):
        assert isinstance(seen(check, intact(2880 * step), 10.0 + 0.4 * step), Recheck)


def test_fault_19_a_file_that_is_closed_twice_is_taken_when_it_is_intact():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, broken(), 10.0, confirmed=True), Recheck)
    for step in range(1, 9):
        assert isinstance(seen(check, broken(100 * step), 10.0 + step, confirmed=True), Recheck)
    assert seen(check, intact(), 20.0, confirmed=True, reported=True) == Deliver(HERE, intact=True)


def test_fault_19_a_file_that_is_opened_again_is_not_taken_between_two_of_its_parts():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, broken(2880), 10.0, confirmed=True, reported=True), Recheck)
    for part in range(1, 9):
        # Up to here it is intact, and the next part takes a while.
        for pause_s in (0.0, 0.02, 0.2, 0.4):
            so_far = intact(2880 * part)
            assert isinstance(seen(check, so_far, 10.0 + part + pause_s, confirmed=True), Recheck)
    all_of_it = intact(2880 * 9)
    assert isinstance(seen(check, all_of_it, 20.0, confirmed=True), Recheck)
    assert seen(check, all_of_it, 20.01, confirmed=True, reported=True) == Deliver(HERE, intact=True)


def test_fault_18_a_broken_file_that_was_closed_is_taken_after_its_quiet_time():
    check = CompletenessCheck(10.0)
    assert isinstance(seen(check, broken(), 10.0, confirmed=True), Recheck)
    assert isinstance(seen(check, broken(), 11.9, confirmed=True), Recheck)
    assert seen(check, broken(), 12.0, confirmed=True) == Deliver(HERE, intact=False)


def test_a_broken_file_without_confirmation_gets_more_time():
    check = CompletenessCheck(10.0)
    for now in (10.0, 12.1, 19.9):
        assert isinstance(seen(check, broken(), now), Recheck)
    assert seen(check, broken(), 20.0) == Deliver(HERE, intact=False)


def test_a_file_that_became_intact_under_the_same_stamps_is_taken_as_intact():
    check = CompletenessCheck(10.0)
    for now in (10.0, 11.0, 11.9):
        assert isinstance(seen(check, broken(5760), now, confirmed=True), Recheck)
    mended = replace(broken(5760), intact=True, problem="")
    assert seen(check, mended, 12.0, confirmed=True) == Deliver(HERE, intact=True)


def test_while_a_file_grows_its_structure_is_not_read():
    growing = [broken(2880 * step) for step in range(1, 100)]
    assert structures(CompletenessCheck(0.0), growing) == 0
    assert structures(CompletenessCheck(0.0), growing, confirmed=True) == 1


def test_the_structure_of_a_file_that_stays_the_same_is_read_once_in_a_quiet_time():
    assert structures(CompletenessCheck(0.0), [broken()] * 19, confirmed=True) == 1
    assert structures(CompletenessCheck(0.0), [broken()] * 21, confirmed=True) == 2


def test_a_missing_file_is_abandoned_after_a_while():
    check = CompletenessCheck(10.0)
    assert isinstance(check.evaluate(MISSING, 10.0, confirmed=True), Recheck)
    decision = check.evaluate(MISSING, 20.0, confirmed=True)
    assert isinstance(decision, Abandon)
    assert decision.kind == "vanished"


def test_a_file_that_never_stops_growing_is_abandoned():
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
    raw_of_marker = FileState(MARKED, 1, 5760, 1000, 1001, marked=False, intact=True)
    for step in range(100):
        assert isinstance(seen(check, raw_of_marker, 0.2 * step, confirmed=True, reported=True), Recheck)
    assert seen(check, replace(raw_of_marker, marked=True), 21.0) == Deliver(MARKED, intact=True)


def test_a_file_whose_marker_never_comes_is_abandoned():
    check = CompletenessCheck(0.0)
    raw_of_marker = FileState(MARKED, 1, 5760, 1000, 1000, marked=False, intact=True)
    assert isinstance(seen(check, raw_of_marker, module.LIMIT_S - 1.0), Recheck)
    decision = seen(check, raw_of_marker, module.LIMIT_S)
    assert isinstance(decision, Abandon)
    assert decision.kind == "never_marked"


def test_a_marked_file_that_is_broken_is_taken_after_its_quiet_time():
    check = CompletenessCheck(0.0)
    marked = FileState(MARKED, 1, 100, 1000, 1000, problem="cut")
    for now in (0.0, 1.9):
        assert isinstance(seen(check, marked, now), Recheck)
    assert seen(check, marked, 2.0) == Deliver(MARKED, intact=False)


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


checks = st.sampled_from(
    [MISSING, intact(), intact(8640), intact(changed_since=True), broken(), broken(2000)]
)


@given(st.lists(st.tuples(checks, st.booleans(), st.booleans(), st.floats(0.001, 30.0)), max_size=60))
def test_whatever_is_seen_every_file_has_an_end(story):
    check, now = CompletenessCheck(0.0), 0.0
    for state, confirmed, reported, step in story:
        now += step
        decision = seen(check, state, now, confirmed=confirmed, reported=reported)
        if isinstance(decision, Recheck):
            assert 0.0 < decision.pause_s <= module.LONGEST_PAUSE_S
            assert now < module.LIMIT_S
        if isinstance(decision, Deliver):
            assert decision.intact is state.intact
            return
        if isinstance(decision, Abandon):
            return


# --- one raw, whichever sources sight it ---

NAME = RawName(RawFileKind.IMAGE, "LSSTCam", 2025112100156, 20251121, 94)
ELSEWHERE = RawPath("/other", "/other/x.fits")


def sighting(file: RawPath = HERE, *, confirmed: bool = False, close_expected: bool = False) -> Sighting:
    return Sighting("inotify /raw", NAME, file, confirmed, close_expected)


def checked(pending: PendingRaw, file: FileState, now: float) -> Decision:
    """Check a pending raw with a given state of its file."""
    if pending.state is PendingState.PAUSED:
        pending.recheck()
    _, structure, _ = pending.start_check()
    decision = pending.evaluate(file if structure else stamps_of(file), now, 0.0)
    if isinstance(decision, Recheck) and decision.structure:
        return checked(pending, file, now)
    return decision


def test_a_slow_writer_s_file_is_not_delivered_before_it_is_closed():
    pending = PendingRaw.of(sighting(close_expected=True), 0.0, 0.0)
    for step in range(200):
        assert isinstance(checked(pending, intact(2880 * step), 0.15 * step), Recheck)
    assert pending.add_sighting(sighting(confirmed=True), 30.0)
    assert checked(pending, intact(2880 * 200), 30.0) == Deliver(HERE, intact=True)


def test_a_writer_that_stalls_between_two_parts_is_waited_for():
    """The part that is written is an intact FITS file."""
    pending = PendingRaw.of(sighting(close_expected=True), 0.0, 0.0)
    for now in (0.0, 0.5, 1.0, 5.0, 9.9):
        assert isinstance(checked(pending, intact(), now), Recheck)
    pending.add_sighting(sighting(confirmed=True), 9.95)
    assert checked(pending, intact(8640), 9.95) == Deliver(HERE, intact=True)


def test_a_file_opened_twice_is_not_delivered_with_its_header_alone():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    for now in (0.0, 0.2, 1.9):
        assert isinstance(checked(pending, broken(2880), now), Recheck)
    # The second part is being written, and is intact up to here.
    assert isinstance(checked(pending, intact(5760), 1.95), Recheck)
    assert isinstance(checked(pending, intact(5760), 2.2), Recheck)
    pending.add_sighting(sighting(confirmed=True), 2.3)
    assert checked(pending, intact(8640), 2.3) == Deliver(HERE, intact=True)


def test_a_file_reported_as_finished_is_read_at_the_first_check():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    assert pending.start_check() == ((HERE,), True, False)
    assert pending.evaluate(intact(), 0.0, 0.0) == Deliver(HERE, intact=True)
    assert pending.state is PendingState.COMPLETE


def test_a_file_of_which_nothing_is_known_is_not_read_at_the_first_check():
    assert PendingRaw.of(sighting(), 0.0, 0.0).start_check() == ((HERE,), False, True)


def test_a_report_during_a_check_has_the_next_one_taken_at_once():
    pending = PendingRaw.of(sighting(), 0.0, 0.0)
    pending.start_check()
    assert not pending.add_sighting(sighting(confirmed=True), 1.0)
    assert pending.evaluate(stamps_of(broken()), 1.0, 0.0) == Recheck(0.0)
    pending.recheck()
    assert pending.start_check() == ((HERE,), True, False)


def test_a_report_between_checks_has_one_taken_at_once_and_a_sighting_does_not():
    pending = PendingRaw.of(sighting(), 0.0, 0.0)
    assert isinstance(checked(pending, broken(), 0.0), Recheck)
    assert not pending.add_sighting(sighting(), 1.0)
    assert pending.add_sighting(sighting(confirmed=True), 1.0)


def test_when_events_were_lost_no_close_event_is_awaited():
    pending = PendingRaw.of(sighting(close_expected=True), 0.0, 0.0)
    assert isinstance(checked(pending, intact(), 0.0), Recheck)
    pending.expect_no_close()
    assert checked(pending, intact(), 0.5) == Deliver(HERE, intact=True)


def test_a_raw_that_comes_back_while_it_is_abandoned_begins_again():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    assert isinstance(checked(pending, MISSING, 0.0), Recheck)
    pending.recheck()
    pending.start_check()
    pending.add_sighting(sighting(confirmed=True), 10.0)
    assert isinstance(pending.evaluate(MISSING, 10.0, 0.0), Abandon)
    assert not pending.conclude(delivered=False, mono=10.0)
    assert checked(pending, intact(), 10.0) == Deliver(HERE, intact=True)
    assert pending.conclude(delivered=True, mono=10.0)


def test_a_raw_whose_filesystem_hangs_is_checked_at_its_other_path():
    pending = PendingRaw.of(sighting(confirmed=True), 0.0, 0.0)
    pending.add_sighting(sighting(ELSEWHERE, confirmed=True), 0.0)
    assert pending.start_check() == ((HERE, ELSEWHERE), True, False)
    pending.timed_out()
    pending.recheck()
    assert pending.start_check() == ((ELSEWHERE, HERE), True, False)


def test_the_paths_of_one_raw_are_bounded():
    pending = PendingRaw.of(sighting(), 0.0, 0.0)
    for number in range(100):
        pending.add_sighting(sighting(RawPath("/raw", f"/raw/{number}.fits")), 0.0)
    assert len(pending.files) == module.MAX_FILES


def test_the_lag_is_from_the_last_change_to_the_report_of_it():
    pending = PendingRaw.of(sighting(close_expected=True), 0.0, 1000.0)
    pending.add_sighting(sighting(confirmed=True), 1002.5)
    pending.start_check()
    pending.evaluate(FileState(HERE, 1, 5760, 1_002_000_000_000, 1_002_000_000_000, intact=True), 3.0, 0.0)
    assert (pending.changed_unix, pending.latency_s) == (1002.0, 0.5)
