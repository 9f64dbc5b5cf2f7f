# SPDX-License-Identifier: BSD-3-Clause
"""Trying visit-detectors again that had their outcome: an operator's wish.

Covers what may be tried again and in which order it is done. A wish is
granted by one more attempt in the journal; the outcome before is the
visit-detector's no more.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.node.journal import Entry, Journal
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.lastlook import Look
from ppdaemon.node.processes.child import wipe
from ppdaemon.reports import RequeueRow
from ppdaemon.states import Outcome, Stage

__all__ = ("WITHDRAWN", "Requeue", "objection")

WITHDRAWN = "withdrawn: the relay has ended it, or given it to another node"
"""Reason of a visit-detector that the relay took back without a cancellation."""


def objection(entry: Entry, *, force: bool) -> str:
    """Say why a visit-detector is not tried again. Pure.

    Parameters
    ----------
    entry : `~ppdaemon.node.journal.Entry`
        Its last attempt; ``no_return`` of all attempts.
    force : `bool`
        Whether an operator takes the risk of doing things twice.

    Returns
    -------
    text : `str`
        Blank if it may be tried again.
    """
    if not entry.final:
        return "it is under way"
    if entry.outcome == Outcome.SUCCEEDED and not entry.partial:
        return "it has succeeded"
    if force:
        return ""
    if entry.no_return:
        return (
            f"attempt {entry.key.attempt} went past the point of no return ({entry.no_return}):"
            " what it wrote to the alert database or stream would be there twice; --force accepts that"
        )
    if entry.reason == WITHDRAWN:
        return f"{WITHDRAWN}: two nodes would process it; --force accepts that"
    return ""


@dataclass(slots=True)
class Requeue:
    """Grants wishes, one request after the other."""

    folders: NodeFolders
    clock: Clock
    journal: JournalThread
    flush: Callable[[], Coroutine[Any, Any, None]]
    """Writes all outcomes into the journal."""
    withdraw: Callable[[str], bool]
    """Takes a spool from the exporter, unless it is being exported."""
    export: Callable[[str], None]
    """Gives the exporter a spool."""
    look: Look
    """Looks for raws that came long ago."""
    take: Callable[[Sequence[Entry]], Coroutine[Any, Any, None]]
    """Queues attempts that are in the journal."""
    _one_at_a_time: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    async def grant(
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
            See `objection`.

        Returns
        -------
        rows : `list` [`~ppdaemon.reports.RequeueRow`] or `None`
            What became of each; `None` if the journal does not have the
            visit, or none of the detectors.

        Raises
        ------
        ppdaemon.errors.Refused
            Raised if the journal cannot be written.
        """
        async with self._one_at_a_time:
            await self.flush()
            known = await self.journal.call(lambda journal: journal.last_attempts(group))
            wanted = [entry for entry in known if detectors is None or entry.key.detector in detectors]
            if not wanted:
                return None
            free, rows = [], []
            for entry in wanted:
                if text := objection(entry, force=force) or self._take_spool(entry):
                    rows.append(_row(entry, text))
                else:
                    free.append(entry)
            if free:
                rows += await self._try_again(free)
        instrument = wanted[0].key.instrument
        for detector in set(detectors or ()) - {entry.key.detector for entry in wanted}:
            rows.append(RequeueRow(instrument=instrument, detector=detector, text="not in the journal"))
        return sorted(rows, key=lambda row: (row.instrument, row.detector))

    def _take_spool(self, entry: Entry) -> str:
        """Keep outputs of the last attempt from being exported, or say why
        they are in the way.
        """
        spool = self.folders.spooled(*entry.key)
        if not spool.exists():
            return ""
        if entry.outcome == Outcome.SUCCEEDED:
            return "its outputs wait for export: try again when they are in the central repo"
        return "" if self.withdraw(str(spool)) else "its outputs are being exported: try again in a moment"

    async def _try_again(self, entries: Sequence[Entry]) -> list[RequeueRow]:
        await self._find_raws(entries)
        again = [self._next(entry) for entry in entries]
        spools = [spool for entry in entries if (spool := self.folders.spooled(*entry.key)).exists()]
        try:
            await self.journal.call(lambda journal: _promise(journal, entries, again))
        except sqlite3.Error as error:
            for spool in spools:
                self.export(str(spool))
            raise Refused(f"the journal cannot take it: {error}") from None
        try:
            # Partial outputs would be in the way of the whole ones.
            await asyncio.to_thread(_discard, spools)
        finally:  # they are promised
            await self.take(again)
        return [
            _row(before, _note(before), entry.key.attempt)
            for before, entry in zip(entries, again, strict=True)
        ]

    async def _find_raws(self, entries: Sequence[Entry]) -> None:
        """Have those told that came too late, whatever is remembered of them."""
        by_instrument: dict[str, list[Entry]] = {}
        for entry in entries:
            by_instrument.setdefault(entry.key.instrument, []).append(entry)
        for group in by_instrument.values():
            detectors = {entry.key.detector for entry in group}
            await self.look(group[0].visit, detectors, min(entry.received_tai for entry in group))

    def _next(self, entry: Entry) -> Entry:
        key = entry.key._replace(attempt=entry.key.attempt + 1)
        stages = {Stage.ACCEPTED: self.clock.tai()}
        return Entry(key, entry.visit, entry.received_tai, stages, asked=entry.asked)


def _row(entry: Entry, text: str, attempt: int | None = None) -> RequeueRow:
    return RequeueRow(
        instrument=entry.key.instrument, detector=entry.key.detector, attempt=attempt, text=text
    )


def _note(before: Entry) -> str:
    if Stage.CENTRAL not in before.stages:
        return ""
    return (
        f"what the central repo has of attempt {before.key.attempt} stays there, only what it lacks is added"
    )


def _promise(journal: Journal, before: Sequence[Entry], again: Sequence[Entry]) -> None:
    """Write the next attempts, unless the relay asked for others meanwhile."""
    last = {entry.key for entry in journal.last_attempts(before[0].key.group)}
    if not last.issuperset(entry.key for entry in before):
        raise sqlite3.IntegrityError("the relay has asked for it again meanwhile")
    journal.requeue(again)


def _discard(spools: Sequence[Path]) -> None:
    for spool in spools:
        # Half of one must never be taken for one.
        wipe(spool.rename(spool.with_name(f"{spool.name}.part")))
