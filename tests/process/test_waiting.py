# SPDX-License-Identifier: BSD-3-Clause
"""How long a visit waits for its raws, and what becomes of those that come too late."""

import time

import pytest
from node import make_node, running
from test_relay_and_node import observatory

from ppdaemon.errors import NotFound, Refused
from ppdaemon.reports import DrainRequest, ResumeRequest
from ppdaemon.states import BAD_OUTCOMES, Outcome, SlotState
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.waiting import wait_until

FORGETFUL = {"remember_s": 0.3, "scan_s": 0.2}
BLIND = {"watch": "poll", "poll_s": 600, "scan_s": 600}
"""Sources that see nothing after the start."""


def waiting(node, group="g1", detector=0):
    """Wait until a worker waits for a raw."""
    seen = (group, detector, SlotState.WAITING)
    node.wait(lambda: any((row.group, row.detector, row.state) == seen for row in node.workers()))


def aged(path, age_s=1.0):
    """Wait until a file is older than `FORGETFUL` nodes remember."""
    wait_until(lambda: time.time() - path.stat().st_ctime > age_s)


def last_result(node, group="g1", detector=0):
    return node.relay.results[group, detector][-1]


def ended(node, attempt, group="g1", detector=0):
    """Wait for the one outcome of one attempt; it may be sent again."""
    key = (group, detector)
    node.relay.wait(lambda: key in node.relay.results and last_result(node, *key).attempt == attempt)
    assert len({(e.outcome, e.reason) for e in node.relay.results[key] if e.attempt == attempt}) == 1
    return last_result(node, *key).outcome


def late(node, group="g1"):
    """Return the late raws of a visit."""
    return [row for row in node.daemon.late(100) if row.group == group]


def test_a_visit_announced_before_the_raws_of_the_one_before_and_raws_out_of_order(node, group):
    """Fault 9: three in flight, out of order."""
    first, second, third = (f"{group}-{k}" for k in range(3))
    node.relay.reserve(first)
    node.relay.reserve(second)
    waiting(node, second)
    node.land(second)
    assert node.relay.outcome(second).outcome == Outcome.SUCCEEDED
    node.relay.reserve(third)
    node.land(third)
    node.land(first)
    assert {node.relay.outcome(each).outcome for each in (first, third)} == {Outcome.SUCCEEDED}
    assert node.marks(f"{group}-*") == {f"{each}~0": 1 for each in (first, second, third)}


def test_a_canceled_visit_ends_at_once_in_any_state(tmp_path, socket_dir):
    """Fault 10: cancelled."""
    with running(tmp_path, socket_dir, min=1, max=1, spare=0) as node:
        for state in (SlotState.WAITING, SlotState.PREPARING, "queued"):
            group = f"g-{state}"
            if state == "queued":
                node.relay.reserve("g0", survey="process:hold")
                waiting(node, "g0")
            node.relay.reserve(group, survey="prepare:gate" if state == SlotState.PREPARING else "")
            if state == "queued":
                node.wait(lambda: node.status().queued == 1)
            else:
                node.wait(lambda state=state: node.workers()[0].state == state)
            node.relay.cancel(group)
            assert node.relay.outcome(group).outcome == Outcome.CANCELLED
            if state == "queued":
                node.land("g0")
            node.open_gate(group)
            node.wait(lambda: node.status().slots.get(SlotState.IDLE) == 1)
            assert not late(node, group)


def test_a_raw_without_an_announcement_is_remembered_for_a_later_one(node, group):
    """Fault 11: a raw without next_visit."""
    before = node.status().counters.get("raw_without_visit", 0)
    node.land(group)
    node.wait(lambda: node.status().counters.get("raw_without_visit", 0) > before)
    assert not late(node, group)
    node.relay.reserve(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    assert node.marks(group) == {f"{group}~0": 1}


def test_a_raw_that_arrives_during_preload_is_processed_once(node, group):
    """Fault 12: during preload."""
    node.relay.reserve(group, survey="prepare:gate")
    node.wait(lambda: node.at_gate(group))
    node.land(group)
    node.wait(lambda: node.visit(group)[0].stages.get("arrived"))
    node.open_gate(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    assert node.marks(group) == {f"{group}~0": 1}


@pytest.mark.slow
def test_a_raw_that_no_source_reports_is_found_by_the_final_rescan(tmp_path, socket_dir):
    """Fault 12: at the deadline, with all events lost."""
    with running(tmp_path, socket_dir, image_timeout_s=1.0, arrivals=BLIND) as node:
        node.land("other", number=1)
        node.land("g1", number=2)
        node.relay.reserve("g1", (0, 1))
        assert node.relay.outcome("g1", 0).outcome == Outcome.SUCCEEDED
        assert node.relay.outcome("g1", 1).outcome == Outcome.NO_IMAGE
        assert node.marks() == {"g1~0": 1}


@pytest.mark.slow
def test_a_visit_retried_after_a_restart_finds_its_old_raw(tmp_path, socket_dir):
    with PlayedRelay() as relay, make_node(tmp_path, socket_dir, relay, arrivals=FORGETFUL) as node:
        node.start()
        relay.reserve("g1", survey="process:hang@1")
        path = node.land("g1")
        node.wait(lambda: any(row.state == SlotState.PROCESSING for row in node.workers()))
        node.kill()
        aged(path)
        node.start()
        assert relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.marks() == {"g1~0": 1}


def test_without_a_number_the_header_ends_the_wait(node, group):
    """Fault 13: nimages 0."""
    node.relay.reserve(group, nimages=0)
    for snap in (1, 2):
        node.land(group, snap=snap, snaps=2)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    (row,) = node.visit(group)
    assert (len(row.exposures), row.partial, row.reason) == (2, False, "")


@pytest.mark.slow
def test_a_raw_from_before_the_watch_is_processed_once_and_without_any_number_when_it_is_quiet(
    tmp_path, socket_dir
):
    """Fault 12: before the watch. Fault 13: nimages 0, and the header has no number."""
    with PlayedRelay() as relay, make_node(tmp_path, socket_dir, relay, arrivals={"quiet_s": 0.5}) as node:
        node.land("before", number=1)
        node.start()
        relay.reserve("before")
        assert relay.outcome("before").outcome == Outcome.SUCCEEDED
        relay.reserve("g1", nimages=0)
        waiting(node)
        node.land("g1", number=2, snap=None, snaps=None)
        assert relay.outcome("g1").outcome == Outcome.SUCCEEDED
        (row,) = node.visit("g1")
        assert not row.partial
        assert row.stages["ingested"] - row.stages["arrived"] >= 0.5
        assert node.marks() == {"before~0": 1, "g1~0": 1}


def test_without_any_number_the_list_of_detectors_ends_the_wait(node, group):
    """Fault 13: nimages 0, and the header has no number."""
    node.raws.list_detectors([0, 1, 2], node.raws.number(group, None))
    node.relay.reserve(group, (0, 1, 5), nimages=0)
    for detector in (0, 1, 5):
        waiting(node, group, detector)
    node.land(group, 0, snap=None, snaps=None)
    assert node.relay.outcome(group, 0).outcome == Outcome.SUCCEEDED
    other = node.relay.outcome(group, 5)
    assert (other.outcome, other.reason) == (
        Outcome.NO_IMAGE,
        "the exposures were taken without this detector",
    )
    assert (group, 1) not in node.relay.results
    node.land(group, 1, snap=None, snaps=None)
    assert node.relay.outcome(group, 1).outcome == Outcome.SUCCEEDED


def test_three_snaps_for_two_run_and_are_flagged(node, group):
    """Fault 13: three for two."""
    node.relay.reserve(group, nimages=2, survey="prepare:gate")
    node.wait(lambda: node.at_gate(group))
    before = node.delivered()
    for snap in (1, 2, 3):
        node.land(group, snap=snap, snaps=3)
    node.wait(lambda: node.delivered() == before + 3)
    node.open_gate(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    (row,) = node.visit(group)
    assert (len(row.exposures), row.reason) == (
        3,
        "2 images were announced, but MAXINDEX in the headers is 3",
    )


def test_a_raw_that_arrives_while_the_pipeline_runs_is_late(node, group):
    node.relay.reserve(group, survey="process:gate")
    node.land(group, snap=1)
    node.wait(lambda: node.at_gate(group))
    before = node.delivered()
    path = node.land(group, snap=2)
    node.wait(lambda: node.delivered() == before + 1)
    assert not late(node, group)
    node.open_gate(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    node.wait(lambda: [row.path for row in late(node, group)] == [str(path)])


@pytest.mark.slow
def test_a_late_raw_is_listed_and_requeued(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, image_timeout_s=0.3, arrivals=FORGETFUL) as node:
        node.relay.reserve("g1", (0, 1))
        assert {ended(node, 1, detector=detector) for detector in (0, 1)} == {Outcome.NO_IMAGE}
        path = node.land("g1", 0)
        (row,) = node.wait(lambda: late(node))
        assert (row.group, row.detector, row.path, row.outcome) == ("g1", 0, str(path), Outcome.NO_IMAGE)
        node.wait(lambda: node.status().late_raws == 1)
        aged(path)
        rows = node.daemon.requeue("g1", None, force=False)
        assert [(row.detector, row.attempt, row.text) for row in rows] == [(0, 2, ""), (1, 2, "")]
        assert ended(node, 2, detector=0) == Outcome.SUCCEEDED
        assert ended(node, 2, detector=1) == Outcome.NO_IMAGE
        assert not late(node)
        node.wait(lambda: node.status().late_raws == 0)
        assert [(row.attempt, row.outcome) for row in node.visit("g1") if row.detector == 0] == [
            (1, Outcome.NO_IMAGE),
            (2, Outcome.SUCCEEDED),
        ]
        assert node.marks() == {"g1~0": 1}
        (refused,) = node.daemon.requeue("g1", (0,), force=True)
        assert (refused.attempt, refused.text) == (None, "it has succeeded")


def test_a_refused_requeue_is_answered_with_the_reason(node, group):
    with pytest.raises(NotFound, match=f"no visit of group '{group}'"):
        node.daemon.requeue(group, None, force=False)
    node.relay.reserve(group)
    node.relay.wait(lambda: (group, 0) in node.relay.acked)
    under_way, unknown = node.daemon.requeue(group, (0, 7), force=True)
    assert (under_way.text, unknown.text) == ("it is under way", "not in the journal")
    with pytest.raises(NotFound, match="with one of these detectors"):
        node.daemon.requeue(group, (7,), force=False)
    node.daemon.ask(DrainRequest())
    try:
        with pytest.raises(Refused, match="takes no visits now"):
            node.daemon.requeue(group, None, force=False)
    finally:
        node.daemon.ask(ResumeRequest())


def test_after_the_point_of_no_return_a_requeue_needs_force(node, group):
    node.relay.reserve(group, survey="written:die@1")
    node.land(group)
    assert ended(node, 1, group) == Outcome.CRASHED
    (row,) = node.daemon.requeue(group, None, force=False)
    assert row.attempt is None
    assert "point of no return (marker)" in row.text
    assert node.marks(group) == {f"{group}~0": 1}
    (row,) = node.daemon.requeue(group, None, force=True)
    assert row.attempt == 2
    assert ended(node, 2, group) == Outcome.SUCCEEDED
    assert node.marks(group) == {f"{group}~0": 2}


def test_a_visit_detector_is_either_retried_or_caught_up(node, group):
    def mark(state, *detectors, **more):
        rows = node.daemon.mark_catchup("DemoCam", group, detectors or (0,), state=state, run="R", **more)
        return [(row.attempt, row.text) for row in rows]

    def requeued(**more):
        (row,) = node.daemon.requeue(group, (0,), **({"force": False} | more))
        return row.attempt, row.text

    node.relay.reserve(group, survey="ingest:refuse@1")
    node.relay.wait(lambda: (group, 0) in node.relay.acked)
    assert mark("running", 0, 7) == [(None, "it is under way"), (None, "not in the journal")]
    node.land(group)
    assert ended(node, 1, group) in BAD_OUTCOMES
    assert mark("released") == [(None, "the catch-up does not have it")]
    assert mark("running") == mark("running") == [(1, "")]  # again after one that was killed
    assert requeued() == (
        None,
        "the catch-up has it (run R), ppctl catchup run goes on with it: its outputs would be there twice;"
        " --force accepts that",
    )
    assert mark("done") == [(1, "")]
    assert node.visit(group)[0].figures["catchup"]["state"] == "done"
    assert "has processed it" in requeued()[1]
    assert "has processed it" in mark("running")[0][1]
    assert mark("running", force=True) == mark("released") == [(1, "")]
    assert requeued()[0] == 2
    assert ended(node, 2, group) == Outcome.SUCCEEDED
    assert mark("running")[0][1] == "it has succeeded"


def test_partial_outputs_that_wait_for_export_are_replaced_by_those_of_the_next_attempt(node, group):
    central_down = node.state / "central-down"
    central_down.touch()
    try:
        node.relay.reserve(group, survey="failed:ordered spooled:die@1")
        node.land(group)
        assert ended(node, 1, group) == Outcome.FAILED
        node.wait(lambda: node.status().exporter.startswith("failing"))

        def requeued():
            """A failing export may be under way at any moment."""
            (row,) = node.daemon.requeue(group, None, force=True)
            assert row.attempt or "being exported" in row.text
            return row.attempt

        assert node.wait(requeued) == 2
        assert ended(node, 2, group) == Outcome.SUCCEEDED
    finally:
        central_down.unlink()
    node.wait(lambda: node.status().spooled == 0)
    assert [name for name in node.exported() if group in name] == [f"DemoCam~{group}~0~2"]


def test_a_visit_that_another_node_may_have_is_not_requeued(node, group):
    node.relay.reserve(group)
    waiting(node, group)
    node.relay.cancel(group, (0,))
    node.relay.wait(lambda: group in {entry.group for entry in node.relay.returned})
    (row,) = node.daemon.requeue(group, None, force=False)
    assert "two nodes would process it" in row.text


@pytest.mark.slow
def test_a_requeued_attempt_changes_the_relays_ledger_and_opens_nothing_there(tmp_path, socket_dir):
    with observatory(tmp_path, socket_dir, image_timeout_s=0.3, max=9) as (relay, node, client):
        client.announce("g1", nimages=1)
        wait_until(lambda: set(client.outcomes("g1").values()) == {"no_image"})
        node.land("g1", 4)
        node.wait(lambda: late(node))
        (row,) = node.daemon.requeue("g1", (4,), force=False)
        assert row.attempt == 2
        wait_until(lambda: client.outcomes("g1")[4] == "succeeded", story=lambda: client.outcomes("g1"))
        relay.process.kill()
        relay.process.wait()
        relay.start()
        node.wait(lambda: node.status().relay.startswith("connected"))
        assert client.announce("g1", nimages=1)["status"] == "duplicate"
        outcomes = client.outcomes("g1")
        assert [outcomes[detector] for detector in (3, 4, 5)] == ["no_image", "succeeded", "no_image"]
        node.wait(lambda: node.status().open_visits == 0)
        assert node.marks() == {"g1~4": 1}
