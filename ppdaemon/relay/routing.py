# SPDX-License-Identifier: BSD-3-Clause
"""Which node gets which detector.

Weighted rendezvous hashing: each node draws a number for each detector and
the highest one wins. A detector stays with its node from visit to visit, which
keeps that node's caches warm, and when a node comes or goes only its own
detectors move. Covers nothing that depends on time or on a visit.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

__all__ = ("Offer", "RouteTable")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a connected node may serve."""

    node: str
    detectors: Mapping[str, frozenset[int]]
    """Detector ids by instrument."""
    capacity: int
    """Visit-detectors it can hold at once; with 0 it gets nothing."""

    def covers(self, instrument: str, detector: int) -> bool:
        """Tell whether the node may serve a detector.

        Parameters
        ----------
        instrument : `str`
            Short name.
        detector : `int`
            Detector id.

        Returns
        -------
        covers : `bool`
            `False` for a node without capacity.
        """
        return self.capacity > 0 and detector in self.detectors.get(instrument, ())


def _draw(offer: Offer, instrument: str, detector: int) -> float:
    """Return a node's number for a detector.

    With u uniform in (0, 1), the node with the largest -capacity / ln(u) wins
    with a probability proportional to its capacity (Schindelhauer & Schomaker
    2005, "Weighted distributed hash tables").
    """
    text = f"{offer.node}\0{instrument}\0{detector}".encode()
    bits = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest())
    return -offer.capacity / math.log((bits + 0.5) / 2.0**48)


class RouteTable:
    """The order in which nodes are asked, for one set of nodes.

    Parameters
    ----------
    offers : `~collections.abc.Iterable` [`Offer`]
        The nodes that are there.
    """

    def __init__(self, offers: Iterable[Offer] = ()):
        self._offers = tuple(offers)
        self._rankings: dict[tuple[str, int], tuple[str, ...]] = {}

    def ranking(self, instrument: str, detector: int) -> tuple[str, ...]:
        """Return the nodes that may serve a detector, the best first.

        Parameters
        ----------
        instrument : `str`
            Short name.
        detector : `int`
            Detector id.

        Returns
        -------
        nodes : `tuple` [`str`]
            Names; empty if nobody may serve it.
        """
        key = (instrument, detector)
        if key not in self._rankings:
            able = [offer for offer in self._offers if offer.covers(instrument, detector)]
            able.sort(key=lambda offer: (-_draw(offer, instrument, detector), offer.node))
            self._rankings[key] = tuple(offer.node for offer in able)
        return self._rankings[key]

    def choose(self, instrument: str, detector: int, barred: Collection[str] = ()) -> str | None:
        """Return the node that gets a detector.

        Parameters
        ----------
        instrument : `str`
            Short name.
        detector : `int`
            Detector id.
        barred : `~collections.abc.Collection` [`str`]
            Nodes that refused it of late.

        Returns
        -------
        node : `str` or `None`
            `None` if nobody may serve it now.
        """
        return next((node for node in self.ranking(instrument, detector) if node not in barred), None)
