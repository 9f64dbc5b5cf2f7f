# SPDX-License-Identifier: BSD-3-Clause
"""Serves the clients of the submit socket: one answer for each request.

A request is answered when it is in the ledger, which also decides whether a group
is new. Does not cover sockets; all methods are called by the event pump.
"""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import BUSY, Accepted, VisitStatus
from ppdaemon.ratelimit import TOKEN_BYTES
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import AcceptedVisit, FoundVisit, Ledger
from ppdaemon.relay.openvisit import Reservation, make_open_visit
from ppdaemon.relay.orders import Effects, SetCancelled
from ppdaemon.relay.requests import (
    check_visit,
    chosen_detectors,
    differences,
    read_request,
    split_envelope,
    visit_json,
    visit_warnings,
)
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.throttle import Throttle, sample_of
from ppdaemon.visit import NextVisit, VisitCanceled, read_next_visit

__all__ = ("ApplyEffects", "SubmitServer")

_LOG = logging.getLogger(__name__)

type Reply = Callable[[Accepted], None]
type ApplyEffects = Callable[[Effects, Callable[[], None] | None], None]
"""Commits the writes, sends the messages, then calls the function if there is one."""

GROUP = re.compile(rb'"groupId"\s*:\s*"([ !#-\[\]-~]{1,200})"')
"""The group in a request that is not parsed, if its name is plain ASCII: a client with several requests
under way needs it to know which one was refused."""
EARLY_CANCEL_S = 60.0
"""How long a cancellation without a visit is remembered: far longer than two events of the
script queue can overtake each other, far shorter than it takes until a group is used again."""
MAX_EARLY_CANCELS = 1000
"""Remembered cancellations; a night has fewer."""


@dataclass(eq=False, kw_only=True)
class SubmitServer:
    """Handles the requests of clients."""

    config: RelayConfig
    dispatcher: Dispatcher
    writer: BatchWriter[Ledger]
    throttle: Throttle
    clock: Clock
    answer: Callable[[Sequence[bytes], Accepted], None]
    apply_effects: ApplyEffects

    early_cancels: OrderedDict[str, tuple[VisitCanceled, float]] = field(
        default_factory=OrderedDict, init=False
    )
    """By group: cancellations whose visit has not arrived, and when they arrived, monotonic seconds."""
    closed: bool = field(default=False, init=False)
    """Set when the relay stops: all requests are refused from then on."""

    def serve(self, frames: Sequence[bytes]) -> None:
        """Handle one message of a client, in the frames that a ROUTER received."""
        envelope, body = split_envelope(frames)
        self.take(body, partial(self.answer, envelope))

    def take(self, body: Sequence[bytes], reply: Reply, arrived: float | None = None) -> None:
        """Handle one request; `reply` gets the answer when the ledger has its effect.

        `arrived`, in monotonic seconds, is earlier than now for one that had to wait.
        """
        try:
            request = read_request(body)
        except BadMessage as error:
            self._refuse(reply, error.kind, str(error), sample=body[0] if body else b"")
            return
        if self.closed:
            self._refuse(reply, "closed", "the relay is stopping", request.group, again=True)
            return
        match request:
            case NextVisit():
                self._on_announcement(request, reply, self.clock.mono() if arrived is None else arrived)
            case VisitCanceled():
                self._find_visits(request.group, reply, partial(self._cancel, request, reply))
            case VisitStatus():
                self._find_visits(
                    request.group, reply, lambda found: reply(_visit_status(request.group, found))
                )

    def refuse_busy(self, frames: Sequence[bytes]) -> None:
        """Answer a request of a client that sends too many; it is not parsed."""
        envelope, body = split_envelope(frames)
        found = GROUP.search(b"".join(body)[:TOKEN_BYTES])
        reason = (
            f"{BUSY}: more than {self.config.security.submit_per_s:g} requests/s of this client; try again"
        )
        group = "" if found is None else found[1].decode()
        self.answer(envelope, Accepted(status="rejected", group=group, reason=reason))

    def _find_visits(self, group: str, reply: Reply, then: Callable[[Sequence[FoundVisit]], None]) -> None:
        self.writer.put(Commit(lambda ledger: ledger.find(group), then, self._refuse_on_error(reply, group)))

    def _refuse_on_error(self, reply: Reply, group: str) -> Callable[[Exception], None]:
        return lambda error: self._refuse(reply, "ledger", str(error), group, again=True)

    def _refuse(
        self,
        reply: Reply,
        kind: str,
        reason: str,
        group: str = "",
        sample: bytes | None = None,
        *,
        again: bool = False,
    ) -> None:
        if self.throttle.passes(kind):
            context = {"kind": kind, "reason": reason, "group": group, "total": self.throttle.by_kind[kind]}
            if sample is not None:
                context["sample"] = sample_of(sample)
            _LOG.warning("refused a request on the submit socket", extra=context)
        reply(Accepted(status="rejected", group=group, reason=reason, again=again))

    def _on_announcement(self, visit: NextVisit, reply: Reply, arrived: float) -> None:
        now_tai = self.clock.tai()
        refusal = check_visit(visit, self.config, now_tai)
        if refusal is not None:
            if self.throttle.passes(refusal.status):
                context = refusal.model_dump(include={"status", "group", "reason"})
                _LOG.warning("visit not accepted", extra=context)
            reply(refusal)
            return
        detectors = chosen_detectors(visit, self.config)
        # Visits that no node has are expired for newer ones; if this is not enough, the
        # new visit is refused.
        if not self.dispatcher.has_room(len(detectors)):
            self.apply_effects(self.dispatcher.make_room(len(detectors)), None)
        if not self.dispatcher.has_room(len(detectors)):
            reason = f"{self.dispatcher.reservations} visit-detectors are open, no room for more: try later"
            self._refuse(reply, "full", reason, visit.group, again=True)
            return
        content = visit_json(visit)
        self.writer.put(
            Commit(
                lambda ledger: ledger.accept(visit, content, detectors, now_tai),
                lambda accepted: self._accepted(visit, content, detectors, now_tai, accepted, reply, arrived),
                self._refuse_on_error(reply, visit.group),
            )
        )

    def _accepted(
        self,
        visit: NextVisit,
        content: str,
        detectors: tuple[int, ...],
        received_tai: float,
        accepted: AcceptedVisit,
        reply: Reply,
        arrived: float,
    ) -> None:
        # Called when the visit is on disk: an accepted visit is never lost.
        status: Literal["accepted", "duplicate"] = "accepted" if accepted.added else "duplicate"
        unserved = self.dispatcher.registry.routes.unserved(visit.instrument, detectors)
        reply(Accepted(status=status, group=visit.group, detectors=len(detectors), unserved=unserved or None))
        context = {"group": visit.group, "instrument": visit.instrument}
        if not accepted.is_new:
            changed = differences(json.loads(accepted.content), json.loads(content))
            if changed and self.throttle.passes("different duplicate"):
                _LOG.warning(
                    "duplicate visit with different content ignored; the first content is used",
                    extra={**context, "fields": changed},
                )
        if not accepted.added and not accepted.was_adopted:
            return
        for warning in visit_warnings(visit, received_tai):
            if self.throttle.passes("odd visit"):
                _LOG.warning(warning, extra=context)
        _LOG.info("visit accepted", extra={**context, "detectors": len(accepted.added)})
        cancelled = accepted.cancelled
        if not cancelled and self._was_cancelled_early(visit, arrived):
            _LOG.info("visit canceled: its cancellation arrived first", extra=context)
            self.apply_effects(Effects([SetCancelled(accepted.number)]), None)
            cancelled = True
        now = self.clock.mono()
        opened = make_open_visit(
            accepted.number,
            # The first announcement counts also for the detectors that a later one adds.
            visit if accepted.is_new else read_next_visit(json.loads(accepted.content)),
            [Reservation(detector) for detector in accepted.added],
            received_tai=received_tai,
            age_s=0.0,
            expiry_s=self.config.expiry_s,
            now=now,
            cancelled=cancelled,
        )
        self.apply_effects(self.dispatcher.add(opened, now), None)

    def _was_cancelled_early(self, visit: NextVisit, arrived: float) -> bool:
        """Return whether this visit was canceled at most `EARLY_CANCEL_S` before it arrived, or since.

        The cancellation stays: a group may have a visit of another instrument, too.
        """
        request, cancelled = self.early_cancels.get(visit.group, (None, 0.0))
        return (
            request is not None
            and arrived - cancelled <= EARLY_CANCEL_S
            and (request.script_sal_index in (0, visit.script_sal_index) or not visit.script_sal_index)
        )

    def _remember_cancel(self, request: VisitCanceled) -> None:
        """Remember a cancellation whose visit has not arrived; forget the old ones."""
        now = self.clock.mono()
        self.early_cancels[request.group] = (request, now)
        self.early_cancels.move_to_end(request.group)
        while (
            len(self.early_cancels) > MAX_EARLY_CANCELS
            # Visits may wait as long, and are canceled then.
            or now - next(iter(self.early_cancels.values()))[1] > EARLY_CANCEL_S + self.config.expiry_s
        ):
            self.early_cancels.popitem(last=False)

    def _cancel(self, request: VisitCanceled, reply: Reply, found: Sequence[FoundVisit]) -> None:
        group, index = request.group, request.script_sal_index
        matching = [visit for visit in found if not index or visit.script_sal_index in (0, index)]
        if not found:
            self._remember_cancel(request)
            reason = f"no such group; its visit is canceled if it arrives within {EARLY_CANCEL_S:g} s"
            _LOG.info("cancellation without a visit", extra={"group": group, "reason": reason})
            reply(Accepted(status="accepted", group=group, reason=reason))
            return
        if not matching:
            self._refuse(reply, "cancel", f"no visit of script {index} has this group", group)
            return
        keys = [(visit.instrument, group) for visit in matching]
        under_way = sum(len(self.dispatcher.open_detectors(key)) for key in keys)
        answer = Accepted(status="accepted", group=group, detectors=under_way)
        if not under_way:
            answer = Accepted(status="ignored", group=group, reason="all its detectors have ended")
        elif all(visit.cancelled for visit in matching):
            answer = Accepted(status="duplicate", group=group, detectors=under_way)
        _LOG.info("visit canceled", extra={"group": group, "status": answer.status, "detectors": under_way})
        combined = Effects()
        for key in keys:
            combined.add(self.dispatcher.cancel(key, self.clock.mono()))
        self.apply_effects(combined, partial(reply, answer))


def _visit_status(group: str, found: Sequence[FoundVisit]) -> Accepted:
    """Return the answer to a status request: the outcomes of a group's visits."""
    if not found:
        return Accepted(status="rejected", group=group, reason="no such group")
    outcomes = tuple(outcome for visit in found for outcome in visit.outcomes)
    return Accepted(status="accepted", group=group, detectors=len(outcomes), outcomes=outcomes)
