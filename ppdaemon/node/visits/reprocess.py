# SPDX-License-Identifier: BSD-3-Clause
"""Reads journal and state disk for recovery and requeue.

Decides nothing: each reading is posted as one event to
`ppdaemon.node.visits.core`, which checks whether it is still valid.
"""

import asyncio
import itertools
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ppdaemon.errors import ConfigError
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Pipelines
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.chooser import PipelineChooser
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import AttemptRecovered, JournalEntry, MarkCatchup, MarkLost, RequeueRequested
from ppdaemon.node.visits.pump import Inbox, VisitPump
from ppdaemon.node.visits.recovery import discard, read_leftovers, spools_left
from ppdaemon.node.visits.requeue import catchup_refusal, refusal_reason
from ppdaemon.reports import CatchupRequest, RequeueRow
from ppdaemon.selection import PipelineChoice
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.states import Outcome, Stage

__all__ = ("Reprocessor",)

_LOG = logging.getLogger(__name__)

MOST_NAMED = 50
"""Visit-detectors in one line of the log."""
LATEST_OUTCOMES = 50_000
"""Rows of the journal that are read at the start, some 50 MB: 500 visits with 100 detectors each."""


@dataclass(frozen=True, slots=True)
class Reprocessor:
    """Recovers the visits of a previous run and requeues visits for operators."""

    folders: NodeFolders
    journal: BatchWriter[Journal]
    chooser: PipelineChooser
    inbox: Inbox
    pump: VisitPump
    exporter: ExporterProcess
    arrivals: Arrivals
    _lock: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    # --- a previous run --------------------------------------------------

    async def recover(self) -> None:
        """End or retry every attempt without an outcome, and export the spools."""
        for ended, reported, age_s in await self.journal.call(
            lambda journal: journal.latest_outcomes(LATEST_OUTCOMES)
        ):
            self.pump.visits.ended.add([ended], self.pump.clock.mono() - age_s, reported=reported)
        entries = await self.journal.call(lambda journal: journal.unfinished())
        leftovers = await asyncio.to_thread(lambda: [read_leftovers(self.folders, e.key) for e in entries])
        for entry, left in zip(entries, leftovers, strict=True):
            self.inbox.post(AttemptRecovered(entry, left, await self._choose(entry)))
        await self.pump.wait_until_idle()
        if entries:
            _LOG.warning("recovered %d visit-detectors left by the previous run", len(entries))
        # Only now that the outcomes are in the journal: after a crash before, the next start
        # needs the marks again.
        await asyncio.to_thread(self._remove_marks)
        await self._export_spools()

    async def _choose(self, entry: JournalEntry) -> PipelineChoice:
        try:
            return (await self.chooser.choose(entry.visit, [entry.key.detector]))[entry.key.detector]
        except ConfigError as error:  # its instrument may have been removed from the configuration
            return PipelineChoice(Pipelines(), str(error))

    def _remove_marks(self) -> None:
        for mark in self.folders.no_return.iterdir():
            mark.unlink()

    async def _export_spools(self) -> None:
        """Export the spools of a previous run, except those of attempts with a
        later attempt, here or on another node, which writes the same datasets.
        """
        keys, renamed = await asyncio.to_thread(spools_left, self.folders)
        followed = await self.journal.call(lambda journal: journal.followed(keys))
        await asyncio.to_thread(discard, [self.folders.find_spool(*key) for key in followed])
        without_images = await self.journal.call(lambda journal: journal.without_images(keys))
        for key in keys:
            if key not in followed:
                spool = str(self.folders.find_spool(*key))
                self.exporter.add(spool, is_incomplete=key in without_images)
        for path in renamed:
            self.exporter.add(str(path))  # which quarantines it, with the reason
        waiting = await self.journal.call(lambda journal: journal.not_exported())
        missing = await asyncio.to_thread(lambda: [key for key in waiting if self.folders.is_lost(*key)])
        lost = sorted(set(missing) - await self.journal.call(lambda journal: journal.followed(missing)))
        if lost:
            _LOG.error(
                "the outputs of %d visit-detectors are gone, and were not exported as far as is known: %s;"
                " those from before the last boot of this host are interrupted now; ppctl retry makes them"
                " again",
                len(lost),
                ", ".join(f"{key.group} {key.detector}" for key in lost[:MOST_NAMED]),
            )
            await self.journal.call(lambda journal: journal.write(MarkLost(tuple(lost))))

    def export_moved_back(self) -> None:
        """Export spools that an operator has moved back from quarantine."""
        self.pump.run_in_background(self._export_moved_back())

    async def _export_moved_back(self) -> None:
        for spool in await asyncio.to_thread(self.folders.returned_spools):
            self.exporter.add(str(spool))

    # --- operators -------------------------------------------------------

    async def requeue(
        self, group: str, detectors: Collection[int] | None, *, force: bool
    ) -> list[RequeueRow] | None:
        """Retry detectors of a visit, all of them if ``detectors`` is `None`.

        Return one row for each detector, or `None` if the journal has none of
        them. Raises `~ppdaemon.errors.Refused` if the journal cannot be
        written.
        """
        # One request at a time: a second one would return to the exporter what
        # the first one has withdrawn.
        async with self._lock:
            await self.pump.flush()
            known = await self.journal.call(lambda journal: journal.last_attempts(group))
            entries = [entry for entry in known if detectors is None or entry.key.detector in detectors]
            if not entries:
                return None
            rows = list(await self._requeue(entries, await self._lost(entries), force=force))
        instrument = entries[0].key.instrument
        for detector in set(detectors or ()) - {entry.key.detector for entry in entries}:
            rows.append(RequeueRow(instrument=instrument, detector=detector, text="not in the journal"))
        return sorted(rows, key=lambda row: (row.instrument, row.detector))

    async def mark_catchup(self, request: CatchupRequest) -> list[RequeueRow]:
        """Note which visit-detectors the daytime catch-up has, unless they are processed here, or something
        permanent may have been written. Return one row for each detector.
        """
        # Under the lock of requeues: one visit-detector is either retried or caught up.
        async with self._lock:
            await self.pump.flush()
            known = await self.journal.call(lambda journal: journal.last_attempts(request.group))
            entries = {
                entry.key.detector: entry for entry in known if entry.key.instrument == request.instrument
            }
            waiting = await self._waiting(entry.key for entry in entries.values())
            rows: list[RequeueRow] = []
            keys: list[Key] = []
            for detector in request.detectors:
                entry = entries.get(detector)
                text = "not in the journal"
                if entry is not None:
                    text = catchup_refusal(entry, request, has_spool=entry.key in waiting)
                if entry is not None and not text:
                    keys.append(entry.key)
                attempt = None if entry is None or text else entry.key.attempt
                rows.append(
                    RequeueRow(instrument=request.instrument, detector=detector, attempt=attempt, text=text)
                )
            mark = MarkCatchup(tuple(keys), request.state, request.run, self.pump.clock.tai())
            await self.journal.call(lambda journal: journal.write(mark))
        return rows

    async def _lost(self, entries: Iterable[JournalEntry]) -> frozenset[Key]:
        """Return the attempts whose outputs were spooled, and are neither in the central repo nor on their
        way to it: their spools are gone, or in quarantine.
        """
        keys = [
            entry.key
            for entry in entries
            if Stage.SPOOLED in entry.stages and Stage.CENTRAL not in entry.stages
        ]
        if not keys:
            return frozenset()
        gone = set(keys) - await self._waiting(keys)
        # Afterwards: the exporter may have ended with them since the entries were read.
        await self.pump.flush()
        return frozenset(gone.intersection(await self.journal.call(lambda journal: journal.not_exported())))

    async def _waiting(self, keys: Iterable[Key]) -> set[Key]:
        """Return the attempts whose outputs wait for export, or are being exported."""
        keys = list(keys)
        existing = await asyncio.to_thread(self._existing_spools, keys)
        return {key for key in keys if key in existing or self.exporter.has(self.folders.spooled(*key).name)}

    async def _requeue(
        self, entries: Sequence[JournalEntry], lost: frozenset[Key], *, force: bool
    ) -> Sequence[RequeueRow]:
        allowed = [
            entry for entry in entries if not refusal_reason(entry, force=force, lost=entry.key in lost)
        ]
        await self._rescan(allowed)
        chosen = {entry.key: await self._choose(entry) for entry in allowed}
        existing = await asyncio.to_thread(self._existing_spools, [entry.key for entry in allowed])
        # No await from here to the event: the exporter must not start with a
        # spool reported as withdrawn, nor finish one reported as being exported.
        exporting = {
            key
            for entry in allowed
            if (key := entry.key) in existing
            and entry.outcome != Outcome.SUCCEEDED
            and not self.exporter.withdraw(existing[key])
        }
        spools = {key: spool for key, spool in existing.items() if key not in exporting}
        return await self.pump.request(
            lambda number: RequeueRequested(
                number, tuple(entries), chosen, spools, frozenset(exporting), force=force, lost=lost
            )
        )

    def _existing_spools(self, keys: Iterable[Key]) -> dict[Key, str]:
        spools = {key: self.folders.find_spool(*key) for key in keys}
        return {key: str(spool) for key, spool in spools.items() if spool.exists()}

    async def _rescan(self, entries: Sequence[JournalEntry]) -> None:
        """Find late raws again, also those that are no longer in memory."""
        for _, group in itertools.groupby(entries, key=lambda entry: entry.key.instrument):
            visit_entries = list(group)
            detectors = {entry.key.detector for entry in visit_entries}
            since_tai = min(entry.received_tai for entry in visit_entries)
            await self.arrivals.rescan(visit_entries[0].visit, detectors, since_tai)
