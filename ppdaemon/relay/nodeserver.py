# SPDX-License-Identifier: BSD-3-Clause
"""Serves the nodes: checks their messages, and compares the ledger with the journal of a node at its hello.

What follows from a message is decided by `ppdaemon.relay.dispatcher`. Does not cover sockets; all methods
are called by the event pump.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import NODE_LIMIT, FromNode, Heartbeat, Hello, NodeMessage, other_protocol
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.control import RelayControl
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger, UnfinishedVisit
from ppdaemon.relay.orders import RefuseHello, Send
from ppdaemon.relay.submitserver import ApplyEffects
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.throttle import Throttle, sample_of
from ppdaemon.wire import decode

__all__ = ("NodeServer",)

_LOG = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Messages of one node that wait while the ledger is compared, which takes milliseconds; it sends further
ones again."""


@dataclass(eq=False, kw_only=True)
class NodeServer:
    """Handles the messages of nodes."""

    config: RelayConfig
    dispatcher: Dispatcher
    writer: BatchWriter[Ledger]
    throttle: Throttle
    clock: Clock
    control: RelayControl
    send: Callable[[Sequence[Send]], None]
    apply_effects: ApplyEffects
    restore: Callable[[Sequence[UnfinishedVisit]], None]
    """Opens visits of the ledger, which are served with the next tick."""

    _comparing: dict[bytes, tuple[str, list[NodeMessage]]] = field(default_factory=dict, init=False)
    """By connection: the name of a node with whose hello the ledger is being compared, and its messages
    since."""

    def serve(self, frames: list[bytes], sender: str | None) -> None:
        """Handle a message of a node: connection and JSON. `sender` is the name that belongs to its key, if
        there are keys.
        """
        try:
            if len(frames) != 2:
                raise BadMessage(f"{len(frames) - 1} frames, expected one", "frames")
            message = decode(frames[1], FromNode, limit=NODE_LIMIT)
            if sender is not None and message.origin != sender:
                reason = f"the key is that of node {sender}, not of {message.origin[:80]}"
                if isinstance(message, Hello):
                    self.send([RefuseHello(frames[0], "taken", reason)])
                raise BadMessage(reason, "origin")
        except BadMessage as error:
            if text := other_protocol(frames[-1]):
                self.control.other_protocol = text
                if self.throttle.passes("node protocol"):
                    _LOG.error("refused a node: %s", text)
                return
            if self.throttle.passes(f"node {error.kind}"):
                total = self.throttle.by_kind[f"node {error.kind}"]
                _LOG.warning(
                    "ignored an invalid message from a node",
                    extra={
                        "kind": error.kind,
                        "reason": str(error),
                        "total": total,
                        "sample": sample_of(frames[-1]),
                    },
                )
            return
        self._receive(frames[0], message)

    def disconnect(self, names: Collection[str]) -> None:
        """Disconnect the nodes whose keys were revoked."""
        self._comparing = {peer: each for peer, each in self._comparing.items() if each[0] not in names}
        registry = self.dispatcher.registry
        for name in names:
            if name in registry:
                self.dispatcher.disconnect(registry[name].peer, self.clock.mono())

    def _receive(self, peer: bytes, message: NodeMessage) -> None:
        if (comparing := self._comparing.get(peer)) is not None:
            _, waiting = comparing
            if isinstance(message, Hello):  # only the last one counts, and they are large
                waiting[:] = [_without_content(each) if isinstance(each, Hello) else each for each in waiting]
            if len(waiting) < MAX_WAITING:
                waiting.append(message)
        elif isinstance(message, Hello) and self.dispatcher.is_new(peer, message):
            # Its further messages wait: it is registered when the ledger was compared.
            self._comparing[peer] = message.origin, []
            detectors = {name: part.detectors for name, part in self.config.instruments.items()}
            self.writer.put(
                Commit(
                    lambda ledger: ledger.adopt(message, detectors), partial(self._compared, peer, message)
                )
            )
        else:
            self.apply_effects(self.dispatcher.receive(peer, message, self.clock.mono()), None)

    def _compared(self, peer: bytes, hello: Hello, found: tuple[Sequence[UnfinishedVisit], int]) -> None:
        """Register a node whose journal the ledger was compared with, unless its key was revoked."""
        opened, adopted = found
        self.restore(opened)
        before = self.dispatcher.adopted
        self.dispatcher.adopted += adopted
        _, waiting = self._comparing.pop(peer, ("", None))
        if waiting is not None:
            self.apply_effects(self.dispatcher.receive(peer, hello, self.clock.mono()), None)
        if adopted := self.dispatcher.adopted - before:
            _LOG.error(
                "the ledger is older than the journal of a node: what it does not know was adopted",
                extra={"node": hello.origin, "visit_detectors": adopted},
            )
        for message in waiting or ():
            self._receive(peer, message)


def _without_content(hello: Hello) -> Heartbeat:
    """Return a message with the same number, so that none counts as lost."""
    return Heartbeat(origin=hello.origin, sent_tai=hello.sent_tai, sequence=hello.sequence)
