# SPDX-License-Identifier: BSD-3-Clause
"""Assignment of visit-detectors to slots, and the number of slots."""

from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.config import WorkersConfig
from ppdaemon.messages import Pipelines
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.scheduler import Assign, Drop, OpenSlot, RetireSlot, Scheduler
from ppdaemon.visit import read_next_visit


def an_assignment(group="g", detector=0, expires_at=1000.0):
    visit = read_next_visit({"groupId": group, "instrument": "DemoCam"})
    key = Key("DemoCam", group, detector)
    return Assignment(key, visit, Pipelines(main=("a",)), image_deadline=100.0, expires_at=expires_at)


def a_scheduler(**numbers):
    return Scheduler(WorkersConfig(**{"min": 1, "spare": 0, "max": 4, **numbers}))


def with_idle(scheduler, *slots, now=0.0):
    for slot in slots:
        scheduler.slot_opened(slot)
        scheduler.slot_idle(slot, now)
    return scheduler


def assigned(decisions):
    return {d.assignment.key.group: d.slot for d in decisions if isinstance(d, Assign)}


def test_the_pool_begins_with_its_least_number_of_slots():
    assert a_scheduler(min=3).decide(0.0) == [OpenSlot()] * 3


def test_spare_workers_are_kept_ready_beyond_the_least_number():
    assert a_scheduler(min=1, spare=2).decide(0.0) == [OpenSlot()] * 2


def test_a_worker_that_served_the_detector_last_is_taken_first():
    scheduler = with_idle(a_scheduler(), 0, 1, 2)
    for slot, group, detector in ((0, "a", 5), (1, "b", 6), (2, "c", 7)):
        scheduler.add(an_assignment(group, detector))
        assert assigned(scheduler.decide(0.0)) == {group: slot}
    for slot in (0, 1, 2):
        scheduler.slot_idle(slot, 1.0)
    scheduler.add(an_assignment("d", 6))
    assert assigned(scheduler.decide(1.0)) == {"d": 1}


def test_slots_open_for_visits_that_may_not_be_assigned_yet():
    scheduler = with_idle(a_scheduler(spare=1), 0)
    scheduler.add(an_assignment())
    assert scheduler.decide(0.0, assigning=False) == [OpenSlot()]
    assert assigned(scheduler.decide(0.0)) == {"g": 0}


def test_a_new_detector_takes_a_worker_that_served_none():
    scheduler = with_idle(a_scheduler(), 0)
    scheduler.add(an_assignment("a", 5))
    scheduler.decide(0.0)
    scheduler.slot_idle(0, 1.0)
    with_idle(scheduler, 1)
    scheduler.add(an_assignment("b", 6))
    assert assigned(scheduler.decide(1.0)) == {"b": 1}


def test_without_an_idle_worker_slots_are_opened_up_to_the_greatest_number():
    scheduler = a_scheduler(max=2)
    for k in range(5):
        scheduler.add(an_assignment(f"g{k}"))
    assert scheduler.decide(0.0) == [OpenSlot()] * 2
    assert scheduler.queued == 5


def test_slots_that_are_starting_are_not_opened_twice():
    scheduler = a_scheduler()
    scheduler.add(an_assignment())
    assert scheduler.decide(0.0) == [OpenSlot()]
    scheduler.slot_opened(0)
    assert scheduler.decide(0.0) == []
    scheduler.slot_idle(0, 0.1)
    assert assigned(scheduler.decide(0.1)) == {"g": 0}


def test_expired_visits_are_dropped_and_the_others_stay():
    scheduler = a_scheduler()
    scheduler.add(an_assignment("old", expires_at=10.0))
    scheduler.add(an_assignment("new", expires_at=20.0))
    (drop,) = scheduler.drop_expired(10.0)
    assert drop.assignment.key.group == "old"
    assert scheduler.queued == 1


def test_a_full_queue_drops_the_oldest_never_the_newest():
    scheduler = a_scheduler(queue=2)
    assert scheduler.add(an_assignment("a")) is None
    assert scheduler.add(an_assignment("b")) is None
    drop = scheduler.add(an_assignment("c"))
    assert isinstance(drop, Drop)
    assert drop.assignment.key.group == "a"


def test_surplus_workers_are_retired_after_a_while_but_not_the_spare():
    scheduler = with_idle(a_scheduler(min=1, spare=1, retire_idle_s=60), 0, 1, 2)
    assert scheduler.decide(59.0) == []
    assert scheduler.decide(60.0) == [RetireSlot(0), RetireSlot(1)]
    assert scheduler.decide(60.0) == []


def test_a_second_attempt_goes_to_another_worker_if_there_is_one():
    scheduler = with_idle(a_scheduler(), 0)
    scheduler.add(an_assignment("a", 5))
    scheduler.decide(0.0)
    scheduler.slot_idle(0, 1.0)
    with_idle(scheduler, 1)
    scheduler.add(an_assignment("a", 5).again(avoid=0))
    assert assigned(scheduler.decide(1.0)) == {"a": 1}
    scheduler.slot_closed(1)
    scheduler.add(an_assignment("b", 5).again(avoid=0))
    assert assigned(scheduler.decide(1.0)) == {"b": 0}


def test_the_hosts_memory_bounds_the_pool_but_not_below_its_least_number():
    scheduler = a_scheduler(min=1, max=9)
    for k in range(6):
        scheduler.add(an_assignment(f"g{k}"))
    assert scheduler.decide(0.0, room=0) == [OpenSlot()]
    assert scheduler.decide(0.0, room=3) == [OpenSlot()] * 3
    scheduler.slot_opened(0)
    assert scheduler.decide(0.0, room=3) == [OpenSlot()] * 2


def test_an_unkillable_slot_makes_room_for_another():
    scheduler = with_idle(a_scheduler(max=1), 0)
    scheduler.slot_closed(0)
    assert scheduler.decide(0.0) == [OpenSlot()]


def test_a_quarantined_slot_still_counts():
    scheduler = with_idle(a_scheduler(max=1), 0)
    scheduler.slot_busy(0)
    scheduler.add(an_assignment())
    assert scheduler.decide(0.0) == []


@given(st.data())
def test_whatever_happens_each_visit_goes_to_one_idle_slot_and_slots_stay_in_bounds(data):
    config = WorkersConfig(min=1, spare=1, max=5, queue=8, retire_idle_s=3)
    scheduler = Scheduler(config)
    idle, busy, starting, assigned_keys, dropped, added = set(), set(), set(), set(), set(), 0
    now = 0.0
    for step in data.draw(st.lists(st.sampled_from(["add", "ready", "free", "close", "tick"]), max_size=60)):
        now += 1.0
        if step == "add":
            added += 1
            drop = scheduler.add(an_assignment(f"g{added}", added % 3, expires_at=now + 5.0))
            dropped |= {drop.assignment.key} if drop else set()
        elif step == "ready" and starting:
            slot = starting.pop()
            idle.add(slot)
            scheduler.slot_idle(slot, now)
        elif step == "free" and busy:
            slot = busy.pop()
            idle.add(slot)
            scheduler.slot_idle(slot, now)
        elif step == "close" and busy:
            scheduler.slot_closed(busy.pop())
        dropped |= {drop.assignment.key for drop in scheduler.drop_expired(now)}
        for decision in scheduler.decide(now):
            match decision:
                case Assign(assignment=assignment, slot=slot):
                    assert slot in idle
                    assert assignment.key not in assigned_keys | dropped
                    idle.discard(slot)
                    busy.add(slot)
                    assigned_keys.add(assignment.key)
                case OpenSlot():
                    slot = len(assigned_keys) * 1000 + int(now) * 10 + len(starting)
                    starting.add(slot)
                    scheduler.slot_opened(slot)
                case RetireSlot(slot=slot):
                    assert slot in idle
                    idle.discard(slot)
                    scheduler.slot_closed(slot)
        assert config.min <= len(idle) + len(busy) + len(starting) <= config.max
        assert len(assigned_keys) + len(dropped) + scheduler.queued == added
