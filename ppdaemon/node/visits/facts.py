# SPDX-License-Identifier: BSD-3-Clause
"""Collects what a decision about visits needs from the journal and the disk.

Decides nothing: what is collected goes to `ppdaemon.node.visits.core` as one
event, which finds out whether it is still true.
"""

import asyncio
import itertools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ppdaemon.errors import ConfigError
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Pipelines
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.chooser import PipelineChooser
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.pump import Inbox, VisitPump
from ppdaemon.node.visits.recovery import discard, read_leftovers, spools_left
from ppdaemon.node.visits.requeue import objection
from ppdaemon.node.visits.turn import AttemptRecovered, Entry, RequeueAsked
from ppdaemon.reports import RequeueRow
from ppdaemon.selection import Chosen
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.states import Outcome

__all__ = ("VisitFacts",)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VisitFacts:
    """Asks the pump to answer for a previous run, and to try visits again."""

    folders: NodeFolders
    journal: BatchWriter[Journal]
    chooser: PipelineChooser
    inbox: Inbox
    pump: VisitPump
    exporter: ExporterProcess
    arrivals: Arrivals
    _one_at_a_time: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    # --- a previous run --------------------------------------------------

    async def recover(self) -> None:
        """Give every attempt without an outcome one, or the next attempt, and
        find the spools that are left.
        """
        entries = await self.journal.call(lambda journal: journal.unfinished())
        remains = await asyncio.to_thread(lambda: [read_leftovers(self.folders, e.key) for e in entries])
        for entry, left in zip(entries, remains, strict=True):
            self.inbox.post(AttemptRecovered(entry, left, await self._choose(entry)))
        await self.pump.settle()
        if entries:
            _LOG.warning("recovered %d visit-detectors left by the previous run", len(entries))
        await asyncio.to_thread(self._remove_marks)
        await self._find_spools()

    async def _choose(self, entry: Entry) -> Chosen:
        try:
            return (await self.chooser.choose(entry.visit, [entry.key.detector]))[entry.key.detector]
        except ConfigError as error:  # the configuration may know its instrument no more
            return Chosen(Pipelines(), str(error))

    def _remove_marks(self) -> None:
        for mark in self.folders.no_return.iterdir():
            mark.unlink()

    async def _find_spools(self) -> None:
        """Have the spools of a previous run exported, but for those of attempts
        that another attempt followed: it makes the same datasets.
        """
        keys = await asyncio.to_thread(spools_left, self.folders)
        followed = await self.journal.call(lambda journal: journal.followed(keys))
        await asyncio.to_thread(discard, [self.folders.spooled(*key) for key in followed])
        for key in keys:
            if key not in followed:
                self.exporter.add(str(self.folders.spooled(*key)))

    def find_moved_back(self) -> None:
        """Have those spools exported that an operator has moved back."""
        self.pump.beside(self._find_moved_back())

    async def _find_moved_back(self) -> None:
        for spool in await asyncio.to_thread(self.folders.moved_back):
            self.exporter.add(str(spool))

    # --- operators -------------------------------------------------------

    async def requeue(
        self, group: str, detectors: Collection[int] | None, *, force: bool
    ) -> list[RequeueRow] | None:
        """Try detectors of a visit again.

        Parameters
        ----------
        group : `str`
            The visit's group.
        detectors : `~collections.abc.Collection` [`int`] or `None`
            Which; `None` means all.
        force : `bool`
            See `~ppdaemon.node.visits.requeue.objection`.

        Returns
        -------
        rows : `list` [`~ppdaemon.reports.RequeueRow`] or `None`
            One for each detector; `None` if the journal does not have the
            visit, or none of the detectors.

        Raises
        ------
        ppdaemon.errors.Refused
            Raised if the journal cannot be written.
        """
        async with self._one_at_a_time:  # or one would export what the other withdrew
            await self.pump.flush()
            known = await self.journal.call(lambda journal: journal.last_attempts(group))
            wanted = [entry for entry in known if detectors is None or entry.key.detector in detectors]
            if not wanted:
                return None
            rows = list(await self._requeue(wanted, force=force))
        instrument = wanted[0].key.instrument
        for detector in set(detectors or ()) - {entry.key.detector for entry in wanted}:
            rows.append(RequeueRow(instrument=instrument, detector=detector, text="not in the journal"))
        return sorted(rows, key=lambda row: (row.instrument, row.detector))

    async def _requeue(self, wanted: Sequence[Entry], *, force: bool) -> Sequence[RequeueRow]:
        free = [entry for entry in wanted if not objection(entry, force=force)]
        await self._rescan(free)
        chosen = {entry.key: await self._choose(entry) for entry in free}
        existing = await asyncio.to_thread(self._existing_spools, free)
        # No await from here to the event: the exporter must not begin with
        # what is withdrawn, nor end what is said to be under way.
        exporting = {
            key
            for entry in free
            if (key := entry.key) in existing
            and entry.outcome != Outcome.SUCCEEDED
            and not self.exporter.withdraw(existing[key])
        }
        spools = {key: spool for key, spool in existing.items() if key not in exporting}
        return await self.pump.ask(
            lambda number: RequeueAsked(
                number, tuple(wanted), chosen, spools, frozenset(exporting), force=force
            )
        )

    def _existing_spools(self, entries: Sequence[Entry]) -> dict[Key, str]:
        spools = {entry.key: self.folders.spooled(*entry.key) for entry in entries}
        return {key: str(spool) for key, spool in spools.items() if spool.exists()}

    async def _rescan(self, entries: Sequence[Entry]) -> None:
        """Have raws found that came too late, whatever is remembered of them."""
        for _, group in itertools.groupby(entries, key=lambda entry: entry.key.instrument):
            of_one = list(group)
            detectors = {entry.key.detector for entry in of_one}
            since_tai = min(entry.received_tai for entry in of_one)
            await self.arrivals.rescan(of_one[0].visit, detectors, since_tai)
