# SPDX-License-Identifier: BSD-3-Clause
"""Handles the requests of the control socket."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import pydantic

from ppdaemon import journalfile, reports
from ppdaemon.controlserver import Reply, Rows, not_found
from ppdaemon.errors import Refused
from ppdaemon.node.control.reloader import Reloader
from ppdaemon.node.control.status import Status
from ppdaemon.node.slots.events import KillRequested, RecycleRequested, RestartRequested
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.slot import Slot
from ppdaemon.node.visits.model import AcceptanceChanged
from ppdaemon.node.visits.reprocess import Reprocessor
from ppdaemon.node.visits.source import VisitSource
from ppdaemon.sqlitereader import reading
from ppdaemon.states import SlotState

__all__ = ("RequestHandler",)


@dataclass(frozen=True, slots=True)
class RequestHandler:
    """Handles one request at a time for each client."""

    status: Status
    pool: Pool
    reprocessor: Reprocessor
    source: VisitSource
    reloader: Reloader

    async def handle(self, request: pydantic.BaseModel) -> Reply:
        """Handle one request and return the reply.

        Raises `~ppdaemon.errors.Refused` if it cannot be done now.
        """
        match request:
            case reports.StatusRequest():
                return reports.Ok(data=self.status.report().model_dump(mode="json"))
            case reports.WorkersRequest():
                return Rows(self.status.workers())
            case reports.VisitsRequest():
                return Rows(await self._read(lambda db: journalfile.visit_detectors(db, request)))
            case reports.VisitSummariesRequest():
                return Rows(await self._read(lambda db: journalfile.visit_summaries(db, request)))
            case reports.VisitRequest(group=group):
                rows = await self._read(lambda db: journalfile.visit(db, group))
                return Rows(rows) if rows else not_found(f"no visit of group {group!r} in the journal")
            case reports.LateRequest():
                return Rows(await self._read(lambda db: journalfile.late_raws(db, request)))
            case reports.RequeueRequest():
                return await self._requeue(request)
            case reports.CatchupRequest():
                return Rows(await self.reprocessor.mark_catchup(request))
            case reports.DrainRequest():
                await self._drain_or_resume(accepting=False)
                return reports.Ok()
            case reports.ResumeRequest():
                await self._drain_or_resume(accepting=True)
                resumed = self.status.resumed(await self.status.offer.try_journal())
                return reports.Ok(data=resumed.model_dump(mode="json"))
            case reports.ReloadRequest():
                return await self.reloader.reload()
            case reports.ExportRequest(action="init"):
                return reports.Ok(data=await self.status.exporter.mark_datastore())
            case reports.ExportRequest():
                return reports.Ok(data=self.status.exporter.hurry())
            case reports.RestartRequest(slot=number) | reports.KillRequest(slot=number):
                if number not in self.pool.slots:
                    return not_found(f"there is no slot {number}")
                if isinstance(request, reports.RestartRequest):
                    return reports.Ok(data=self._restart(self.pool.slots[number], now=request.now))
                self.pool.handle(number, KillRequested())
                return reports.Ok()
            case unexpected:
                raise AssertionError(unexpected)

    async def _read[T](self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Bring the journal up to date and query it by a thread with a connection of its own: a query of a
        whole night must not delay a write. A journal that cannot be written is read as it is.
        """
        with contextlib.suppress(Refused):
            await self.reprocessor.pump.flush()

        def read() -> T:
            with reading(self.status.folders.journal) as db:
                return query(db)

        return await asyncio.to_thread(read)

    def set_accepting(self, accepting: bool, drained_since: float | None = None) -> None:
        """Accept new visits from now on, or none; `drained_since` is set if an operator wants none.

        Raises `~ppdaemon.errors.Refused` while the daemon stops.
        """
        if self.status.state == "stopping":
            raise Refused("the daemon is stopping")
        self.reprocessor.inbox.post(AcceptanceChanged(accepting))
        self.source.set_accepting(accepting)
        self.status.state = "running" if accepting else "draining"
        self.status.drained_since = drained_since

    async def _drain_or_resume(self, *, accepting: bool) -> None:
        """Accept new visits or none, also after a restart, until the next such request."""
        if self.status.state == "stopping":
            raise Refused("the daemon is stopping")
        since = None if accepting else self.status.clock.tai()
        folders = self.status.folders
        # On disk first: an operator who drains a node before a repair relies on it.
        try:
            await asyncio.to_thread(folders.set_drained, since)
        except OSError as error:
            text = f"not done, because it cannot be written to {folders.state}: {error}"
            if not accepting:
                text += (
                    "; to take this node out of service all the same, drain it at the relay (ppctl --relay"
                    f" drain {self.status.config.node.name}), or stop it"
                )
            raise Refused(text) from None
        if self.status.state == "starting":
            self.status.drained_since = since  # the start reads the file when it is about to accept visits
        else:
            self.set_accepting(accepting, since)

    def _restart(self, slot: Slot, *, now: bool) -> str:
        """Replace the worker of a slot; return what is done."""
        if slot.state in (SlotState.STOPPING, SlotState.KILLING, SlotState.UNKILLABLE):
            raise Refused(f"slot {slot.number} is {slot.state}; it gets a new worker when this one has ended")
        has = slot.assignment.key if slot.assignment is not None else None
        if now or has is None:
            self.pool.handle(slot.number, RestartRequested())
            return f"slot {slot.number} restarts"
        self.pool.handle(slot.number, RecycleRequested("operator", "restarted by an operator"))
        return f"slot {slot.number} restarts after its visit, {has.group} detector {has.detector}"

    async def _requeue(self, request: reports.RequeueRequest) -> Reply:
        if self.status.state != "running":
            raise Refused("the node takes no visits now")
        rows = await self.reprocessor.requeue(request.group, request.detectors, force=request.force)
        which = "" if request.detectors is None else " with one of these detectors"
        return Rows(rows) if rows else not_found(f"no visit of group {request.group!r}{which} in the journal")
