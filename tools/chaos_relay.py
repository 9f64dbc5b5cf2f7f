# SPDX-License-Identifier: BSD-3-Clause
"""A relay that keeps the truth of a chaos run: what was promised, what was told.

Resends reservations until they are acknowledged and cancellations until the
outcome is there, as the real relay does. Judges nothing.
"""

import random
from dataclasses import dataclass
from typing import Any

import zmq

from ppdaemon.clock import Clock
from ppdaemon.messages import (
    NODE_LIMIT,
    AckedVisit,
    CancelVisit,
    FromNode,
    Heartbeat,
    Hello,
    NakedVisit,
    ReserveVisit,
    ResultEntry,
    Results,
    ResultsSeen,
    Welcome,
)
from ppdaemon.visit import NextVisit
from ppdaemon.wire import decode, encode

__all__ = ("Place", "PlayedRelay")

type Place = tuple[str, int]
"""A visit-detector: group and detector."""

HEARTBEAT_S = 0.2
RESEND_S = 0.5
NONSENSE = (
    b"",
    b"\xff\xfe",
    b"not JSON",
    b"[" * 100_000,
    b'{"type": "visit"}',
    b'{"type": "visit", "schema": 1, "origin": "chaos", "sent_tai": NaN, "sequence": 1}',
    b'{"type": "no such type"}',
)


@dataclass(slots=True)
class Reservation:
    """A visit that the relay wants to be promised."""

    visit: NextVisit
    received_tai: float
    detectors: set[int]
    """All of them."""
    wanted: set[int]
    """Those that are not acknowledged."""
    cancelled: bool = False
    sent: float = 0.0


class PlayedRelay:
    """The relay's end of the link to one node.

    Parameters
    ----------
    address : `str`
        Where it listens.
    draw : `random.Random`
        Chooses nonsense.
    """

    def __init__(self, address: str, draw: random.Random):
        self.promised: set[Place] = set()
        self.refused: dict[Place, str] = {}
        self.told: dict[Place, list[ResultEntry]] = {}
        self.told_at: dict[Place, float] = {}
        """When an outcome was first told, monotonic."""
        self.lost_messages = 0
        """What came while the relay was silent."""
        self._draw = draw
        self._clock = Clock()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, NODE_LIMIT),
            (zmq.RCVHWM, 100_000),
        ):
            self._socket.setsockopt(option, value)
        self._socket.bind(address)
        self._peer: bytes | None = None
        self._sequence = 0
        self._reservations: dict[str, Reservation] = {}
        self._beat = 0.0
        self._silent_until = 0.0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()

    # --- what a run asks for ---------------------------------------------

    def reserve(self, visit: NextVisit, detectors: tuple[int, ...]) -> None:
        """Have these detectors of a visit promised."""
        reservation = Reservation(visit, self._clock.tai(), set(detectors), set(detectors))
        self._reservations[visit.group] = reservation
        self._send(reservation, reservation.detectors)

    def reserve_again(self, group: str) -> None:
        """Send a reservation once more, acknowledged or not."""
        reservation = self._reservations[group]
        self._send(reservation, reservation.detectors)

    def cancel(self, group: str) -> None:
        """Take a visit back."""
        self._reservations[group].cancelled = True
        self._reservations[group].sent = 0.0

    def talk_nonsense(self) -> None:
        """Say something that no relay says."""
        self._post(self._draw.choice(NONSENSE))

    def fall_silent(self, length_s: float) -> None:
        """Hear and say nothing for a while; what comes meanwhile is lost."""
        self._silent_until = self._clock.mono() + length_s

    @property
    def open_places(self) -> list[Place]:
        """Visit-detectors that the node owes a word: an acknowledgement, or
        an outcome (`list`). What was cancelled first is owed nothing.
        """
        return [
            (group, detector)
            for group, reservation in self._reservations.items()
            for detector in sorted(reservation.detectors)
            if (group, detector) not in self.refused
            and (group, detector) not in self.told
            and not (reservation.cancelled and detector in reservation.wanted)
        ]

    # --- the link --------------------------------------------------------

    def turn(self, wait_ms: int) -> None:
        """Hear what is there, and say what is due."""
        now = self._clock.mono()
        ready = self._socket.poll(wait_ms)
        if now < self._silent_until:
            self._lose()
            return
        while ready and self._socket.poll(0):
            peer, data = self._socket.recv_multipart()
            self._hear(peer, data)
        if now - self._beat >= HEARTBEAT_S:
            self._beat = now
            self._say(Heartbeat)
        for reservation in self._reservations.values():
            if now - reservation.sent >= RESEND_S:
                self._resend(reservation, now)

    def _lose(self) -> None:
        while self._socket.poll(0):
            self._socket.recv_multipart()
            self.lost_messages += 1

    def _resend(self, reservation: Reservation, now: float) -> None:
        group = reservation.visit.group
        if reservation.wanted and not reservation.cancelled:
            self._send(reservation, reservation.wanted)
        places = {(group, detector) for detector in reservation.detectors} & self.promised
        if reservation.cancelled and any(place not in self.told for place in places):
            self._say(CancelVisit, instrument=reservation.visit.instrument, group=group)
            reservation.sent = now

    def _send(self, reservation: Reservation, detectors: set[int]) -> None:
        reservation.sent = self._clock.mono()
        self._say(
            ReserveVisit,
            visit=reservation.visit,
            detectors=tuple(sorted(detectors)),
            received_tai=reservation.received_tai,
        )

    def _hear(self, peer: bytes, data: bytes) -> None:
        match decode(data, FromNode, limit=NODE_LIMIT):
            case Hello():
                self._peer = peer
                self._say(Welcome, life="chaos")
            case AckedVisit(group=group, detectors=detectors):
                self._reservations[group].wanted -= set(detectors)
                self.promised |= {(group, detector) for detector in detectors}
            case NakedVisit(group=group, final=True) as nak:
                self._reservations[group].wanted -= set(nak.detectors)
                self.refused |= {(group, detector): nak.reason for detector in nak.detectors}
            case Results(entries=entries):
                for entry in entries:
                    place = (entry.group, entry.detector)
                    self.told.setdefault(place, []).append(entry)
                    self.told_at.setdefault(place, self._clock.mono())
                keys = tuple((e.instrument, e.group, e.detector, e.attempt) for e in entries)
                self._say(ResultsSeen, entries=keys)
            case _:
                pass  # a heartbeat, or "not now": it is asked again

    def _say(self, kind: type[Any], **fields: Any) -> None:
        self._sequence += 1
        message = kind(origin="chaos", sent_tai=self._clock.tai(), sequence=self._sequence, **fields)
        self._post(encode(message))

    def _post(self, data: bytes) -> None:
        if self._peer is not None and self._clock.mono() >= self._silent_until:
            self._socket.send_multipart([self._peer, data])  # a peer that is gone: dropped
