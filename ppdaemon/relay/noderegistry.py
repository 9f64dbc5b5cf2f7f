# SPDX-License-Identifier: BSD-3-Clause
"""The connected nodes: names, connections, time of the last message.

A node is registered from its Hello until it sends nothing for too long or its
connection closes; then it must send Hello again. A drained node stays registered, but
gets no detectors. Does not cover visits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ppdaemon.messages import Hello
from ppdaemon.relay.routing import NodeOffer, Preferences, RouteTable
from ppdaemon.sequence import SequenceCheck

__all__ = ("RegisteredNode", "NodeRegistry")

MAX_DEPARTED = 1000
"""Disconnected nodes that are remembered; more than any site has."""


FORGET_S = 86_400.0
"""Disconnected nodes are remembered for a day, after which no outcome of them is expected."""


@dataclass(slots=True)
class RegisteredNode:
    """A connected node."""

    peer: bytes
    """Identity of its connection."""
    incarnation: str
    """Random string that differs for each start of the node."""
    offer: NodeOffer
    last_message_at: float
    """Monotonic seconds of its last message."""
    alone: bool
    """Whether it may write without a permit."""
    sequence: SequenceCheck = field(default_factory=SequenceCheck)
    version: str = ""
    """Its version of ppdaemon."""
    state: str = ""
    """The state that it has reported of itself last."""
    problem: str = ""
    """The worst problem that it has reported."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.offer.node


class NodeRegistry:
    """The nodes that are connected now.

    A node that sends nothing for `silence_s` seconds is removed.
    """

    def __init__(self, silence_s: float):
        self._silence_s = silence_s
        self._nodes: dict[str, RegisteredNode] = {}
        self._names: dict[bytes, str] = {}
        self._preferences: Preferences = {}
        self.departed: dict[str, RegisteredNode] = {}
        """Nodes that were connected to this run of the relay and are not now."""
        self.started_at = math.inf
        """Counts as the last message of nodes that have not connected yet; monotonic seconds."""
        self.drained: frozenset[str] = frozenset()
        """Nodes that get no detectors until an operator resumes them."""
        self.routes = RouteTable()

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __getitem__(self, name: str) -> RegisteredNode:
        return self._nodes[name]

    @property
    def nodes(self) -> Iterable[RegisteredNode]:
        """The connected nodes."""
        return self._nodes.values()

    def offer_of(self, name: str) -> NodeOffer | None:
        """Return what a node offers; `None` if it is not connected or drained."""
        return None if name not in self._nodes or name in self.drained else self._nodes[name].offer

    def set_drained(self, names: Iterable[str]) -> None:
        """Set which nodes get no detectors."""
        self.drained = frozenset(names)
        self._rebuild_routes()

    def set_preferences(self, preferences: Preferences) -> None:
        """Set the configured table of nodes and detectors."""
        self._preferences = preferences
        self._rebuild_routes()

    def last_message_at(self, name: str) -> float:
        """Return when a node has sent its last message, monotonic seconds."""
        node = self._nodes.get(name) or self.departed.get(name)
        return self.started_at if node is None else node.last_message_at

    def silent_at(self, name: str) -> float:
        """Return when a node counts as silent if it sends nothing more, monotonic seconds."""
        return self.last_message_at(name) + self._silence_s

    def conflicting_peer(self, hello: Hello, peer: bytes) -> bytes | None:
        """Return the connection of another node with the same name.

        `None` if the name is free, or if the sender is the same run of the node
        on a new connection, or a new run on the same connection.
        """
        present = self._nodes.get(hello.origin)
        if present is None or present.incarnation == hello.incarnation or present.peer == peer:
            return None
        return present.peer

    def register(self, hello: Hello, peer: bytes, now: float) -> None:
        """Add a node whose name is free (see `conflicting_peer`)."""
        # Both the previous connection of this name and a previous name of this
        # connection, so that `_nodes` and `_names` stay one-to-one.
        sequence = self._sequence_of(hello.origin)
        for name in {hello.origin, self._names.get(peer, hello.origin)}:
            self._remove(name)
        self.departed.pop(hello.origin, None)
        offer = NodeOffer(
            hello.origin,
            {instrument: frozenset(ids) for instrument, ids in hello.instruments.items()},
            hello.capacity,
            hello.spare,
        )
        # A Hello has the whole state: what was lost before it needs no repair.
        sequence.restart(hello.sequence)
        node = RegisteredNode(peer, hello.incarnation, offer, now, hello.alone, sequence, hello.version)
        self._nodes[hello.origin] = node
        self._names[peer] = hello.origin
        self._rebuild_routes()

    def receive(self, peer: bytes, now: float) -> RegisteredNode | None:
        """Record a message; return the node that sent it, `None` for an unknown connection."""
        name = self._names.get(peer)
        if name is None:
            return None
        self._nodes[name].last_message_at = now
        return self._nodes[name]

    def disconnect(self, peer: bytes) -> str | None:
        """Remove the node of a closed connection; return its name if it was registered."""
        name = self._names.get(peer)
        if name is not None:
            self._remove(name)
            self._rebuild_routes()
        return name

    def drop_silent(self, now: float) -> list[str]:
        """Remove the nodes that have sent nothing for too long; return their names."""
        silent = [name for name, node in self._nodes.items() if now - node.last_message_at > self._silence_s]
        for name in silent:
            self._remove(name)
        # In the order in which they were disconnected.
        while self.departed and now - next(iter(self.departed.values())).last_message_at > FORGET_S:
            del self.departed[next(iter(self.departed))]
        if silent:
            self._rebuild_routes()
        return silent

    def extend_silence(self, pause_s: float) -> None:
        """Allow all nodes `pause_s` more seconds, because this process did not receive."""
        for node in self._nodes.values():
            node.last_message_at += pause_s
        for node in self.departed.values():
            node.last_message_at += pause_s

    def _sequence_of(self, name: str) -> SequenceCheck:
        """Return the check of a node's messages, with what it has counted so far."""
        known = self._nodes.get(name) or self.departed.get(name)
        return SequenceCheck() if known is None else known.sequence

    def _remove(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            del self._names[node.peer]
            self.departed.pop(name, None)  # so that it is the last one
            self.departed[name] = node
            while len(self.departed) > MAX_DEPARTED:
                del self.departed[next(iter(self.departed))]

    def _rebuild_routes(self) -> None:
        offers = [node.offer for name, node in self._nodes.items() if name not in self.drained]
        self.routes = RouteTable(offers, self._preferences)
