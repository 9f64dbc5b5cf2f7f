# SPDX-License-Identifier: BSD-3-Clause
"""Which keys a reload may change, and when it replaces workers."""

import pytest
from test_scheduler import an_assignment as a_queued_assignment
from test_slot import CONFIG, Driver, finished, orders

from ppdaemon.config import NodeConfig, WorkersConfig
from ppdaemon.messages import Done, Quit, Ready
from ppdaemon.node.processes.reload import needs_restart
from ppdaemon.node.slots.events import (
    RecycleRequested,
    RetireRequested,
    WorkerDied,
    WorkerForked,
    WorkerNotForked,
)
from ppdaemon.node.slots.scheduler import Assign, OpenSlot, RetireSlot, Scheduler
from ppdaemon.states import BUSY_STATES, Outcome, SlotState

S = SlotState


def a_config(**parts):
    document = {
        "node": {
            "name": "n1",
            "state_dir": "/s",
            "ramdisk": "/r",
            "control": "/c",
            "instruments": {"DemoCam": "0-8"},
        },
        "arrivals": {"roots": ["/raw"]},
        "workers": {"work": "scripted"},
        "pipelines": {"main": [{"pipelines": ["/p.yaml"]}]},
    }
    for name, keys in parts.items():
        document[name] = keys if isinstance(keys, list) else document.get(name, {}) | keys
    return NodeConfig.model_validate(document)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"workers": {"max": 3, "start": "spawn", "times": {"run_s": 5}, "memory": {"soft": 1}}},
        {"pipelines": {"main": [{"pipelines": None}]}},
        {"engine": {"no_return": ["alerts"]}},
        {"export": {"types": ["x"]}},
        {"butler": {"central": "/b", "instrument_class": {}}},
        {"log": {"level": "DEBUG"}},
        {"publish": [{"what": "telemetry", "to": "https://proxy/"}]},
        {"node": {"expiry_s": 5}},
        {"arrivals": {"image_timeout_s": 5}},
    ],
)
def test_these_change_while_the_daemon_runs(parts):
    assert needs_restart(a_config(), a_config(**parts)) == []


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("node", "name", "n2"),
        ("node", "state_dir", "/other"),
        ("node", "ramdisk", "/other"),
        ("node", "control", "/other"),
        ("node", "instruments", {"DemoCam": "0"}),
        ("relay", "address", "tcp://127.0.0.1:1"),
        ("relay", "silence_s", 9.0),
        ("arrivals", "roots", ["/other"]),
        ("export", "spill", "/other"),
        ("arrivals", "subscribe", ["tcp://127.0.0.1:1"]),
    ],
)
def test_these_need_a_restart(part, key, value):
    assert needs_restart(a_config(), a_config(**{part: {key: value}})) == [f"{part}.{key}"]


def test_an_idle_worker_is_recycled_at_once():
    slot = Driver().to(S.IDLE)
    assert orders(slot(RecycleRequested())) == [Quit()]
    slot(WorkerDied(0))
    assert slot.slot.state == S.BACKOFF
    assert slot.slot.note == "recycled: the configuration was reloaded"


@pytest.mark.parametrize("state", sorted(BUSY_STATES))
def test_a_busy_worker_is_recycled_after_its_visit(state):
    slot = Driver().to(state)
    assert slot(RecycleRequested(), 2.0) == []
    assert slot.slot.state == state
    if state in (S.PREPARING, S.PROCESSING, S.EXPORTING):
        actions = slot(Done(visit_number=1, outcome=Outcome.SUCCEEDED), 3.0)
        assert finished(actions) == [(Outcome.SUCCEEDED, False)]
        assert orders(actions) == [Quit()]
        assert slot.slot.state == S.STOPPING


def test_a_worker_that_boots_is_recycled_when_it_is_ready():
    slot = Driver().to(S.STARTING)
    slot(RecycleRequested(), 2.0)
    assert orders(slot(Ready(pid=100), 3.0)) == [Quit()]


def test_a_quarantined_slot_restarts_with_a_new_configuration():
    slot = Driver()
    slot(WorkerForked(1))
    slot(WorkerDied(78))
    assert slot.slot.state == S.QUARANTINED
    slot(RecycleRequested())
    assert slot.slot.state == S.STARTING


@pytest.mark.parametrize("state", [S.STOPPING, S.KILLING])
def test_a_worker_that_is_being_stopped_gets_no_second_order(state):
    slot = Driver().to(state)
    assert slot(RecycleRequested()) == []
    assert slot.slot.state == state


def test_forks_that_fail_never_quarantine_and_pause_two_seconds_at_most():
    slot = Driver()
    pauses = []
    for _ in range(20):
        slot(WorkerNotForked("EAGAIN"), 4.0)
        assert slot.slot.state == S.BACKOFF
        pauses.append(slot.slot._budget.fork_failed(4.0))
        slot.slot._fork(4.0)
    assert max(pauses) == 2.0


def test_a_retired_slot_without_a_fork_is_stopped():
    slot = Driver()
    slot(RetireRequested())
    slot(WorkerNotForked("EAGAIN"), 4.0)
    assert slot.slot.state == S.STOPPED


def test_surplus_slots_are_retired_when_the_maximum_is_lowered():
    scheduler = Scheduler(WorkersConfig(min=1, spare=0, max=4))
    for slot in range(4):
        scheduler.slot_opened(slot)
        scheduler.slot_idle(slot, 0.0)
    scheduler.config = WorkersConfig(min=1, spare=0, max=2)
    assignment = a_queued_assignment()
    scheduler.add(assignment)
    decisions = scheduler.decide(1.0)
    assert decisions == [RetireSlot(0), RetireSlot(1), Assign(assignment, 2)]
    assert scheduler.decide(1.0) == []


def test_slots_that_are_being_retired_are_not_counted_twice():
    scheduler = Scheduler(WorkersConfig(min=2, spare=0, max=4, retire_idle_s=1))
    for slot in range(4):
        scheduler.slot_opened(slot)
        scheduler.slot_idle(slot, 0.0)
    assert scheduler.decide(5.0) == [RetireSlot(0), RetireSlot(1)]
    assert scheduler.decide(5.0) == []
    scheduler.config = CONFIG.model_copy(update={"min": 3, "spare": 0})
    assert scheduler.decide(5.0) == [OpenSlot()]
