# SPDX-License-Identifier: BSD-3-Clause
"""The relay's reports and requests, with a real ledger and no socket."""

import asyncio
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest
from rich.console import Console

from ppdaemon import reports
from ppdaemon.ctl import relaytables
from ppdaemon.errors import Refused, Unavailable
from ppdaemon.ledgerfile import LEDGER_NAME, read_visit, read_visits
from ppdaemon.messages import DetectorsOfVisit, Hello, ResultEntry, Results, VisitAccepted
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.control import RelayControl
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.metrics import RELAY_METRICS
from ppdaemon.relay.openvisit import Reservation, make_open_visit
from ppdaemon.relay.orders import (
    CloseVisit,
    Permit,
    RefusePermit,
    SetAcknowledged,
    SetCancelled,
    SetOutcome,
    SetRoute,
)
from ppdaemon.reloading import Reloader
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.states import Outcome
from ppdaemon.throttle import Throttle
from ppdaemon.tracesender import TraceSender
from ppdaemon.visit import read_next_visit


class World:
    """A relay without sockets."""

    def __init__(self, folder, clock, **config):
        instruments = {"DemoCam": {"detectors": "0-3"}}
        self.config = RelayConfig.model_validate({"state_dir": folder, "instruments": instruments, **config})
        self.clock = clock
        self.dispatcher = Dispatcher(resend_s=0.5, silence_s=60.0, rejoin_s=0.0, give_up_s=900.0)
        self.dispatcher.tick(clock.mono())
        self.writer = BatchWriter(Ledger(folder, clock), "ledger", lambda reason: None)
        self.control = RelayControl(
            config=self.config,
            dispatcher=self.dispatcher,
            writer=self.writer,
            throttle=Throttle(10.0, clock.mono),
            clock=clock,
            reloader=Reloader(self.reload, self.clock),
            metrics=SimpleNamespace(problem=""),
            traces=TraceSender(self.config.traces),
        )

    async def reload(self):
        raise Refused("busy")

    def join(self, name, detectors=range(4), capacity=9, spare=False):
        hello = Hello(
            origin=name,
            incarnation="run1",
            instruments={"DemoCam": tuple(detectors)},
            capacity=capacity,
            spare=spare,
            sent_tai=0.0,
            sequence=1,
        )
        self.dispatcher.receive(name.encode(), hello, self.clock.mono())

    def add(self, number=1):
        visit = read_next_visit({"groupId": f"g{number}", "instrument": "DemoCam"})
        times = {"received_tai": self.clock.tai(), "expiry_s": 60.0, "age_s": 0.0, "now": self.clock.mono()}
        opened = make_open_visit(number, visit, map(Reservation, range(4)), **times)
        self.dispatcher.add(opened, self.clock.mono())

    def end(self, number, outcome, after_s):
        """Let node a acknowledge a visit, and end it after a time."""
        names = {"instrument": "DemoCam", "group": f"g{number}"}
        envelope = {"origin": "a", "sent_tai": 0.0, "sequence": 0}
        ack = VisitAccepted(detectors=range(4), **names, **envelope)
        self.dispatcher.receive(b"a", ack, self.clock.mono())
        self.clock.advance(after_s)
        entries = tuple(ResultEntry(detector=each, attempt=1, outcome=outcome, **names) for each in range(4))
        self.dispatcher.receive(b"a", Results(entries=entries, **envelope), self.clock.mono())

    def states(self):
        return {row.node: row.state for row in self.control.nodes()}

    async def ask(self, request):
        running = asyncio.create_task(self.writer.run())
        try:
            return await self.control.handle(request)
        finally:
            self.writer.finish()
            await running


@pytest.fixture
def world(tmp_path, clock):
    made = World(tmp_path, clock)
    yield made
    made.writer.close()


def text_of(view):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(view)
    return " ".join(capture.get().split())


def test_a_relay_in_order_is_running(world):
    world.join("a")
    report = world.control.report()
    assert (report.state, report.problem_texts, report.nodes) == ("running", (), {"ready": 1})
    assert (report.unserved, report.waits, report.spares_suffice) == ({}, (), {})
    assert text_of(relaytables.relay_status_view(report)).startswith("pprelay relay running 1 node, 0 open")


def test_how_many_nodes_are_needed_is_counted_of_what_succeeds(world):
    world.join("a", capacity=4)
    for number in range(1, 13):
        world.add(number)
        world.end(number, Outcome.FAILED if number < 7 else Outcome.SUCCEEDED, 50.0)
        if number == 6:
            assert world.control.report().hosts.needed is None, "nothing has succeeded"
        world.clock.advance(10.0)
    found = world.control.report()
    (row,) = found.hosts.instruments
    assert (row.instrument, row.cadence_s, row.visit_s, row.detectors, row.slots) == (
        "DemoCam",
        60.0,
        50.0,
        4,
        4,
    )
    hosts = found.hosts
    assert (hosts.ready, hosts.slots, hosts.needed, hosts.missing) == (1, 4, 1, 0)
    metrics = {metric.name: metric.read(found) for metric in RELAY_METRICS}
    assert metrics["ppdaemon_relay_hosts_needed"] == metrics["ppdaemon_relay_hosts_ready"] == 1
    assert metrics["ppdaemon_relay_slots_needed"] == {"DemoCam": 4}
    text = "1 node needed, 1 node ready with 4 slots: enough"
    assert text in text_of(relaytables.relay_status_view(found))
    # Of spare nodes, too; a drained one and one that takes nothing are no help.
    world.join("b", capacity=2, spare=True)
    world.join("c", capacity=0)
    assert world.control.report().hosts.needed == 2
    world.dispatcher.set_drained({"a"}, world.clock.mono())
    hosts = world.control.report().hosts
    assert (hosts.ready, hosts.slots, hosts.needed, hosts.missing) == (1, 2, 2, 1)
    assert "2 nodes needed, 1 node ready with 2 slots: add 1" in text_of(relaytables.needed_view(hosts))
    # All hosts may be given back at the same time; then it matters most.
    world.join("b", capacity=0)
    hosts = world.control.report().hosts
    assert (hosts.ready, hosts.slots, hosts.needed, hosts.missing) == (0, 0, 2, 2)


def test_what_is_measured_each_second_resets_no_count(world):
    visit = DetectorsOfVisit(instrument="DemoCam", group="g", attempt=1, detectors=(0, 1))
    world.control.count_permits(Permit(b"a", "run", (visit,)))
    world.control._measure()
    assert world.control.report().permits == {"granted": 2, "refused": 0}


def test_each_state_of_a_node_is_shown(world):
    for name, capacity in (("full", 4), ("closed", 0), ("drained", 9), ("gone", 9)):
        world.join(name, capacity=capacity)
    world.dispatcher.set_drained({"drained", "never"}, world.clock.mono())
    world.dispatcher.disconnect(b"gone", world.clock.mono())
    world.add()
    assert world.states() == {
        "full": "full",
        "closed": "closed",
        "drained": "draining",
        "gone": "disconnected",
        "never": "disconnected",
    }
    [full] = [row for row in world.control.nodes() if row.node == "full"]
    assert (full.open, full.capacity, full.detectors) == (4, 4, {"DemoCam": "0-3"})
    text = text_of(relaytables.hosts_view(world.control.nodes()))
    assert "disconnected, draining" in text
    assert "full 4 4 0 ms ago DemoCam 0-3" in text


def test_what_waits_is_a_problem_after_a_while(world):
    world.join("a", range(3), capacity=2)
    world.add()
    report = world.control.report()
    assert [(row.detector, row.reason) for row in report.waits] == [
        (2, "the nodes that serve it are full or refused it"),
        (3, "no node serves it"),
    ]
    assert report.problem_texts == ("no node serves DemoCam 3 now",)
    world.clock.advance(6.0)
    world.add(2)
    report = world.control.report()
    assert {row.oldest_group: row.visits for row in report.waits if row.detector == 2} == {"g1": 2}
    assert any("visit g1 waits for a node since" in text for text in report.problem_texts)
    text = text_of(relaytables.relay_status_view(report))
    assert "waiting DemoCam 0-3, since 2025-11-22T03:25:16.000 TAI (6.0 s)" in text
    assert "not served DemoCam 3" in text


def test_idle_spares_are_enough_or_not(world):
    world.join("a", capacity=2)
    world.join("s", range(3), spare=True)
    world.join("t", range(2, 4), capacity=3, spare=True)
    assert world.control.report().spares_suffice == {"DemoCam": True}
    world.add()
    assert world.control.report().spares_suffice == {"DemoCam": True}
    world.dispatcher.set_drained({"t"}, world.clock.mono())
    assert world.control.report().spares_suffice == {"DemoCam": False}


def test_a_node_that_is_away_with_open_detectors_is_a_problem(world):
    world.join("a")
    world.add()
    for reservation in world.dispatcher._visits["DemoCam", "g1"].reservations.values():
        reservation.state = "acknowledged"
    world.dispatcher.disconnect(b"a", world.clock.mono())
    world.dispatcher.tick(world.clock.mono())
    assert "node a is not connected and has 4 open visit-detectors" in world.control.report().problem_texts


async def test_a_node_is_drained_in_the_ledger_and_resumed(world):
    world.join("a")
    assert (await world.ask(reports.DrainNodeRequest(node="b"))).code == "not_found"
    assert isinstance(await world.ask(reports.DrainNodeRequest(node="a")), reports.Ok)
    assert world.states() == {"a": "draining"}
    with closing(Ledger(world.config.state_dir, world.clock)) as ledger:
        assert ledger.drained_nodes() == {"a"}


# --- the ledger, read beside the relay --------------------------------------------


def write_ledger(folder, clock):
    with closing(Ledger(folder, clock)) as ledger, ledger.transaction():
        numbers = []
        for group in ("g1", "g2"):
            visit = read_next_visit({"groupId": group, "instrument": "DemoCam", "survey": "S"})
            content = f'{{"groupId": "{group}", "survey": "S"}}'
            numbers.append(ledger.accept(visit, content, range(4), 5.0).number)
        for write in (
            SetRoute(numbers[0], "a", 1, (0, 1, 2)),
            SetRoute(numbers[0], "b", 2, (1,)),
            SetAcknowledged(numbers[0], (1,)),
            SetOutcome(numbers[0], 2, Outcome.FAILED, "why", "a"),
            SetCancelled(numbers[1]),
            *(SetOutcome(numbers[1], d, Outcome.CANCELLED, "", None) for d in range(4)),
            CloseVisit(numbers[1]),
        ):
            ledger.write(write)


def test_visits_of_the_ledger_are_counted_by_state_and_outcome(tmp_path, clock):
    write_ledger(tmp_path, clock)
    newest, oldest = read_visits(tmp_path / LEDGER_NAME, 10)
    assert (newest.group, newest.cancelled, newest.ended_tai, newest.outcomes, newest.open) == (
        "g2",
        True,
        clock.tai(),
        {Outcome.CANCELLED: 4},
        {},
    )
    assert (oldest.survey, oldest.detectors) == ("S", 4)
    assert oldest.open == {"sent": 1, "acknowledged": 1, "waiting": 1}
    assert oldest.outcomes == {Outcome.FAILED: 1}
    assert [row.group for row in read_visits(tmp_path / LEDGER_NAME, 1)] == ["g2"]
    text = text_of(relaytables.relay_visits_table([newest, oldest]))
    assert "g2 (canceled) DemoCam" in text
    assert "4 1 acknowledged, 1 sent, 1 waiting, 1 failed" in text
    assert "4 4 cancelled" in text


def test_a_visit_of_the_ledger_has_node_attempt_and_outcome_of_each_detector(tmp_path, clock):
    write_ledger(tmp_path, clock)
    rows = read_visit(tmp_path / LEDGER_NAME, "g1")
    assert [(row.detector, row.state, row.node, row.attempt) for row in rows] == [
        (0, "sent", "a", 1),
        (1, "acknowledged", "b", 2),
        (2, "ended", "a", 1),
        (3, "waiting", None, 1),
    ]
    assert rows[1].acknowledged_tai == clock.tai()
    assert (rows[2].outcome, rows[2].reason) == (Outcome.FAILED, "why")
    assert "1 acknowledged, 1 failed, 1 sent, 1 waiting" in text_of(relaytables.relay_visit_view(rows))
    assert read_visit(tmp_path / LEDGER_NAME, "g3") == []


def test_a_ledger_that_cannot_be_read_is_an_error_with_its_path(tmp_path):
    path = tmp_path / LEDGER_NAME
    with pytest.raises(Unavailable, match=r"ledger.sqlite does not exist"):
        read_visits(path, 1)
    with closing(sqlite3.connect(path)):
        pass
    with pytest.raises(Unavailable, match="is empty"):
        read_visit(path, "g")


def test_reading_does_not_create_or_change_a_file(tmp_path, clock):
    write_ledger(tmp_path, clock)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read_visits(tmp_path / LEDGER_NAME, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_permits_are_counted_by_visit_detector(world):
    named = [
        DetectorsOfVisit(instrument="DemoCam", group=group, attempt=1, detectors=detectors)
        for group, detectors in (("g1", (0, 1, 2)), ("g2", (3,)))
    ]
    world.control.count_permits(Permit(b"n", "run1", tuple(named)))
    world.control.count_permits(RefusePermit(b"n", (named[1],), "ended"))
    assert world.control.report().permits == {"granted": 4, "refused": 1}


def test_lost_messages_of_all_nodes_are_counted(world):
    for name in ("n1", "n2"):
        world.join(name)
        world.dispatcher.registry[name].sequence.received(4, world.clock.mono())  # 2 and 3 are missing
    world.dispatcher.registry.disconnect(b"n2")
    assert world.control.report().messages_lost == 4


def test_one_node_is_not_some_nodes(world):
    assert world.control.report().text.startswith("0 nodes, 0 open visits with 0 open detectors, ")
    world.join("n1")
    assert world.control.report().text.startswith("1 node, 0 open visits")
