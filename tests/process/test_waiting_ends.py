# SPDX-License-Identifier: BSD-3-Clause
"""How a wait for raws ends, at a daemon that does not wait long."""

import pytest
from test_waiting import ended, late

from ppdaemon.states import Outcome, SlotState


@pytest.fixture(scope="module")
def changes():
    return {"image_timeout_s": 1.0}


def test_without_a_raw_all_detectors_end_after_a_rescan_and_slots_are_free(node, group):
    """Fault 10: next_visit without any raw."""
    before = node.status().counters.get("arrivals.final_rescans", 0)
    node.land(f"{group}-other")
    node.relay.reserve(group, range(3))
    for detector in range(3):
        entry = node.relay.outcome(group, detector)
        assert (entry.outcome, entry.reason) == (Outcome.NO_IMAGE, "no raw arrived in time")
    node.wait(lambda: node.status().slots == {SlotState.IDLE: len(node.workers())})
    assert 1 <= node.status().counters["arrivals.final_rescans"] - before <= 3
    assert not node.marks(group)


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
