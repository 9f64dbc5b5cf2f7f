# SPDX-License-Identifier: BSD-3-Clause
"""Single decisions about visits; `test_visits_invariants` covers random sequences."""

import errno
import json
import logging
import os
from dataclasses import replace

import pytest
from journalkit import late_of
from visitworld import CAMERA, CHOSEN, World, a_raw

from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Exported, ImagesGivenUp, Pipelines, ResultsSeen, Welcome
from ppdaemon.node.arrivals.index import ExpectedSensors, Recent
from ppdaemon.node.arrivals.nottaken import FileNotTaken
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.slots.events import (
    CancelReceived,
    ExposureListed,
    NoteMeasurements,
    NoteStage,
    RawArrived,
    RescanDone,
    RescanRaws,
)
from ppdaemon.node.slots.scheduler import Drop
from ppdaemon.node.visits import delivery, recovery
from ppdaemon.node.visits.model import (
    Acknowledge,
    AssignmentRefused,
    Discard,
    Export,
    FlushRequested,
    LeaveIdle,
    Leftovers,
    LeftoversRead,
    Refuse,
    Reply,
    RequeueRequested,
    Rescan,
    RescanFinished,
    ResendResults,
    SendResults,
    SendToSlot,
    SlotsChanged,
    StopStarted,
    WriteDue,
)
from ppdaemon.node.visits.recovery import discard, read_leftovers, spools_left
from ppdaemon.node.visits.requeue import is_returned
from ppdaemon.reports import FALLBACK
from ppdaemon.retries import HANDED_BACK, QUARANTINED, WITHDRAWN
from ppdaemon.selection import PipelineChoice
from ppdaemon.states import Outcome, Stage

KEY = Key(CAMERA, "g", 0, 1)


@pytest.fixture
def world(config, tmp_path):
    world = World(config, tmp_path / "journal.sqlite")
    yield world
    world.journal.close()


def reported(world):
    return [(e.detector, e.attempt, e.outcome) for action in world.of(SendResults) for e in action.entries]


def accepted(world, detectors=(0,), **changes):
    world.reserve(detectors=detectors, **changes)
    world.commit_all()


def assigned(world, **changes):
    accepted(world, **changes)
    return world.assign()


# --- reservations --------------------------------------------------------------


def test_nothing_is_acknowledged_or_queued_before_the_journal_has_it(world):
    world.reserve()
    assert (world.done, world.queue) == ([], {})
    world.commit()
    assert [action.detectors for action in world.of(Acknowledge)] == [(0,)]
    assert list(world.queue) == [KEY]


def test_a_visit_that_the_journal_cannot_write_is_refused_and_may_be_sent_again(world):
    world.reserve()
    assert world.refuse()
    (refused,) = world.of(Refuse)
    assert (refused.reason, refused.final) == ("the disk is full", False)
    assert len(world.visits.open) == 0
    accepted(world)
    assert list(world.queue) == [KEY]


@pytest.mark.parametrize("relay_ahead_s", [-36_000.0, 0.0, 36_000.0])
def test_the_deadlines_of_a_visit_do_not_follow_the_wall_clock(world, relay_ahead_s):
    """Fault 55: a node's clock that differs from the relay's, or jumps, moves no deadline."""
    accepted(world, age_s=20.0, relay_ahead_s=relay_ahead_s)
    assignment = world.queue[KEY]
    announced = world.mono - 20.0
    wait_s = world.config.arrivals.image_deadline_s(assignment.visit)
    assert assignment.image_deadline == pytest.approx(announced + wait_s)
    assert assignment.expires_at == pytest.approx(announced + world.config.node.expiry_s)


def test_a_repeated_message_gets_an_acknowledgement_and_no_second_run(world):
    world.reserve()
    world.reserve()
    world.commit_all()
    assert len(world.of(Acknowledge)) == 2
    assert list(world.queue) == [KEY]
    assert len(world.rows()) == 1


def test_a_repeated_message_whose_first_write_failed_is_accepted(world):
    world.reserve()
    world.reserve()
    world.refuse()
    world.commit_all()
    assert list(world.queue) == [KEY]


def test_a_relay_that_sends_an_ended_visit_again_gets_the_outcome_again(world):
    assigned(world)
    world.finish()
    world.commit_all()
    world.handle(ResultsSeen(entries=((CAMERA, "g", 0, 1),), origin="relay", sent_tai=1.0, sequence=1))
    world.commit_all()
    assert world.journal.unreported(10) == []
    accepted(world, attempt=2)
    assert world.of(ResendResults)
    assert [(e.attempt, e.outcome) for e in world.journal.unreported(10)] == [(2, Outcome.SUCCEEDED)]


def test_an_attempt_that_the_relay_counts_higher_is_reported_by_that_number(world):
    assigned(world)
    accepted(world, attempt=3)
    world.finish()
    world.commit_all()
    assert reported(world) == [(0, 3, Outcome.SUCCEEDED)]


def test_a_visit_without_a_matching_rule_is_ignored_and_uses_no_slot(world):
    accepted(world, chosen=PipelineChoice(Pipelines(), "no rule matches"))
    assert world.queue == {}
    assert [(row.outcome, row.reason) for row in world.rows()] == [(Outcome.IGNORED, "no rule matches")]
    assert reported(world) == [(0, 1, Outcome.IGNORED)]


@pytest.mark.parametrize(
    ("detectors", "refused", "final"), [((99,), (99,), True), ((0, 99), (99,), True), ((0,), None, None)]
)
def test_detectors_that_are_not_served_are_refused_by_number(world, detectors, refused, final):
    accepted(world, detectors=detectors)
    answers = world.of(Refuse)
    assert [(a.detectors, a.final) for a in answers] == ([(refused, final)] if refused else [])
    assert len(world.queue) == (0 in detectors)


def test_a_node_that_accepts_no_visits_refuses_with_the_reason(world):
    world.visits.accepting = False
    world.reserve()
    assert [(a.reason, a.final) for a in world.of(Refuse)] == [("the node takes no visits now", False)]


# image_timeout_s 120, ingest_s 30, run_s 900, export_s 120
@pytest.mark.parametrize(
    ("duration", "age_s", "left_s", "taken"),
    [
        (0.0, 0.0, 1170.0, True),
        (0.0, 0.0, 1169.0, False),
        (15.0, 0.0, 1190.0, False),
        (15.0, 20.0, 1190.0, True),
    ],
)
def test_a_visit_whose_deadline_is_behind_the_end_of_the_host_is_for_other_nodes(
    world, duration, age_s, left_s, taken
):
    world.visits.ends_at = world.mono + left_s
    world.reserve(duration=duration, age_s=age_s)
    world.commit_all()
    assert len(world.queue) == taken
    reason = f"this host is given back in {left_s:.0f} s, before the visit's deadline"
    assert [(a.reason, a.final) for a in world.of(Refuse)] == ([] if taken else [(reason, False)])


def test_an_open_visit_is_acknowledged_again_although_its_host_ends_soon(world):
    accepted(world)
    world.visits.ends_at = world.mono
    world.reserve()
    world.commit_all()
    assert (len(world.of(Acknowledge)), world.of(Refuse)) == (2, [])


def test_a_group_whose_name_fits_no_file_is_refused_for_good(world):
    world.reserve(group=":" * 100)
    assert [(a.reason[:6], a.final) for a in world.of(Refuse)] == [("failed", True)]


# --- cancellations -------------------------------------------------------------


def test_a_cancellation_that_arrives_while_its_visit_is_committed_is_applied(world):
    world.reserve(detectors=(0, 1))
    world.cancel()
    world.commit_all()
    assert world.outcomes() == [Outcome.CANCELLED] * 2
    assert world.queue == {}


def test_a_canceled_visit_leaves_the_queue_after_the_commit(world):
    accepted(world)
    world.cancel()
    assert reported(world) == []
    world.commit_all()
    assert (world.queue, reported(world)) == ({}, [(0, 1, Outcome.CANCELLED)])


def test_a_cancellation_is_logged_once_for_all_detectors(world, caplog):
    caplog.set_level(logging.INFO)
    accepted(world, detectors=(0, 1))
    world.cancel()
    world.commit_all()
    assert len(reported(world)) == 2
    assert [record.message for record in caplog.records] == [
        f"{KEY.instrument} {KEY.group} with 2 detectors: canceled by the telescope"
    ]


def test_a_slot_matched_with_a_canceled_visit_stays_idle(world):
    accepted(world)
    world.cancel()  # decided, not committed
    world.assign(slot=5)
    assert world.slots == {}
    assert world.of(LeaveIdle) == [LeaveIdle(5)]


def test_only_withdrawn_detectors_are_canceled(world):
    accepted(world, detectors=(0, 1))
    world.cancel(detectors=(1,))
    world.commit_all()
    assert [(row.outcome, row.reason) for row in world.rows()] == [
        (None, ""),
        (Outcome.CANCELLED, WITHDRAWN),
    ]


def test_a_cancellation_goes_to_the_slot_that_has_the_visit(world):
    assigned(world)
    world.cancel()
    assert world.done[-1] == SendToSlot(0, KEY, CancelReceived())


@pytest.mark.parametrize(
    ("detectors", "exposures", "outcomes"),
    [
        (None, [], [Outcome.CANCELLED]),
        (None, [7], [Outcome.CRASHED, None]),  # it was taken all the same
        ((0,), [7], [Outcome.CANCELLED]),  # another node may have it
        ((1,), [], [Outcome.CRASHED, None]),
    ],
)
@pytest.mark.parametrize("read_first", [False, True])
def test_a_visit_canceled_while_its_worker_stops_is_not_retried(
    world, detectors, exposures, outcomes, read_first
):
    assigned(world)
    for exposure in exposures:
        world.handle(RawArrived(a_raw(exposure=exposure)))
    if read_first:  # the worker is dead, its leftovers are being read
        world.finish(outcome=Outcome.CRASHED, retriable=True, may_have_leftovers=True)
    world.cancel(detectors=detectors)
    if not read_first:
        world.finish(outcome=Outcome.CRASHED, retriable=True, may_have_leftovers=True)
    world.handle(LeftoversRead(KEY, Leftovers()))
    world.commit_all()
    assert world.outcomes() == outcomes


def test_a_cancellation_between_two_attempts_is_reported_after_both_are_committed(world):
    """A supervisor that dies in between must not queue it again in its next run."""
    assigned(world)
    world.finish(outcome=Outcome.CRASHED, retriable=True, may_have_leftovers=True)
    world.handle(LeftoversRead(KEY, Leftovers()))
    world.cancel()
    assert reported(world) == []
    world.commit()  # the first attempt's end and the second attempt
    assert (world.outcomes(), reported(world)) == ([Outcome.CRASHED, None], [])
    world.commit()
    assert world.outcomes() == [Outcome.CRASHED, Outcome.CANCELLED]
    assert reported(world) == [(0, 2, Outcome.CANCELLED)]
    assert world.journal.unfinished() == []


# --- raws ----------------------------------------------------------------------


def test_raws_that_arrive_before_the_announcement_are_sent_to_the_slot(world):
    world.handle(RawArrived(a_raw()))
    world.commit_all()
    assert world.count["raw_without_visit"] == 1
    assigned(world)
    assert [raw.exposure for raw in world.slots[0].raws] == [7]


def test_raws_that_arrive_before_the_announcement_count_as_seen_if_no_worker_became_free(world):
    world.handle(RawArrived(a_raw()))
    accepted(world)
    world.handle(Drop(world.queue.pop(KEY), "no worker became free in time"))
    world.commit_all()
    (entry,) = world.journal._db.execute("SELECT seen FROM attempt").fetchone()
    assert entry == "[7]"


def test_raws_that_arrive_while_the_visit_is_queued_are_recorded_and_sent_to_the_slot(world):
    accepted(world)
    world.handle(RawArrived(a_raw()))
    world.handle(WriteDue())
    world.commit_all()
    assert world.rows()[0].stages[Stage.ARRIVED] == 2e9
    world.assign()
    assert [raw.exposure for raw in world.slots[0].raws] == [7]


def test_a_raw_of_a_supplement_belongs_to_its_visit(world):
    assigned(world)
    world.handle(RawArrived(a_raw(group="g#2")))
    assert world.done[-1] == SendToSlot(0, KEY, RawArrived(a_raw(group="g#2")))


def test_a_raw_waits_for_no_commit(world):
    assigned(world)
    world.reserve(group="other")
    world.handle(RawArrived(a_raw()))
    assert world.uncommitted
    assert [raw.exposure for raw in world.slots[0].raws] == [7]


def test_a_raw_that_arrives_while_the_outcome_is_committed_is_late(world):
    assigned(world)
    world.finish()
    world.handle(RawArrived(a_raw()))
    world.commit_all()
    assert [(row.exposure, row.outcome) for row in late_of(world.journal, 9)] == [(7, Outcome.SUCCEEDED)]
    assert (world.count["late_raws"], world.count["raw_without_visit"]) == (1, 0)


def test_another_file_of_an_unusable_raw_is_late(world):
    assigned(world)
    cut = a_raw().model_copy(update={"file_id": (1, 1, 100, 1)})
    whole = cut.model_copy(update={"file_id": (1, 1, 5760, 2)})
    world.handle(RawArrived(cut))
    world.finish(outcome=Outcome.BAD_RAW)
    world.commit_all()
    world.handle(RawArrived(cut))
    world.commit_all()
    assert late_of(world.journal, 9) == [], "a rescan delivers the same file again"
    world.handle(RawArrived(whole))
    world.commit_all()
    assert [(row.exposure, row.outcome) for row in late_of(world.journal, 9)] == [(7, Outcome.BAD_RAW)]


def test_another_file_of_a_raw_that_was_used_is_not_late(world):
    assigned(world)
    world.handle(RawArrived(a_raw()))
    world.finish()
    world.commit_all()
    world.handle(RawArrived(a_raw().model_copy(update={"path": "/raw/x.fits.fz"})))
    world.commit_all()
    assert late_of(world.journal, 9) == []


def test_a_retry_uses_the_latest_file(world):
    assigned(world)
    world.handle(RawArrived(a_raw()))
    compressed = a_raw().model_copy(update={"path": "/raw/x.fits.fz"})
    world.handle(RawArrived(compressed))
    world.finish(outcome=Outcome.RAW_UNREADABLE, retriable=True)
    world.commit_all()
    world.assign()
    assert world.slots[0].raws == (compressed,)


def test_a_raw_that_arrives_while_the_pipeline_runs_is_late(world):
    assigned(world)
    world.handle(RawArrived(a_raw(exposure=7)))
    taken = world.slots[0]
    world.handle(RawArrived(a_raw(exposure=8)))
    world.slots[0] = taken  # a slot that processes takes no further raw
    world.finish()
    world.commit_all()
    assert [row.exposure for row in late_of(world.journal, 9)] == [8]


def test_a_raw_that_arrives_between_two_attempts_is_used_by_the_next_one(world):
    assigned(world)
    world.finish(outcome=Outcome.CRASHED, retriable=True)
    world.handle(RawArrived(a_raw()))
    world.commit_all()
    world.assign()
    assert [raw.exposure for raw in world.slots[0].raws] == [7]
    assert late_of(world.journal, 9) == []


def test_a_raw_that_arrives_while_its_reservation_fails_is_unmatched(world):
    world.reserve()
    world.handle(RawArrived(a_raw()))
    assert world.count["raw_without_visit"] == 0
    world.refuse()
    world.commit_all()
    assert world.count["raw_without_visit"] == 1


def test_of_raws_that_wait_for_their_lookup_the_oldest_are_dropped(config, tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "MAX_UNMATCHED", 3)
    world = World(config, tmp_path / "journal.sqlite")
    assigned(world)
    world.finish()
    for exposure in range(1, 7):
        world.handle(RawArrived(a_raw(exposure=exposure)))
    world.commit_all()
    # The first lookup is under way when the others begin to wait.
    assert [row.exposure for row in late_of(world.journal, 9)] == [6, 5, 4, 1]
    world.journal.close()


def test_a_list_of_sensors_goes_to_all_slots_of_its_visit_and_is_remembered(world):
    accepted(world, detectors=(0, 1))
    world.assign(slot=3)
    world.handle(ExpectedSensors(CAMERA, "g", 7, frozenset({0})))
    assert world.done[-1] == SendToSlot(3, KEY, ExposureListed(7, True))
    world.assign(slot=4)
    assert world.done[-1] == SendToSlot(4, KEY._replace(detector=1), ExposureListed(7, False))


# --- rescans -------------------------------------------------------------------


def test_one_rescan_serves_all_detectors_whose_deadlines_pass_together(world):
    accepted(world, detectors=range(9))
    for slot in range(9):
        world.assign(slot)
    keys = [KEY._replace(detector=detector) for detector in range(9)]
    for key in keys:
        world.handle(RescanRaws(key))
    (rescan,) = world.begin_rescans()
    assert rescan.keys == tuple(keys)
    world.handle(RescanFinished(rescan.keys))
    assert [action.slot for action in world.of(SendToSlot) if action.event == RescanDone()] == list(range(9))


def test_a_rescan_requested_during_another_one_runs_afterwards(world):
    accepted(world, detectors=(0, 1))
    for slot in (0, 1):
        world.assign(slot)
    world.handle(RescanRaws(KEY))
    (first,) = world.begin_rescans()
    world.handle(RescanRaws(KEY._replace(detector=1)))
    assert world.begin_rescans() == [first]
    world.handle(RescanFinished(first.keys))
    (_, second) = world.begin_rescans()
    assert second.keys == (KEY._replace(detector=1),)
    world.handle(RescanFinished(second.keys))
    world.handle(RescanRaws(KEY))
    assert len(world.begin_rescans()) == 3


def test_files_not_taken_are_those_of_the_detector_and_of_no_other_announced_visit(world):
    accepted(world, detectors=(0, 1))
    accepted(world, group="other")
    world.assign(slot=0)
    world.handle(RescanRaws(KEY))
    world.begin_rescans()
    files = (
        FileNotTaken("/raw/a.part", "unfinished", 0),
        FileNotTaken("/raw/b.part", "unfinished", 1),
        FileNotTaken("/raw/c.txt", "unknown"),
        FileNotTaken("/raw/d.fits", "another group", 0, "other#1"),
        FileNotTaken("/raw/e.fits", "no visit has its group", 0, "mistyped"),
    )
    world.handle(RescanFinished((KEY,), files))
    (done,) = [action.event for action in world.of(SendToSlot) if isinstance(action.event, RescanDone)]
    assert done.not_taken == 3
    assert done.text == (
        "3 files not taken, in /raw: a.part (unfinished), c.txt (unknown), e.fits (no visit has its group)"
    )


def test_files_not_taken_are_evaluated_once_for_all_detectors(world, monkeypatch):
    accepted(world, detectors=range(9))
    for slot in range(9):
        world.assign(slot)
    keys = tuple(KEY._replace(detector=detector) for detector in range(9))
    for key in keys:
        world.handle(RescanRaws(key))
    world.begin_rescans()
    groups, contains = [], Recent.contains
    monkeypatch.setattr(Recent, "contains", lambda *args: groups.append(args[1][1]) or contains(*args))
    files = [FileNotTaken(f"/raw/{number}.fits", "group", number % 9, f"g{number}") for number in range(90)]
    files += [FileNotTaken(f"/raw/{number}.txt", "unknown") for number in range(9)]
    world.handle(RescanFinished(keys, tuple(files)))
    assert len(groups) == 90
    done = [action.event for action in world.of(SendToSlot) if isinstance(action.event, RescanDone)]
    assert [each.not_taken for each in done] == 9 * [19]
    names = "0.txt (unknown), 1.txt (unknown), 2.txt (unknown), 3.txt (unknown), 4.txt (unknown)"
    assert {each.text for each in done} == {f"19 files not taken, in /raw: {names} and 14 more"}


def test_no_rescan_starts_for_an_ended_visit(world):
    assigned(world)
    world.handle(RescanRaws(KEY))
    world.finish(outcome=Outcome.NO_IMAGE)
    assert world.begin_rescans() == []


# --- outcomes ------------------------------------------------------------------


def test_an_outcome_is_reported_and_exported_after_its_commit(world):
    assigned(world)
    world.finish(spool="/spool/x")
    assert world.of(SendResults, Export) == []
    world.commit()
    assert reported(world) == [(0, 1, Outcome.SUCCEEDED)]
    assert world.of(Export) == [Export("/spool/x")]
    assert world.visits.outcomes == {Outcome.SUCCEEDED: 1}


def test_a_crash_before_the_point_of_no_return_is_retried_in_another_slot(world):
    assigned(world)
    world.finish(outcome=Outcome.CRASHED, retriable=True, may_have_leftovers=True)
    world.handle(LeftoversRead(KEY, Leftovers()))
    world.commit_all()
    assert list(world.queue) == [KEY._replace(attempt=2)]
    assert world.queue[KEY._replace(attempt=2)].avoid == 0
    assert reported(world) == []


@pytest.mark.parametrize(
    ("leftovers", "outcome", "exported"),
    [
        (Leftovers(no_return="alerts"), Outcome.CRASHED, []),
        (Leftovers(no_return="alerts", spool="/spool/x"), Outcome.SUCCEEDED, [Export("/spool/x")]),
        (Leftovers("alerts", "/spool/x", "a task failed"), Outcome.FAILED, [Export("/spool/x")]),
    ],
)
def test_the_leftovers_of_a_dead_worker_decide_the_outcome(world, leftovers, outcome, exported):
    assigned(world)
    world.finish(outcome=Outcome.CRASHED, reason="killed", retriable=True, may_have_leftovers=True)
    assert not world.uncommitted  # nothing is decided before the disk is read
    world.handle(LeftoversRead(KEY, leftovers))
    world.commit_all()
    assert world.outcomes() == [outcome]
    assert world.of(Export) == exported
    assert world.of(Discard) == [Discard((NodeFolders.of(world.visits.config).mark(*KEY),))]


def test_partial_outputs_of_a_retried_attempt_are_discarded(world):
    assigned(world)
    world.finish(outcome=Outcome.FAILED, retriable=True, spool="/spool/x")
    world.commit_all()
    assert world.of(Export) == []
    assert [str(path) for action in world.of(Discard) for path in action.paths] == ["/spool/x"]


def test_a_partial_spool_is_searched_only_after_a_run(world):
    assigned(world)
    world.finish(outcome=Outcome.CANCELLED)
    world.commit_all()
    assert world.of(Discard) == []


def test_the_partial_spool_of_a_run_is_deleted(world):
    assigned(world)
    world.slots[0] = world.slots[0]._replace(run_until=1.0)
    world.finish(outcome=Outcome.FAILED)
    world.commit_all()
    names = {path.name for action in world.of(Discard) for path in action.paths}
    assert names == {"DemoCam~g~0~1.part"}


def test_a_pipeline_that_ends_its_workers_is_set_aside_when_visits_are_assigned(world):
    """Fault 61: the visits that are queued already get the next pipeline of their rule."""
    choice = PipelineChoice(Pipelines(main=("/p/Bad.yaml", "/p/Good.yaml")))
    for group in ("g1", "g2", "g3", "g4"):
        world.reserve(group=group, chosen=choice)
    world.commit_all()
    for slot in range(3):
        world.assign(slot)
        assert world.slots[slot].pipelines == choice.pipelines
        world.finish(slot, outcome=Outcome.CRASHED, reason="SIGSEGV", worker_died=True)
    world.commit_all()
    world.assign()
    assert world.slots[0].pipelines.main == ("/p/Good.yaml",)
    world.finish(worker_died=False)
    world.mono += world.config.workers.times.probe_s
    world.reserve(group="try", chosen=choice)
    world.commit_all()
    world.assign()
    assert world.slots[0].pipelines == choice.pipelines
    world.finish(worker_died=False)
    assert world.visits.health.problems == ()


def test_a_visit_dropped_by_the_scheduler_is_expired_unless_it_has_ended(world):
    accepted(world)
    assignment = world.queue.pop(KEY)
    world.handle(Drop(assignment, "no worker became free in time"))
    world.handle(Drop(assignment, "no worker became free in time"))
    world.commit_all()
    assert world.outcomes() == [Outcome.EXPIRED]


def test_a_visit_refused_by_its_slot_is_queued_again(world):
    assigned(world)
    del world.slots[0]
    world.handle(AssignmentRefused(KEY))
    assert list(world.queue) == [KEY]


def test_a_stop_interrupts_queued_visits_and_retries_none(world):
    accepted(world, detectors=(0, 1))
    world.assign()
    world.reserve(group="late")
    world.handle(StopStarted(hand_back=False))
    world.finish(outcome=Outcome.CRASHED, retriable=True)
    world.commit_all()
    assert world.outcomes() == [Outcome.CRASHED, Outcome.INTERRUPTED]
    assert world.outcomes("late") == [Outcome.INTERRUPTED]
    assert all(row.retriable for row in world.rows())


def test_a_stop_hands_back_what_is_not_processed_yet(world):
    accepted(world, detectors=(0, 1))
    world.assign()
    world.reserve(group="late")
    world.handle(StopStarted(hand_back=True))
    world.commit_all()
    reason = f"{HANDED_BACK}: the node stops"
    # The slot gives the visit up, unless it processes it.
    assert world.of(SendToSlot)[-1] == SendToSlot(0, KEY, CancelReceived(reason))
    world.finish(outcome=Outcome.CANCELLED, reason=reason)
    world.commit_all()
    assert not world.queue
    for group, detectors in (("g", (0, 1)), ("late", (0,))):
        assert [(row.outcome, row.reason) for row in world.rows(group)] == [
            (Outcome.CANCELLED, reason) for _ in detectors
        ]
    assert all(is_returned(entry) for entry in world.journal.unreported(9))


def test_partial_outputs_of_what_is_handed_back_are_not_exported(world):
    """Another node gets it, and exports all of them."""
    assigned(world)
    world.handle(StopStarted(hand_back=True))
    world.finish(outcome=Outcome.CRASHED, retriable=True, may_have_leftovers=True)
    world.handle(LeftoversRead(KEY, Leftovers(spool="/spool/x", why_partial="one task failed")))
    world.commit_all()
    assert [is_returned(entry) for entry in world.journal.unreported(9)] == [True]
    assert world.of(Export) == []
    assert [str(path) for action in world.of(Discard) for path in action.paths] == ["/spool/x"]


def test_what_a_node_has_is_not_refused_because_it_is_old(world):
    """Its acknowledgement was lost, and its worker is still processing it."""
    assigned(world)
    world.done.clear()
    accepted(world, detectors=(0, 1), age_s=world.config.node.expiry_s + 1.0)
    assert [action.detectors for action in world.of(Acknowledge)] == [(0,)]
    ((detectors, final),) = [(action.detectors, action.final) for action in world.of(Refuse)]
    assert (detectors, final) == ((1,), True)


def test_without_a_usable_slot_visits_are_refused_and_queued_ones_handed_back(world):
    accepted(world, detectors=(0, 1))
    world.assign()
    world.handle(SlotsChanged("no memory", hand_back=True))
    world.commit_all()
    assert world.outcomes() == [None, Outcome.CANCELLED]
    assert [(e.detector, e.reason) for e in world.journal.unreported(9)] == [(1, f"{HANDED_BACK}: no memory")]
    world.reserve(group="next")
    (refused,) = world.of(Refuse)
    assert (refused.reason, refused.final) == ("no memory", False)
    world.finish(outcome=Outcome.CRASHED, retriable=True)  # its second attempt has no slot either
    world.commit_all()
    assert world.outcomes() == [Outcome.CRASHED, Outcome.CANCELLED, Outcome.CANCELLED]
    world.handle(SlotsChanged("", hand_back=False))
    world.reserve(group="next")
    world.commit_all()
    assert [key.group for key in world.queue] == ["next"]


def test_what_a_node_has_already_is_acknowledged_again_although_it_accepts_no_more(world):
    accepted(world)
    world.assign()
    world.handle(SlotsChanged("no memory", hand_back=True))
    world.reserve(detectors=(0, 1))
    world.commit_all()
    assert [action.detectors for action in world.of(Refuse)] == [(1,)]
    assert [action.detectors for action in world.of(Acknowledge)] == [(0,), (0,)]


def test_without_a_relay_queued_visits_wait_for_a_slot(world):
    accepted(world)
    world.handle(SlotsChanged("no memory", hand_back=False))
    world.commit_all()
    assert list(world.queue) == [KEY]
    world.handle(SlotsChanged("no memory", hand_back=True))  # it has connected
    world.commit_all()
    assert world.outcomes() == [Outcome.CANCELLED]


def test_what_may_have_written_something_permanent_is_not_handed_back(world):
    assigned(world)
    world.handle(StopStarted(hand_back=True))
    reason = f"{HANDED_BACK}: the node stops"
    world.finish(outcome=Outcome.CANCELLED, reason=reason, may_have_leftovers=True)
    world.handle(LeftoversRead(world.reading.pop(), Leftovers(no_return="alerts")))
    world.commit_all()
    assert world.outcomes() == [Outcome.INTERRUPTED]
    assert not any(row.retriable for row in world.rows())


def test_what_was_handed_back_is_accepted_again_as_a_later_attempt_and_not_as_the_same(world):
    assigned(world)
    world.finish(outcome=Outcome.CRASHED, retriable=True)  # the next attempt is of the node's own count
    world.commit_all()
    world.handle(StopStarted(hand_back=True))
    world.commit_all()
    assert [entry.attempt for entry in world.journal.unreported(9)] == [2]
    world.crash()
    world.reserve(attempt=1)
    world.commit_all()
    assert (len(world.rows()), world.queue) == (2, {})
    assert [(entry.asked, entry.returned) for entry in world.journal.unreported(9)] == [(1, True)]
    world.reserve(attempt=2)
    world.commit_all()
    assert list(world.queue) == [KEY._replace(attempt=3)]


def test_raws_of_what_was_handed_back_are_not_late(world):
    accepted(world)
    world.handle(StopStarted(hand_back=True))
    world.handle(RawArrived(a_raw()))
    world.commit_all()
    assert late_of(world.journal, 9) == []


def test_stages_and_figures_are_written_with_the_next_batch(world):
    assigned(world)
    world.handle(NoteStage(KEY, Stage.PREPARED, 5.0))
    world.handle(NoteStage(KEY, Stage.PREPARED, 6.0))  # the first time counts
    world.handle(NoteMeasurements(KEY, {"query_ms": 4.5}))
    assert world.rows()[0].figures == {}
    world.handle(FlushRequested(3))
    assert world.of(Reply) == []
    world.commit_all()
    assert world.of(Reply) == [Reply(3)]
    (row,) = world.rows()
    assert (row.stages[Stage.PREPARED], row.figures) == (5.0, {"query_ms": 4.5})


def test_exports_of_unknown_attempts_are_ignored(world):
    assigned(world)
    world.finish(spool="/spool/x")
    world.commit_all()
    names = [f"/spool/{CAMERA}~g~0~1", f"/spool/{CAMERA}~lost~0~1", "/spool/strange"]
    skipped = dict.fromkeys(names[::2], "detector 3 was first: summary")
    world.handle(Exported(spools=tuple(names), tai=9.0, datasets=3, skipped=skipped))
    world.commit_all()
    (row,) = world.rows()
    assert row.stages[Stage.CENTRAL] == 9.0
    assert row.figures["not_exported"] == "detector 3 was first: summary"


def test_a_spool_that_is_quarantined_is_noted_until_it_is_exported(world):
    assigned(world)
    world.finish(spool="/spool/x", datasets=3)
    world.commit_all()
    spool = f"/spool/{CAMERA}~g~0~1"
    world.handle(Exported(spools=(), refused=(spool, "/spool/strange"), tai=9.0, datasets=0))
    world.commit_all()
    (row,) = world.rows()
    assert (row.outcome, row.reason) == (Outcome.SUCCEEDED, QUARANTINED)
    world.handle(Exported(spools=(spool,), tai=10.0, datasets=3))
    world.commit_all()
    (row,) = world.rows()
    assert (row.outcome, row.reason) == (Outcome.SUCCEEDED, "")


def test_a_spool_that_somebody_has_taken_away_is_a_failure_with_a_reason(world, caplog):
    assigned(world)
    world.finish(spool="/spool/x", datasets=3)
    world.commit_all()
    gone = f"/spool/{CAMERA}~g~0~1"
    world.handle(Exported(spools=(), gone=(gone, "/spool/strange"), tai=9.0, datasets=0))
    world.commit_all()
    (row,) = world.rows()
    assert (row.outcome, row.datasets, Stage.CENTRAL in row.stages) == (Outcome.INTERRUPTED, 0, False)
    assert row.reason.startswith("its outputs are gone: its spool was deleted, renamed or moved away")
    assert f"2 spools are gone and were not exported: {gone}, /spool/strange" in caplog.text
    # What was exported after all stays so.
    assigned(world, group="h")
    world.finish(spool="/spool/y", datasets=3)
    spool = f"/spool/{CAMERA}~h~0~1"
    world.handle(Exported(spools=(spool,), tai=9.0, datasets=3))
    world.handle(Exported(spools=(), gone=(spool,), tai=9.0, datasets=0))
    world.commit_all()
    assert world.outcomes("h") == [Outcome.SUCCEEDED]


def test_images_that_were_given_up_are_in_the_journal_before_and_after_the_export(world):
    for group, event in (("g", ImagesGivenUp), ("h", Exported)):
        assigned(world, group=group)
        world.finish(spool="/spool/x", datasets=3)
        spool = f"/spool/{CAMERA}~{group}~0~1"
        if event is ImagesGivenUp:
            world.handle(ImagesGivenUp(spools={spool: "difference_image", "/spool/strange": "image"}))
        else:  # the first report got lost
            given_up = {spool: "difference_image"}
            world.handle(Exported(spools=(spool,), given_up=given_up, tai=9.0, datasets=2))
        world.commit_all()
        (row,) = world.rows(group)
        assert row.figures == {"given_up": "difference_image"}
        assert (Stage.CENTRAL in row.stages) == (event is Exported)


def test_a_relay_that_reconnects_gets_the_unconfirmed_outcomes(world):
    world.handle(Welcome(life="x", epoch=1, origin="relay", sent_tai=1.0, sequence=1))
    assert world.of(ResendResults) == [ResendResults()]


# --- a previous run --------------------------------------------------------------


def unfinished(world, assign=True):
    accepted(world)
    if assign:
        world.assign()
    world.crash()


def test_an_attempt_of_the_previous_run_is_retried_and_its_raws_are_searched(world):
    unfinished(world)
    assert world.recover() == [KEY]
    world.commit_all()
    assert world.outcomes() == [Outcome.INTERRUPTED, None]
    assert list(world.queue) == [KEY._replace(attempt=2)]
    assert [rescan.keys for rescan in world.begin_rescans()] == [(KEY._replace(attempt=2),)]
    assert isinstance(world.done[-1], Rescan)


@pytest.mark.parametrize(
    ("leftovers", "outcome", "reason"),
    [
        (Leftovers(spool="/spool/x"), Outcome.SUCCEEDED, ""),
        (Leftovers(spool="/spool/x", why_partial="a task failed"), Outcome.FAILED, "a task failed"),
        (Leftovers(no_return="alerts"), Outcome.INTERRUPTED, "the daemon ended before the visit did"),
    ],
)
def test_the_leftovers_of_the_previous_run_decide_the_outcome(world, leftovers, outcome, reason):
    unfinished(world)
    world.recover(lambda key: leftovers)
    world.commit_all()
    (row,) = world.rows()
    assert (row.outcome, row.reason, world.queue) == (outcome, reason, {})
    assert world.of(Export) == ([Export("/spool/x")] if leftovers.spool else [])


def test_an_expired_attempt_of_the_previous_run_is_not_retried(world):
    unfinished(world)
    world.mono += world.config.node.expiry_s + 1
    world.recover()
    world.commit_all()
    assert [(row.outcome, row.retriable) for row in world.rows()] == [(Outcome.INTERRUPTED, True)]


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_has_jumped_does_not_expire_an_attempt_of_the_previous_run(world, jump_s):
    unfinished(world)
    world.tai += jump_s
    world.mono += 60.0
    world.recover()
    world.commit_all()
    assert world.outcomes() == [Outcome.INTERRUPTED, None]
    expires_at = world.queue[KEY._replace(attempt=2)].expires_at
    assert expires_at == world.mono - 60.0 + world.config.node.expiry_s


def test_an_attempt_that_no_rule_matches_any_more_is_not_retried(world):
    unfinished(world, assign=False)
    world.recover(chosen=PipelineChoice(Pipelines(), "no rule matches (survey 'S')"))
    world.commit_all()
    (row,) = world.rows()
    assert (row.outcome, row.retriable) == (Outcome.INTERRUPTED, True)
    assert row.reason.endswith("; now no rule matches (survey 'S')")


# --- operators -------------------------------------------------------------------


def ended(world, outcome=Outcome.FAILED, **changes):
    assigned(world)
    world.finish(outcome=outcome, **changes)
    world.commit_all()
    world.done.clear()


def ask(world, *, spool=""):
    before = tuple(world.journal.last_attempts("g"))
    spools = {KEY: spool} if spool else {}
    world.handle(RequeueRequested(4, before, {KEY: CHOSEN}, spools, frozenset(), force=False))


def answer(world):
    (answer,) = world.of(Reply)
    return [(row.attempt, row.text) for row in answer.rows] or answer.refused


def test_a_failed_visit_is_requeued_after_the_commit(world):
    ended(world, spool="/spool/x")
    ask(world, spool="/spool/x")
    assert (world.of(Reply), world.queue) == ([], {})
    world.commit_all()
    assert answer(world) == [(2, "")]
    assert list(world.queue) == [KEY._replace(attempt=2)]
    assert [str(path) for action in world.of(Discard) for path in action.paths] == ["/spool/x"]
    assert world.of(Export) == []
    assert world.journal.unreported(9) == []  # its outcome is that of the next attempt


def test_the_age_of_a_requeued_visit_counts_from_the_request(world):
    """After a restart it would be as old as the host has run, and end without another try."""
    ended(world)
    world.mono += 50.0
    ask(world)
    world.commit_all()
    (entry,) = world.journal.unfinished()
    assert entry.received_mono == world.mono


def test_what_an_operator_has_requested_again_is_not_handed_back(world):
    ended(world)
    ask(world)
    world.commit_all()
    world.handle(SlotsChanged("no memory", hand_back=True))
    world.commit_all()
    assert list(world.queue) == [KEY._replace(attempt=2)]
    world.handle(StopStarted(hand_back=True))
    world.commit_all()
    assert world.outcomes() == [Outcome.FAILED, Outcome.INTERRUPTED]


def test_what_an_operator_has_requested_again_is_not_withdrawn(world):
    """The relay has its outcome, and withdraws what it finds in a hello or an acknowledgement."""
    ended(world)
    ask(world)
    world.commit_all()
    assert world.visits.open.held() == ()
    world.cancel(detectors=(0,))
    world.commit_all()
    assert list(world.queue) == [KEY._replace(attempt=2)]
    assert len(world.visits.open) == 1


def test_an_outcome_that_the_relay_has_not_confirmed_is_not_requeued(world):
    ended(world)
    relay = world.config.relay.model_copy(update={"address": "tcp://127.0.0.1:1"})
    world.visits.config = world.config.model_copy(update={"relay": relay})
    ask(world)
    ((attempt, text),) = answer(world)
    assert (attempt, text.split(":")[0]) == (None, "the relay has not confirmed its outcome")
    world.handle(ResultsSeen(entries=((CAMERA, "g", 0, 1),), origin="relay", sent_tai=1.0, sequence=1))
    world.commit_all()
    world.done.clear()
    ask(world)
    world.commit_all()
    assert answer(world) == [(2, "")]


def test_an_open_visit_is_not_requeued(world):
    ended(world)
    ask(world)
    ask(world)
    world.commit_all()
    assert [[row.text for row in action.rows] for action in world.of(Reply)] == [["it is under way"], [""]]
    assert len(world.rows()) == 2


@pytest.mark.parametrize(
    ("outcome", "exporting", "text"),
    [
        (Outcome.FAILED, True, "its outputs are being exported"),
        (Outcome.SUCCEEDED, False, "its outputs wait for export"),
    ],
)
def test_a_visit_whose_outputs_wait_for_export_is_not_requeued(world, outcome, exporting, text):
    ended(world, outcome, spool="/spool/x")
    before = tuple(replace(entry, partial=True) for entry in world.journal.last_attempts("g"))
    spools = {} if exporting else {KEY: "/spool/x"}
    under_way = frozenset({KEY} if exporting else ())
    world.handle(RequeueRequested(4, before, {KEY: CHOSEN}, spools, under_way, force=False))
    ((attempt, refusal),) = answer(world)
    assert attempt is None
    assert refusal.startswith(text)
    assert world.of(Export) == ([] if exporting else [Export("/spool/x")])


def test_a_requeue_fails_if_the_relay_has_requested_the_visit_again(world):
    ended(world, Outcome.CANCELLED)
    before = tuple(world.journal.last_attempts("g"))
    accepted(world, attempt=5)
    world.assign()
    world.finish()
    world.commit_all()
    world.done.clear()
    world.handle(RequeueRequested(4, before, {KEY: CHOSEN}, {KEY: "/spool/x"}, frozenset(), force=False))
    with pytest.raises(Exception, match=r"the relay has requested .* again in the meantime"):
        world.commit()
    assert [row.attempt for row in world.rows()] == [1, 5]


def test_a_requeue_that_cannot_be_committed_returns_its_spools_to_the_exporter(world):
    ended(world, spool="/spool/x")
    ask(world, spool="/spool/x")
    world.refuse()
    assert answer(world) == "the disk is full"
    assert world.of(Export) == [Export("/spool/x")]
    assert (len(world.visits.open), len(world.rows())) == (0, 1)


def test_a_requeue_is_unharmed_by_a_failed_write_of_the_same_attempt(world):
    ended(world)
    ask(world)
    world.reserve(attempt=2)
    world.refuse()  # the requeue; the write of the reservation is still under way
    ask(world)
    world.refuse()  # the reservation
    world.commit_all()
    assert list(world.queue) == [KEY._replace(attempt=2)]


# --- the disk --------------------------------------------------------------------


@pytest.fixture
def folders(config):
    folders = NodeFolders.of(config)
    folders.no_return.mkdir(parents=True)
    folders.spool.mkdir(parents=True)
    return folders


def test_leftovers_are_read_from_mark_and_manifest(folders):
    assert read_leftovers(folders, KEY) == Leftovers()
    folders.mark(*KEY).write_text("alerts")
    spool = folders.spooled(*KEY)
    spool.mkdir()
    (spool / "manifest.json").write_text(json.dumps({"failed": "a task failed"}))
    assert read_leftovers(folders, KEY) == Leftovers("alerts", str(spool), "a task failed")
    (spool / "manifest.json").write_text("{}")
    folders.mark(*KEY).write_text("")
    assert read_leftovers(folders, KEY) == Leftovers("something permanent", str(spool), "")
    (spool / "manifest.json").unlink()
    assert "cannot be read" in read_leftovers(folders, KEY).why_partial


def test_a_spool_whose_worker_has_died_is_synced(folders, monkeypatch, caplog):
    """It may have its name, and not be on the disk: the exporter links it, and does not sync it again."""
    spool = folders.spooled(*KEY)
    spool.mkdir()
    (spool / "manifest.json").write_text("{}")
    (spool / "image.fits").touch()
    synced = []

    def sync(path):
        synced.append(path)
        if path.name == "image.fits":  # which a packer has replaced meanwhile
            raise FileNotFoundError

    monkeypatch.setattr(recovery, "sync", sync)
    assert read_leftovers(folders, KEY).spool == str(spool)
    assert set(synced) == {spool / "manifest.json", spool / "image.fits", spool, spool.parent}
    assert caplog.text == ""

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(recovery, "sync", refuse)
    assert read_leftovers(folders, KEY).spool == str(spool)
    assert "cannot be synced, and is exported all the same: Input/output error; check the disk" in caplog.text


def test_leftovers_with_invalid_text_decide_the_outcome(world, folders):
    """Files cut by a power failure, and file names that are not UTF-8."""
    mark, spool = folders.mark(*KEY), folders.spooled(*KEY)
    mark.write_bytes(b"alerts \xe2\x82")
    spool.mkdir()
    (spool / "manifest.json").write_text(json.dumps({"failed": "cannot read a\udce4.fits"}))
    leftovers = read_leftovers(folders, KEY)
    assert leftovers.no_return.startswith("alerts ")
    assigned(world)
    world.finish(outcome=Outcome.CRASHED, may_have_leftovers=True)
    world.handle(LeftoversRead(KEY, leftovers))
    world.commit_all()
    assert world.outcomes() == [Outcome.FAILED]
    assert reported(world) == [(0, 1, Outcome.FAILED)]
    assert world.rows()[0].reason == "cannot read a?.fits"


def test_spools_are_renamed_before_they_are_deleted(folders, monkeypatch):
    spool = folders.spooled(*KEY)
    spool.mkdir()
    (spool / "manifest.json").write_text("{}")
    seen = []
    monkeypatch.setattr("ppdaemon.node.visits.recovery.wipe", lambda folder: seen.append(folder.name))
    discard([spool])
    assert seen == [f"{spool.name}.part"]
    assert spools_left(folders) == ([], [])
    assert not spool.exists()


def test_marks_are_deleted_as_spools_are(folders):
    mark, spool = folders.mark(*KEY), folders.spooled(*KEY)
    mark.write_text("alerts")
    spool.mkdir()
    discard([folders.mark(CAMERA, "g", 9, 1), mark, spool])
    assert [*mark.parent.iterdir(), *spool.parent.iterdir()] == []


def test_a_folder_that_cannot_be_deleted_does_not_keep_the_others(folders):
    spools = [folders.spooled(CAMERA, "g", detector, 1).with_suffix(".part") for detector in range(3)]
    spools[0].mkdir()
    (folders.spool / "file").touch()
    spools[1] = folders.spool / "file" / "spool"
    spools[2].mkdir()
    with pytest.raises(ExceptionGroup) as caught:
        discard(spools)
    assert len(caught.value.exceptions) == 1
    assert [spool.exists() for spool in spools] == [False, False, False]
    assert "file" in str(caught.value.exceptions[0])


def test_spools_left_are_distinguished_from_other_folders(folders):
    for name in (f"{CAMERA}~g~0~1", f"{CAMERA}~g~1~1.part", "lost+found", f"{CAMERA}~{'%23'}~2~1"):
        os.mkdir(folders.spool / name)
    renamed = folders.spool / "renamed"
    for path in (renamed, folders.spool / "DemoCam~g~0~1.part", folders.spool / "DemoCam~g~0~1.done"):
        path.mkdir(exist_ok=True)
        (path / "manifest.json").touch()
    assert spools_left(folders) == ([Key(CAMERA, "#", 2, 1), KEY], [renamed])


def test_attempts_with_a_later_attempt_are_found(world):
    assigned(world)
    world.finish(outcome=Outcome.FAILED, retriable=True, spool="/spool/x")
    world.commit_all()
    second = KEY._replace(attempt=2)
    assert world.journal.followed([KEY, second, Key(CAMERA, "lost", 0, 1)]) == {KEY}


# --- fallback pipelines --------------------------------------------------------

RULE = PipelineChoice(Pipelines(main=("/p/ApPipe.yaml", "/p/Isr.yaml")))


def ran(world, group, pipeline, reason="", outcome=Outcome.SUCCEEDED, detectors=(0, 1)):
    world.reserve(group, detectors, chosen=RULE)
    world.commit_all()
    for _ in detectors:
        world.assign()
        world.finish(outcome=outcome, pipeline=pipeline, fallback=reason)
    world.commit_all()
    return [row.figures.get(FALLBACK) for row in world.rows(group)]


def problems(world):
    return list(world.visits.fallbacks.problems(world.mono))


def test_an_outcome_has_the_pipeline_that_another_one_replaced(world):
    assert ran(world, "a", "ApPipe") == [None, None]
    fallback = {"first": "ApPipe", "reason": "no APDB"}
    assert ran(world, "b", "Isr", "no APDB") == [fallback, fallback]
    (set_aside, _) = ran(world, "c", "Isr")  # the worker did not get the first one
    assert set_aside == {"first": "ApPipe", "reason": "ApPipe is set aside"}
    assert problems(world) == []


def test_three_visits_without_their_first_pipeline_are_a_problem_until_it_succeeds(world):
    ran(world, "a", "Isr", "no APDB")
    world.mono += 40.0
    ran(world, "b", "Isr", "no APDB")
    assert problems(world) == []
    ran(world, "c", "Isr", "no APDB: " + "x" * 900)
    ((first, text, age_s),) = problems(world)
    assert (first, age_s) == ("ApPipe", 40.0)
    assert text.startswith(
        "pipeline ApPipe is not run, Isr of its rule ran instead in the last 6 visit-detectors: no APDB"
    )
    assert len(text) < 300
    ran(world, "d", "ApPipe", outcome=Outcome.FAILED)
    ran(world, "e", "Isr", "no APDB")
    assert len(problems(world)) == 1
    ran(world, "f", "ApPipe")
    assert problems(world) == []


def test_a_visit_of_which_some_detectors_run_the_first_pipeline_is_no_problem(world):
    for group in "abcdef":
        ran(world, group, "Isr", "no template", detectors=range(3))
        ran(world, f"{group}2", "ApPipe", detectors=(0,))
    assert problems(world) == []
