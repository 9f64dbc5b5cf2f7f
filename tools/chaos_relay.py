# SPDX-License-Identifier: BSD-3-Clause
"""The relay of a chaos run: it records the accepted visits and their outcomes.

Resends reservations until they are acknowledged and cancellations until the
outcome arrives, as the real relay does. It evaluates nothing.
"""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.messages import ResultEntry, Results, VisitAccepted, VisitRefused
from ppdaemon.testing.played import PlayedRelay, VisitDetector
from ppdaemon.visit import NextVisit

# Shorter than in reality, so that a short run has many of them.
HEARTBEAT_S = 0.2
RESEND_S = 0.5
INVALID_MESSAGES = (
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
    """A visit that the node has to accept."""

    visit: NextVisit
    received_tai: float
    detectors: set[int]
    unacknowledged: set[int]
    """Detectors that are not acknowledged yet."""
    attempts: dict[int, int] = field(default_factory=dict)
    """Attempts of the detectors that the node has handed back; 1 for all others."""
    canceled: bool = False
    sent: float = 0.0


class ChaosRelay(PlayedRelay):
    """The relay's end of the link to one node. `draw` selects invalid messages."""

    def __init__(self, address: str, draw: random.Random):
        super().__init__(address, heartbeat_s=HEARTBEAT_S)
        self.refused: dict[VisitDetector, str] = {}
        """Visit-detectors that the node refused for good, with the reasons."""
        self.outcome_at: dict[VisitDetector, float] = {}
        """Monotonic time at which the first outcome of a visit-detector arrived."""
        self._draw = draw
        self._reservations: dict[str, Reservation] = {}
        self._silent_until = 0.0

    def reserve_detectors(self, visit: NextVisit, detectors: tuple[int, ...]) -> None:
        """Reserve these detectors of a visit."""
        reservation = Reservation(visit, Clock().tai(), set(detectors), set(detectors))
        self._reservations[visit.group] = reservation
        self._reserve(reservation, reservation.detectors)

    def reserve_again(self, group: str) -> None:
        """Send a reservation again, acknowledged or not."""
        reservation = self._reservations[group]
        self._reserve(reservation, reservation.detectors)

    def cancel_visit(self, group: str) -> None:
        """Cancel a visit; resent until all its outcomes have arrived."""
        self._reservations[group].canceled = True
        self._reservations[group].sent = 0.0

    def send_invalid_message(self) -> None:
        """Send a message that is invalid."""
        self.send_raw(self._draw.choice(INVALID_MESSAGES))

    def stop_answering(self, length_s: float) -> None:
        """Receive and send nothing for a time; messages that arrive in it are lost."""
        self._silent_until = time.monotonic() + length_s

    @property
    def missing(self) -> list[VisitDetector]:
        """Visit-detectors without acknowledgement or outcome.

        Those that were canceled before they were accepted need none.
        """
        return [
            (group, detector)
            for group, reservation in self._reservations.items()
            for detector in sorted(reservation.detectors)
            if (group, detector) not in self.refused
            and (group, detector) not in self.results
            and not (reservation.canceled and detector in reservation.unacknowledged)
        ]

    def listen(self, wait_s: float = 0.0) -> None:
        """Receive the waiting messages and resend what is due."""
        if self._silent:
            self._discard(wait_s)
            return
        super().listen(wait_s)
        now = time.monotonic()
        for reservation in self._reservations.values():
            if now - reservation.sent >= RESEND_S:
                self._resend(reservation, now)

    def on_message(self, message: Any) -> None:
        """Record accepted and refused visits and outcomes."""
        super().on_message(message)
        match message:
            case VisitAccepted(group=group, detectors=detectors):
                self._reservations[group].unacknowledged -= set(detectors)
            case VisitRefused(group=group, final=True):
                self._reservations[group].unacknowledged -= set(message.detectors)
                self.refused |= {(group, detector): message.reason for detector in message.detectors}
            case Results(entries=entries):
                for entry in entries:
                    if entry.returned:
                        self._reserve_again(entry)
                    else:
                        self.outcome_at.setdefault((entry.group, entry.detector), time.monotonic())

    def _reserve_again(self, entry: ResultEntry) -> None:
        """Give a visit-detector that the node has returned to it once more."""
        reservation = self._reservations[entry.group]
        asked = reservation.attempts.get(entry.detector, 1)
        if entry.asked == asked:  # else it is repeated
            reservation.attempts[entry.detector] = asked + 1
            reservation.unacknowledged.add(entry.detector)

    def send_raw(self, data: bytes) -> None:
        """Send a message, unless the relay is silent."""
        if not self._silent:
            super().send_raw(data)

    @property
    def _silent(self) -> bool:
        return time.monotonic() < self._silent_until

    def _discard(self, wait_s: float) -> None:
        while self._socket.poll(round(wait_s * 1000)):
            wait_s = 0.0
            self._socket.recv_multipart()

    def _resend(self, reservation: Reservation, now: float) -> None:
        group = reservation.visit.group
        if reservation.unacknowledged and not reservation.canceled:
            self._reserve(reservation, reservation.unacknowledged)
        accepted = {(group, detector) for detector in reservation.detectors} & self.acked
        if reservation.canceled and accepted - self.results.keys():
            self.cancel(group, instrument=reservation.visit.instrument)
            reservation.sent = now

    def _reserve(self, reservation: Reservation, detectors: set[int]) -> None:
        reservation.sent = time.monotonic()
        by_attempt = defaultdict(list)
        for detector in sorted(detectors):
            by_attempt[reservation.attempts.get(detector, 1)].append(detector)
        for attempt, chosen in by_attempt.items():
            self.reserve_visit(reservation.visit, chosen, reservation.received_tai, attempt)
