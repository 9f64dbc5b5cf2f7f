# SPDX-License-Identifier: BSD-3-Clause
"""What a node reports to its service manager while it starts."""

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock, Mock

from ppdaemon.clock import Clock
from ppdaemon.configfile import ConfigFile
from ppdaemon.node.supervisor import Supervisor


def test_the_watchdog_is_triggered_while_visits_are_recovered(config):
    """Fault 77: the central repo was away at the start, and the recovery takes longer than the limit."""

    async def run():
        notified = asyncio.Queue()
        notifier = Mock(notify=lambda **message: notified.put_nowait(message))
        supervisor = Supervisor(
            ConfigFile(Path("node.yaml"), config, {(): 1}), Mock(), {}, Clock(), notifier, 0.02
        )

        async def until_notified(key):
            while key not in await notified.get():
                pass

        async def start():
            node.generations.unavailable = "the central repo is away"
            await until_notified("READY")
            node.generations.unavailable = ""

        async def recover():
            while not notified.empty():
                notified.get_nowait()
            await until_notified("WATCHDOG")
            await until_notified("WATCHDOG")
            supervisor.stop()

        node = MagicMock()
        node.generations.start, node.reprocessor.recover = start, recover
        node.arrivals.start = AsyncMock()
        await asyncio.wait_for(supervisor._start(node), 20.0)
        assert supervisor._stop.is_set()

    asyncio.run(run())
