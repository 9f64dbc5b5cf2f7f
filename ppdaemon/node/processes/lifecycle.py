# SPDX-License-Identifier: BSD-3-Clause
"""When one child process is started, is late, and is started again. Pure."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ppdaemon.backoff import Backoff

__all__ = ("DueAction", "Kill", "Lifecycle", "ProcessState", "Serve", "Start")


class ProcessState(Enum):
    """Of one child process."""

    PAUSING = auto()
    """There is none; the next one is started after the pause."""
    STARTING = auto()
    """It was asked for, or boots."""
    SERVING = auto()
    """It takes orders."""
    RETRYING = auto()
    """It could not carry out an order; the next one is sent after the pause."""
    REPLACING = auto()
    """It gets no more orders and is to end; another one follows at once."""
    RETIRED = auto()
    """It gets no more orders; none follows when it ends."""
    KILLED = auto()
    """It was late, or sent an invalid message; its end is waited for."""
    CLOSED = auto()
    """It was killed for good, or there is none any more."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process: the pause is over."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Send the next order: the pause is over."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the process: it is late."""

    reason: str
    """Such as ``was not ready in 60 s``."""


type DueAction = Start | Serve | Kill


class Lifecycle:
    """The state, the deadlines and the pauses of one child process.

    Parameters
    ----------
    boot_s, answer_s : `float`
        How long a start, or the end of one that is replaced, and the answer
        to an order may take.
    first_pause_s, longest_pause_s, steady_s : `float`
        See `~ppdaemon.backoff.Backoff`.
    """

    def __init__(
        self,
        *,
        boot_s: float,
        answer_s: float,
        first_pause_s: float,
        longest_pause_s: float,
        steady_s: float = math.inf,
    ):
        self.state = ProcessState.PAUSING
        self.unanswered: dict[Any, float] = {}
        """Until when each order has to be answered, the oldest first."""
        self.manner = ""
        """How the last process ended, such as ``was killed by SIGKILL``."""
        self._boot_s = boot_s
        self._answer_s = answer_s
        self._steady_s = steady_s
        self._boot_until = 0.0
        self.set_pauses(first_pause_s, longest_pause_s)

    def set_pauses(self, first_s: float, longest_s: float) -> None:
        """Pause so long from now on, and begin with the shortest."""
        self._backoff = Backoff(first_s, longest_s, steady_s=self._steady_s)

    @property
    def deadline(self) -> float | None:
        """When `due` is to be asked."""
        match self.state:
            case ProcessState.PAUSING | ProcessState.RETRYING:
                return self._backoff.due
            case ProcessState.STARTING:
                return self._boot_until
            case ProcessState.SERVING | ProcessState.RETIRED:
                return next(iter(self.unanswered.values()), None)
            case ProcessState.REPLACING:
                return next(iter(self.unanswered.values()), self._boot_until)
        return None

    def due(self, now: float) -> DueAction | None:
        """Return what a deadline that has passed asks for."""
        if self.deadline is None or now < self.deadline:
            return None
        match self.state:
            case ProcessState.PAUSING:
                return Start()
            case ProcessState.RETRYING:
                self.state = ProcessState.SERVING
                return Serve()
            case ProcessState.STARTING:
                return Kill(f"was not ready in {self._boot_s:g} s")
        if self.unanswered:
            return Kill(f"has not answered for {self._answer_s:g} s")
        return Kill(f"has not ended in {self._boot_s:g} s")

    def started(self, now: float) -> None:
        """A process was asked for; one that was asked for before does not count."""
        self.state = ProcessState.STARTING
        self._boot_until = now + self._boot_s

    def ready(self) -> None:
        """The process takes orders."""
        if self.state is ProcessState.STARTING:
            self.state = ProcessState.SERVING

    def ordered(self, order: Hashable, now: float) -> None:
        """An order was sent."""
        self.unanswered[order] = now + self._answer_s

    def answered(self, order: Hashable, now: float) -> None:
        """An order was answered, or nobody waits for the answer any more."""
        self.unanswered.pop(order, None)
        if self.state is ProcessState.REPLACING:
            self._boot_until = now + self._boot_s

    def succeeded(self) -> None:
        """The process does what it is for: the next failure is the first in a row."""
        self._backoff.succeeded()

    def failed(self, now: float) -> None:
        """An order could not be carried out: the next one is sent after a pause."""
        self._backoff.failed(now)
        if self.state is ProcessState.SERVING:
            self.state = ProcessState.RETRYING

    def replace(self, now: float) -> None:
        """Another process is wanted."""
        if self.state in (ProcessState.STARTING, ProcessState.SERVING, ProcessState.RETRYING):
            self.state = ProcessState.REPLACING
            self._boot_until = now + self._boot_s

    def retire(self) -> None:
        """No process is wanted after this one, unless it is killed already."""
        if self.state in (ProcessState.STARTING, ProcessState.SERVING):
            self.state = ProcessState.RETIRED

    def killed(self, reason: str) -> None:
        """The process is killed; what it is owed is owed until it has ended."""
        self.manner = reason
        self.state = ProcessState.CLOSED if self.state is ProcessState.RETIRED else ProcessState.KILLED

    def ended(self, manner: str, now: float) -> None:
        """The process has ended, or could not be started."""
        self.unanswered.clear()
        match self.state:
            case ProcessState.CLOSED:
                return
            case ProcessState.RETIRED:
                self.state, self.manner = ProcessState.CLOSED, manner
            case ProcessState.REPLACING:
                self.state = ProcessState.PAUSING
                self._backoff.succeeded()
            case before:
                self.manner = self.manner if before is ProcessState.KILLED else manner
                self.state = ProcessState.PAUSING
                self._backoff.failed(now)

    def close(self) -> None:
        """No process is wanted any more."""
        self.state = ProcessState.CLOSED

    def problem(self, now: float) -> str:
        """Return why there is no process, or why it may soon be gone; or blank."""
        deaths = self._backoff.failures
        text = f"{self.manner}, {deaths} deaths in a row" if deaths > 1 else self.manner
        match self.state:
            case ProcessState.KILLED:
                return f"{self.manner}; it is killed"
            case ProcessState.PAUSING if deaths:
                return f"{text}; the next one starts in {self._backoff.remaining_s(now):.0f} s"
            case ProcessState.STARTING if deaths:
                return f"{text}; the next one boots"
            case ProcessState.SERVING if deaths > 1 and now - self._backoff.due < self._steady_s:
                return text
        return ""
