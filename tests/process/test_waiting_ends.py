# SPDX-License-Identifier: BSD-3-Clause
"""How a wait for raws ends, at a daemon that does not wait long."""

import pytest
from test_waiting import ended, late

from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.raws import publish, small_fits


@pytest.fixture(scope="module")
def changes():
    return {"image_timeout_s": 1.0}


def test_without_a_raw_all_detectors_end_after_a_rescan_and_slots_are_free(node, group):
    """Fault 10: next_visit without any raw."""
    before = node.status().counters.get("arrivals.final_rescans", 0)
    other = node.land(f"{group}-other")
    node.relay.reserve(group, range(3))
    for detector in range(3):
        entry = node.relay.outcome(group, detector)
        assert entry.outcome == Outcome.NO_IMAGE
        reason, _, files = entry.reason.partition("; ")
        assert reason == "no raw arrived in time"
        # No visit with the group of this file was announced.
        assert (f"{other.name} (it has the group {group}-other)" in files) == (detector == 0)
    node.wait(lambda: node.status().slots == {SlotState.IDLE: len(node.workers())})
    assert 1 <= node.status().counters["arrivals.final_rescans"] - before <= 3
    assert not node.marks(group)


def test_a_raw_under_another_name_is_named_in_the_outcome_and_listed_as_failed(node, group):
    node.land(group, 0)
    part = node.raws.path(node.raws.number(group), 1, ".fits.part")
    publish(part, small_fits())
    node.relay.reserve(group, range(3))
    assert [ended(node, 1, group, detector=detector) for detector in range(3)] == [
        Outcome.SUCCEEDED,
        Outcome.NO_IMAGE,
        Outcome.NO_IMAGE,
    ]
    named = f"{part.name} (not complete, or no raw: its name ends in .part)"
    (row,) = [row for row in node.daemon.visits(50, failed=True) if row.group == group]
    assert (row.detector, row.reason) == (
        1,
        f"no raw arrived in time; 1 file not taken, in {part.parent}: {named}",
    )


def test_a_raw_that_is_being_ingested_at_the_deadline_is_processed_once(node, group):
    """Fault 12: at the deadline."""
    node.land(group)
    node.relay.reserve(group, survey="ingest:gate")
    node.wait(lambda: node.at_gate(group))
    node.wait(lambda: any(row.state == SlotState.RESCANNING for row in node.workers()))
    node.open_gate(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    assert node.marks(group) == {f"{group}~0": 1}


def test_one_snap_of_two_runs_and_is_flagged(node, group):
    """Fault 13: one snap of two."""
    node.land(group, snap=1, snaps=2)
    node.relay.reserve(group, nimages=2)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    (row,) = node.visit(group)
    assert (row.exposures, row.partial) == ((node.raws.exposure(node.raws.number(group)),), True)


def test_a_partial_success_keeps_its_outputs(node, group):
    central_down = node.state / "central-down"
    central_down.touch()
    try:
        node.land(group, snap=1, snaps=2)
        node.relay.reserve(group, nimages=2)
        assert ended(node, 1, group) == Outcome.SUCCEEDED
        (row,) = node.daemon.requeue(group, None, force=True)
        assert (row.attempt, "wait for export" in row.text) == (None, True)
    finally:
        central_down.unlink()
    node.wait(lambda: node.status().spooled == 0)
    node.land(group, snap=2, snaps=2)
    node.wait(lambda: len(late(node, group)) == 1)
    (row,) = node.daemon.requeue(group, None, force=True)
    assert row.attempt == 2
    assert "outputs of attempt 1 in the central repo stay there" in row.text
    assert ended(node, 2, group) == Outcome.SUCCEEDED
    exposures = tuple(node.raws.exposure(node.raws.number(group, snap)) for snap in (1, 2))
    assert node.visit(group)[1].exposures == exposures
