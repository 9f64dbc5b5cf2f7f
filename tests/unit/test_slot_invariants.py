# SPDX-License-Identifier: BSD-3-Clause
"""Invariants of a slot under random events."""

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_slot import CONFIG, a_raw, an_assignment

from ppdaemon.messages import (
    Done,
    Ingested,
    MayCross,
    Prepared,
    RawRefused,
    Ready,
    StageReached,
)
from ppdaemon.node.slots.events import (
    CancelReceived,
    CrossingAllowed,
    DeadlinePassed,
    ExposureListed,
    Finish,
    Fork,
    KillRequested,
    MemorySampled,
    ProtocolViolation,
    RawArrived,
    RecycleRequested,
    RescanDone,
    RestartRequested,
    RetireRequested,
    Send,
    Signal,
    VisitAssigned,
    WipeRepo,
    Withdrawn,
    WorkerDied,
    WorkerForked,
    WorkerNotForked,
)
from ppdaemon.node.slots.slot import InvalidTransition, Slot
from ppdaemon.states import BUSY_STATES, Outcome, SlotState, Stage

S = SlotState
ALIVE = {S.STARTING, S.IDLE, *BUSY_STATES, S.STOPPING, S.KILLING, S.UNKILLABLE}


def events(visit_number):
    facts = st.sampled_from(
        [
            Ready(pid=1),
            Prepared(visit_number=visit_number),
            Ingested(visit_number=visit_number, exposure=1),
            Ingested(visit_number=visit_number, exposure=2),
            Ingested(visit_number=visit_number, exposure=3),
            RawRefused(visit_number=visit_number, exposure=1, outcome=Outcome.BAD_RAW, reason="r"),
            StageReached(visit_number=visit_number, stage=Stage.PROCESSED, tai=1.0),
            StageReached(visit_number=visit_number, stage=Stage.FIRST_TASK, tai=1.0),
            MayCross(visit_number=visit_number, what="w"),
            MayCross(visit_number=visit_number, what=""),
            Done(visit_number=visit_number, outcome=Outcome.SUCCEEDED, spool="/s"),
            Done(visit_number=visit_number, outcome=Outcome.FAILED, retriable=True),
        ]
    )
    others = st.sampled_from(
        [
            RawArrived(a_raw(1)),
            RawArrived(a_raw(2)),
            RawArrived(a_raw(3, snaps=2)),
            ExposureListed(1, included=True),
            ExposureListed(2, included=False),
            RescanDone(),
            CancelReceived(),
            Withdrawn("moved"),
            CrossingAllowed("w"),
            CrossingAllowed(""),
            DeadlinePassed(),
            MemorySampled(10),
            MemorySampled(1500),
            MemorySampled(10**9),
            ProtocolViolation("?"),
            WorkerDied(-signal.SIGKILL),
            WorkerDied(0),
            WorkerNotForked("no"),
            RestartRequested(),
            RecycleRequested(),
            RetireRequested(),
            KillRequested(),
        ]
    )
    return st.one_of(facts, facts, others)


@settings(max_examples=150)
@given(st.data())
def test_every_assigned_visit_gets_exactly_one_outcome_and_no_slot_is_stuck(data):
    check_story(data)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_the_same_of_many_more_stories(data):
    check_story(data)


def check_story(data):
    """Give a slot random events; each visit gets one outcome, and no slot is stuck."""
    slot = Slot(0, CONFIG, jitter=lambda: 0.5)
    actions = slot.open(0.0)
    assigned, outcomes, now, process = 0, [], 0.0, False
    for _ in range(data.draw(st.integers(1, 60))):
        now += 1.0
        if slot.state == S.STARTING and not process:
            event = data.draw(st.sampled_from([WorkerForked(7), WorkerNotForked("no")]))
            process = isinstance(event, WorkerForked)
        elif slot.state == S.IDLE and data.draw(st.booleans()):
            event = VisitAssigned(an_assignment(data.draw(st.integers(0, 2))))
            assigned += 1
        else:
            event = data.draw(events(slot.visit_number))
            if isinstance(event, WorkerDied):
                if not process:
                    continue
                process = False
            if isinstance(event, WorkerNotForked):
                continue
        before, promised = slot.state, slot.assignment
        try:
            actions = slot.handle(event, now)
        except InvalidTransition:
            assert slot.state == before
            continue
        for action in actions:
            if isinstance(action, Finish):
                outcomes.append(action)
                assert action.assignment.key == promised.key
                assert not (action.retriable and action.assignment.no_return)
            if isinstance(action, Fork):
                assert not process, slot.format_story()
            if isinstance(action, Send | Signal):
                assert process or before == S.STARTING, slot.format_story()
            if isinstance(action, WipeRepo):
                assert not process, slot.format_story()
        current = slot.assignment is not None
        assert len(outcomes) + current == assigned, slot.format_story()
        assert current or slot.state not in BUSY_STATES, slot.format_story()
        assert process or slot.state not in ALIVE - {S.STARTING}, slot.format_story()


@given(st.sampled_from(sorted(BUSY_STATES)), st.integers(0, 3))
def test_deadlines_alone_end_every_visit_and_every_process(state, nimages):
    from test_slot import Driver

    driver = Driver().to(state)
    slot, now = driver.slot, 600.0
    outcomes = []
    for _ in range(7):
        outcomes += [a for a in slot.handle(DeadlinePassed(), now) if isinstance(a, Finish)]
        now += 100.0
    if slot.state in (S.UNKILLABLE, S.IDLE):
        assert len(outcomes) == 1
    assert slot.assignment is None, slot.format_story()
