# SPDX-License-Identifier: BSD-3-Clause
"""What operators ask about visits, answered from the journal."""

from collections.abc import Sequence
from dataclasses import dataclass

from ppdaemon.errors import Refused
from ppdaemon.node.desk import VisitDesk
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.requeue import Requeue
from ppdaemon.reports import AskLate, AskRequeue, AskVisit, AskVisits, Failed, Ok
from ppdaemon.wire import Model

__all__ = ("VisitAnswers",)


@dataclass(frozen=True, slots=True)
class VisitAnswers:
    """Answers requests of the control socket that are about visits."""

    desk: VisitDesk
    journal: JournalThread
    requeue: Requeue

    async def answer(self, request: AskVisits | AskVisit | AskLate | AskRequeue) -> Ok | Failed:
        """Answer one request.

        Parameters
        ----------
        request : `~ppdaemon.wire.Model`
            What is asked.

        Returns
        -------
        reply : `~ppdaemon.reports.Ok` or `~ppdaemon.reports.Failed`
            The answer.

        Raises
        ------
        ppdaemon.errors.Refused
            Raised if nothing can be tried again now.
        """
        match request:
            case AskVisits(limit=limit, failed=failed):
                return _rows(await self.journal.call(lambda journal: journal.visits(limit, bad_only=failed)))
            case AskVisit(group=group):
                await self.desk.records.flush()
                rows = await self.journal.call(lambda journal: journal.visit(group))
                return _rows(rows) if rows else _unknown(f"no visit of group {group!r} in the journal")
            case AskLate(limit=limit):
                await self.desk.records.flush()
                return _rows(await self.journal.call(lambda journal: journal.late.rows(limit)))
            case AskRequeue(group=group, detectors=detectors, force=force):
                if not self.desk.taking:
                    raise Refused("the node takes no visits now")
                tried = await self.requeue.grant(group, detectors, force=force)
                which = "" if detectors is None else " with one of these detectors"
                return (
                    _rows(tried) if tried else _unknown(f"no visit of group {group!r}{which} in the journal")
                )


def _rows(rows: Sequence[Model]) -> Ok:
    return Ok(data=[row.model_dump(mode="json") for row in rows])


def _unknown(text: str) -> Failed:
    return Failed(code="not_found", text=text)
