# SPDX-License-Identifier: BSD-3-Clause
"""The node that each detector is sent to.

A table in the configuration names nodes for some detectors, in order of preference.
For all others, and behind those, weighted rendezvous hashing: each pair of node and
detector has a fixed score, and the node with the highest score gets the detector. A
detector stays with its node from visit to visit, so that the node's cached inputs are
used again, and when a node connects or disconnects only its own detectors move. Spare
nodes come last. Does not cover anything that depends on time or on a visit.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ("NodeOffer", "Preferences", "RouteTable", "spares_suffice")

type Preferences = Mapping[str, Mapping[int, Sequence[str]]]
"""By instrument and detector: the nodes of the configured table, the best first."""


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What a connected node can process."""

    node: str
    detectors: Mapping[str, frozenset[int]]
    """Detector ids by instrument."""
    capacity: int
    """Visit-detectors it can have at once; with 0 it gets nothing."""
    spare: bool = False
    """Whether it only gets what no other node can get."""

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

    def __init__(self, offers: Iterable[NodeOffer] = (), preferences: Preferences | None = None):
        self._offers = tuple(offers)
        self._preferences = preferences or {}
        self._rankings: dict[tuple[str, int], tuple[NodeOffer, ...]] = {}

    def ranking(self, instrument: str, detector: int) -> tuple[NodeOffer, ...]:
        """Return the nodes that may get a detector, the best first."""
        key = (instrument, detector)
        if key not in self._rankings:
            preferred = self._preferences.get(instrument, {}).get(detector, ())
            position = {node: number for number, node in enumerate(preferred)}

            def order(offer: NodeOffer) -> tuple[bool, int, float, str]:
                rank = position.get(offer.node, len(position))
                return offer.spare, rank, -_score(offer, instrument, detector), offer.node

            able = (offer for offer in self._offers if offer.serves(instrument, detector))
            self._rankings[key] = tuple(sorted(able, key=order))
        return self._rankings[key]

    def choose(self, instrument: str, detector: int, excluded: Collection[str] = ()) -> str | None:
        """Return the best node for a detector, `None` if there is none.

        `excluded` are the nodes that are full or refused it recently.
        """
        ranking = self.ranking(instrument, detector)
        return next((offer.node for offer in ranking if offer.node not in excluded), None)

    def unserved(self, instrument: str, detectors: Iterable[int]) -> tuple[int, ...]:
        """Return those of some detectors that no node may get."""
        return tuple(detector for detector in detectors if not self.ranking(instrument, detector))


def spares_suffice(
    spares: Sequence[NodeOffer], free: Mapping[str, int], instrument: str, detectors: Iterable[int]
) -> bool:
    """Return whether these nodes can have all of some detectors at once.

    `free` is the number of further visit-detectors by node. A maximum matching: a detector
    that finds all its nodes full moves others from them to other nodes.
    """
    matched: dict[str, list[int]] = {offer.node: [] for offer in spares}

    def match(detector: int, tried: set[str]) -> bool:
        for offer in spares:
            node = offer.node
            if node in tried or not offer.serves(instrument, detector):
                continue
            tried.add(node)
            if len(matched[node]) < free[node]:
                matched[node].append(detector)
                return True
            for k, other in enumerate(matched[node]):
                if match(other, tried):
                    matched[node][k] = detector
                    return True
        return False

    return all(match(detector, set()) for detector in detectors)
