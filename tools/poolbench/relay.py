# SPDX-License-Identifier: BSD-3-Clause
"""The relay's end of the link to a node, played by a benchmark."""

import time
from collections.abc import Iterable
from typing import Any

import zmq

from ppdaemon.clock import Clock
from ppdaemon.messages import (
    NODE_LIMIT,
    CancelVisit,
    FromNode,
    Heartbeat,
    Hello,
    NakedVisit,
    ReserveVisit,
    Results,
    ResultsSeen,
    Welcome,
)
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import decode, encode

__all__ = ("PlayedRelay", "Refusal")

HEARTBEAT_S = 1.0


class Refusal(Exception):
    """The node did not take a visit of a benchmark."""


class PlayedRelay:
    """Reserves, takes outcomes, confirms them; serves one node.

    Parameters
    ----------
    address : `str`
        Where to listen.
    """

    def __init__(self, address: str):
        self.address = address
        self.ended = 0
        """Visit-detectors whose outcome came."""
        self.outcomes: set[Outcome] = set()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, NODE_LIMIT)
        self._socket.bind(address)
        self._peer = b""
        self._sequence = 0
        self._beat_at = 0.0
        self._open: set[tuple[str, int]] = set()

    def __enter__(self) -> "PlayedRelay":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    @property
    def connected(self) -> bool:
        """Whether the node has said hello (`bool`)."""
        return bool(self._peer)

    @property
    def open(self) -> int:
        """Visit-detectors without an outcome (`int`)."""
        return len(self._open)

    def reserve(self, instrument: str, group: str, detectors: Iterable[int], survey: str = "") -> float:
        """Reserve detectors for a visit, in one message.

        Parameters
        ----------
        instrument, group, survey : `str`
            The visit.
        detectors : `~collections.abc.Iterable` [`int`]
            Which.

        Returns
        -------
        sent : `float`
            Monotonic seconds, just before the message went.
        """
        fields = {"groupId": group, "instrument": instrument, "nimages": 1, "survey": survey}
        visit, wanted = read_next_visit(fields), tuple(detectors)
        self._open |= {(group, detector) for detector in wanted}
        packet = self._packet(ReserveVisit, visit=visit, detectors=wanted, received_tai=Clock().tai())
        sent = time.monotonic()
        self._socket.send_multipart([self._peer, packet])
        return sent

    def cancel(self, instrument: str, group: str) -> None:
        """Take a visit back.

        Parameters
        ----------
        instrument, group : `str`
            The visit.
        """
        self._say(CancelVisit, instrument=instrument, group=group)

    def listen(self, wait_s: float = 0.0) -> None:
        """Take in what is there, and answer as a relay does.

        Parameters
        ----------
        wait_s : `float`, optional
            How long to wait for something, at the most.

        Raises
        ------
        Refusal
            Raised if the node refuses a visit.
        """
        if self._peer and time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + HEARTBEAT_S
            self._say(Heartbeat)
        while self._socket.poll(wait_s * 1e3):
            wait_s = 0.0
            peer, data = self._socket.recv_multipart()
            match decode(data, FromNode, limit=NODE_LIMIT):
                case Hello():
                    self._peer = peer
                    self._say(Welcome, life="bench")
                case NakedVisit(reason=reason):
                    raise Refusal(reason)
                case Results() as results:
                    self._take(results)

    def listen_for(self, seconds: float) -> None:
        """Be a relay for a while.

        Parameters
        ----------
        seconds : `float`
            How long.
        """
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            self.listen(min(rest, HEARTBEAT_S))

    def _take(self, results: Results) -> None:
        keys = tuple((e.instrument, e.group, e.detector, e.attempt) for e in results.entries)
        self._say(ResultsSeen, entries=keys)
        for entry in results.entries:
            if (entry.group, entry.detector) in self._open:
                self._open.discard((entry.group, entry.detector))
                self.outcomes.add(entry.outcome)
                self.ended += 1

    def _say(self, kind: type[Any], **fields: Any) -> None:
        self._socket.send_multipart([self._peer, self._packet(kind, **fields)])

    def _packet(self, kind: type[Any], **fields: Any) -> bytes:
        self._sequence += 1
        return encode(kind(origin="bench", sent_tai=Clock().tai(), sequence=self._sequence, **fields))
