# SPDX-License-Identifier: BSD-3-Clause
"""Serves the clients of the submit socket: one request, one answer.

A request is answered when the ledger has it; whether a group is new is the
ledger's to say. Does not know sockets; runs in the pump.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Accepted, VisitStatus
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import FoundVisit, Ledger
from ppdaemon.relay.openvisit import Reservation
from ppdaemon.relay.orders import Turn
from ppdaemon.relay.requests import content_of, differences, judge, oddities, read_request, unwrap
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.throttle import Throttle
from ppdaemon.visit import NextVisit, VisitCanceled

__all__ = ("CarryOut", "SubmitServer", "OpenVisitCall")

_LOG = logging.getLogger(__name__)

type Reply = Callable[[Accepted], None]
type CarryOut = Callable[[Turn, Callable[[], None] | None], None]
"""Commits and sends a turn, and calls something at the end."""
type OpenVisitCall = Callable[[int, NextVisit, Sequence[Reservation], float], None]
"""Hands an accepted visit to the board: number, visit, reservations, received_tai."""


@dataclass(eq=False, kw_only=True)
class SubmitServer:
    """Where clients are answered.

    Parameters
    ----------
    config : `~ppdaemon.relay.config.RelayConfig`
        Instruments and expiry.
    board : `~ppdaemon.relay.dispatcher.Dispatcher`
        The open visits.
    writer : `~ppdaemon.sqlitefile.BatchWriter`
        The way to the ledger.
    throttle : `~ppdaemon.throttle.Throttle`
        For logs of refusals.
    clock : `~ppdaemon.clock.Clock`
        Time.
    answer : `~collections.abc.Callable`
        Sends an answer: envelope, answer.
    carry_out : `CarryOut`
        Commits and sends.
    open_visit : `OpenVisitCall`
        Takes what is accepted.
    """

    config: RelayConfig
    dispatcher: Dispatcher
    writer: BatchWriter[Ledger]
    throttle: Throttle
    clock: Clock
    answer: Callable[[Sequence[bytes], Accepted], None]
    carry_out: CarryOut
    open_visit: OpenVisitCall

    closed: bool = field(default=False, init=False)
    """Set when the relay stops: then everything is refused."""

    def serve(self, frames: Sequence[bytes]) -> None:
        """Take one message of a client.

        Parameters
        ----------
        frames : `~collections.abc.Sequence` [`bytes`]
            As a ROUTER received them.
        """
        envelope, body = unwrap(frames)
        reply = partial(self.answer, envelope)
        try:
            request = read_request(body)
        except BadMessage as error:
            self._refuse(reply, error.kind, str(error))
            return
        if self.closed:
            self._refuse(reply, "closed", "the relay is stopping", request.group)
            return
        match request:
            case NextVisit():
                self._announced(request, reply)
            case VisitCanceled():
                self._look_up(request.group, reply, partial(self._cancel, request, reply))
            case VisitStatus():
                self._look_up(request.group, reply, lambda found: reply(_standing(request.group, found)))

    def _look_up(self, group: str, reply: Reply, then: Callable[[Sequence[FoundVisit]], None]) -> None:
        self.writer.put(Commit(lambda ledger: ledger.find(group), then, self._unwritten(reply, group)))

    def _unwritten(self, reply: Reply, group: str) -> Callable[[Exception], None]:
        return lambda error: self._refuse(reply, "ledger", str(error), group)

    def _refuse(self, reply: Reply, kind: str, reason: str, group: str = "") -> None:
        if self.throttle.passes(kind):
            _LOG.warning(
                "refused a message",
                extra={"kind": kind, "reason": reason, "group": group, "total": self.throttle.by_kind[kind]},
            )
        reply(Accepted(status="rejected", group=group, reason=reason))

    def _announced(self, visit: NextVisit, reply: Reply) -> None:
        now_tai = self.clock.tai()
        verdict = judge(visit, self.config, now_tai)
        if verdict is not None:
            if self.throttle.passes(verdict.status):
                context = verdict.model_dump(include={"status", "group", "reason"})
                _LOG.warning("visit not taken", extra=context)
            reply(verdict)
            return
        detectors = self.config.instruments[visit.instrument].detectors
        if not self.dispatcher.has_room(len(detectors)):
            self.carry_out(self.dispatcher.make_room(len(detectors)), None)
        if not self.dispatcher.has_room(len(detectors)):
            reason = f"{self.dispatcher.reservations} visit-detectors are under way, too many for more"
            self._refuse(reply, "full", reason, visit.group)
            return
        content = content_of(visit)
        self.writer.put(
            Commit(
                lambda ledger: ledger.accept(visit, content, detectors, now_tai),
                lambda result: self._accepted(visit, content, now_tai, result, reply),
                self._unwritten(reply, visit.group),
            )
        )

    def _accepted(
        self,
        visit: NextVisit,
        content: str,
        received_tai: float,
        result: tuple[int | None, str],
        reply: Reply,
    ) -> None:
        number, first = result
        detectors = self.config.instruments[visit.instrument].detectors
        status: Literal["accepted", "duplicate"] = "duplicate" if number is None else "accepted"
        reply(Accepted(status=status, group=visit.group, detectors=len(detectors)))
        context = {"group": visit.group, "instrument": visit.instrument}
        if number is None:
            changed = differences(json.loads(first), json.loads(content))
            if changed and self.throttle.passes("different duplicate"):
                _LOG.warning(
                    "same group, other content: the first counts", extra={**context, "fields": changed}
                )
            return
        for oddity in oddities(visit, received_tai):
            if self.throttle.passes("odd visit"):
                _LOG.warning(oddity, extra=context)
        _LOG.info("visit accepted", extra={**context, "detectors": len(detectors)})
        self.open_visit(number, visit, [Reservation(detector) for detector in detectors], received_tai)

    def _cancel(self, request: VisitCanceled, reply: Reply, found: Sequence[FoundVisit]) -> None:
        group, index = request.group, request.script_sal_index
        meant = [visit for visit in found if not index or visit.script_sal_index in (0, index)]
        if not meant:
            reason = f"no visit of script {index} has this group" if found else "no such group"
            self._refuse(reply, "cancel", reason, group)
            return
        keys = [(visit.instrument, group) for visit in meant]
        under_way = sum(len(self.dispatcher.open_detectors(key)) for key in keys)
        answer = Accepted(status="accepted", group=group, detectors=under_way)
        if not under_way:
            answer = Accepted(status="ignored", group=group, reason="all its detectors have ended")
        elif all(visit.cancelled for visit in meant):
            answer = Accepted(status="duplicate", group=group, detectors=under_way)
        _LOG.info("visit cancelled", extra={"group": group, "status": answer.status, "detectors": under_way})
        together = Turn()
        for key in keys:
            turn = self.dispatcher.cancel(key, self.clock.mono())
            together.writes += turn.writes
            together.sends += turn.sends
        self.carry_out(together, partial(reply, answer))


def _standing(group: str, found: Sequence[FoundVisit]) -> Accepted:
    """Answer how the visits of a group stand."""
    if not found:
        return Accepted(status="rejected", group=group, reason="no such group")
    outcomes = tuple(outcome for visit in found for outcome in visit.outcomes)
    return Accepted(status="accepted", group=group, detectors=len(outcomes), outcomes=outcomes)
