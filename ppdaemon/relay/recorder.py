# SPDX-License-Identifier: BSD-3-Clause
"""Runs the ledger beside the event loop: what queued up becomes one commit.

A commit waits for the disk, which may take a second on a bad day; the event
loop never waits with it. Jobs are done, and reported as done, in the order in
which they were put.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.throttle import Throttle

__all__ = ("Job", "Recorder")

_LOG = logging.getLogger(__name__)

BATCH = 200
"""Jobs in one commit; with LSSTCam some 40,000 rows."""

ROOM = 1000
"""Jobs that may wait; then the sockets are not read until some are done."""

RETRY_S = 0.5
"""Pause after the ledger could not be written."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be done in the ledger, and what follows."""

    work: Callable[[Ledger], Any]
    """Called in the ledger's thread."""
    done: Callable[[Any], None]
    """Called in the pump with the result, when it is on disk."""
    failed: Callable[[str], None] | None = None
    """Called in the pump with the reason; without it the job is tried again
    until it is done."""


type Deliver = Callable[[Sequence[Callable[[], None]]], Awaitable[None]]


class Recorder:
    """The queue before the ledger, and its one thread.

    Parameters
    ----------
    ledger : `~ppdaemon.relay.ledger.Ledger`
        Used by nobody else from now on.
    throttle : `~ppdaemon.relay.throttle.Throttle`
        For the log of a ledger that cannot be written.
    """

    def __init__(self, ledger: Ledger, throttle: Throttle):
        self._ledger = ledger
        self._throttle = throttle
        self._jobs: deque[Job] = deque()
        self._in_work = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    @property
    def backlog(self) -> int:
        """Number of jobs that are not settled (`int`)."""
        return len(self._jobs) + self._in_work

    def put(self, job: Job) -> None:
        """Queue a job; never waits."""
        self._jobs.append(job)
        self._filled.set()
        if self.backlog >= ROOM:
            self._room.clear()

    async def room(self) -> None:
        """Wait until there is room for more."""
        await self._room.wait()

    async def run(self, deliver: Deliver) -> None:
        """Do jobs for ever.

        Parameters
        ----------
        deliver : `~collections.abc.Callable`
            Takes what is to be called in the pump, in order.
        """
        while True:
            await self._filled.wait()
            batch = [self._jobs.popleft() for _ in range(min(BATCH, len(self._jobs)))]
            if not self._jobs:
                self._filled.clear()
            self._in_work += len(batch)
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(
                    self._thread, self._ledger.transact, [job.work for job in batch]
                )
            except sqlite3.Error as error:
                follow_ups = self._fail(batch, f"the ledger cannot be written: {error}")
                await deliver([*follow_ups, partial(self._settle, len(follow_ups))])
                await asyncio.sleep(RETRY_S)
            else:
                follow_ups = [partial(job.done, result) for job, result in zip(batch, results, strict=True)]
                await deliver([*follow_ups, partial(self._settle, len(follow_ups))])

    def _settle(self, jobs: int) -> None:
        """Count jobs as done: called in the pump, behind what follows from
        them, so that nothing later overtakes it.
        """
        self._in_work -= jobs
        if self.backlog < ROOM:
            self._room.set()

    def _fail(self, batch: Sequence[Job], reason: str) -> list[Callable[[], None]]:
        """Keep what must be done; return the callbacks of what may fail."""
        if self._throttle.passes("ledger write"):
            _LOG.error(reason, extra={"waiting": self.backlog})
        kept = [job for job in batch if job.failed is None]
        self._in_work -= len(kept)
        self._jobs.extendleft(reversed(kept))
        if kept:
            self._filled.set()
        return [partial(job.failed, reason) for job in batch if job.failed is not None]

    def close(self) -> None:
        """Wait for the thread and close the ledger."""
        self._thread.shutdown()
        self._ledger.close()
