# SPDX-License-Identifier: BSD-3-Clause
"""A peer that sends more than its share is slowed or dropped, and costs no other peer anything."""

import asyncio
import json
import time

import pytest
import zmq
import zmq.asyncio
from clocks import FakeClock

from ppdaemon import reports
from ppdaemon.config import SecurityConfig
from ppdaemon.controlserver import ControlServer
from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.messages import Heartbeat
from ppdaemon.node.arrivals.notices import Subscription, listen
from ppdaemon.ratelimit import RateLimit
from ppdaemon.testing.played import PlayedNode
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

PER_S = 20.0
BURST = 100
SUBMIT_PER_S = 2.0
"""So low that a busy machine does not win back the burst while it sends."""
SUBMIT_BURST = 10


@pytest.fixture
def relay(socket_dir):
    with RelayProcess(
        socket_dir, security={"submit_per_s": SUBMIT_PER_S, "nodes_per_s": PER_S}
    ).start() as made:
        yield made


def counters(relay):
    return RelayDaemon(relay.control).status().counters


def test_a_client_above_its_rate_is_answered_busy_and_the_others_are_served(relay, wires):
    greedy = wires.connect(zmq.DEALER, relay.submit)
    for _ in range(20 * SUBMIT_BURST):
        greedy.send_multipart([b"", b'{"type": "visit_status", "groupId": "g"}'])
    answers = [json.loads(greedy.recv_multipart()[1]) for _ in range(20 * SUBMIT_BURST)]
    reasons = [answer["reason"] for answer in answers]
    busy = [
        reason for reason in reasons if reason == "busy: more than 2 requests/s of this client; try again"
    ]
    assert {(answer["status"], answer["groupId"]) for answer in answers} == {("rejected", "g")}
    assert reasons.count("no such group") + len(busy) == 20 * SUBMIT_BURST
    assert 10 * SUBMIT_BURST <= len(busy) <= 19 * SUBMIT_BURST
    assert SubmitClient(wires, relay.submit).announce("g1")["status"] == "accepted"
    assert counters(relay)["submit rate"] == len(busy)
    # Once in 10 s.
    assert 1 <= len(relay.events("dropped messages of a sender above its rate")) < len(busy) / 10
    relay.configure(security={"submit_per_s": 10_000.0})
    RelayDaemon(relay.control).ask(reports.ReloadRequest())
    for _ in range(20 * SUBMIT_BURST):
        greedy.send_multipart([b"", b'{"type": "visit_status", "groupId": "g"}'])
    last = [json.loads(greedy.recv_multipart()[1])["reason"] for _ in range(20 * SUBMIT_BURST)]
    assert set(last) == {"no such group"}


def test_a_node_above_its_rate_loses_messages_and_nothing_else(relay, wires):
    client = SubmitClient(wires, relay.submit)
    greedy, other = (
        PlayedNode(wires, relay.nodes, name, detectors=ids) for name, ids in (("a", (0, 1)), ("b", (2,)))
    )
    for node in (greedy, other):
        node.wait_for("welcome")

    def flooded():
        """Send faster than the relay reads on any machine."""
        for _ in range(3 * BURST):
            greedy.send(Heartbeat)
        return counters(relay).get("nodes rate", 0) >= BURST

    wait_until(flooded, TIMEOUT_S, lambda: counters(relay))
    assert client.announce("g1")["status"] == "accepted"
    other.ack(other.wait_for("visit")[0])
    greedy.ack(greedy.wait_for("visit")[0])  # most probably dropped: the visit is sent again

    def acknowledged():
        greedy.listen()
        for message in greedy.received:
            if message.type == "visit":
                greedy.ack(message)
        greedy.received.clear()
        (row,) = RelayDaemon(relay.control).visits(1)
        return row.open.get("acknowledged") == 3

    wait_until(acknowledged, TIMEOUT_S)
    assert {row.node: row.connected for row in RelayDaemon(relay.control).nodes()} == {"a": True, "b": True}
    dropped = counters(relay)["nodes rate"]
    # Once in 10 s.
    assert 1 <= len(relay.events("dropped messages of a sender above its rate")) < dropped / 10


async def until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_user_above_the_rate_of_a_control_socket_waits(socket_dir):
    async def answer(request):
        return reports.Ok(data=request.type)

    config = SecurityConfig(control_per_s=50.0)
    control = ControlServer(socket_dir / "control", reports.REQUESTS, answer, None, config)
    clock = FakeClock()  # stands still: a slow machine regains nothing
    control._rate = RateLimit(config.control_per_s, clock.mono)
    await control.start()
    reader, writer = await asyncio.open_unix_connection(socket_dir / "control")
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(250):
            writer.write(b'{"type": "status"}\n')
            assert b"status" in await reader.readline()
        assert not control.counters
        writer.write(b'{"type": "status"}\n')
        answered = asyncio.create_task(reader.readline())
        await until(lambda: control.counters["control rate"] == 1)
        await asyncio.sleep(0.05)  # longer than the pause of a clock that moves
        assert not answered.done()
        clock.advance(0.021)
        assert b"status" in await answered
    assert control.counters == {"control rate": 1}
    writer.close()
    await control.stop()


async def test_a_publisher_above_its_rate_is_read_later_and_nothing_is_lost():
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.XPUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    subscription = Subscription(context, f"tcp://127.0.0.1:{port}", time.monotonic)
    files, problems, complete = [], [], asyncio.Event()

    def on_file(file):
        files.append(file)
        if len(files) == 540:
            complete.set()

    clock = FakeClock()
    rate = RateLimit(100.0, clock.mono)
    task = asyncio.create_task(
        listen(subscription, on_file, lambda error, data: problems.append(error.kind), int, rate)
    )
    async with asyncio.timeout(TIMEOUT_S):
        assert await publisher.recv() == b"\x01"
        for number in range(540):
            await publisher.send(json.dumps({"path": str(number)}).encode())
        await until(lambda: problems)
        await asyncio.sleep(0.05)  # longer than the pause of a clock that moves
        assert len(files) == 500
        clock.advance(0.205)
        await until(lambda: len(files) == 520)
        clock.advance(0.2)
        await complete.wait()
    assert set(problems) == {"rate"}
    assert files == [str(number) for number in range(540)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    subscription.close()
    publisher.close(linger=0)
    context.term()
