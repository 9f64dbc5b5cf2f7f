# SPDX-License-Identifier: BSD-3-Clause
"""The node that each detector is sent to.

Weighted rendezvous hashing: each pair of node and detector has a fixed score,
and the node with the highest score gets the detector. A detector stays with its
node from visit to visit, so that the node's cached inputs are used again, and
when a node connects or disconnects only its own detectors move. Does not cover
anything that depends on time or on a visit.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

__all__ = ("NodeOffer", "RouteTable")


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What a connected node can process."""

    node: str
    detectors: Mapping[str, frozenset[int]]
    """Detector ids by instrument."""
    capacity: int
    """Visit-detectors it can have at once; with 0 it gets nothing."""

    def serves(self, instrument: str, detector: int) -> bool:
        """Return whether the node may get a detector."""
        return self.capacity > 0 and detector in self.detectors.get(instrument, ())


def _score(offer: NodeOffer, instrument: str, detector: int) -> float:
    """Return a node's score for a detector.

    With u uniform in (0, 1), the node with the largest -capacity / ln(u) wins
    with a probability proportional to its capacity (Schindelhauer & Schomaker
    2005, "Weighted distributed hash tables").
    """
    text = f"{offer.node}\0{instrument}\0{detector}".encode()
    bits = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest())
    return -offer.capacity / math.log((bits + 0.5) / 2.0**48)


class RouteTable:
    """The order of preference of one set of nodes for each detector."""

    def __init__(self, offers: Iterable[NodeOffer] = ()):
        self._offers = tuple(offers)
        self._rankings: dict[tuple[str, int], tuple[str, ...]] = {}

    def ranking(self, instrument: str, detector: int) -> tuple[str, ...]:
        """Return the names of the nodes that may get a detector, the best first."""
        key = (instrument, detector)
        if key not in self._rankings:
            able = [offer for offer in self._offers if offer.serves(instrument, detector)]
            able.sort(key=lambda offer: (-_score(offer, instrument, detector), offer.node))
            self._rankings[key] = tuple(offer.node for offer in able)
        return self._rankings[key]

    def choose(self, instrument: str, detector: int, excluded: Collection[str] = ()) -> str | None:
        """Return the best node for a detector, `None` if there is none.

        `excluded` are the nodes that refused it recently.
        """
        return next((node for node in self.ranking(instrument, detector) if node not in excluded), None)
