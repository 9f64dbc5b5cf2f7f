# SPDX-License-Identifier: BSD-3-Clause
"""The slot's decisions, one row of its table after the other."""

import signal

import pytest

from ppdaemon.config import MemoryConfig, TimesConfig, WorkersConfig
from ppdaemon.messages import (
    Cross,
    Done,
    GiveUp,
    ImportsMeasured,
    Ingest,
    Ingested,
    MayCross,
    Pipelines,
    Prepare,
    Prepared,
    Process,
    Quit,
    Raw,
    RawRefused,
    Ready,
    StageReached,
)
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.events import (
    AskToCross,
    CancelReceived,
    ClearDeadline,
    CrossingAllowed,
    DeadlinePassed,
    ExposureListed,
    Finish,
    Fork,
    KillRequested,
    MemorySampled,
    NoteImports,
    NoteMeasurements,
    NoteRecycled,
    ProtocolViolation,
    RawArrived,
    RecycleRequested,
    RescanDone,
    RescanRaws,
    RestartRequested,
    RetireRequested,
    Send,
    SetDeadline,
    Signal,
    SlotChanged,
    VisitAssigned,
    WipeRepo,
    Withdrawn,
    WorkerDied,
    WorkerForked,
    WorkerNotForked,
)
from ppdaemon.node.slots.slot import InvalidTransition, Slot
from ppdaemon.processes import STOP_SIGNAL
from ppdaemon.states import Outcome, SlotState, Stage
from ppdaemon.visit import read_next_visit

S = SlotState
SOFT, HARD = 1000, 2000
CONFIG = WorkersConfig(
    recycle_visits=3,
    times=TimesConfig(boot_s=20, prepare_s=100, ingest_s=30, run_s=900, export_s=60, grace_s=5, kill_s=10),
    memory=MemoryConfig(soft=SOFT, hard=HARD),
)


KEY = Key("DemoCam", "g", 3)


def an_assignment(nimages=1, image_deadline=500.0):
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "nimages": nimages})
    pipelines = Pipelines(main=("a.yaml",))
    return Assignment(KEY, visit, pipelines, image_deadline=image_deadline, expires_at=9999.0, quiet_s=10.0)


def a_raw(exposure=1, snaps=None):
    return Raw(
        path=f"/raw/{exposure}.fits",
        instrument="DemoCam",
        group="g",
        detector=3,
        exposure=exposure,
        snaps=snaps,
        seen_tai=7.0,
    )


class Driver:
    """Drives a slot into a state, and passes events to it."""

    def __init__(self, config=CONFIG):
        self.slot = Slot(4, config, jitter=lambda: 0.0)
        self.slot.open(0.0)

    def __call__(self, event, now=1.0):
        return self.slot.handle(event, now)

    def to(self, state, nimages=1):
        self(WorkerForked(100), 0.0)
        steps = {
            S.STARTING: [],
            S.IDLE: [Ready(pid=100)],
            S.PREPARING: [Ready(pid=100), VisitAssigned(an_assignment(nimages))],
            S.WAITING: [Ready(pid=100), VisitAssigned(an_assignment(nimages)), Prepared(visit_number=1)],
        }
        steps[S.RESCANNING] = [*steps[S.WAITING], DeadlinePassed()]
        steps[S.PROCESSING] = [*steps[S.WAITING], RawArrived(a_raw()), Ingested(visit_number=1, exposure=1)]
        steps[S.EXPORTING] = [
            *steps[S.PROCESSING],
            StageReached(visit_number=1, stage=Stage.PROCESSED, tai=1.0),
        ]
        steps[S.STOPPING] = [*steps[S.PROCESSING], DeadlinePassed()]
        steps[S.KILLING] = [*steps[S.STOPPING], DeadlinePassed()]
        for event in steps[state]:
            self(event, 0.0)
        assert self.slot.state == state, self.slot.format_story()
        return self


@pytest.fixture
def slot():
    return Driver()


def orders(actions):
    return [action.order for action in actions if isinstance(action, Send)]


def finished(actions):
    return [(action.outcome, action.retriable) for action in actions if isinstance(action, Finish)]


def without_notes(actions):
    return [
        a
        for a in actions
        if isinstance(a, Fork | Send | Signal | SetDeadline | ClearDeadline | WipeRepo | Finish)
    ]


def test_a_slot_opens_by_forking_with_a_boot_deadline():
    slot = Slot(4, CONFIG, jitter=lambda: 0.0)
    assert slot.open(10.0) == [Fork(1), SetDeadline(30.0), SlotChanged(S.BACKOFF, S.STARTING)]


def test_a_ready_worker_is_idle_until_its_age(slot):
    age_limit = 0.9 * CONFIG.recycle_age_s
    assert slot(Ready(pid=1)) == [SetDeadline(age_limit), SlotChanged(S.STARTING, S.IDLE)]
    assert orders(slot(DeadlinePassed(), age_limit)) == [Quit()]
    assert slot.slot.note == "recycled because of its age"


def test_recycling_comes_up_to_a_tenth_sooner_or_later():
    for jitter, visits in ((0.0, 90), (0.5, 100), (0.999, 110)):
        slot = Slot(0, WorkersConfig(recycle_visits=100), jitter=lambda jitter=jitter: jitter)
        slot.open(0.0)
        slot.handle(Ready(pid=1), 0.0)
        while slot.state == S.IDLE:
            slot.handle(VisitAssigned(an_assignment()), 0.0)
            slot.handle(Done(visit_number=slot.visit_number, outcome=Outcome.NO_PIPELINE), 0.0)
        assert slot.visit_number == visits


def test_a_worker_that_a_visit_has_changed_is_recycled(slot):
    slot.to(S.EXPORTING)
    actions = slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED, tainted="thread monitor"))
    assert finished(actions) == [(Outcome.SUCCEEDED, False)]
    assert orders(actions) == [Quit()]
    assert slot.slot.note == "recycled: its visit left thread monitor"


def test_a_worker_that_a_canceled_visit_has_changed_is_recycled(slot):
    slot.to(S.PREPARING)
    slot(Prepared(visit_number=1, tainted="thread monitor"))
    actions = slot(CancelReceived())
    assert orders(actions) == [GiveUp(reason="cancelled"), Quit()]
    assert NoteRecycled("leftovers", "recycled: its visit left thread monitor") in actions


def test_the_next_worker_of_a_slot_is_not_recycled_for_what_the_last_one_had(slot):
    slot.to(S.EXPORTING)
    slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED, tainted="thread monitor"))
    slot(WorkerDied(status=0))
    slot(DeadlinePassed())  # of the pause before the next fork
    slot(WorkerForked(pid=2))
    slot(Ready(pid=2))
    assert slot.slot.state == S.IDLE


def test_what_has_ended_before_the_end_of_the_visit_costs_no_worker(slot):
    slot.to(S.PREPARING)
    slot(Prepared(visit_number=1, tainted="thread monitor"))
    slot(RawArrived(a_raw()))
    slot(Ingested(visit_number=1, exposure=1))
    slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED))
    assert slot.slot.state == S.IDLE


def test_what_a_worker_imports_by_itself_is_noted_in_any_state(slot):
    slot.to(S.PROCESSING)
    imports = {"modules": ("torch",), "seconds": 2.4, "memory_bytes": 330_000_000}
    assert slot(ImportsMeasured(visit_number=1, **imports)) == [NoteImports(**imports)]
    assert slot.slot.state == S.PROCESSING


def test_a_raw_of_a_late_second_attempt_has_its_full_time(slot):
    slot.to(S.IDLE)
    slot(VisitAssigned(an_assignment(image_deadline=500.0)), 800.0)
    slot(RawArrived(a_raw()), 800.0)
    slot(Prepared(visit_number=1), 801.0)
    slot(DeadlinePassed(), 801.0)
    assert slot(RescanDone(), 801.1) == [SetDeadline(831.0)]
    assert orders(slot(Ingested(visit_number=1, exposure=1), 802.0)) == [Process(exposures=(1,))]


def test_a_visit_goes_from_prepare_to_process_to_done(slot):
    slot.to(S.IDLE)
    (prepare,) = orders(slot(VisitAssigned(an_assignment())))
    assert isinstance(prepare, Prepare)
    assert (prepare.visit_number, prepare.detector) == (1, 3)
    slot(Prepared(visit_number=1))
    assert orders(slot(RawArrived(a_raw()))) == [Ingest(raw=a_raw())]
    assert orders(slot(Ingested(visit_number=1, exposure=1))) == [Process(exposures=(1,))]
    slot(StageReached(visit_number=1, stage=Stage.PROCESSED, tai=5.0))
    assert slot.slot.state == S.EXPORTING
    actions = slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED, spool="/s", datasets=4))
    assert finished(actions) == [(Outcome.SUCCEEDED, False)]
    assert slot.slot.state == S.IDLE


def test_the_measurements_of_a_preload_are_recorded(slot):
    slot.to(S.PREPARING)
    notes = [
        each
        for each in slot(Prepared(visit_number=1, detail={"hits": 8}))
        if isinstance(each, NoteMeasurements)
    ]
    assert notes == [NoteMeasurements(an_assignment().key, {"hits": 8})]


def test_why_a_visit_is_not_run_by_the_configured_engine_is_recorded(slot):
    slot.to(S.PROCESSING)
    why = {"not_direct": "task: adjust_all_quanta"}
    actions = slot(StageReached(visit_number=1, stage=Stage.FIRST_TASK, tai=2.0, detail=why))
    assert [each for each in actions if isinstance(each, NoteMeasurements)] == [
        NoteMeasurements(an_assignment().key, why)
    ]


def test_a_raw_that_arrives_during_preload_is_ingested_once_prepared(slot):
    slot.to(S.PREPARING)
    assert orders(slot(RawArrived(a_raw()))) == []
    assert orders(slot(RawArrived(a_raw()))) == []
    assert orders(slot(Prepared(visit_number=1))) == [Ingest(raw=a_raw())]


def test_two_snaps_are_awaited_before_the_pipeline_runs(slot):
    slot.to(S.WAITING, nimages=2)
    slot(RawArrived(a_raw(1)))
    assert orders(slot(Ingested(visit_number=1, exposure=1))) == []
    slot(RawArrived(a_raw(2)))
    assert orders(slot(Ingested(visit_number=1, exposure=2))) == [Process(exposures=(1, 2))]


def test_an_unknown_number_of_snaps_is_learned_from_the_header(slot):
    slot.to(S.WAITING, nimages=0)
    slot(RawArrived(a_raw(1, snaps=2)))
    assert orders(slot(Ingested(visit_number=1, exposure=1))) == []
    slot(RawArrived(a_raw(2, snaps=2)))
    assert orders(slot(Ingested(visit_number=1, exposure=2))) == [Process(exposures=(1, 2))]


def test_at_the_deadline_the_expected_raws_are_rescanned_once_more(slot):
    slot.to(S.WAITING)
    actions = slot(DeadlinePassed(), 500.0)
    assert actions == [
        RescanRaws(slot.slot.assignment.key),
        SetDeadline(502.0),
        SlotChanged(S.WAITING, S.RESCANNING),
    ]


@pytest.mark.parametrize("end", [RescanDone(), DeadlinePassed()])
def test_no_raw_until_the_deadline_is_no_image_and_frees_the_slot(slot, end):
    """Fault 10: also where the rescan does not end."""
    slot.to(S.RESCANNING)
    actions = slot(end, 502.0)
    assert finished(actions) == [(Outcome.NO_IMAGE, False)]
    assert orders(actions) == [GiveUp(reason="no_image")]
    assert slot.slot.state == S.IDLE


def test_no_image_names_the_files_that_were_not_taken(slot):
    slot.to(S.RESCANNING)
    actions = slot(RescanDone(2, "2 files not taken, in /raw: a (b) and 1 more"), 501.0)
    (note,) = [action for action in actions if isinstance(action, NoteMeasurements)]
    (end,) = [action for action in actions if isinstance(action, Finish)]
    assert note.figures == {"files_not_taken": 2}
    assert end.reason == "no raw arrived in time; 2 files not taken, in /raw: a (b) and 1 more"


def test_a_raw_that_the_final_rescan_finds_is_processed(slot):
    slot.to(S.WAITING)
    slot(DeadlinePassed(), 500.0)
    assert orders(slot(RawArrived(a_raw(1)), 500.3)) == [Ingest(raw=a_raw(1))]
    assert slot(RescanDone(), 500.4) == [SetDeadline(530.0)]
    assert orders(slot(Ingested(visit_number=1, exposure=1), 503.0)) == [Process(exposures=(1,))]


@pytest.mark.parametrize("end", [RescanDone(), DeadlinePassed()])
def test_one_snap_of_two_at_the_deadline_runs_partially(slot, end):
    """Fault 13: one snap of two."""
    slot.to(S.WAITING, nimages=2)
    slot(RawArrived(a_raw(1)))
    slot(Ingested(visit_number=1, exposure=1))
    slot(DeadlinePassed(), 500.0)
    assert orders(slot(end, 502.0)) == [Process(exposures=(1,), partial=True)]


def test_the_last_snap_that_is_found_waits_no_longer_than_a_rescan(slot):
    slot.to(S.WAITING, nimages=3)
    slot(RawArrived(a_raw(1)))
    slot(Ingested(visit_number=1, exposure=1))
    slot(DeadlinePassed(), 500.0)
    slot(RawArrived(a_raw(2)), 500.1)
    slot(RescanDone(), 500.2)
    assert without_notes(slot(Ingested(visit_number=1, exposure=2), 505.0)) == [SetDeadline(505.0)]
    assert orders(slot(DeadlinePassed(), 505.0)) == [Process(exposures=(1, 2), partial=True)]


def test_a_raw_being_ingested_at_the_deadline_still_counts(slot):
    """Fault 12: at the deadline."""
    slot.to(S.WAITING)
    slot(RawArrived(a_raw(1)), 499.9)
    slot(DeadlinePassed(), 500.0)
    assert slot(DeadlinePassed(), 502.0) == [SetDeadline(530.0)]
    assert orders(slot(Ingested(visit_number=1, exposure=1), 503.0)) == [Process(exposures=(1,))]


@pytest.mark.parametrize("state", [S.WAITING, S.RESCANNING])
def test_a_cancelled_visit_frees_its_slot_at_once(slot, state):
    """Fault 10: cancelled."""
    slot.to(state)
    actions = slot(CancelReceived())
    assert finished(actions) == [(Outcome.CANCELLED, False)]
    assert orders(actions) == [GiveUp(reason="cancelled")]
    assert slot.slot.state == S.IDLE
    assert slot(RescanDone()) == []


def deadline(actions):
    return [action.at for action in actions if isinstance(action, SetDeadline)][-1:]


def test_a_visit_of_an_unknown_number_ends_when_it_is_quiet(slot):
    """Fault 13: nimages 0."""
    slot.to(S.WAITING, nimages=0)
    assert deadline(slot(RawArrived(a_raw(1)), 50.0)) == [60.0]
    assert deadline(slot(Ingested(visit_number=1, exposure=1), 51.0)) == [60.0]
    assert deadline(slot(RawArrived(a_raw(2)), 58.0)) == [68.0]
    assert deadline(slot(Ingested(visit_number=1, exposure=2), 59.0)) == [68.0]
    slot(DeadlinePassed(), 68.0)
    assert orders(slot(RescanDone(), 68.1)) == [Process(exposures=(1, 2))]


def test_a_raw_from_long_before_the_worker_was_ready_is_not_waited_after(slot):
    slot.to(S.IDLE)
    slot(VisitAssigned(an_assignment(0)), 0.0)
    slot(RawArrived(a_raw(1)), 5.0)
    assert deadline(slot(Prepared(visit_number=1), 40.0)) == [40.0]


def test_snaps_that_the_headers_announce_are_waited_for_until_the_deadline(slot):
    slot.to(S.WAITING, nimages=0)
    assert deadline(slot(RawArrived(a_raw(1, snaps=2)), 50.0)) == [500.0]


def test_more_than_was_announced_is_waited_for_while_it_is_not_quiet(slot):
    slot.to(S.WAITING, nimages=1)
    slot(RawArrived(a_raw(1, snaps=2)), 50.0)
    assert deadline(slot(Ingested(visit_number=1, exposure=1), 51.0)) == [60.0]
    slot(RawArrived(a_raw(2, snaps=2)), 55.0)
    assert orders(slot(Ingested(visit_number=1, exposure=2), 56.0)) == [Process(exposures=(1, 2))]
    actions = slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED), 70.0)
    assert reasons(actions) == ["1 images were announced, but MAXINDEX in the headers is 2"]


def test_headers_with_fewer_snaps_than_announced_do_not_end_the_wait(slot):
    slot.to(S.WAITING, nimages=2)
    slot(RawArrived(a_raw(1, snaps=1)), 50.0)
    assert deadline(slot(Ingested(visit_number=1, exposure=1), 51.0)) == [500.0]


@pytest.mark.parametrize("before", [True, False])
def test_a_list_of_detectors_ends_a_visit_of_an_unknown_number(slot, before):
    slot.to(S.WAITING, nimages=0)
    events = [RawArrived(a_raw(1)), Ingested(visit_number=1, exposure=1)]
    events.insert(0 if before else 2, ExposureListed(1, included=True))
    actions = [action for event in events for action in slot(event, 50.0)]
    assert orders(actions)[-1] == Process(exposures=(1,))


def test_a_raw_on_a_list_is_waited_for_until_the_deadline(slot):
    slot.to(S.WAITING, nimages=0)
    slot(RawArrived(a_raw(1)), 50.0)
    assert deadline(slot(ExposureListed(2, included=True), 50.0)) == [500.0]


def test_a_list_without_the_detector_ends_a_visit_of_an_unknown_number(slot):
    slot.to(S.PREPARING, nimages=0)
    slot(ExposureListed(1, included=False))
    actions = slot(Prepared(visit_number=1))
    assert finished(actions) == [(Outcome.NO_IMAGE, False)]
    assert reasons(actions) == ["the exposures were taken without this detector"]


def test_a_snap_without_the_detector_counts_where_headers_have_the_number(slot):
    slot.to(S.WAITING, nimages=0)
    slot(RawArrived(a_raw(1, snaps=2)))
    slot(Ingested(visit_number=1, exposure=1))
    actions = slot(ExposureListed(2, included=False))
    assert orders(actions) == [Process(exposures=(1,), partial=True)]


def test_lists_change_nothing_where_the_number_was_announced(slot):
    slot.to(S.WAITING, nimages=1)
    assert deadline(slot(ExposureListed(1, included=False))) == [500.0]


def test_a_visit_of_too_many_exposures_takes_no_more_and_keeps_its_worker(slot):
    slot.to(S.WAITING, nimages=100)
    for exposure in range(40):
        slot(RawArrived(a_raw(exposure)))
    taken = [exposure for exposure in range(40) if slot.slot.assignment.has(exposure)]
    assert taken == list(range(32))


def test_an_ingest_that_hangs_is_stopped(slot):
    slot.to(S.WAITING)
    slot(RawArrived(a_raw(1)), 499.9)
    slot(DeadlinePassed(), 500.0)
    assert without_notes(slot(DeadlinePassed(), 530.0)) == [Signal(STOP_SIGNAL), SetDeadline(535.0)]
    assert finished(slot(WorkerDied(-15), 531.0)) == [(Outcome.RUN_TIMEOUT, True)]


def test_the_only_raw_is_bad_and_the_slot_is_free(slot):
    slot.to(S.WAITING)
    slot(RawArrived(a_raw(1)))
    actions = slot(RawRefused(visit_number=1, exposure=1, outcome=Outcome.BAD_RAW, reason="cut"))
    assert finished(actions) == [(Outcome.BAD_RAW, False)]
    assert slot.slot.state == S.IDLE


def reasons(actions):
    return [action.reason for action in actions if isinstance(action, Finish)]


def test_refused_raws_are_reported_with_any_outcome(slot):
    slot.to(S.WAITING, nimages=2)
    slot(RawArrived(a_raw(1)))
    slot(RawRefused(visit_number=1, exposure=1, outcome=Outcome.BAD_RAW, reason="exposure 1 is not used"))
    slot(RawArrived(a_raw(2)))
    slot(Ingested(visit_number=1, exposure=2))
    actions = slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED))
    assert finished(actions) == [(Outcome.SUCCEEDED, False)]
    assert reasons(actions) == ["exposure 1 is not used"]


def test_when_all_raws_are_refused_the_reason_of_each_is_reported(slot):
    slot.to(S.WAITING, nimages=2)
    for exposure, reason in ((1, "cut"), (2, "exposure 2 is not used")):
        slot(RawArrived(a_raw(exposure)))
        actions = slot(RawRefused(visit_number=1, exposure=exposure, outcome=Outcome.BAD_RAW, reason=reason))
    assert finished(actions) == [(Outcome.BAD_RAW, False)]
    assert reasons(actions) == ["cut; exposure 2 is not used"]


def test_one_bad_raw_of_two_leaves_a_partial_visit(slot):
    slot.to(S.WAITING, nimages=2)
    slot(RawArrived(a_raw(1)))
    slot(RawRefused(visit_number=1, exposure=1, outcome=Outcome.BAD_RAW, reason="cut"))
    slot(RawArrived(a_raw(2)))
    assert orders(slot(Ingested(visit_number=1, exposure=2))) == [Process(exposures=(2,), partial=True)]


def another_file(exposure: int, size: int = 2):
    return a_raw(exposure).model_copy(update={"file_id": (1, 1, size, 1)})


def test_another_file_of_a_refused_raw_is_tried(slot):
    slot.to(S.WAITING, nimages=2)
    slot(RawArrived(a_raw(1)))
    slot(RawRefused(visit_number=1, exposure=1, outcome=Outcome.BAD_RAW, reason="cut"))
    assert orders(slot(RawArrived(a_raw(1)))) == [], "the same file"
    assert orders(slot(RawArrived(another_file(1)))) == [Ingest(raw=another_file(1))]
    slot(Ingested(visit_number=1, exposure=1))
    assert orders(slot(RawArrived(another_file(1, size=3)))) == [], "it is ingested"
    slot(RawArrived(a_raw(2)))
    assert orders(slot(Ingested(visit_number=1, exposure=2))) == [Process(exposures=(1, 2))]


def test_another_file_that_arrives_during_an_ingest_is_tried_after_a_refusal(slot):
    slot.to(S.WAITING)
    slot(RawArrived(a_raw(1)))
    assert orders(slot(RawArrived(another_file(1)))) == []
    refusal = RawRefused(visit_number=1, exposure=1, outcome=Outcome.BAD_RAW, reason="cut")
    assert orders(slot(refusal)) == [Ingest(raw=another_file(1))]
    assert slot.slot.state == S.WAITING
    assert finished(slot(refusal)) == [(Outcome.BAD_RAW, False)], "it is tried once"


def test_another_file_that_arrives_while_preparing_is_the_one_to_ingest(slot):
    slot.to(S.PREPARING)
    slot(RawArrived(a_raw(1)))
    slot(RawArrived(another_file(1)))
    assert [order for order in orders(slot(Prepared(visit_number=1))) if isinstance(order, Ingest)] == [
        Ingest(raw=another_file(1))
    ]


def test_a_cancelled_preparing_worker_is_replaced_at_once(slot):
    slot.to(S.PREPARING)
    assert without_notes(slot(CancelReceived(), 2.0)) == [Signal(STOP_SIGNAL), SetDeadline(7.0)]
    actions = slot(WorkerDied(-15), 2.1)
    assert finished(actions) == [(Outcome.CANCELLED, False)]
    assert SetDeadline(2.1) in actions
    assert Fork(2) in slot(DeadlinePassed(), 2.1)


def test_a_cancellation_after_the_shutter_changes_nothing(slot):
    slot.to(S.PROCESSING)
    assert slot(CancelReceived()) == []


def test_late_messages_about_an_earlier_visit_are_dropped(slot):
    """Fault 34: messages of a worker that was stopped and continued."""
    slot.to(S.WAITING)
    slot(RawArrived(a_raw(1)))
    slot(CancelReceived())
    slot(VisitAssigned(an_assignment()))
    assert slot(Ingested(visit_number=1, exposure=1)) == []
    assert slot.slot.state == S.PREPARING


@pytest.mark.parametrize("state", [S.PREPARING, S.WAITING, S.PROCESSING, S.EXPORTING])
@pytest.mark.parametrize(
    "fact",
    [Prepared(), Ingested(exposure=1), MayCross(what="alerts"), Done(outcome=Outcome.SUCCEEDED)],
)
def test_a_message_about_a_later_visit_changes_nothing_and_stops_the_worker(slot, state, fact):
    """Fault 36: a worker that mixes up its visits cannot be trusted with the present one."""
    slot.to(state)
    actions = slot(fact.model_copy(update={"visit_number": 2}))
    assert (slot.slot.state, orders(actions), finished(actions)) == (S.STOPPING, [], [])
    assert finished(slot(WorkerDied(-15))) == [(Outcome.CRASHED, True)]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (S.PREPARING, Outcome.PREPARE_TIMEOUT),
        (S.PROCESSING, Outcome.RUN_TIMEOUT),
        (S.EXPORTING, Outcome.EXPORT_TIMEOUT),
    ],
)
def test_an_overdue_worker_is_terminated_then_killed_then_fenced(slot, state, outcome):
    """Fault 33: a process that survives KILL is fenced, its messages are refused."""
    slot.to(state)
    assert without_notes(slot(DeadlinePassed(), 10.0)) == [Signal(STOP_SIGNAL), SetDeadline(15.0)]
    assert without_notes(slot(DeadlinePassed(), 15.0)) == [Signal(signal.SIGKILL), SetDeadline(25.0)]
    actions = slot(DeadlinePassed(), 25.0)
    assert finished(actions) == [(outcome, False)]
    assert slot.slot.state == S.UNKILLABLE
    assert slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED)) == []
    assert WipeRepo() in slot(WorkerDied(-9), 900.0)


def test_a_worker_over_the_hard_limit_is_terminated_then_killed(slot):
    slot.to(S.PROCESSING)
    assert without_notes(slot(MemorySampled(HARD + 1), 10.0)) == [Signal(STOP_SIGNAL), SetDeadline(15.0)]
    assert without_notes(slot(DeadlinePassed(), 15.0)) == [Signal(signal.SIGKILL), SetDeadline(25.0)]
    assert finished(slot(WorkerDied(-9), 15.1)) == [(Outcome.OUT_OF_MEMORY, False)]


def test_a_worker_over_the_soft_limit_is_recycled_after_its_visit(slot):
    slot.to(S.EXPORTING)
    slot(MemorySampled(SOFT + 1))
    actions = slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED))
    assert orders(actions) == [Quit()]
    assert slot.slot.state == S.STOPPING


def test_a_worker_is_recycled_after_its_number_of_visits(slot):
    slot.to(S.IDLE)
    for visit_number in (1, 2, 3):
        assert slot.slot.state == S.IDLE
        slot(VisitAssigned(an_assignment()))
        slot(Done(visit_number=visit_number, outcome=Outcome.NO_PIPELINE))
    assert slot.slot.state == S.STOPPING
    assert SetDeadline(9.0) in slot(WorkerDied(0), 9.0)  # at once, and no failure


@pytest.mark.parametrize("state", [S.PREPARING, S.WAITING, S.PROCESSING])
def test_a_crash_may_be_retried_before_the_point_of_no_return(slot, state):
    slot.to(state)
    actions = slot(WorkerDied(-11), 3.0)
    assert finished(actions) == [(Outcome.CRASHED, True)]
    assert WipeRepo() in actions
    assert SetDeadline(3.2) in actions
    assert "SIGSEGV" in slot.slot.note


def cross(slot, what="apdb"):
    slot(MayCross(visit_number=1, what=what))
    return slot(CrossingAllowed(what))


@pytest.mark.parametrize("state", [S.PREPARING, S.PROCESSING, S.EXPORTING])
def test_a_worker_waits_until_it_may_cross(slot, state):
    slot.to(state)
    assert AskToCross(KEY, "apdb") in slot(MayCross(visit_number=1, what="apdb"))
    assert Send(Cross()) in slot(CrossingAllowed("apdb"))
    assert slot(MayCross(visit_number=1, what="apdb2")) == [Send(Cross())]
    assert slot(MayCross(visit_number=1, what="")) == [Send(Cross())]
    assert finished(slot(WorkerDied(-9))) == [(Outcome.CRASHED, False)]


def test_a_worker_that_may_complete_its_spool_asks_again_for_a_task(slot):
    slot.to(S.PROCESSING)
    assert cross(slot, "") == [Send(Cross())]
    assert slot(MayCross(visit_number=1, what="apdb")) == [AskToCross(KEY, "apdb")]
    assert finished(slot(WorkerDied(-9))) == [(Outcome.CRASHED, True)]


def test_a_permit_that_comes_after_the_stop_lets_nothing_cross(slot):
    slot.to(S.PROCESSING)
    slot(MayCross(visit_number=1, what="apdb"))
    slot(DeadlinePassed(), 9e9)
    assert slot.slot.state == S.STOPPING
    assert slot(CrossingAllowed("apdb")) == []
    assert slot(MayCross(visit_number=1, what="apdb")) == []
    assert finished(slot(WorkerDied(-15))) == [(Outcome.INTERRUPTED, True)]


@pytest.mark.parametrize("state", [S.PROCESSING, S.EXPORTING])
def test_a_worker_without_a_permit_waits_for_it_until_the_deadline_of_its_pipeline(slot, state):
    """Fault 47: the relay is away."""
    slot.to(state)
    asked = slot(MayCross(visit_number=1, what=""), 5.0)
    if state == S.EXPORTING:
        (deadline,) = (action for action in asked if isinstance(action, SetDeadline))
        assert deadline.at == slot.slot.assignment.run_until > 5.0 + slot.slot.config.times.export_s
    slot(DeadlinePassed(), 9e9)
    assert "the relay did not answer" in slot.slot.note
    assert finished(slot(WorkerDied(-15))) == [(Outcome.INTERRUPTED, True)]


@pytest.mark.parametrize("state", sorted({S.PREPARING, S.WAITING, S.RESCANNING, S.PROCESSING, S.EXPORTING}))
def test_a_visit_that_was_given_to_another_node_ends_at_once(slot, state):
    slot.to(state)
    ended = slot(Withdrawn("moved"))
    if state in (S.WAITING, S.RESCANNING):
        assert finished(ended) == [(Outcome.CANCELLED, False)]
        return
    assert finished(slot(WorkerDied(-15))) == [(Outcome.CANCELLED, False)]


@pytest.mark.parametrize("what", ["", "apdb"])
def test_a_visit_that_has_crossed_is_not_withdrawn(slot, what):
    slot.to(S.PROCESSING)
    cross(slot, what)
    assert slot(Withdrawn("moved")) == []
    assert slot.slot.state == S.PROCESSING


def test_a_failure_without_permanent_writes_may_be_retried(slot):
    slot.to(S.PROCESSING)
    cross(slot)
    done = Done(visit_number=1, outcome=Outcome.FAILED, retriable=True, nothing_permanent=True)
    (finish,) = [action for action in slot(done) if isinstance(action, Finish)]
    assert (finish.retriable, finish.assignment.no_return) == (True, "")


@pytest.mark.parametrize(
    ("outcome", "spool", "may_have_leftovers"),
    [
        (Outcome.SUCCEEDED, "/s", False),
        (Outcome.SUCCEEDED, None, False),
        (Outcome.FAILED, "/s", False),
        (Outcome.FAILED, None, True),  # it may have failed after the spool was renamed
    ],
)
def test_a_worker_that_fails_without_a_spool_may_have_left_one(slot, outcome, spool, may_have_leftovers):
    slot.to(S.PROCESSING)
    (finish,) = [
        action
        for action in slot(Done(visit_number=1, outcome=outcome, spool=spool))
        if isinstance(action, Finish)
    ]
    assert finish.may_have_leftovers == may_have_leftovers


@pytest.mark.parametrize("event", [WorkerDied(-9), CancelReceived(), None])
def test_only_a_worker_that_ended_may_have_left_something(slot, event):
    slot.to(S.WAITING)
    if event is None:
        slot(DeadlinePassed())
        event = RescanDone()
    (finish,) = [action for action in slot(event) if isinstance(action, Finish)]
    assert finish.may_have_leftovers == isinstance(event, WorkerDied)


def test_messages_about_a_raw_that_cross_a_cancellation_are_harmless(slot):
    slot.to(S.WAITING)
    slot(RawArrived(a_raw(1)))
    slot(CancelReceived())
    assert slot(Ingested(visit_number=1, exposure=1)) == []
    assert slot.slot.state == S.IDLE


def test_a_slot_without_a_process_is_not_unkillable(slot):
    for event in (DeadlinePassed(), KillRequested()):
        driver = Driver()
        assert not any(isinstance(action, Signal) for action in driver(event, 20.0))
        assert driver.slot.state == S.BACKOFF
    assert Fork(2) in Driver()(RestartRequested(), 20.0)


def test_a_worker_that_hangs_at_every_boot_is_quarantined(slot):
    for k in range(5):
        slot(WorkerForked(k), k)
        slot(DeadlinePassed(), k)
        slot(WorkerDied(-9), k)
        if slot.slot.state == S.BACKOFF:
            slot(DeadlinePassed(), k)
    assert slot.slot.state == S.QUARANTINED


def test_a_result_that_crosses_term_is_accepted(slot):
    slot.to(S.STOPPING)
    slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED, spool="/s"))
    (finish,) = (a for a in slot(WorkerDied(-15)) if isinstance(a, Finish))
    assert (finish.outcome, finish.spool) == (Outcome.SUCCEEDED, "/s")


def fail_to_start(slot, times, status=1, now=0.0):
    """Let workers die while starting; return the pauses that follow."""
    pauses = []
    for k in range(times):
        slot(WorkerForked(100 + k), now)
        actions = slot(WorkerDied(status), now)
        pauses += [action.at - now for action in actions if isinstance(action, SetDeadline)]
        if k < times - 1:
            slot(DeadlinePassed(), now)
    return pauses


def test_five_failures_quarantine_the_slot_until_an_operator_restarts_it(slot):
    assert fail_to_start(slot, 5) == pytest.approx([0.2, 0.4, 0.8, 1.6, 60.0])
    assert slot.slot.state == S.QUARANTINED
    assert Fork(6) in slot(RestartRequested())
    assert not slot.slot.quarantined
    assert fail_to_start(slot, 4) == pytest.approx([0.2, 0.4, 0.8, 1.6])


def test_a_quarantined_slot_tries_a_worker_once_a_minute_and_is_back_when_one_is_ready(slot):
    fail_to_start(slot, 5)
    for now in (60.0, 500.0):  # the failures before the second try are forgotten, the quarantine is not
        assert Fork(slot.slot.epoch + 1) in slot(DeadlinePassed(), now)
        assert slot.slot.quarantined
        assert fail_to_start(slot, 1, now=now) == [60.0]
        assert slot.slot.state == S.QUARANTINED
    slot(DeadlinePassed(), 560.0)
    slot(WorkerForked(1), 560.0)
    slot(Ready(pid=1), 560.0)
    assert (slot.slot.state, slot.slot.quarantined) == (S.IDLE, False)


def test_a_worker_that_dies_again_soon_after_a_quarantine_is_quarantined_at_once(slot):
    fail_to_start(slot, 5)
    slot(DeadlinePassed(), 60.0)
    slot(WorkerForked(1), 60.0)
    slot(Ready(pid=1), 60.0)
    assert SetDeadline(121.0) in slot(WorkerDied(1), 61.0)
    assert slot.slot.state == S.QUARANTINED


@pytest.mark.parametrize("status", [-signal.SIGSEGV, 1, -signal.SIGKILL])
@pytest.mark.parametrize("state", [S.PREPARING, S.WAITING, S.PROCESSING, S.EXPORTING])
def test_deaths_within_visits_do_not_count_against_the_slot(slot, state, status):
    for k in range(20):
        slot.to(state)
        slot(WorkerDied(status), k)
        assert (slot.slot.state, slot.slot.quarantined) == (S.BACKOFF, False)
        slot(DeadlinePassed(), k + 0.2)


@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGTERM, -STOP_SIGNAL, None])
@pytest.mark.parametrize("state", [S.STARTING, S.IDLE])
def test_workers_that_are_killed_from_outside_do_not_count_against_the_slot(slot, state, status):
    for k in range(20):
        slot.to(state)
        slot(WorkerDied(status), k)
        assert (slot.slot.state, slot.slot.quarantined) == (S.BACKOFF, False)
        slot(DeadlinePassed(), k + 2.0)


@pytest.mark.parametrize(
    "death", [WorkerDied(0), WorkerDied(-signal.SIGSEGV), WorkerDied(-9, out_of_memory=True)]
)
def test_workers_that_end_by_themselves_while_idle_count_against_the_slot(slot, death):
    for k in range(5):
        slot.to(S.IDLE)
        slot(death, k)
        if k < 4:
            slot(DeadlinePassed(), k)
    assert slot.slot.state == S.QUARANTINED


def test_a_failed_fork_backs_off(slot):
    actions = slot(WorkerNotForked("EAGAIN"), 4.0)
    assert SetDeadline(4.2) in actions
    assert slot.slot.state == S.BACKOFF


def test_a_worker_whose_configuration_is_wrong_is_quarantined_at_once(slot):
    slot(WorkerForked(1))
    assert not any(isinstance(action, SetDeadline) for action in slot(WorkerDied(78)))
    assert (slot.slot.state, slot.slot.quarantined) == (S.QUARANTINED, True)
    assert Fork(2) in slot(RecycleRequested())  # a reload
    assert not slot.slot.quarantined


@pytest.mark.parametrize(
    "message",
    [
        ProtocolViolation("not JSON"),
        Ingested(visit_number=1, exposure=99),
        Prepared(visit_number=1),
        Done(visit_number=7, outcome=Outcome.SUCCEEDED),
    ],
)
def test_an_invalid_message_ends_the_worker_and_not_the_visit(slot, message):
    """Fault 36: invalid messages, another visit's result."""
    slot.to(S.WAITING)
    assert Signal(STOP_SIGNAL) in slot(message)
    assert finished(slot(WorkerDied(-15))) == [(Outcome.CRASHED, True)]


@pytest.mark.parametrize(
    ("death", "worker_died"),
    [
        (WorkerDied(-signal.SIGSEGV), True),
        (WorkerDied(0), True),
        (WorkerDied(-signal.SIGKILL), None),
        (WorkerDied(-signal.SIGTERM), None),
        (WorkerDied(None), None),
        (WorkerDied(-signal.SIGKILL, out_of_memory=True), None),
    ],
)
def test_only_a_worker_that_ended_by_itself_has_died_of_its_pipeline(slot, death, worker_died):
    slot.to(S.IDLE)
    slot(VisitAssigned(an_assignment()))
    slot(Prepared(visit_number=1, pipeline="a"))
    (finish,) = (action for action in slot(death) if isinstance(action, Finish))
    assert (finish.worker_died, finish.assignment.pipeline) == (worker_died, "a")


def test_a_worker_that_is_stopped_has_not_died_of_its_pipeline(slot):
    slot.to(S.STOPPING)
    (finish,) = (action for action in slot(WorkerDied(-signal.SIGSEGV)) if isinstance(action, Finish))
    assert finish.worker_died is None


@pytest.mark.parametrize(
    ("state", "worker_died"), [(S.PREPARING, None), (S.PROCESSING, False), (S.EXPORTING, False)]
)
def test_a_worker_has_outlived_its_pipeline_if_that_has_run(slot, state, worker_died):
    slot.to(state)
    (finish,) = (
        action for action in slot(Done(visit_number=1, outcome=Outcome.FAILED)) if isinstance(action, Finish)
    )
    assert finish.worker_died is worker_died


def test_a_second_result_is_refused(slot):
    """Fault 36: a result twice."""
    slot.to(S.EXPORTING)
    slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED))
    actions = slot(Done(visit_number=1, outcome=Outcome.FAILED))
    assert finished(actions) == []
    assert slot.slot.state == S.STOPPING


def test_a_retired_idle_slot_stops_for_good(slot):
    slot.to(S.IDLE)
    assert orders(slot(RetireRequested())) == [Quit()]
    actions = slot(WorkerDied(0))
    assert slot.slot.state == S.STOPPED
    assert not any(isinstance(action, SetDeadline) for action in actions)


def test_a_retired_busy_slot_ends_its_visit_first(slot):
    slot.to(S.PROCESSING)
    assert slot(RetireRequested()) == []
    slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED))
    assert slot.slot.state == S.STOPPING


def test_a_killed_slot_interrupts_its_visit(slot):
    slot.to(S.PROCESSING)
    assert Signal(signal.SIGKILL) in slot(KillRequested())
    assert finished(slot(WorkerDied(-9))) == [(Outcome.INTERRUPTED, True)]


def test_an_impossible_event_leaves_the_slot_as_it_was_and_reports_the_last_events(slot):
    slot.to(S.PROCESSING)
    with pytest.raises(InvalidTransition, match="slot 4 epoch 1"):
        slot(VisitAssigned(an_assignment()))
    assert slot.slot.state == S.PROCESSING
