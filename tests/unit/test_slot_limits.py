# SPDX-License-Identifier: BSD-3-Clause
"""Decisions of a slot about a worker that uses too much."""

import pytest
from test_slot import HARD, Driver, an_assignment, finished, without_notes

from ppdaemon.config import MemoryConfig, TimesConfig, WorkersConfig
from ppdaemon.messages import Done, MayCross
from ppdaemon.node.slots.events import (
    CrossingAllowed,
    DeadlinePassed,
    MemorySampled,
    SetDeadline,
    Signal,
    VisitAssigned,
    WorkerDied,
)
from ppdaemon.processes import STOP_SIGNAL
from ppdaemon.states import BUSY_STATES, Outcome, SlotState

S = SlotState
QUOTA = 500
CONFIG = WorkersConfig(
    times=TimesConfig(grace_s=5, cpu_s=60), memory=MemoryConfig(soft=1000, hard=HARD, ramdisk=QUOTA)
)
LADDER = [Signal(STOP_SIGNAL), SetDeadline(15.0)]


@pytest.fixture
def slot():
    return Driver(CONFIG)


@pytest.mark.parametrize("state", sorted(BUSY_STATES))
def test_a_worker_over_its_quota_is_stopped_with_its_reason(slot, state):
    slot.to(state)
    assert slot(MemorySampled(QUOTA, repo_bytes=QUOTA)) == []
    assert without_notes(slot(MemorySampled(600_000, repo_bytes=600_000_000), 10.0)) == LADDER
    assert finished(slot(WorkerDied(-15), 11.0)) == [(Outcome.RAMDISK_FULL, False)]
    assert slot.slot.note == "600 MB on the RAM disk, 0 MB allowed"


def test_an_idle_worker_over_its_quota_is_stopped_too(slot):
    slot.to(S.IDLE)
    assert without_notes(slot(MemorySampled(QUOTA + 1, repo_bytes=QUOTA + 1), 10.0)) == LADDER


def test_cpu_time_counts_from_the_assignment(slot):
    slot.to(S.IDLE)
    assert slot(MemorySampled(1, cpu_s=1000.0)) == []
    slot(VisitAssigned(an_assignment()))
    assert slot(MemorySampled(1, cpu_s=1000.5)) == []
    assert slot(MemorySampled(1, cpu_s=1060.5)) == []
    assert without_notes(slot(MemorySampled(1, cpu_s=1060.6), 10.0)) == LADDER
    assert finished(slot(WorkerDied(-15), 11.0)) == [(Outcome.RUN_TIMEOUT, True)]
    assert slot.slot.note == "the visit took more than 60 s of CPU time"


def test_each_visit_has_its_own_cpu_time(slot):
    slot.to(S.IDLE)
    for visit_number in (1, 2, 3):
        slot(VisitAssigned(an_assignment()))
        assert slot(MemorySampled(1, cpu_s=100.0 * visit_number)) == []
        assert slot(MemorySampled(1, cpu_s=100.0 * visit_number + 50)) == []
        slot(Done(visit_number=visit_number, outcome=Outcome.NO_PIPELINE))
    assert slot.slot.state == S.IDLE


def test_the_cpu_time_of_an_idle_worker_is_not_counted(slot):
    slot.to(S.IDLE)
    assert slot(MemorySampled(1, cpu_s=0.0)) == []
    assert slot(MemorySampled(1, cpu_s=9999.0)) == []


def test_too_much_cpu_time_after_the_point_of_no_return_is_not_tried_again(slot):
    slot.to(S.PROCESSING)
    slot(MemorySampled(1, cpu_s=0.0))
    slot(MayCross(visit_number=1, what="apdb"))
    slot(CrossingAllowed("apdb"))
    slot(MemorySampled(1, cpu_s=61.0), 10.0)
    assert finished(slot(WorkerDied(-15), 11.0)) == [(Outcome.RUN_TIMEOUT, False)]


@pytest.mark.parametrize("state", sorted(BUSY_STATES))
def test_a_worker_that_the_kernel_killed_because_of_its_memory_has_that_outcome(slot, state):
    slot.to(state)
    assert finished(slot(WorkerDied(-9, out_of_memory=True))) == [(Outcome.OUT_OF_MEMORY, False)]
    assert (
        slot.slot.note
        == f"worker ended by signal 9 (SIGKILL) while {state}: the kernel killed it because of its memory"
    )
    assert slot.slot.state == S.BACKOFF


def test_the_use_of_the_previous_worker_does_not_count(slot):
    slot.to(S.PROCESSING)
    slot(MemorySampled(QUOTA, repo_bytes=QUOTA, cpu_s=59.0))
    slot(WorkerDied(-9), 1.0)
    slot(DeadlinePassed(), 2.0)
    assert slot.slot.state == S.STARTING
    assert slot.slot.usage.used_bytes == 0
