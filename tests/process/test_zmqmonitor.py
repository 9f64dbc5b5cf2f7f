# SPDX-License-Identifier: BSD-3-Clause
"""Connections that libzmq ends for good, with real sockets."""

import asyncio
import time

import pytest
import zmq
import zmq.asyncio

from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.zmqmonitor import ConnectionMonitor

LIMIT = 1000


@pytest.fixture
def peers():
    with zmq.Context() as context:
        yield context


def bound(socket):
    socket.linger = 0
    socket.bind("tcp://127.0.0.1:*")
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


async def until_ended(kind, address, act=lambda: None):
    """Connect, act, and wait until the connection has ended for good."""
    with zmq.asyncio.Context() as context:
        socket = context.socket(kind)
        socket.linger = 0
        socket.set(zmq.MAXMSGSIZE, LIMIT)
        monitor = ConnectionMonitor(socket, time.monotonic)
        socket.connect(address)
        if kind == zmq.SUB:
            socket.subscribe(b"")
        else:
            await socket.send(b"hello")
        try:
            await asyncio.to_thread(act)
            deadline = time.monotonic() + TIMEOUT_S
            while not await monitor.ended():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        finally:
            monitor.close()


async def test_a_socket_that_cannot_be_monitored_is_closed():
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, 1)
    socket = context.socket(zmq.SUB)
    with pytest.raises(zmq.ZMQError, match="Too many open files"):
        ConnectionMonitor(socket, time.monotonic)
    assert socket.closed
    context.term()


@pytest.mark.parametrize(("kind", "peer_kind"), [(zmq.SUB, zmq.XPUB), (zmq.DEALER, zmq.ROUTER)])
def test_a_message_above_the_limit_ends_a_connection_for_good(peers, kind, peer_kind):
    with peers.socket(peer_kind) as peer:
        address = bound(peer)

        def send_oversized():
            first = peer.recv_multipart()
            peer.send_multipart([*first[:-1], b"x" * (LIMIT + 1)])

        asyncio.run(until_ended(kind, address, send_oversized))


def test_a_peer_of_another_kind_ends_a_connection_for_good(peers):
    with peers.socket(zmq.REP) as peer:
        asyncio.run(until_ended(zmq.SUB, bound(peer)))
