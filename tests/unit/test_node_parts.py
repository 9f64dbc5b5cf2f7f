# SPDX-License-Identifier: BSD-3-Clause
"""The small pure parts of a node: deadlines, budget, assignment, docket, folders."""

import pytest
from test_scheduler import an_assignment

from ppdaemon.clock import Clock, day_obs, tai_iso
from ppdaemon.folders import NodeFolders
from ppdaemon.node.assignment import Key
from ppdaemon.node.budget import RestartBudget
from ppdaemon.node.deadlines import Deadlines
from ppdaemon.node.docket import Docket, OpenVisit
from ppdaemon.node.journal import Entry
from ppdaemon.raws.path import Expected
from ppdaemon.states import Outcome, Stage


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
    return OpenVisit(Entry(assignment.key, assignment.visit, received_tai=1.0), assignment)


def test_the_docket_hands_out_each_change_once_as_a_copy():
    docket, visit = Docket(), an_open_visit()
    docket.add(visit)
    docket.reached(visit, Stage.PREPARED, 2.0)
    (copy,) = docket.changed()
    docket.reached(visit, Stage.INGESTED, 3.0)
    assert copy.stages == {Stage.PREPARED: 2.0}
    assert len(docket.changed()) == 1
    assert docket.changed() == []


def test_a_stage_is_reached_once():
    docket, visit = Docket(), an_open_visit()
    docket.reached(visit, Stage.ARRIVED, 2.0)
    docket.reached(visit, Stage.ARRIVED, 9.0)
    assert visit.entry.stages == {Stage.ARRIVED: 2.0}


def test_what_open_visits_wait_for_is_told_by_visit_until_all_is_ingested():
    docket = Docket()
    visits = [an_open_visit(detector) for detector in (0, 1, 2)]
    for visit in visits:
        docket.add(visit)
    docket.reached(visits[1], Stage.INGESTED, 2.0)
    assert docket.waiting() == [Expected("DemoCam", frozenset({0, 2}), "g")]
    docket.end(visits[0], Outcome.NO_IMAGE, "", 3.0, final=True)
    docket.reached(visits[2], Stage.INGESTED, 3.0)
    assert docket.waiting() == []


def test_an_ended_visit_leaves_the_docket_and_is_counted_if_final():
    docket = Docket()
    for detector, final in ((0, True), (1, False)):
        visit = an_open_visit(detector)
        docket.add(visit)
        assert docket.of_group("DemoCam", "g") == [visit]
        docket.end(visit, Outcome.CRASHED, "r", 5.0, final=final)
        assert docket.find("DemoCam", "g", detector) is None
        assert docket.of_group("DemoCam", "g") == []
    assert docket.outcomes == {Outcome.CRASHED: 1}
    assert len(docket) == 0


@pytest.mark.parametrize("group", ["2025-11-22T03:25:16.951", "a~b/../c", "x#2", "%2F"])
def test_a_spool_folder_names_its_visit_and_cannot_leave_the_spool(tmp_path, group):
    folders = NodeFolders(tmp_path, tmp_path)
    folder = folders.spooled("DemoCam", group, 3, 2)
    assert folder.parent == folders.spool
    assert NodeFolders.read_spooled(folder.name) == ("DemoCam", group, 3, 2)


def test_other_names_in_the_spool_are_not_visits():
    for name in (".part", "a~b", "a~b~c~d", "lost+found"):
        assert NodeFolders.read_spooled(name) is None


def test_a_key_tells_itself():
    assert str(Key("DemoCam", "g", 3)) == "DemoCam g detector 3 attempt 1"


def test_the_observing_day_turns_at_noon_tai():
    noon = 1_763_812_800.0  # 2025-11-22T12:00:00
    assert (day_obs(noon - 0.001), day_obs(noon)) == (20251121, 20251122)
    assert tai_iso(noon) == "2025-11-22T12:00:00.000"
    assert Clock().tai() > noon
