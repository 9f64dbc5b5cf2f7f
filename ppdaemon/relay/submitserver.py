# SPDX-License-Identifier: BSD-3-Clause
"""Serves the clients of the submit socket: one request, one answer.

A request is answered when the ledger has it; whether a group is new is the
ledger's to say. Does not know sockets; runs in the pump.
"""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Accepted, VisitStatus
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import FoundVisit, Ledger
from ppdaemon.relay.openvisit import Reservation
from ppdaemon.relay.orders import Turn
from ppdaemon.relay.requests import content_of, differences, judge, oddities, read_request, unwrap
from ppdaemon.relay.throttle import Throttle
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.visit import NextVisit, VisitCanceled

__all__ = ("CarryOut", "SubmitServer", "OpenVisitCall")

_LOG = logging.getLogger(__name__)

type Reply = Callable[[Accepted], None]


class CarryOut(Protocol):
    """Commits and sends a turn."""

    def __call__(self, turn: Turn, then: Callable[[], None] | None = None) -> None:
        """Carry it out; call `then` at the end."""


class OpenVisitCall(Protocol):
    """Hands an accepted visit to the board."""

    def __call__(
        self, number: int, visit: NextVisit, reservations: Sequence[Reservation], received_tai: float
    ) -> None:
        """Open it."""


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
    throttle : `~ppdaemon.relay.throttle.Throttle`
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

    def __init__(
        self,
        *,
        config: RelayConfig,
        dispatcher: Dispatcher,
        writer: BatchWriter[Ledger],
        throttle: Throttle,
        clock: Clock,
        answer: Callable[[Sequence[bytes], Accepted], None],
        carry_out: CarryOut,
        open_visit: OpenVisitCall,
    ):
        self._config = config
        self._dispatcher = dispatcher
        self._writer = writer
        self._throttle = throttle
        self._clock = clock
        self._answer = answer
        self._carry_out = carry_out
        self._open_visit = open_visit
        self.closed = False
        """Set when the relay stops: then everything is refused."""

    def serve(self, frames: Sequence[bytes]) -> None:
        """Take one message of a client.

        Parameters
        ----------
        frames : `~collections.abc.Sequence` [`bytes`]
            As a ROUTER received them.
        """
        envelope, body = unwrap(frames)
        reply = partial(self._answer, envelope)
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
        self._writer.put(Commit(lambda ledger: ledger.find(group), then, self._unwritten(reply, group)))

    def _unwritten(self, reply: Reply, group: str) -> Callable[[Exception], None]:
        return lambda error: self._refuse(reply, "ledger", str(error), group)

    def _refuse(self, reply: Reply, kind: str, reason: str, group: str = "") -> None:
        if self._throttle.passes(kind):
            _LOG.warning(
                "refused a message",
                extra={"kind": kind, "reason": reason, "group": group, "total": self._throttle.counts[kind]},
            )
        reply(Accepted(status="rejected", group=group, reason=reason))

    def _announced(self, visit: NextVisit, reply: Reply) -> None:
        now_tai = self._clock.tai()
        verdict = judge(visit, self._config, now_tai)
        if verdict is not None:
            if self._throttle.passes(verdict.status):
                context = verdict.model_dump(include={"status", "group", "reason"})
                _LOG.warning("visit not taken", extra=context)
            reply(verdict)
            return
        detectors = self._config.instruments[visit.instrument].detectors
        if not self._dispatcher.has_room(len(detectors)):
            self._carry_out(self._dispatcher.make_room(len(detectors)))
        if not self._dispatcher.has_room(len(detectors)):
            reason = f"{self._dispatcher.reservations} visit-detectors are under way, too many for more"
            self._refuse(reply, "full", reason, visit.group)
            return
        content = content_of(visit)
        self._writer.put(
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
        detectors = self._config.instruments[visit.instrument].detectors
        status: Literal["accepted", "duplicate"] = "duplicate" if number is None else "accepted"
        reply(Accepted(status=status, group=visit.group, detectors=len(detectors)))
        context = {"group": visit.group, "instrument": visit.instrument}
        if number is None:
            changed = differences(json.loads(first), json.loads(content))
            if changed and self._throttle.passes("different duplicate"):
                _LOG.warning(
                    "same group, other content: the first counts", extra={**context, "fields": changed}
                )
            return
        for oddity in oddities(visit, received_tai):
            if self._throttle.passes("odd visit"):
                _LOG.warning(oddity, extra=context)
        _LOG.info("visit accepted", extra={**context, "detectors": len(detectors)})
        self._open_visit(number, visit, [Reservation(detector) for detector in detectors], received_tai)

    def _cancel(self, request: VisitCanceled, reply: Reply, found: Sequence[FoundVisit]) -> None:
        group, index = request.group, request.script_sal_index
        meant = [visit for visit in found if not index or visit.script_sal_index in (0, index)]
        if not meant:
            reason = f"no visit of script {index} has this group" if found else "no such group"
            self._refuse(reply, "cancel", reason, group)
            return
        keys = [(visit.instrument, group) for visit in meant]
        under_way = sum(len(self._dispatcher.open_detectors(key)) for key in keys)
        answer = Accepted(status="accepted", group=group, detectors=under_way)
        if not under_way:
            answer = Accepted(status="ignored", group=group, reason="all its detectors have ended")
        elif all(visit.cancelled for visit in meant):
            answer = Accepted(status="duplicate", group=group, detectors=under_way)
        _LOG.info("visit cancelled", extra={"group": group, "status": answer.status, "detectors": under_way})
        together = Turn()
        for key in keys:
            turn = self._dispatcher.cancel(key, self._clock.mono())
            together.writes += turn.writes
            together.sends += turn.sends
        self._carry_out(together, partial(reply, answer))


def _standing(group: str, found: Sequence[FoundVisit]) -> Accepted:
    """Answer how the visits of a group stand."""
    if not found:
        return Accepted(status="rejected", group=group, reason="no such group")
    outcomes = tuple(outcome for visit in found for outcome in visit.outcomes)
    return Accepted(status="accepted", group=group, detectors=len(outcomes), outcomes=outcomes)
