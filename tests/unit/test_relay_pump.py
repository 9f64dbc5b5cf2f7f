# SPDX-License-Identifier: BSD-3-Clause
"""The relay's pump with a real ledger: hellos while it cannot be written, revoked keys, the start."""

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq.asyncio

from ppdaemon.curve import Gatekeeper, new_key_pair
from ppdaemon.keyfiles import PUBLIC_SUFFIX, write_key_pair
from ppdaemon.messages import RELAY_LIMIT, FromRelay, Heartbeat, HeldDetectors, Hello
from ppdaemon.relay import control
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.orders import SetRoute
from ppdaemon.relay.relay import REJOIN_HEARTBEATS, Relay
from ppdaemon.relay.requests import visit_json
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import decode, encode

HELD = HeldDetectors(instrument="DemoCam", group="g", attempt=1, detectors=(0,), state="held")


NODE = "node-of-this-module"
"""Name of the node, which no object that another test has left in memory has."""


def in_memory(kind):
    """Return the messages of a type from the node that are in memory, in any order."""
    gc.collect()  # those of a failed test before this one may be part of a circle
    return [each for each in gc.get_objects() if type(each) is kind and each.origin == NODE]


class World:
    """A relay without the sources of its events. Its ledger is written only while `write` runs."""

    def __init__(self, folder, clock, gatekeeper=None, **config):
        instruments = {"DemoCam": {"detectors": "0-3"}}
        fields = {"state_dir": folder, "instruments": instruments, **config}
        self.config = RelayConfig.model_validate(fields)
        self.sent = []
        self.relay = Relay(
            self.config,
            Ledger(folder, clock),
            self,
            self,
            clock=clock,
            notifier=SimpleNamespace(notify=lambda **fields: None),
            incarnation="relay1",
            read_config=lambda: self.config,
            gatekeeper=gatekeeper,
        )
        self._sequence = 0

    def send_multipart(self, frames, flags):
        """Send, as a socket does."""
        self.sent.append(decode(frames[1], FromRelay, limit=RELAY_LIMIT))
        sending = asyncio.get_running_loop().create_future()
        sending.set_result(None)
        return sending

    def received(self, kind, sender=None, **fields):
        """Return the event of a message of a node."""
        self._sequence += 1
        message = kind(origin=NODE, sent_tai=0.0, sequence=self._sequence, **fields)
        return partial(self.relay._node_server.serve, [b"connection", encode(message)], sender)

    def hello(self, sender=None, capacity=9, **fields):
        instruments = {"DemoCam": range(4)}
        return self.received(
            Hello, sender, incarnation="run1", instruments=instruments, capacity=capacity, **fields
        )

    def handle(self):
        """Handle all events that wait."""
        while not self.relay._events.empty():
            self.relay._events.get_nowait()()

    async def write(self):
        """Write the ledger, and perform what follows, until nothing is left to do."""
        self.relay._writer.finish()
        await self.relay._writer.run()

    @property
    def nodes(self):
        return {row.node: row for row in self.relay._control.nodes() if row.connected}


@pytest.fixture
def make_world(tmp_path, clock):
    """Return a function that makes a world within an event loop; all are closed."""
    made = []

    def make(**fields):
        made.append(World(tmp_path, clock, **fields))
        return made[-1]

    yield make
    for world in made:
        world.relay._writer.close()


async def test_of_the_hellos_that_wait_for_the_ledger_only_the_last_one_takes_memory(make_world):
    world = make_world()
    world.hello()()
    for capacity in range(10, 30):
        world.hello(capacity=capacity)()
        world.received(Heartbeat)()
    assert sorted(hello.capacity for hello in in_memory(Hello)) == [9, 29]
    await world.write()
    assert (world.nodes[NODE].capacity, world.nodes[NODE].messages_lost) == (29, 0)
    assert [message.type for message in world.sent] == ["welcome", "welcome"]


async def test_messages_of_a_node_that_waits_for_the_ledger_are_bounded(make_world, monkeypatch):
    monkeypatch.setattr("ppdaemon.relay.nodeserver.MAX_WAITING", 5)
    world = make_world()
    world.hello()()
    for _ in range(20):
        world.received(Heartbeat)()
    assert len(in_memory(Heartbeat)) == 5
    await world.write()


@pytest.fixture
def keys(tmp_path):
    """A folder with the public key of the node."""
    folder = tmp_path / "nodes"
    folder.mkdir(mode=0o700)
    write_key_pair(folder, NODE, new_key_pair())
    return folder


@pytest.mark.parametrize("handled", ["before", "after"])
async def test_a_node_whose_key_is_revoked_while_its_hello_waits_is_not_connected(make_world, keys, handled):
    with zmq.asyncio.Context() as context:
        security = {"key": keys / f"{NODE}.secret", "submit": keys, "nodes": keys}
        allowed = {name: {"public": NODE} for name in ("submit", "nodes")}
        world = make_world(gatekeeper=Gatekeeper(context, new_key_pair(), allowed), security=security)
        await world.relay._events.put(world.hello(NODE, holds=(HELD,)))
        await world.relay._events.put(world.received(Heartbeat, NODE))
        if handled == "before":
            world.handle()
        (keys / f"{NODE}{PUBLIC_SUFFIX}").unlink()
        await world.relay._reload()
        world.handle()
        await world.write()
        assert world.nodes == {}
        assert world.sent == []
        # What it had before is known nevertheless.
        assert len(world.relay._dispatcher) == 1


@pytest.mark.parametrize("drained", [True, False])
async def test_a_start_waits_for_the_nodes_of_the_previous_run_but_not_for_drained_ones(
    make_world, tmp_path, clock, drained
):
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam"})
    ledger = Ledger(tmp_path, clock)
    with ledger.transaction():
        number = ledger.accept(visit, visit_json(visit), (0, 1, 2), clock.tai()).number
        ledger.write(SetRoute(number, NODE, 1, (0,)))
        ledger.write(SetRoute(number, "removed", 1, (1,)))
        ledger.set_drained("removed", drained)
    ledger.close()
    world = make_world(heartbeat_s=1.0, silence_s=10.0)
    world.relay._ticked()
    clock.advance(REJOIN_HEARTBEATS + 0.1)
    world.hello()()
    await world.write()
    world.relay._ticked()
    await world.write()
    sent = {detector for message in world.sent if message.type == "visit" for detector in message.detectors}
    assert sent == ({0, 1, 2} if drained else {0})


async def test_no_report_and_no_loop_waits_for_the_disk(make_world, monkeypatch):
    monkeypatch.setattr(control, "DISK_S", 0.0)
    used_by = set()

    def watched(function):
        def call(*arguments, **options):
            used_by.add(threading.current_thread())
            return function(*arguments, **options)

        return call

    world, measured = make_world(), asyncio.Event()
    measure, loop = world.relay._control._measure, asyncio.get_running_loop()

    def measure_and_notify():
        measure()
        loop.call_soon_threadsafe(measured.set)

    monkeypatch.setattr(world.relay._control, "_measure", measure_and_notify)
    aside = world.config.state_dir / "ledger.corrupt-1.sqlite"
    aside.touch()
    for name in ("stat", "glob"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    watching = asyncio.create_task(world.relay._control.watch_disk())
    await asyncio.wait_for(measured.wait(), 10)
    assert str(aside) in str(world.relay._control.report().problem_texts)
    watching.cancel()
    assert used_by
    assert threading.main_thread() not in used_by
