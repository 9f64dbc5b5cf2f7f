# SPDX-License-Identifier: BSD-3-Clause
"""The relay of a chaos run: it keeps the truth of what was promised and what was told.

Resends reservations until they are acknowledged and cancellations until the
outcome is there, as the real relay does. Judges nothing.
"""

import random
import time
from dataclasses import dataclass
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.messages import Results, VisitAccepted, VisitRefused
from ppdaemon.testing.played import PlayedRelay, VisitDetector
from ppdaemon.visit import NextVisit

__all__ = ("ChaosRelay",)

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


class ChaosRelay(PlayedRelay):
    """The relay's end of the link to one node.

    Parameters
    ----------
    address : `str`
        Where it listens.
    draw : `random.Random`
        Chooses nonsense.
    """

    def __init__(self, address: str, draw: random.Random):
        super().__init__(address, heartbeat_s=HEARTBEAT_S)
        self.refused: dict[VisitDetector, str] = {}
        """What the node will never take, and why."""
        self.told_at: dict[VisitDetector, float] = {}
        """When an outcome was first told, monotonic."""
        self._draw = draw
        self._reservations: dict[str, Reservation] = {}
        self._silent_until = 0.0

    def promise(self, visit: NextVisit, detectors: tuple[int, ...]) -> None:
        """Have these detectors of a visit promised."""
        reservation = Reservation(visit, Clock().tai(), set(detectors), set(detectors))
        self._reservations[visit.group] = reservation
        self._reserve(reservation, reservation.detectors)

    def reserve_again(self, group: str) -> None:
        """Send a reservation once more, acknowledged or not."""
        reservation = self._reservations[group]
        self._reserve(reservation, reservation.detectors)

    def withdraw(self, group: str) -> None:
        """Cancel a visit until all its outcomes are told."""
        self._reservations[group].cancelled = True
        self._reservations[group].sent = 0.0

    def send_nonsense(self) -> None:
        """Send something that no relay sends."""
        self.send_raw(self._draw.choice(NONSENSE))

    def fall_silent(self, length_s: float) -> None:
        """Receive and send nothing for a while; what comes meanwhile is lost."""
        self._silent_until = time.monotonic() + length_s

    @property
    def owed(self) -> list[VisitDetector]:
        """Visit-detectors for which the node owes an acknowledgement or an
        outcome (`list`). What was cancelled first is owed nothing.
        """
        return [
            (group, detector)
            for group, reservation in self._reservations.items()
            for detector in sorted(reservation.detectors)
            if (group, detector) not in self.refused
            and (group, detector) not in self.results
            and not (reservation.cancelled and detector in reservation.wanted)
        ]

    def listen(self, wait_s: float = 0.0) -> None:
        """Receive what there is, and send what is due."""
        if self._silent:
            self._lose(wait_s)
            return
        super().listen(wait_s)
        now = time.monotonic()
        for reservation in self._reservations.values():
            if now - reservation.sent >= RESEND_S:
                self._resend(reservation, now)

    def on_message(self, message: Any) -> None:
        """Keep what was promised, refused and told."""
        super().on_message(message)
        match message:
            case VisitAccepted(group=group, detectors=detectors):
                self._reservations[group].wanted -= set(detectors)
            case VisitRefused(group=group, final=True):
                self._reservations[group].wanted -= set(message.detectors)
                self.refused |= {(group, detector): message.reason for detector in message.detectors}
            case Results(entries=entries):
                for entry in entries:
                    self.told_at.setdefault((entry.group, entry.detector), time.monotonic())

    def send_raw(self, data: bytes) -> None:
        """Send, unless the relay is silent."""
        if not self._silent:
            super().send_raw(data)

    @property
    def _silent(self) -> bool:
        return time.monotonic() < self._silent_until

    def _lose(self, wait_s: float) -> None:
        while self._socket.poll(round(wait_s * 1000)):
            wait_s = 0.0
            self._socket.recv_multipart()

    def _resend(self, reservation: Reservation, now: float) -> None:
        group = reservation.visit.group
        if reservation.wanted and not reservation.cancelled:
            self._reserve(reservation, reservation.wanted)
        promised = {(group, detector) for detector in reservation.detectors} & self.acked
        if reservation.cancelled and promised - self.results.keys():
            self.cancel(group, instrument=reservation.visit.instrument)
            reservation.sent = now

    def _reserve(self, reservation: Reservation, detectors: set[int]) -> None:
        reservation.sent = time.monotonic()
        self.reserve_visit(reservation.visit, sorted(detectors), reservation.received_tai)
