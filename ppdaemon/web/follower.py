# SPDX-License-Identifier: BSD-3-Clause
"""Follows the daemon for all viewers together, over two connections."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ppdaemon.clock import Clock
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import PPDaemonError
from ppdaemon.reports import StatusReport, VisitChange
from ppdaemon.web.hub import Hub
from ppdaemon.web.model import KEEP_FAILURES, LiveModel

__all__ = ("Follower",)

_LOG = logging.getLogger(__name__)

TICK_S = 0.5
"""Longest time until a thread ends that is not needed any more."""
RETRY_S = 1.0
"""Pause before the daemon is asked again."""
WORKERS_S = 2.0
"""Between two looks at the memory of the workers."""
MAX_ROWS = 2000
"""Rows of the journal at the start, some 10 visits of 205 detectors: they cost the daemon 50 ms."""


@dataclass(eq=False)
class Follower:
    """Keeps the model up to date, and publishes its changes."""

    daemon: Daemon
    model: LiveModel
    hub: Hub
    clock: Clock

    async def run(self) -> None:
        """Follow the daemon until canceled; it may be away, and come back."""
        while True:
            try:
                await self._follow()
            except* PPDaemonError as group:
                error = group.exceptions[0]
                delta = self.model.away(str(error), self.clock.tai())
                if delta:
                    _LOG.warning("the daemon is away, trying again: %s", error)
                self.hub.publish(delta)
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Follow one run of the daemon; raises `~ppdaemon.errors.PPDaemonError` when it ends."""
        loop, ending, subscribed = asyncio.get_running_loop(), threading.Event(), asyncio.Event()
        early: list[tuple[VisitChange, ...]] = []
        is_complete = False

        def changed(changes: tuple[VisitChange, ...]) -> None:
            subscribed.set()
            if is_complete:
                self.hub.publish(self.model.visits(changes))
            else:
                early.append(changes)

        def received(report: StatusReport) -> None:
            self.hub.publish(self.model.status(report))

        def read[T](stream: Iterator[T | None], use: Callable[[T], None]) -> None:
            for item in stream:
                if ending.is_set():
                    return
                if item is not None:
                    loop.call_soon_threadsafe(use, item)

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.to_thread(read, self.daemon.watch(TICK_S), received))
                tasks.create_task(asyncio.to_thread(read, self.daemon.watch_visits(TICK_S), changed))
                await subscribed.wait()
                # After the subscription: what changes from now on is in `early`.
                rows = await asyncio.to_thread(self.daemon.visits, MAX_ROWS)
                failed = await asyncio.to_thread(self.daemon.visits, KEEP_FAILURES, failed=True)
                self.hub.publish(self.model.restart(rows, failed))
                for changes in early:
                    self.hub.publish(self.model.visits(changes))
                is_complete = True
                _LOG.info("following the daemon")
                while True:
                    workers = await asyncio.to_thread(self.daemon.workers)
                    self.hub.publish(self.model.workers(workers))
                    await asyncio.sleep(WORKERS_S)
        finally:
            ending.set()
