# SPDX-License-Identifier: BSD-3-Clause
"""When one child process is started, is late, and is started again. Pure."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ppdaemon.backoff import Backoff

__all__ = ("LONGEST_BOOT", "DueAction", "Kill", "Lifecycle", "ProcessState", "Serve", "Start")

LONGEST_BOOT = 4
"""How many times its limit a start may take in the end, if those before it were killed because they were
late: on a host that is busy the same limit would be missed again and again.
"""


class ProcessState(Enum):
    """The states of one child process."""

    PAUSING = auto()
    """There is no process; the next one is started after the pause."""
    STARTING = auto()
    """The process was requested, or boots."""
    SERVING = auto()
    """The process takes orders."""
    RETRYING = auto()
    """The process could not carry out an order; the next order is sent after the pause."""
    REPLACING = auto()
    """The process gets no more orders and is to end; another one follows at once."""
    RETIRED = auto()
    """The process gets no more orders; none follows when it ends."""
    KILLED = auto()
    """The process was late or sent an invalid message, and was killed; it has not ended yet."""
    CLOSED = auto()
    """The process was killed and none follows, or there is none."""


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
    """The state, deadlines and pauses of one child process. `boot_s` limits a start, and the end
    of a process that is replaced; after a start that was late, the next one has twice the time, up to
    `LONGEST_BOOT` times. `answer_s` limits the answer to an order. The pauses are
    those of `~ppdaemon.backoff.Backoff`; after an order that failed it is always the first one.
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
        """Monotonic deadline of the answer to each order, the oldest first."""
        self.cause = ""
        """How the last process ended, such as ``ended by signal 9 (SIGKILL)``."""
        self._boot_s = boot_s
        self._start_s = boot_s
        """Limit of the next start."""
        self._answer_s = answer_s
        self._steady_s = steady_s
        self._boot_until = 0.0
        self.set_pauses(first_pause_s, longest_pause_s)

    def set_pauses(self, first_s: float, longest_s: float) -> None:
        """Use these pauses from now on, and begin with the shortest."""
        self._retry_s, self._retry_at = first_s, math.inf
        self._backoff = Backoff(first_s, longest_s, steady_s=self._steady_s)

    @property
    def deadline(self) -> float | None:
        """When `due` has to be called, in monotonic seconds."""
        match self.state:
            case ProcessState.PAUSING:
                return self._backoff.due
            case ProcessState.RETRYING:
                return self._retry_at
            case ProcessState.STARTING:
                return self._boot_until
            case ProcessState.SERVING | ProcessState.RETIRED:
                return next(iter(self.unanswered.values()), None)
            case ProcessState.REPLACING:
                return next(iter(self.unanswered.values()), self._boot_until)
        return None

    def due(self, now: float) -> DueAction | None:
        """Return the action that follows if the deadline has passed."""
        if self.deadline is None or now < self.deadline:
            return None
        match self.state:
            case ProcessState.PAUSING:
                return Start()
            case ProcessState.RETRYING:
                self.state = ProcessState.SERVING
                return Serve()
            case ProcessState.STARTING:
                late = Kill(f"was not ready in {self._start_s:g} s")
                self._start_s = min(2 * self._start_s, LONGEST_BOOT * self._boot_s)
                return late
        if self.unanswered:
            return Kill(f"has not answered for {self._answer_s:g} s")
        return Kill(f"has not ended in {self._boot_s:g} s")

    def started(self, now: float) -> None:
        """Note that a process was requested; an earlier one that has not started yet is disregarded."""
        self.state = ProcessState.STARTING
        self._boot_until = now + self._start_s

    def ready(self) -> None:
        """Note that the process takes orders."""
        self._start_s = self._boot_s
        if self.state is ProcessState.STARTING:
            self.state = ProcessState.SERVING

    def ordered(self, order: Hashable, now: float) -> None:
        """Note that an order was sent."""
        self.unanswered[order] = now + self._answer_s

    def answered(self, order: Hashable, now: float) -> None:
        """Note that an order was answered, or that its answer is no longer needed."""
        self.unanswered.pop(order, None)
        if self.state is ProcessState.REPLACING:
            self._boot_until = now + self._boot_s

    def succeeded(self) -> None:
        """Reset the pauses: the process has carried out an order."""
        self._backoff.succeeded()

    def failed(self, now: float) -> None:
        """Pause before the next order: this one could not be carried out."""
        if self.state is ProcessState.SERVING:
            self.state = ProcessState.RETRYING
            # Does not grow: what the order needs may be back any time.
            self._retry_at = now + self._retry_s

    def hurry(self) -> None:
        """End the pause before the next order."""
        if self.state is ProcessState.RETRYING:
            self.state = ProcessState.SERVING

    def replace(self, now: float) -> None:
        """Replace the process by another one."""
        if self.state in (ProcessState.STARTING, ProcessState.SERVING, ProcessState.RETRYING):
            self.state = ProcessState.REPLACING
            self._boot_until = now + self._boot_s

    def retire(self) -> None:
        """Start no process after this one, unless it was killed already."""
        if self.state in (ProcessState.STARTING, ProcessState.SERVING):
            self.state = ProcessState.RETIRED

    def killed(self, reason: str) -> None:
        """Note that the process was killed; its orders stay unanswered until it has ended, since
        its last messages may answer them.
        """
        self.cause = reason
        self.state = ProcessState.CLOSED if self.state is ProcessState.RETIRED else ProcessState.KILLED

    def ended(self, cause: str, now: float) -> None:
        """Note that the process has ended, or could not be started."""
        self.unanswered.clear()
        match self.state:
            case ProcessState.CLOSED:
                return
            case ProcessState.RETIRED:
                self.state, self.cause = ProcessState.CLOSED, cause
            case ProcessState.REPLACING:
                self.state = ProcessState.PAUSING
                self._backoff.succeeded()
            case before:
                self.cause = self.cause if before is ProcessState.KILLED else cause
                self.state = ProcessState.PAUSING
                self._backoff.failed(now)

    def close(self) -> None:
        """Start no more processes, unless `reopen` is called."""
        self.state = ProcessState.CLOSED

    def reopen(self) -> None:
        """Start processes again, as the first one."""
        self.state, self.cause = ProcessState.PAUSING, ""
        self._start_s = self._boot_s
        self.unanswered.clear()
        self._backoff.succeeded()

    @property
    def failing(self) -> bool:
        """Whether there is no process, and the last ones have failed."""
        return self.state not in (ProcessState.SERVING, ProcessState.RETRYING) and self._backoff.failures > 1

    def problem(self, now: float) -> str:
        """Return why there is no process, or why it is unreliable; or blank."""
        deaths = self._backoff.failures
        text = f"{self.cause}, {deaths} deaths in a row" if deaths > 1 else self.cause
        match self.state:
            case ProcessState.KILLED:
                return f"{self.cause}; it is killed"
            case ProcessState.PAUSING if deaths:
                return f"{text}; the next one starts in {self._backoff.remaining_s(now):.0f} s"
            case ProcessState.STARTING if deaths:
                return f"{text}; the next one is starting"
            case ProcessState.SERVING if deaths > 1 and now - self._backoff.due < self._steady_s:
                return text
        return ""
