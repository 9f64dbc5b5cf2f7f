# SPDX-License-Identifier: BSD-3-Clause
"""Where open visit-detectors are: how many at each node, and which wait for a node.

Kept up to date with each change of a reservation, so that no question about a
node costs a look at all visits. Does not decide anything.
"""

from collections import Counter
from collections.abc import Collection, Iterator

from ppdaemon.relay.openvisit import OpenVisit, Reservation, VisitKey
from ppdaemon.relay.routing import NodeOffer

__all__ = ("Assignments",)

WAITING = ""
"""Place of a visit-detector without a node; node names are not empty."""


class Assignments:
    """Counts of open visit-detectors by node; those that wait, by detector and in order of visits."""

    def __init__(self) -> None:
        self._loads: Counter[str] = Counter()
        self._waiting: dict[tuple[str, int], dict[VisitKey, OpenVisit]] = {}
        self.freed: set[str] = set()
        """Nodes that may have room again, until the dispatcher has checked what waits for them."""

    def place(self, visit: OpenVisit, reservation: Reservation, node: str) -> None:
        """Record that a visit-detector is at a node, or at `WAITING`; repeating it is harmless."""
        if node != reservation.place:
            self.remove(visit, reservation)
            reservation.place = node
            if node == WAITING:
                self._waiting.setdefault(_detector(visit, reservation), {})[visit.key] = visit
            else:
                self._loads[node] += 1

    def remove(self, visit: OpenVisit, reservation: Reservation) -> None:
        """Record that a visit-detector has ended, or is nowhere yet."""
        if reservation.place == WAITING:
            visits = self._waiting[_detector(visit, reservation)]
            del visits[visit.key]
            if not visits:
                del self._waiting[_detector(visit, reservation)]
        elif reservation.place is not None:
            self._loads[reservation.place] -= 1
            self.freed.add(reservation.place)
        reservation.place = None

    def load(self, node: str) -> int:
        """Return the number of open visit-detectors at a node."""
        return self._loads[node]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that have open visit-detectors."""
        return tuple(node for node, number in self._loads.items() if number)

    def is_full(self, offer: NodeOffer) -> bool:
        """Return whether a node has as many open visit-detectors as it offers to have at once."""
        return self._loads[offer.node] >= offer.capacity

    def newest_waiting(self, offer: NodeOffer, skipped: Collection[VisitKey]) -> OpenVisit | None:
        """Return the newest visit of which a detector waits that a node serves, without `skipped` ones."""
        newest = None
        for (instrument, detector), visits in self._waiting.items():
            if not offer.serves(instrument, detector):
                continue
            visit = next((visits[key] for key in reversed(visits) if key not in skipped), None)
            if visit is not None and (newest is None or visit.number > newest.number):
                newest = visit
        return newest

    def waiting(self) -> Iterator[tuple[str, int, int, OpenVisit]]:
        """Yield instrument, detector, number of visits that wait for a node for it, and the oldest one."""
        for (instrument, detector), visits in self._waiting.items():
            yield instrument, detector, len(visits), next(iter(visits.values()))


def _detector(visit: OpenVisit, reservation: Reservation) -> tuple[str, int]:
    return visit.visit.instrument, reservation.detector
