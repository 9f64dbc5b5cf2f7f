# SPDX-License-Identifier: BSD-3-Clause
"""A bridge for a test, and who asks it as a node does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import zmq

from ppdaemon.curve import ClientKeys
from ppdaemon.messages import NOTICES, NOTICES_LIMIT, AskNotices, Notices
from ppdaemon.testing.bridge import BridgeProcess
from ppdaemon.testing.waiting import wait_until
from ppdaemon.wire import decode, encode


@contextmanager
def bridging(folder: Path, **changes: Any) -> Iterator[BridgeProcess]:
    bridge = BridgeProcess(folder, **changes)
    try:
        yield bridge.start()
    finally:
        bridge.close()


class Asker:
    """Asks as a node does."""

    def __init__(self, bridge: BridgeProcess, keys: ClientKeys | None = None):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            keys.apply(self.socket)
        self.socket.connect(bridge.nodes)
        self.epoch, self.number, self.requests = "", 0, 0
        self.taken: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def send(self, **changes: Any) -> None:
        """Send a question."""
        self.requests += 1
        fields = {"epoch": self.epoch, "number": self.number} | changes
        self.socket.send(encode(AskNotices(node="n1", request=self.requests, **fields)))

    def ask(self, **changes: Any) -> Notices:
        """Ask until there is an answer; take what it has."""
        while True:
            self.send(**changes)
            while self.socket.poll(2000):
                head, *bodies = self.socket.recv_multipart()
                answer = decode(head, NOTICES, limit=NOTICES_LIMIT)
                if answer.request == self.requests:
                    self.epoch, self.number = answer.epoch, answer.first + len(bodies) - 1
                    self.taken |= dict(enumerate(bodies, answer.first))
                    return answer

    def ask_for(self, count: int) -> None:
        """Ask until so many notices were taken."""
        wait_until(lambda: (len(self.taken) >= count) or (self.ask() and False), story=lambda: self.taken)
