# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge answers while its ring is busy, and how many nodes it lists."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from ppdaemon.bridge.outlet import NODES, OPTIONS, Outlet
from ppdaemon.bridge.ring import Extent
from ppdaemon.clock import Clock
from ppdaemon.idleconnections import MAX_CONNECTIONS
from ppdaemon.messages import NOTICES, NOTICES_LIMIT, AskNotices, Notices
from ppdaemon.routers import bind
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until
from ppdaemon.throttle import Throttle
from ppdaemon.wire import decode, encode


class Busy:
    """A writer whose disk does not answer."""

    async def call(self, work: Callable[[Any], Any]) -> Any:
        await asyncio.Event().wait()


@asynccontextmanager
async def answering(folder: Path, extent: Extent) -> AsyncIterator[tuple[Outlet, zmq.asyncio.Socket]]:
    """Run an outlet, and connect to it."""
    clock = Clock()
    address = f"ipc://{folder}/nodes"
    throttle = Throttle(10.0, clock.mono)
    with (
        zmq.asyncio.Context() as context,
        bind(context, NODES, address, OPTIONS, None) as router,
        context.socket(zmq.DEALER) as node,
    ):
        node.setsockopt(zmq.LINGER, 0)
        node.connect(address)
        outlet = Outlet(router, None, Busy(), "e", extent, clock, throttle)
        parts = outlet.receive(), outlet.answer(), outlet.limit.run()
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield outlet, node
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def answer(node: zmq.asyncio.Socket) -> tuple[Notices, list[bytes]]:
    head, *bodies = await node.recv_multipart()
    return decode(head, NOTICES, limit=NOTICES_LIMIT), bodies


async def test_a_node_that_is_up_to_date_does_not_wait_for_the_disk(socket_dir):
    async with answering(socket_dir, Extent(1, 7, 100, 0.0)) as (outlet, node):
        await node.send(encode(AskNotices(node="n1", request=1, epoch="e", number=7)))
        await asyncio.to_thread(wait_until, lambda: outlet.nodes)
        outlet.committed(Extent(1, 8, 101, 0.0), [b"h"])
        assert outlet.sent == 1  # before anything else that the event loop has to do
        outlet.committed(Extent(1, 10, 103, 0.0), [b"i", b"j"])
        head, bodies = await answer(node)
        assert (head.first, head.lost, head.is_other, bodies) == (8, 0, False, [b"h"])
        await node.send(encode(AskNotices(node="n1", request=2, epoch="e", number=8)))
        head, bodies = await answer(node)
        assert (head.first, head.lost, head.is_other, bodies) == (9, 0, False, [b"i", b"j"])


async def test_a_question_of_a_node_that_was_revoked_is_not_answered(socket_dir):
    async with answering(socket_dir, Extent(1, 7, 100, 0.0)) as (outlet, node):
        ask = AskNotices(node="n1", request=1, epoch="e", number=7)
        await node.send(encode(ask))
        await asyncio.to_thread(wait_until, lambda: outlet.nodes)
        outlet.revoke({"n1"})
        assert not outlet.nodes
        outlet.committed(Extent(1, 8, 101, 0.0), [b"h"])
        await asyncio.sleep(0.01)
        await node.send(encode(ask.model_copy(update={"request": 2})))
        head, bodies = await answer(node)
        assert (head.request, bodies) == (2, [b"h"])


async def test_the_nodes_that_are_listed_are_those_that_asked_last(socket_dir):
    async with answering(socket_dir, Extent()) as (outlet, node):
        for number in range(MAX_CONNECTIONS + 10):
            ask = AskNotices(node=f"n{number}", request=1, epoch="e", number=1 + number)
            await node.send(encode(ask))
        await asyncio.to_thread(wait_until, lambda: f"n{MAX_CONNECTIONS + 9}" in outlet.nodes)
        assert len(outlet.nodes) == MAX_CONNECTIONS
        assert next(iter(outlet.nodes)) == "n10"
