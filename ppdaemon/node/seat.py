# SPDX-License-Identifier: BSD-3-Clause
"""What every seat has and can: its data, and the steps that rules are made of.

Covers how a seat changes its state and how a visit gets its outcome. When
that is done is decided in `ppdaemon.node.slot`.
"""

import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from ppdaemon.config import WorkersConfig
from ppdaemon.messages import Done, Quit
from ppdaemon.node.assignment import Assignment
from ppdaemon.node.budget import RestartBudget
from ppdaemon.node.events import (
    Action,
    ClearDeadline,
    Finish,
    Fork,
    SeatChanged,
    Send,
    SetDeadline,
    Signal,
)
from ppdaemon.processes import signal_name
from ppdaemon.states import Outcome, SlotState

__all__ = ("Actions", "Seat", "Verdict", "manner")

S = SlotState
Actions = list[Action]
STORY = 40
JITTER = 0.1
"""Recycling comes up to a tenth sooner or later."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a visit whose worker is being stopped."""

    outcome: Outcome
    reason: str
    retriable: bool
    done: Done | None = None
    """What the worker still said before it went."""


class Seat:
    """A permanent seat; workers come and go in it.

    Parameters
    ----------
    number : `int`
        The seat's number.
    config : `~ppdaemon.config.WorkersConfig`
        Times and limits.
    jitter : `~collections.abc.Callable`
        Random numbers in [0, 1).
    """

    def __init__(self, number: int, config: WorkersConfig, jitter: Callable[[], float]):
        self.number = number
        self.state = S.BACKOFF
        self.since = 0.0
        self.epoch = 0
        self.pid: int | None = None
        self.assignment: Assignment | None = None
        self.served = False
        """Whether the present worker was ever ready."""
        self.serial = 0
        """Visits that the present worker was given."""
        self.used_bytes = 0
        self.repo_bytes = 0
        self.note = ""
        """Why the worker was last stopped."""
        self.after_death = S.BACKOFF
        """Where death leads: `BACKOFF` or `STOPPED`."""
        self.story: deque[tuple[float, SlotState, object]] = deque(maxlen=STORY)
        self._config = config
        self._budget = RestartBudget(jitter)
        self._verdict: Verdict | None = None
        self._jitter = jitter
        self._last_visit = config.recycle_visits
        self._last_moment = 0.0
        self._cpu_from = (0, 0.0)
        """A visit's serial, and the CPU time when it was first weighed."""

    def open(self, now: float) -> Actions:
        """Fill the seat for the first time.

        Parameters
        ----------
        now : `float`
            Monotonic seconds.

        Returns
        -------
        actions : `list`
            To be performed in order.
        """
        return self._fork(now)

    def reconfigure(self, config: WorkersConfig) -> None:
        """Go by other times and limits from now on.

        Parameters
        ----------
        config : `~ppdaemon.config.WorkersConfig`
            Times and limits; the present state's deadline stays.
        """
        self._config = config

    def tell(self) -> str:
        """Return the last events, for a log.

        Returns
        -------
        story : `str`
            One line each.
        """
        lines = [
            f"{now:.3f} {state} {type(event).__name__} {event}"[:200] for now, state, event in self.story
        ]
        return f"slot {self.number} epoch {self.epoch}:\n" + "\n".join(lines)

    # --- small steps -----------------------------------------------------

    def _go(self, state: SlotState, now: float, deadline: float | None) -> Actions:
        before, self.state, self.since = self.state, state, now
        deadline_action = ClearDeadline() if deadline is None else SetDeadline(deadline)
        return [deadline_action, SeatChanged(before, state)]

    @property
    def _held(self) -> Assignment:
        assert self.assignment is not None, self.tell()
        return self.assignment

    def _fork(self, now: float) -> Actions:
        self.epoch += 1
        self.pid = None
        self.served = False
        self.serial = 0
        self.used_bytes = self.repo_bytes = 0
        self._cpu_from = (0, 0.0)
        self.after_death = S.BACKOFF
        # Workers that were born together should not be replaced together.
        stretch = 1.0 + JITTER * (2.0 * self._jitter() - 1.0)
        self._last_visit = max(1, round(self._config.recycle_visits * stretch))
        self._last_moment = now + self._config.recycle_age_s * stretch
        return [Fork(self.epoch), *self._go(S.STARTING, now, now + self._config.times.boot_s)]

    def _finish(
        self, outcome: Outcome, reason: str = "", *, retriable: bool = False, worker_lost: bool = False
    ) -> Actions:
        assignment, self.assignment = self._held, None
        retriable = retriable and not assignment.no_return
        reason = assignment.with_remarks(reason)
        return [Finish(assignment, outcome, reason, retriable, worker_lost=worker_lost)]

    def _finish_done(self, done: Done) -> Actions:
        assignment, self.assignment = self._held, None
        if done.nothing_permanent:
            assignment = replace(assignment, no_return="")
        return [
            Finish(
                assignment,
                done.outcome,
                assignment.with_remarks(done.reason),
                done.retriable and not assignment.no_return,
                done.pipeline,
                done.engine,
                done.spool,
                done.datasets,
            )
        ]

    def _free(self, now: float) -> Actions:
        """After a visit: idle again, or replaced if it is time."""
        if self.used_bytes > self._config.memory.soft:
            return self._quit(f"recycled: {self.used_bytes / 1e6:.0f} MB after the visit", now)
        if self.serial >= self._last_visit:
            return self._quit(f"recycled after {self.serial} visits", now)
        if now >= self._last_moment:
            return self._quit_of_age(now)
        if self.after_death == S.STOPPED:
            return self._quit("retired", now)
        return self._go(S.IDLE, now, self._last_moment)

    def _quit_of_age(self, now: float) -> Actions:
        return self._quit("recycled at its age", now)

    def _quit(self, note: str, now: float) -> Actions:
        """Part in peace: the worker ends itself, or is terminated."""
        self.note = note
        return [Send(Quit()), *self._go(S.STOPPING, now, now + self._config.times.grace_s)]

    def _stop(self, verdict: Verdict | None, note: str, now: float) -> Actions:
        """Climb the ladder: TERM now, KILL after the grace."""
        self.note = note
        self._verdict = verdict if self.assignment else None
        return [Signal(signal.SIGTERM), *self._go(S.STOPPING, now, now + self._config.times.grace_s)]

    def _kill(self, now: float) -> Actions:
        return [Signal(signal.SIGKILL), *self._go(S.KILLING, now, now + self._config.times.kill_s)]

    def _judge(self, *, retriable: bool = True) -> Actions:
        """Give the visit of a stopped worker its outcome, if it has none."""
        verdict, self._verdict = self._verdict, None
        if self.assignment is None:
            return []
        if verdict is None:
            return self._finish(Outcome.CRASHED, self.note, retriable=retriable, worker_lost=True)
        if verdict.done is not None:
            return self._finish_done(verdict.done)
        retriable = verdict.retriable and retriable
        return self._finish(verdict.outcome, verdict.reason, retriable=retriable, worker_lost=True)

    def _back_off(self, now: float) -> Actions:
        pause = self._budget.failed(now)
        if pause is None:
            self.note = f"quarantined after repeated failures, last: {self.note}"
            return self._go(S.QUARANTINED, now, None)
        return self._go(S.BACKOFF, now, now + pause)


def manner(status: int | None) -> str:
    """Say how a process ended."""
    if status is None:
        return "died"
    if status < 0:
        return f"killed by {signal_name(-status)}"
    return f"exited with status {status}"
