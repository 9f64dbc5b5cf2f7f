# SPDX-License-Identifier: BSD-3-Clause
"""Permits of a node's visit-detectors: asked for before something permanent is written. Pure code.

Does not cover the answers: those of a relay (`ppdaemon.relay.permits`), or of Redis
(`ppdaemon.node.visits.redisclient`).
"""

from collections.abc import Iterable

from ppdaemon.config import NodeConfig
from ppdaemon.messages import DetectorsOfVisit, Permitted
from ppdaemon.node.slots import events
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import model
from ppdaemon.node.visits.openvisits import OpenVisits, Permit, Phase, VisitDetector

__all__ = ("Permits",)


class Permits:
    """Asks for the permits of open visit-detectors, and lets their workers cross."""

    def __init__(self, config: NodeConfig, visits: OpenVisits):
        self._shares_visits = config.shares_visits
        self._crosses_alone = config.relay.alone == "cross"
        self._open = visits
        self._connected = False
        """Whether a relay answers."""
        self._asked: dict[Key, VisitDetector] = {}
        """Those whose permits were asked for and not answered."""

    @property
    def unanswered(self) -> bool:
        """Whether a permit was asked for and not answered."""
        return bool(self._asked)

    def ask(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Ask for a permit, unless it was asked for, or none is needed."""
        if visit.permit is not Permit.NONE or visit.withdrawn:
            return
        if self._needs_none(visit):
            visit.permit = Permit.GRANTED
            return
        visit.permit = Permit.ASKED
        self._asked[visit.key] = visit
        effects.actions.append(model.AskPermits((visit.of_relay,)))

    def ask_anew(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Ask again: the relay has reserved a visit-detector once more, as another attempt."""
        self.remove(visit)
        if not visit.entry.no_return and visit.permit is not Permit.NONE:
            visit.permit = Permit.NONE
            self.ask(visit, effects)

    def remove(self, visit: VisitDetector) -> None:
        """Ask no longer for a visit-detector, which has ended or is withdrawn."""
        self._asked.pop(visit.key, None)

    def crossing_asked(self, event: events.AskToCross, effects: model.Effects) -> None:
        """Ask for the worker that waits, and let it cross if it may already."""
        visit = self._open.get(event.key)
        if visit is None or visit.phase is not Phase.ASSIGNED:
            return
        visit.at_door = event.what
        self.ask(visit, effects)
        if visit.permit is Permit.ASKED:
            effects.actions.append(model.AskPermits((), at_once=True))
        self._let_cross(visit, effects)

    def permitted(self, event: Permitted, effects: model.Effects) -> None:
        """Let those cross that the relay permits."""
        for visit in self.named(event.visits):
            if not visit.withdrawn:
                self._grant(visit, effects)

    def named(self, visits: Iterable[DetectorsOfVisit]) -> list[VisitDetector]:
        """Return the open visit-detectors that a message of the relay names, in these attempts."""
        found = (
            (self._open.find(named.instrument, named.group, detector), named.attempt)
            for named in visits
            for detector in named.detectors
        )
        return [visit for visit, asked in found if visit is not None and visit.entry.asked == asked]

    def relay_answers(self, effects: model.Effects) -> None:
        """Ask the relay that answers now."""
        self._connected = True
        self._repeat(effects)

    def relay_lost(self, event: model.RelayLost, effects: model.Effects) -> None:
        """Let those cross that need no permit without a connection."""
        self._connected = False
        for visit in list(self._asked.values()):
            if self._needs_none(visit):
                self._grant(visit, effects)

    def due(self, event: model.PermitsDue, effects: model.Effects) -> None:
        """Ask again for all that were not answered."""
        self._repeat(effects)

    def _repeat(self, effects: model.Effects) -> None:
        if self._asked:
            asked = tuple(visit.of_relay for visit in self._asked.values())
            effects.actions.append(model.AskPermits(asked, at_once=True))

    def _needs_none(self, visit: VisitDetector) -> bool:
        """Return whether no other node can have a visit-detector: there is no relay, or it gives what it
        has sent here to nobody, or it has closed the visit, and an operator repeats it here.
        """
        alone = self._crosses_alone and not self._connected
        return not self._shares_visits or alone or visit.requeued

    def _grant(self, visit: VisitDetector, effects: model.Effects) -> None:
        self.remove(visit)
        visit.permit = Permit.GRANTED
        self._let_cross(visit, effects)

    def _let_cross(self, visit: VisitDetector, effects: model.Effects) -> None:
        """Let the worker of a visit-detector cross when that is in the journal."""
        if visit.at_door is None or visit.permit is not Permit.GRANTED:
            return
        what, visit.at_door = visit.at_door, None
        if what:  # a spool on disk is itself the record
            visit.entry.no_return = what
            effects.writes.append(model.Update((self._open.take_change(visit.entry),)))
        visit.send(events.CrossingAllowed(what), effects)
