# SPDX-License-Identifier: BSD-3-Clause
"""The node's records: open visit-detectors in memory, all of them on disk.

Covers the order of writing and telling: an outcome is in the journal before
the relay hears of it and before its outputs are exported.
"""

import asyncio
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Exported, Raw, ResultEntry, ResultsSeen, Welcome
from ppdaemon.node.assignment import Key
from ppdaemon.node.docket import Docket
from ppdaemon.node.journal import Entry
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.states import Outcome

__all__ = ("Records",)

_LOG = logging.getLogger(__name__)

RESULTS_AT_ONCE = 500
UNCLAIMED_AT_ONCE = 500
"""So many lookups in the journal take some 10 ms; acceptance waits for them."""
MOST_UNCLAIMED = 20_000
"""Raws that wait for their lookup; the oldest are passed over above this."""


class Records:
    """Docket and journal, and who is told of what they say.

    Parameters
    ----------
    folders : `~ppdaemon.folders.NodeFolders`
        The node's folders.
    journal : `~ppdaemon.node.journal.JournalThread`
        Promises and outcomes.
    count : `collections.Counter`
        Counts what operators want to know.
    """

    def __init__(self, folders: NodeFolders, journal: JournalThread, count: Counter[str]):
        self.docket = Docket()
        self.problem = ""
        """Why the journal cannot be written, or blank."""
        self._folders = folders
        self._journal = journal
        self._count = count
        self._flush_wanted = asyncio.Event()
        self._writing = asyncio.Lock()
        self._spools: list[str] = []
        self._unclaimed: deque[Raw] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def meet(
        self, tell_results: Callable[[Sequence[ResultEntry]], None], export: Callable[[str], None]
    ) -> None:
        """Learn whom to tell.

        Parameters
        ----------
        tell_results : `~collections.abc.Callable`
            Tells the relay outcomes.
        export : `~collections.abc.Callable`
            Gives the exporter a spool.
        """
        self._tell_results = tell_results
        self._export = export

    def write_soon(self) -> None:
        """Have written what has changed, with what else changes just now."""
        self._flush_wanted.set()

    def export_later(self, spool: str) -> None:
        """Export this spool, after its outcome is written.

        Parameters
        ----------
        spool : `str`
            Directory with a manifest.
        """
        self._spools.append(spool)

    def unclaimed(self, raw: Raw) -> None:
        """Keep a raw if it is one that came too late.

        Parameters
        ----------
        raw : `~ppdaemon.messages.Raw`
            No open visit-detector has use for it.
        """
        self._unclaimed.append(raw)
        if len(self._unclaimed) > MOST_UNCLAIMED:
            self._unclaimed.popleft()
        self.write_soon()

    async def report_again(self) -> None:
        """Tell the relay all outcomes that it has not confirmed."""
        try:
            entries = await self._journal.call(lambda journal: journal.unreported(RESULTS_AT_ONCE))
        except sqlite3.Error as error:
            self.failed(error)
            return
        self._tell_results(entries)

    async def relay_said(self, words: ResultsSeen | Welcome) -> None:
        """Note which outcomes the relay has; tell the others once more.

        Parameters
        ----------
        words : `object`
            `~ppdaemon.messages.ResultsSeen` or `~ppdaemon.messages.Welcome`.
        """
        if isinstance(words, ResultsSeen):
            await self._journal.call(lambda journal: journal.reported(words.entries))
        else:
            await self.report_again()

    def exported(self, fact: Exported) -> None:
        """Note that outputs are in the central repo.

        Parameters
        ----------
        fact : `~ppdaemon.messages.Exported`
            What the exporter said.
        """
        names = (self._folders.read_spooled(spool.rpartition("/")[2]) for spool in fact.spools)
        keys = [Key(*name) for name in names if name]
        self._count["datasets_exported"] += fact.datasets
        self._count["spools_refused"] += len(fact.refused)
        self.keep(self._journal.call(lambda journal: journal.exported(keys, fact.tai)))

    async def keep_written(self) -> None:
        """Write what changes, many rows in one commit, until cancelled."""
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            await self.flush()
            await asyncio.sleep(0.05)  # gather what comes in a burst

    async def flush(self) -> None:
        """Write what has changed; then report outcomes and export spools."""
        async with self._writing:  # or an older state could follow a newer one
            # Raws that come while it writes belong to the next batch: the
            # outcome that makes them late may not be in this one.
            come = len(self._unclaimed)
            if await self._flush():
                await self._look_up_unclaimed(come)

    async def _look_up_unclaimed(self, come: int) -> None:
        """Tell late raws from those of visits that were not announced; the
        outcomes of before these came are written.
        """
        raws = [self._unclaimed.popleft() for _ in range(min(come, UNCLAIMED_AT_ONCE))]
        if not raws:
            return
        try:
            late, strange = await self._journal.call(lambda journal: journal.late.note(raws))
        except sqlite3.Error as error:
            self.failed(error)
            self._unclaimed.extendleft(reversed(raws))
            asyncio.get_running_loop().call_later(1.0, self._flush_wanted.set)
            return
        self.problem = ""
        self._count["late_raws"] += late
        self._count["raw_without_visit"] += strange
        if self._unclaimed:
            self.write_soon()

    async def _flush(self) -> bool:
        """Do it; tell whether all that has changed is on the disk."""
        entries = self.docket.changed()
        spools, self._spools = self._spools, []
        if not entries:
            return True
        try:
            await self._journal.call(lambda journal: journal.update(entries))
        except sqlite3.Error as error:
            self.failed(error)
            self.docket.not_written(entries)
            self._spools = spools + self._spools
            asyncio.get_running_loop().call_later(1.0, self._flush_wanted.set)
            return False
        self.problem = ""
        self._tell_results([_result(entry) for entry in entries if entry.final])
        for spool in spools:
            self._export(spool)
        marked = [self._folders.mark(*entry.key) for entry in entries if entry.final and entry.no_return]
        if marked:
            await asyncio.to_thread(_unlink, marked)
        return True

    async def repeat(self, keys: Sequence[Key]) -> None:
        """Answer a relay that asks again: for what has ended, it missed the
        result.

        Parameters
        ----------
        keys : `~collections.abc.Sequence` [`~ppdaemon.node.assignment.Key`]
            What it has asked for.
        """
        ended = []
        for key in keys:
            if (visit := self.docket.find(*key[:3])) is None:
                ended.append(key)
            else:
                visit.entry.asked = max(visit.entry.asked, key.attempt)
        if ended:
            await self._journal.call(lambda journal: journal.unreport(ended))
            await self.report_again()

    def failed(self, error: Exception) -> None:
        """Note that the journal could not be used.

        Parameters
        ----------
        error : `Exception`
            Why.
        """
        if not self.problem:
            _LOG.error("the journal cannot be written, no visits are taken: %s", error)
        self._count["journal_error"] += 1
        self.problem = f"the journal cannot be written: {error}"

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something to its end beside the pump, and log its failure.

        Parameters
        ----------
        work : `~collections.abc.Coroutine`
            What to run.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._count["background_error"] += 1
            _LOG.error("background work failed", exc_info=error)


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _result(entry: Entry) -> ResultEntry:
    return ResultEntry(
        instrument=entry.key.instrument,
        group=entry.key.group,
        detector=entry.key.detector,
        attempt=max(entry.key.attempt, entry.asked),
        outcome=entry.outcome or Outcome.INTERRUPTED,
        reason=entry.reason,
    )
