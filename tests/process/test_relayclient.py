# SPDX-License-Identifier: BSD-3-Clause
"""The node's end of the link to the relay, over real sockets."""

import asyncio
import errno
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import zmq
import zmq.asyncio
from clocks import FakeClock

from ppdaemon.clock import Clock
from ppdaemon.config import RelayLink
from ppdaemon.messages import RELAY_LIMIT, Heartbeat, HelloRefused, ReserveVisit, SendHello
from ppdaemon.node.visits import relayclient
from ppdaemon.node.visits.relayclient import RelayClient
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.zmqmonitor import ConnectionMonitor


@pytest.fixture
def relay():
    with PlayedRelay() as played:
        yield played


def make_client(address, received, clock, context, **link):
    return RelayClient(
        link=RelayLink.model_validate({"address": address} | link),
        name="n1",
        incarnation="i1",
        instruments={"DemoCam": (0, 1)},
        capacity=2,
        clock=clock,
        context=context,
        on_message=received.append,
        count=Counter(),
    )


@asynccontextmanager
async def connecting(relay, received, **link):
    context = zmq.asyncio.Context()
    client = make_client(relay.address, received, Clock(), context, **link)
    running = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.destroy(linger=0)


def test_a_relay_is_missed_only_since_the_node_has_tried_to_connect():
    clock = FakeClock()
    with zmq.asyncio.Context() as context:
        client = make_client("tcp://127.0.0.1:1", [], clock, context)
        clock.advance(300.0)  # the imports, the template, a central repo that is away
        assert (client.away_s, client.problem) == (0.0, "")

        async def body():
            running = asyncio.create_task(client.run())
            await asyncio.sleep(0)
            clock.advance(5.0)
            assert client.away_s == 5.0
            assert "no relay answers" in client.problem
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(body())


async def until(relay, condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, relay.story()
        relay.listen()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "data", [b"x" * (RELAY_LIMIT + 1), b'{"type": "visit", "x": "' + b"y" * RELAY_LIMIT + b'"}']
)
async def test_a_node_connects_again_after_a_message_above_the_limit(relay, caplog, data):
    received = []
    # No message for an hour would not be a reason to connect again.
    async with connecting(relay, received, heartbeat_s=0.1, silence_s=3600.0) as client:
        await until(relay, lambda: client.connected)
        hellos = len(relay.hellos)
        relay.send_raw(data)
        await until(relay, lambda: len(relay.hellos) > hellos)
        relay.reserve("g")
        await until(relay, lambda: any(isinstance(message, ReserveVisit) for message in received))
    assert len([record for record in caplog.records if "connecting again" in record.message]) == 1


async def test_a_relay_that_always_sends_oversized_messages_is_logged_once(relay, caplog):
    async with connecting(relay, [], heartbeat_s=0.1, silence_s=3600.0) as client:
        for number in (1, 2):
            await until(relay, lambda: client.connected)
            relay.send_raw(b"x" * (RELAY_LIMIT + 1))
            await until(relay, lambda number=number: client.count["relay_connection_ended"] == number)
            await until(relay, lambda number=number: len(relay.hellos) > number)
    assert len([record for record in caplog.records if "connecting again" in record.message]) == 1


async def test_a_refusal_that_is_repeated_is_logged_once(relay, caplog):
    async with connecting(relay, [], heartbeat_s=0.1, silence_s=3600.0) as client:
        await until(relay, lambda: client.connected)
        for _ in range(3):
            relay.send(HelloRefused, code="taken", reason="another node has this name")
        await until(relay, lambda: "refused by" in client.text)
        await until(relay, lambda: client.connected)
    assert len([record for record in caplog.records if "refuses this node" in record.message]) == 1


async def test_a_socket_that_cannot_be_opened_is_tried_again(relay, caplog, monkeypatch):
    """The process may have too many open files for a while."""
    attempts = []

    def failing(socket, mono):
        attempts.append(socket)
        if len(attempts) <= 2:
            socket.close()
            raise zmq.ZMQError(errno.EMFILE)
        return ConnectionMonitor(socket, mono)

    monkeypatch.setattr(relayclient, "ConnectionMonitor", failing)
    monkeypatch.setattr(relayclient, "FIRST_PAUSE_S", 0.01)
    async with connecting(relay, [], heartbeat_s=0.1, silence_s=3600.0) as client:
        await until(relay, lambda: client.connected)
        assert client.count["relay_connection_failed"] == 2
    assert "Too many open files; no visits are received; next attempt in 0.01 s" in caplog.text


async def test_a_message_up_to_the_limit_is_counted_with_a_sample(relay):
    async with connecting(relay, [], heartbeat_s=0.1, silence_s=3600.0) as client:
        await until(relay, lambda: client.connected)
        relay.send_raw(b"\x1b" + b"x" * (RELAY_LIMIT - 1))
        await until(relay, lambda: client.count["bad_message.json"])
        assert client.samples["bad_message.json"] == "?" + 299 * "x"
        assert len(relay.hellos) == 1


async def test_no_message_is_lost_that_arrives_at_the_end_of_a_wait(relay):
    received = []

    def visits():
        return [message for message in received if isinstance(message, ReserveVisit)]

    # The wait ends every 2 ms, so that many messages arrive at its end.
    async with connecting(relay, received, heartbeat_s=0.002, silence_s=3600.0) as client:
        await until(relay, lambda: client.connected)
        for number in range(500):
            relay.reserve(f"g{number}")
            # Nothing else runs meanwhile: the message and the end of the wait come together.
            time.sleep(0.004)  # noqa: ASYNC251
            await asyncio.sleep(0)
        await until(relay, lambda: len(visits()) == 500)


async def test_a_gap_in_the_relays_messages_is_counted_and_repaired_by_a_hello(relay):
    received = []
    async with connecting(relay, received, heartbeat_s=0.1) as client:
        await until(relay, lambda: client.connected)
        hellos = len(relay.hellos)
        relay._sequence += 4
        relay.send(Heartbeat)
        await until(relay, lambda: len(relay.hellos) == hellos + 1)
        assert client.count["relay_messages_lost"] == 4
        relay.send(SendHello)
        await until(relay, lambda: len(relay.hellos) == hellos + 2)


async def test_nothing_of_a_relay_of_a_lower_epoch_is_carried_out(relay):
    """Fault 49: it neither reserves, nor withdraws what the right relay has reserved."""
    received = []
    async with connecting(relay, received, heartbeat_s=0.1) as client:
        await until(relay, lambda: client.connected)
        relay.epoch -= 1
        relay.send(SendHello)
        await until(relay, lambda: not client.connected)
        assert "lower than" in client.text
        received.clear()
        relay.reserve("g")
        relay.cancel("g")
        hellos = len(relay.hellos)
        relay.send(SendHello)
        await until(relay, lambda: len(relay.hellos) > hellos + 1)
        assert received == []


async def test_the_relay_is_informed_that_a_node_is_a_spare(relay):
    async with connecting(relay, []) as client:
        client.spare = True
        client.set_capacity(3)
        await until(relay, lambda: any(hello.spare for hello in relay.hellos))


async def test_a_node_knows_that_it_is_drained_at_the_relay():
    with PlayedRelay(heartbeat_s=3600.0) as relay:
        async with connecting(relay, [], silence_s=3600.0) as client:
            await until(relay, lambda: client.connected)
            assert not client.drained
            relay.listen()  # sends the only heartbeat that it sends by itself
            relay.send(Heartbeat, drained=True)
            await until(relay, lambda: client.drained)
            relay.send(Heartbeat, drained=False)
            await until(relay, lambda: not client.drained)


async def test_a_relay_of_another_version_is_named_with_what_to_do(relay, caplog):
    async with connecting(relay, [], heartbeat_s=0.1, silence_s=3600.0) as client:
        await until(relay, lambda: client.connected)
        for _ in range(3):
            relay.send_raw(b'{"schema": 3, "type": "heartbeat", "origin": "r9"}')
        await until(relay, lambda: client.count["relay_protocol"] == 3)
        assert "r9 sends messages of version 3, this program of version 2: install" in client.text
    assert caplog.text.count("r9 sends messages") == 1
