# SPDX-License-Identifier: BSD-3-Clause
"""Peers that finish their handshake and then send nothing keep nobody out."""

import asyncio
import contextlib
import os
import socket
import time

import pytest
import zmq
import zmq.asyncio

from ppdaemon import idleconnections
from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.idleconnections import ConnectionLimit, OpenConnections
from ppdaemon.testing.played import ClientSockets, PlayedNode
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until
from ppdaemon.throttle import Throttle


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def until(condition):
    await asyncio.to_thread(wait_until, condition, TIMEOUT_S)


def test_the_one_that_is_idle_for_longest_makes_room(monkeypatch):
    monkeypatch.setattr(idleconnections, "MAX_CONNECTIONS", 3)
    connections = OpenConnections()
    for descriptor in (10, 11, 12):
        assert connections.opened(descriptor, 100 + descriptor, now=0.0) == []
    connections.used(10, now=4.0)
    assert connections.opened(13, 113, now=4.9) == []  # all have been used a moment ago
    assert connections.opened(14, 114, now=5.0) == [(11, 111), (12, 112)]
    connections.closed(13)
    connections.used(13, now=6.0)
    assert connections.opened(15, 115, now=20.0) == []
    assert connections.opened(16, 116, now=20.0) == [(10, 110)]
    assert len(connections) == 3


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_silent_peers_are_disconnected_and_the_others_served(socket_dir, monkeypatch, transport):
    """Fault 67: peers with a finished handshake."""
    monkeypatch.setattr(idleconnections, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(idleconnections, "IDLE_S", 0.0)

    async def body():
        context = zmq.asyncio.Context()
        bound = context.socket(zmq.ROUTER)
        bound.bind("tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{socket_dir}/bound")
        address = bound.getsockopt_string(zmq.LAST_ENDPOINT)
        throttle = Throttle(10.0, time.monotonic)
        limit = ConnectionLimit(bound, "nodes", throttle, time.monotonic)
        running = asyncio.create_task(limit.run())

        async def serve():
            while True:
                frames = await bound.recv_multipart(copy=False)
                limit.used(frames[-1])
                await bound.send_multipart([frame.bytes for frame in frames])

        serving = asyncio.create_task(serve())
        honest = context.socket(zmq.DEALER)
        honest.connect(address)
        monitor = honest.get_monitor_socket(zmq.EVENT_DISCONNECTED)

        async def ask(text):
            await honest.send(text)
            async with asyncio.timeout(TIMEOUT_S):
                assert await honest.recv() == text

        await ask(b"first")
        clients = []
        for number in range(12):
            silent = zmq.asyncio.Context()
            client = silent.socket(zmq.DEALER)
            client.set(zmq.RECONNECT_IVL, -1)
            events = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            client.connect(address)
            async with asyncio.timeout(TIMEOUT_S):
                assert (await zmq.utils.monitor.recv_monitor_message(events))["event"] != (
                    zmq.EVENT_DISCONNECTED
                )
            clients.append((silent, client, events))
            await ask(str(number).encode())
        for _, _, events in clients[:8]:
            async with asyncio.timeout(TIMEOUT_S):
                event = await zmq.utils.monitor.recv_monitor_message(events)
            assert event["event"] == zmq.EVENT_DISCONNECTED
        await ask(b"last")
        assert not await monitor.poll(0)
        assert throttle.by_kind["nodes idle"] >= 8
        await until(lambda: len(limit._connections) <= 4)
        for task in (running, serving):
            task.cancel()
        await asyncio.gather(running, serving, return_exceptions=True)
        for silent, client, events in clients:
            client.disable_monitor()
            events.close(linger=0)
            client.close(linger=0)
            silent.term()
        honest.disable_monitor()
        monitor.close(linger=0)
        honest.close(linger=0)
        bound.close(linger=0)
        context.term()

    before = descriptors()
    asyncio.run(body())
    assert descriptors() <= before + 2


async def test_a_descriptor_that_is_another_file_by_now_is_left_alone(socket_dir):
    context = zmq.asyncio.Context()
    bound = context.socket(zmq.ROUTER)
    bound.bind(f"ipc://{socket_dir}/bound")
    limit = ConnectionLimit(bound, "nodes", Throttle(10.0, time.monotonic), time.monotonic)
    running = asyncio.create_task(limit.run())
    ours, theirs = socket.socketpair()
    with (socket_dir / "file").open("w") as file, socket.create_server(("127.0.0.1", 0)) as server:
        assert [limit._inode(each) for each in (ours.fileno(), file.fileno(), 9999)] == [None] * 3
        assert limit._inode(server.fileno()) is None
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(f"{socket_dir}/bound")
            await until(lambda: len(limit._connections) == 1)
            ((descriptor, (inode, _)),) = limit._connections._open.items()
            limit._shut_down(descriptor, inode + 1)  # a later connection with the same number
            limit._shut_down(ours.fileno(), inode)
            ours.send(b"x")
            assert theirs.recv(1) == b"x"
            first.settimeout(TIMEOUT_S)
            assert first.recv(1) == b"\xff"  # the greeting: it is open
            limit._shut_down(descriptor, inode)
            while first.recv(100):
                pass
    ours.close()
    theirs.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bound.close(linger=0)
    context.term()


@pytest.mark.slow
def test_a_relay_with_too_many_silent_peers_serves_the_others(socket_dir):
    """Both sockets: each peer finishes its handshake, and none sends anything."""
    with RelayProcess(socket_dir).start() as relay, ClientSockets() as wires:
        node = PlayedNode(wires, relay.nodes, "n1")
        node.wait_for("welcome")
        for address in (relay.submit, relay.nodes):
            for _ in range(idleconnections.MAX_CONNECTIONS):
                wires.connect(zmq.DEALER, address)

        def both_closed():
            node.listen()
            for address in (relay.submit, relay.nodes):
                late = socket.socket(socket.AF_UNIX)
                late.connect(address.removeprefix("ipc://"))
                stack.callback(late.close)
            counters = RelayDaemon(relay.control).status().counters
            return counters.get("submit idle") and counters.get("nodes idle")

        stack = contextlib.ExitStack()

        def checked():
            with stack:  # the late connections end after each look
                return both_closed()

        wait_until(checked, TIMEOUT_S, relay.log.read_text)
        assert SubmitClient(wires, relay.submit).announce("g1")["status"] == "accepted"
        assert node.wait_for("visit")[0].detectors == tuple(range(9))
        assert not [message for message in node.received if message.type == "sorry"]
