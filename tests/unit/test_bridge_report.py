# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge reports of its disk."""

import asyncio
import threading
from contextlib import closing
from pathlib import Path

import zmq.asyncio
from clocks import FakeClock

from ppdaemon.bridge import outlet
from ppdaemon.bridge.bridge import HANGS_S, Bridge
from ppdaemon.bridge.config import BridgeConfig, RingConfig
from ppdaemon.bridge.ring import Extent, Ring
from ppdaemon.notify import Notifier
from ppdaemon.routers import bind
from ppdaemon.testing.waiting import wait_until


class HangingRing(Ring):
    """Its disk does not answer to a notice until that is allowed."""

    def __init__(self, folder: Path):
        super().__init__(folder, RingConfig())
        self.asked, self.allowed = threading.Event(), threading.Event()

    def add(self, body: bytes, now_tai: float) -> Extent:
        self.asked.set()
        assert self.allowed.wait(60)
        return super().add(body, now_tai)


def test_a_disk_that_does_not_answer_is_a_problem_until_it_does(tmp_path, socket_dir):
    clock, ring = FakeClock(), HangingRing(tmp_path)
    config = BridgeConfig(state_dir=tmp_path, control=socket_dir / "c", nodes=f"ipc://{socket_dir}/nodes")

    async def play() -> None:
        notifier = Notifier(None)
        with (
            closing(notifier._sender),
            zmq.asyncio.Context() as context,
            bind(context, outlet.NODES, config.nodes, outlet.OPTIONS, None) as nodes,
        ):
            bridge = Bridge(config, ring, nodes, None, clock, notifier, lambda: config)
            running = asyncio.create_task(bridge.run(None, None))
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
            bridge.request_stop()
            await running

    asyncio.run(play())
