# SPDX-License-Identifier: BSD-3-Clause
"""Periodic work of a node, once a second."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ppdaemon.errors import Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.journalfile import count_late_raws
from ppdaemon.node.control.status import Status
from ppdaemon.node.processes.asker import AskerProcess
from ppdaemon.node.processes.child import reap
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.processes.names import NameCheck
from ppdaemon.node.processes.publisher import PublisherProcess
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.node.processes.reload import Generations
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.schedulerloop import SchedulerLoop
from ppdaemon.node.visits.offer import CapacityOffer
from ppdaemon.node.visits.pump import VisitPump
from ppdaemon.notify import Notifier
from ppdaemon.problemlog import status_line
from ppdaemon.processes import children, kill_orphans
from ppdaemon.sqlitereader import reading

__all__ = ("Ticker",)

WAIT_S = 0.2
"""How long at most the work of a second waits while raws are checked and ordered: it takes 5 to 20 ms of the
interpreter, which all threads share."""
LOOK_AGAIN_S = 0.01
"""Pause before the next look whether raws are still checked."""
READ_EVERY = 10
"""Journal and state disk are read in every tenth second also if nothing was written: operators empty the
quarantine, and that there is room for images again shows after a minute."""


@dataclass(frozen=True, slots=True)
class Ticker:
    """Wakes the scheduler, checks the offered capacity, kills orphans, triggers the watchdog, resends
    results.
    """

    scheduler: SchedulerLoop
    pump: VisitPump
    status: Status
    notifier: Notifier
    generations: Generations
    pool: Pool
    exporter: ExporterProcess
    asker: AskerProcess
    reader: ReaderProcess | None
    publisher: PublisherProcess
    names: NameCheck
    offer: CapacityOffer
    folders: NodeFolders
    watchdog_s: float | None
    urgent: Callable[[], bool]
    """Whether something is under way that this work must not delay."""

    async def run(self) -> None:
        """Tick until canceled. Nothing here reads a disk: a disk that does not
        answer must not let the watchdog end the daemon.
        """
        while True:
            await self._until_calm()
            self.scheduler.tick()
            self.offer.probe()
            self.offer.update()
            self._sweep()
            self.notifier.notify(STATUS=status_line(self.status.report()), WATCHDOG=1)
            await asyncio.sleep(min(1.0, (self.watchdog_s or 2.0) / 2))

    async def run_slowly(self) -> None:
        """Read journal and state disk until canceled, once a second while there is anything new."""
        written = -1
        for second in itertools.count():
            await self._until_calm()
            await self.pump.resend_results()
            is_new = self.exporter.waiting or written != self.pump.journal.written
            if is_new or second % READ_EVERY == 0:
                written = self.pump.journal.written
                await asyncio.to_thread(self._count)
                await self.exporter.measure()
            await asyncio.sleep(1.0)

    async def _until_calm(self) -> None:
        for _ in range(round(WAIT_S / LOOK_AGAIN_S)):
            if not self.urgent():
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    def _count(self) -> None:
        """Count what an operator should look at; in a thread."""
        self.status.spools_refused = self.folders.count_quarantined()
        # The journal's own problem is reported by its writer.
        with contextlib.suppress(Unavailable), reading(self.folders.journal) as db:
            self.status.late_raws = count_late_raws(db)

    def _sweep(self) -> None:
        """Reap and kill orphans: processes of workers whose zygote has ended
        become children of this process.
        """
        zygotes, forked = self.generations.processes()
        reader = None if self.reader is None else self.reader.pid
        own = {*zygotes, *self.names.pids, reader, self.publisher.pid}
        if others := children() - own:
            reap(others)
            kill_orphans({*own, *forked, *self.pool.pids().values(), self.exporter.pid, self.asker.pid})
