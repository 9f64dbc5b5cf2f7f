# SPDX-License-Identifier: BSD-3-Clause
"""The small pure parts of a node: deadlines, budget, assignment, open visits, folders."""

from collections import Counter
from unittest.mock import Mock

import pytest
from test_scheduler import an_assignment

from ppdaemon.clock import Clock, day_obs, tai_iso
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.slots.budget import RestartBudget
from ppdaemon.node.slots.deadlines import Deadlines
from ppdaemon.node.slots.events import NoteRecycled, NoteStage
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.slot import Slot
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.model import CountRecycled, JournalEntry, Now
from ppdaemon.node.visits.openvisits import OpenVisits, Phase, VisitDetector
from ppdaemon.raws.path import ExpectedRaws
from ppdaemon.states import SlotState, Stage


def test_deadlines_come_in_order_and_replaced_ones_never():
    deadlines = Deadlines()
    deadlines.set(1, 5.0)
    deadlines.set(2, 3.0)
    deadlines.set(1, 9.0)
    deadlines.set(3, 4.0)
    deadlines.clear(3)
    assert deadlines.next() == 3.0
    assert deadlines.due(8.0) == [2]
    assert deadlines.due(9.0) == [1]
    assert deadlines.next() is None


def test_a_deadline_set_twice_to_the_same_time_passes_once():
    deadlines = Deadlines()
    deadlines.set(1, 5.0)
    deadlines.set(1, 5.0)
    assert deadlines.due(5.0) == [1]
    assert deadlines.due(6.0) == []


def test_deadlines_far_ahead_do_not_pile_up_when_replaced():
    deadlines = Deadlines()
    for count in range(10_000):
        deadlines.set(count % 3, 1e6 + count)
    assert len(deadlines._heap) < 100
    assert deadlines.due(2e6) == [1, 2, 0]


def test_failures_long_ago_do_not_count():
    budget = RestartBudget(lambda: 0.0)
    for now in (0.0, 1.0, 2.0, 3.0):
        assert budget.failed(now) is not None
    assert budget.failed(500.0) == 0.2


def test_the_pause_has_at_most_a_quarter_of_jitter():
    assert RestartBudget(lambda: 1.0).failed(0.0) == pytest.approx(0.25)


def an_open_visit(detector=0):
    assignment = an_assignment(detector=detector)
    entry = JournalEntry(assignment.key, assignment.visit, received_tai=1.0)
    return VisitDetector(entry, assignment, Phase.QUEUED)


def test_each_change_is_returned_once_as_a_copy():
    visits, visit = OpenVisits(), an_open_visit()
    visits.add(visit)
    visit.entry.stages[Stage.PREPARED] = 2.0
    visits.mark_changed(visit.entry)
    (copy,) = visits.take_changes()
    visit.entry.stages[Stage.INGESTED] = 3.0
    visits.mark_changed(visit.entry)
    assert copy.stages == {Stage.PREPARED: 2.0}
    assert visits.changed
    assert len(visits.take_changes()) == 1
    assert (visits.take_changes(), visits.changed) == ((), False)


def test_a_row_written_now_is_not_written_again():
    visits, visit = OpenVisits(), an_open_visit()
    visits.add(visit)
    visits.mark_changed(visit.entry)
    assert visits.take_change(visit.entry) == visit.entry
    assert not visits.changed


def test_expected_raws_are_those_that_are_not_ingested():
    visits = OpenVisits()
    open_visits = [an_open_visit(detector) for detector in (0, 1, 2)]
    for visit in open_visits:
        visits.add(visit)
    open_visits[1].entry.stages[Stage.INGESTED] = 2.0
    assert visits.expected() == [ExpectedRaws("DemoCam", frozenset({0, 2}), "g")]
    first = next(iter(visits))
    ends_tai = first.entry.received_tai + first.assignment.visit.duration_s
    assert visits.late(ends_tai + 59.0, 60.0) == []
    assert visits.late(ends_tai + 61.0, 60.0) == visits.expected()
    visits.remove(open_visits[0])
    open_visits[2].entry.stages[Stage.INGESTED] = 3.0
    assert visits.expected() == []


def test_open_visits_are_found_by_detector_attempt_and_group():
    visits = OpenVisits()
    first, second = an_open_visit(0), an_open_visit(1)
    for visit in (second, first):
        visits.add(visit)
    assert visits.in_group("DemoCam", "g") == [first, second]
    assert visits.find("DemoCam", "g", 1) is second
    assert visits.get(first.key) is first
    assert visits.get(first.key._replace(attempt=2)) is None
    visits.remove(first)
    assert (len(visits), visits.in_group("DemoCam", "g"), visits.find("DemoCam", "g", 0)) == (
        1,
        [second],
        None,
    )


@pytest.mark.parametrize("group", ["2025-11-22T03:25:16.951", "a~b/../c", "x#2", "%2F"])
def test_a_spool_folder_names_its_visit_and_cannot_leave_the_spool(tmp_path, group):
    folders = NodeFolders(tmp_path, tmp_path)
    folder = folders.spooled("DemoCam", group, 3, 2)
    assert folder.parent == folders.spool
    assert NodeFolders.parse_spool_name(folder.name) == ("DemoCam", group, 3, 2)


def test_other_names_in_the_spool_are_not_visits():
    for name in (".part", "a~b", "a~b~c~d", "lost+found"):
        assert NodeFolders.parse_spool_name(name) is None


def test_a_key_is_readable_as_text():
    assert str(Key("DemoCam", "g", 3)) == "DemoCam g detector 3 attempt 1"


def test_the_observing_day_turns_at_noon_tai():
    noon = 1_763_812_800.0  # 2025-11-22T12:00:00
    assert (day_obs(noon - 0.001), day_obs(noon)) == (20251121, 20251122)
    assert tai_iso(noon) == "2025-11-22T12:00:00.000"
    assert Clock().tai() > noon


async def test_a_replaced_worker_is_counted_here_and_in_the_journal(config, clock):
    posted = []
    pool = Pool(config, clock, lambda order: True, posted.append, Counter())
    pool._perform(Slot(0, config.workers, lambda: 0.5), [NoteRecycled("age", "because of its age")])
    pool.close()
    assert pool.count == {"recycled.age": 1}
    event, now = posted[0], Now(clock.mono(), clock.tai())
    effects = Visits(config, Counter()).handle(event, now)
    assert effects.writes == [CountRecycled("age", now.tai)]


async def test_workers_without_a_visit_are_told_from_others(config, clock):
    pool = Pool(config, clock, lambda order: True, lambda action: None, Counter())
    for number, state in enumerate((SlotState.IDLE, SlotState.WAITING, SlotState.STOPPED)):
        slot = pool.slots[number] = Slot(number, config.workers, lambda: 0.5)
        slot.state, slot.visit_number = state, 7 + number
        pool._children[number] = Mock()
    del pool._children[2]
    assert pool.idle_visits() == {0: 7}
    pool._children.clear()
    pool.close()


async def test_a_stage_has_the_time_at_which_it_was_reached_not_handled(config, clock):
    posted = []
    pool = Pool(config, clock, lambda order: True, posted.append, Counter())
    slot, key, now = Slot(0, config.workers, lambda: 0.5), Key("DemoCam", "g", 0), clock.tai()
    pool._perform(slot, [NoteStage(key, Stage.INGESTED), NoteStage(key, Stage.FIRST_TASK, 7.0)])
    pool.close()
    clock.advance(5.0)
    assert posted == [NoteStage(key, Stage.INGESTED, now), NoteStage(key, Stage.FIRST_TASK, 7.0)]
