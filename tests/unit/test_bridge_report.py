# SPDX-License-Identifier: BSD-3-Clause
"""How a bridge stores notices, and what it reports of its disk."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import zmq.asyncio
from clocks import FakeClock

from ppdaemon.bridge import outlet
from ppdaemon.bridge.bridge import AT_ONCE, HANGS_S, Bridge
from ppdaemon.bridge.config import BridgeConfig, RingConfig
from ppdaemon.bridge.ring import Extent, Ring
from ppdaemon.errors import Refused
from ppdaemon.notify import Notifier
from ppdaemon.routers import bind
from ppdaemon.testing.waiting import wait_until


class HangingRing(Ring):
    """Its disk does not answer to a notice until that is allowed."""

    def __init__(self, folder: Path):
        super().__init__(folder, RingConfig())
        self.asked, self.allowed = threading.Event(), threading.Event()
        self.added: list[int] = []

    def add(self, bodies: Sequence[bytes], now_tai: float) -> Extent:
        self.added.append(len(bodies))
        self.asked.set()
        assert self.allowed.wait(60)
        return super().add(bodies, now_tai)


@contextlib.asynccontextmanager
async def running(ring: Ring, sockets: Path, clock: FakeClock) -> AsyncIterator[Bridge]:
    config = BridgeConfig(state_dir=sockets, control=sockets / "c", nodes=f"ipc://{sockets}/nodes")
    notifier = Notifier(None)
    with (
        closing(notifier._sender),
        zmq.asyncio.Context() as context,
        bind(context, outlet.NODES, config.nodes, outlet.OPTIONS, None) as nodes,
    ):
        bridge = Bridge(config, ring, nodes, None, clock, notifier, lambda: config)
        serving = asyncio.create_task(bridge.run(None, None))
        try:
            yield bridge
        finally:
            bridge.request_stop()
            await serving


async def test_a_disk_that_does_not_answer_is_a_problem_until_it_does(tmp_path, socket_dir):
    clock, ring = FakeClock(), HangingRing(tmp_path)
    async with running(ring, socket_dir, clock) as bridge:
        storing = asyncio.create_task(bridge.store(b"{}"))
        try:
            await asyncio.to_thread(ring.asked.wait)
            assert not bridge.report().problems
            clock.advance(HANGS_S + 1)
            (problem,) = bridge.report().problems
            assert (problem.source, bridge.report().state) == ("ring", "degraded")
            assert "the disk of the ring has not answered for" in problem.text
        finally:
            ring.allowed.set()
        await storing
        await asyncio.to_thread(wait_until, lambda: not bridge.report().problems)


async def test_notices_of_a_moment_are_stored_together_and_later_ones_next(tmp_path, socket_dir):
    ring = HangingRing(tmp_path)
    async with running(ring, socket_dir, FakeClock()) as bridge:
        first = [asyncio.create_task(bridge.store(b"a%d" % number)) for number in range(3)]
        try:
            await asyncio.to_thread(ring.asked.wait)
            others = [asyncio.create_task(bridge.store(b"%d" % n)) for n in range(AT_ONCE + 2)]
            await asyncio.sleep(0)
            assert bridge.report().backlog == len(first) + len(others)
            # These stores have given up, and send their notices again; the first one is being written.
            first.pop(1).cancel()
            others.pop(1).cancel()
            await asyncio.sleep(0)
        finally:
            ring.allowed.set()
        await asyncio.gather(*first, *others)
    assert ring.added == [3, AT_ONCE, 1]
    with closing(Ring(tmp_path, RingConfig())) as stored:
        expected = [b"a0", b"a1", b"a2", b"0", *(b"%d" % number for number in range(2, AT_ONCE + 2))]
        assert [each.body for each in stored.read(1, 10**6, 10**9)] == expected


async def test_a_ring_that_cannot_be_written_refuses_all_and_takes_the_next(
    tmp_path, socket_dir, monkeypatch
):
    """All at once: each attempt may wait for the disk, and stores wait for their answers."""
    ring, count = Ring(tmp_path, RingConfig()), 2 * AT_ONCE + 3
    async with running(ring, socket_dir, FakeClock()) as bridge:
        with monkeypatch.context() as patch:
            add = Mock(side_effect=sqlite3.OperationalError("disk I/O error"))
            patch.setattr(ring, "add", add)
            answers = await asyncio.gather(
                *(bridge.store(b"lost") for _ in range(count)), return_exceptions=True
            )
        assert [type(each) for each in answers] == count * [Refused]
        assert add.call_count == 1
        await bridge.store(b"kept")
    with closing(Ring(tmp_path, RingConfig())) as stored:
        assert [each.body for each in stored.read(1, 10, 100)] == [b"kept"]


async def test_an_error_while_nodes_are_answered_does_not_keep_a_notice_waiting(
    tmp_path, socket_dir, monkeypatch, caplog
):
    ring = HangingRing(tmp_path)
    ring.allowed.set()
    async with running(ring, socket_dir, FakeClock()) as bridge:
        monkeypatch.setattr(bridge._outlet, "committed", Mock(side_effect=ValueError("no answer")))
        async with asyncio.timeout(60):
            await bridge.store(b"a")
            await bridge.store(b"b")
    assert ring.added == [1, 1]
    assert "no answer" in caplog.text
