# SPDX-License-Identifier: BSD-3-Clause
"""Which nodes are there: names, connections, silence.

A node is there from its Hello until it is silent for too long or its
connection is gone; then it has to say Hello again. Covers no visits.
"""

from dataclasses import dataclass

from ppdaemon.messages import Hello
from ppdaemon.relay.routing import Offer, RouteTable

__all__ = ("Node", "NodeRegistry")


@dataclass(slots=True)
class Node:
    """A node that is there."""

    peer: bytes
    """Identity of its connection."""
    incarnation: str
    """Nonce that tells its lives apart."""
    offer: Offer
    heard_at: float
    """Monotonic seconds of its last message."""


class NodeRegistry:
    """The nodes that are there now.

    Parameters
    ----------
    silence_s : `float`
        A node silent for so long is gone.
    """

    def __init__(self, silence_s: float):
        self._silence_s = silence_s
        self._nodes: dict[str, Node] = {}
        self._names: dict[bytes, str] = {}
        self.routes = RouteTable()

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Connections of all nodes (`tuple` [`bytes`])."""
        return tuple(self._names)

    def peer_of(self, name: str) -> bytes:
        """Return the connection of a node that is there."""
        return self._nodes[name].peer

    def holder_of(self, hello: Hello, peer: bytes) -> bytes | None:
        """Return the connection of another node that has the name already.

        Parameters
        ----------
        hello : `~ppdaemon.messages.Hello`
            What the newcomer says.
        peer : `bytes`
            The newcomer's connection.

        Returns
        -------
        holder : `bytes` or `None`
            `None` if the name is free, or if the newcomer is the same life on
            a new connection or a new life on the same connection.
        """
        present = self._nodes.get(hello.origin)
        if present is None or present.incarnation == hello.incarnation or present.peer == peer:
            return None
        return present.peer

    def admit(self, hello: Hello, peer: bytes, now: float) -> None:
        """Take in a node whose name is free.

        Parameters
        ----------
        hello : `~ppdaemon.messages.Hello`
            What it says.
        peer : `bytes`
            Its connection.
        now : `float`
            Monotonic seconds.
        """
        for name in {hello.origin, self._names.get(peer, hello.origin)}:
            self._remove(name)
        offer = Offer(
            hello.origin,
            {instrument: frozenset(ids) for instrument, ids in hello.instruments.items()},
            hello.capacity,
        )
        self._nodes[hello.origin] = Node(peer, hello.incarnation, offer, now)
        self._names[peer] = hello.origin
        self._renew_routes()

    def receive(self, peer: bytes, now: float) -> str | None:
        """Note that a connection is alive.

        Parameters
        ----------
        peer : `bytes`
            The connection.
        now : `float`
            Monotonic seconds.

        Returns
        -------
        name : `str` or `None`
            The node's name; `None` for a stranger.
        """
        name = self._names.get(peer)
        if name is not None:
            self._nodes[name].heard_at = now
        return name

    def lose(self, peer: bytes) -> str | None:
        """Forget the node of a connection that is gone.

        Parameters
        ----------
        peer : `bytes`
            The connection.

        Returns
        -------
        name : `str` or `None`
            The node's name; `None` for a stranger.
        """
        name = self._names.get(peer)
        if name is not None:
            self._remove(name)
            self._renew_routes()
        return name

    def drop_silent(self, now: float) -> list[str]:
        """Forget the nodes that are silent for too long.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.

        Returns
        -------
        names : `list` [`str`]
            Who was dropped.
        """
        silent = [name for name, node in self._nodes.items() if now - node.heard_at > self._silence_s]
        for name in silent:
            self._remove(name)
        if silent:
            self._renew_routes()
        return silent

    def excuse(self, pause_s: float) -> None:
        """Discount a time in which nobody listened.

        Parameters
        ----------
        pause_s : `float`
            How long this process did not run.
        """
        for node in self._nodes.values():
            node.heard_at += pause_s

    def _remove(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            del self._names[node.peer]

    def _renew_routes(self) -> None:
        self.routes = RouteTable(node.offer for node in self._nodes.values())
