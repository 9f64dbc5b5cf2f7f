# SPDX-License-Identifier: BSD-3-Clause
"""How many visit-detectors the slots can have at once."""

import sqlite3

import pytest
from test_slot import Driver, an_assignment, fail_to_start

from ppdaemon.config import MemoryConfig, WorkersConfig
from ppdaemon.messages import Ready
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.slots.capacity import Capacity, capacity_of
from ppdaemon.node.slots.events import (
    DeadlinePassed,
    RetireRequested,
    VisitAssigned,
    WorkerDied,
    WorkerForked,
)
from ppdaemon.node.visits.journal import Journal
from ppdaemon.states import SlotState

CONFIG = WorkersConfig(max=4)


def idle():
    return Driver().to(SlotState.IDLE).slot


def quarantined():
    driver = Driver()
    fail_to_start(driver, 5)
    return driver.slot


def unkillable():
    driver = Driver().to(SlotState.KILLING)
    driver(DeadlinePassed(), 99.0)
    assert driver.slot.state == SlotState.UNKILLABLE
    return driver.slot


def in_backoff():
    driver = Driver().to(SlotState.PROCESSING)
    driver(WorkerDied(-11))
    assert driver.slot.state == SlotState.BACKOFF
    return driver.slot


def stopped():
    driver = Driver()
    fail_to_start(driver, 5)
    driver(RetireRequested())
    assert driver.slot.state == SlotState.STOPPED
    return driver.slot


@pytest.mark.parametrize(
    ("slots", "number"),
    [
        ([], 4),
        ([idle(), in_backoff(), Driver().slot], 4),
        ([idle(), quarantined()], 3),
        ([idle(), unkillable()], 4),  # another slot is opened in its place
        ([idle(), stopped()], 4),
    ],
)
def test_a_slot_counts_unless_no_worker_can_start_in_it(slots, number):
    assert capacity_of(CONFIG, slots) == Capacity(number)


def test_nothing_is_offered_while_all_slots_are_quarantined_also_if_more_could_be_opened():
    slots = [quarantined(), quarantined(), unkillable(), stopped()]
    assert capacity_of(CONFIG, slots) == Capacity(0, "all slots are quarantined, such as slot 4")


def test_a_quarantined_slot_counts_when_its_worker_is_ready_not_while_it_is_tried():
    driver = Driver()
    fail_to_start(driver, 5)
    driver(DeadlinePassed(), 60.0)
    driver(WorkerForked(1), 60.0)
    assert not capacity_of(CONFIG, [driver.slot]).number
    driver(Ready(pid=1), 60.0)
    assert capacity_of(CONFIG, [driver.slot]) == Capacity(4)


def test_without_a_zygote_only_living_workers_count():
    busy = idle()
    busy.handle(VisitAssigned(an_assignment()), 1.0)
    slots = [idle(), busy, in_backoff()]
    assert capacity_of(CONFIG, slots, "the zygote died") == Capacity(2)
    assert capacity_of(CONFIG, slots[2:], "the zygote died") == Capacity(0, "the zygote died")


@pytest.mark.parametrize(("budget", "number"), [(999, 0), (1000, 1), (3500, 3), (9000, 4)])
def test_the_memory_of_all_workers_limits_the_number(budget, number):
    config = WorkersConfig(max=4, memory=MemoryConfig(soft=1000, hard=2000, budget=budget))
    capacity = capacity_of(config, [idle()])
    assert capacity.number == number
    assert ("budget is less" in capacity.problem) == (number == 0)


def test_a_process_that_failed_once_is_not_failing_and_one_that_failed_twice_is_until_it_serves():
    lifecycle = Lifecycle(boot_s=9.0, answer_s=9.0, first_pause_s=1.0, longest_pause_s=60.0, steady_s=60.0)
    lifecycle.started(0.0)
    lifecycle.ready()
    lifecycle.ended("was killed", 100.0)
    assert (lifecycle.state, lifecycle.failing) == (ProcessState.PAUSING, False)
    lifecycle.started(101.0)
    lifecycle.ended("ended with status 1", 102.0)
    assert lifecycle.failing
    lifecycle.started(104.0)
    assert lifecycle.failing
    lifecycle.ready()
    assert not lifecycle.failing


def test_a_probe_writes_to_the_journal_and_fails_if_that_is_impossible(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    log = tmp_path / "journal.sqlite-wal"
    before = log.stat().st_size
    with journal.transaction():
        journal.probe()
    assert log.stat().st_size > before
    journal._db.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError):
        journal.probe()
    journal.close()
