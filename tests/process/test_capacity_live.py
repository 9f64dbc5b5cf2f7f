# SPDX-License-Identifier: BSD-3-Clause
"""A node offers what its slots can have, and no fault of a visit costs a slot."""

import itertools
import os
import signal
import time

import pytest
from node import running

from ppdaemon.reports import ReloadRequest
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.node import PROGRAM, TIMES, running_node
from ppdaemon.timescales import TAI_MINUS_UTC_S

PROBES = {"probe_s": 0.5}


def offered(node):
    return node.relay.hellos[-1].capacity


def kill_idle(node):
    for row in node.workers():
        if row.state == SlotState.IDLE:
            os.kill(row.pid, signal.SIGKILL)


@pytest.mark.slow
def test_twelve_visits_that_end_their_workers_cost_no_slot(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=2, max=2, attempts=1) as node:
        for number in range(12):
            node.relay.reserve(f"bad{number}", survey="process:segv")
            node.land(f"bad{number}", number=number + 1)
        for number in range(12):
            assert node.relay.outcome(f"bad{number}").outcome == Outcome.CRASHED
        node.wait(lambda: offered(node) == 1)  # no worker lived: the host may be the cause
        assert any("the host may be faulty" in text for text in node.status().problem_texts)
        node.relay.reserve("good", (0, 1))
        for detector in (0, 1):
            node.land("good", detector, number=20)
            assert node.relay.outcome("good", detector).outcome == Outcome.SUCCEEDED
        node.wait(lambda: offered(node) == 2)
        assert all(hello.capacity for hello in node.relay.hellos)
        assert "quarantined" not in node.log.read_text()


def test_workers_that_are_killed_from_outside_cost_no_slot(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=2, max=2) as node:
        for number in range(6):
            kill_idle(node)
            node.wait(lambda epoch=number + 2: all(row.epoch >= epoch for row in node.workers()))
            node.wait(node.is_ready)
        node.succeed("g1")
        assert {hello.capacity for hello in node.relay.hellos} == {2}
        assert node.status().state == "running"


def test_a_node_takes_no_visit_that_could_end_after_its_host_is_given_back(tmp_path, socket_dir):
    # A visit of 30 s may take 60 + 30 until its image, and 50 after it.
    until = round(time.time() + 600)
    program = (*PROGRAM[:-1], f"--until={until}", PROGRAM[-1])
    with running(tmp_path, socket_dir, program=program) as node:
        status = node.status()
        # Not from now on: a start may take long.
        assert abs(until + TAI_MINUS_UTC_S - status.takes_until_tai - 80) < 1
        node.relay.reserve("short", duration=30)
        node.relay.wait(lambda: ("short", 0) in node.relay.acked)
        node.relay.reserve("long", duration=300)
        node.relay.wait(lambda: [(nak.group, nak.final) for nak in node.relay.naks] == [("long", False)])
        node.land("short")
        assert node.relay.outcome("short").outcome == Outcome.SUCCEEDED
        assert all(hello.capacity for hello in node.relay.hellos)
        node.rewrite(arrivals={"image_timeout_s": 600})
        node.daemon.ask(ReloadRequest())
        node.wait(lambda: not offered(node))
        node.wait(lambda: any("given back" in text for text in node.status().problem_texts))
        assert node.status().state == "draining"  # it is planned: no alarm


@pytest.mark.slow
def test_a_node_without_a_usable_slot_offers_nothing_until_a_worker_can_start_again(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=2, max=3, times=PROBES) as node:
        (node.state / "boot-fails").touch()
        kill_idle(node)
        node.wait(lambda: not node.status().slots.get(SlotState.IDLE))
        node.relay.reserve("queued")
        node.relay.wait(lambda: ("queued", 0) in node.relay.acked)
        node.wait(lambda: offered(node) == 0)
        status = node.status()
        assert (status.state, status.capacity) == ("degraded", 0)
        assert any(
            "no visits are accepted: all slots are quarantined" in text for text in status.problem_texts
        )
        node.relay.wait(lambda: not node.relay.acked)
        assert {entry.group for entry in node.relay.returned} == {"queued"}
        node.relay.reserve("refused")
        node.relay.wait(lambda: node.relay.naks)
        assert not node.relay.naks[-1].final
        (node.state / "boot-fails").unlink()
        node.wait(lambda: offered(node) == 3)
        node.succeed("g1")
        assert node.status().state == "running"


@pytest.mark.slow
def test_a_node_whose_zygote_cannot_start_offers_only_its_living_workers(tmp_path, socket_dir):
    with running(tmp_path, socket_dir, min=2, max=3) as node:
        (settings,) = node.ramdisk.rglob("config-1.json")
        content = settings.read_bytes()
        settings.write_text("{}")
        (zygote,) = node.zygotes()
        os.kill(zygote, signal.SIGKILL)
        node.wait(lambda: offered(node) == len(node.workers()) == 2)
        kill_idle(node)
        node.wait(lambda: offered(node) == 0)
        assert any("no visits are accepted: the zygote" in text for text in node.status().problem_texts)
        settings.write_bytes(content)
        node.wait(lambda: offered(node) == 3)
        node.succeed("g1")


@pytest.mark.slow
def test_a_pipeline_that_ends_its_workers_is_set_aside_and_comes_back(tmp_path, socket_dir):
    bad, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    bad.write_text("{}  # script: process:segv\n")
    good.write_text("{}\n")
    with running_node(
        tmp_path,
        socket_dir,
        pipelines={
            "main": [{"survey": "other", "pipelines": [str(good)]}, {"pipelines": [str(bad), str(good)]}]
        },
        workers={
            "work": "ppdaemon.testing.work",
            "max": 3,
            "min": 3,
            "attempts": 1,
            "times": TIMES | {"probe_s": 5},
        },
    ) as node:

        def outcome(group, number, survey=""):
            node.relay.reserve(group, survey=survey)
            node.land(group, number=number)
            return node.relay.outcome(group).outcome

        crashed = 0
        while not any("pipeline bad is set aside" in text for text in node.status().problem_texts):
            assert outcome(f"bad{crashed}", crashed + 1) == Outcome.CRASHED
            crashed += 1
            assert outcome(f"other{crashed}", 100 + crashed, "other") == Outcome.SUCCEEDED
        assert crashed >= 3
        assert node.status().state == "degraded"
        assert outcome("next", 200) == Outcome.SUCCEEDED
        bad.write_text("{}\n")
        groups = itertools.count(300)
        node.wait(
            lambda: outcome(f"try{(number := next(groups))}", number) and not node.status().problem_texts
        )
        assert offered(node) == 3
