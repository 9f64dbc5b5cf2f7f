# SPDX-License-Identifier: BSD-3-Clause
"""A worker's slot as pure code: events in, actions out, one state, one table.

Covers every decision about one slot: what its worker is told, how long it may
take, when it is stopped, what outcome its visit gets. Does not cover who gets
which visit (`ppdaemon.node.slots.scheduler`), nor any I/O (`ppdaemon.node.slots.pool`).
"""

import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ppdaemon import messages
from ppdaemon.config import WorkersConfig
from ppdaemon.node.slots import events
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.budget import RestartBudget
from ppdaemon.processes import signal_name
from ppdaemon.states import BUSY_STATES, ExitCode, Outcome, SlotState, Stage

__all__ = ("InvalidTransition", "Slot", "TABLE")

S = SlotState
Actions = list[events.Action]
STORY = 40
JITTER = 0.1
"""Recycling comes up to a tenth sooner or later."""
MOST_RAWS = 32
"""Exposures of one visit at the most; further ones are not taken."""
RESCAN_S = 2.0
"""How long the last look at the expected names may take."""


@dataclass(frozen=True, slots=True)
class PendingOutcome:
    """The outcome of a visit whose worker is being stopped."""

    outcome: Outcome
    reason: str
    retriable: bool
    done: messages.Done | None = None
    """What the worker still said before it went."""


class InvalidTransition(Exception):
    """An event that cannot happen in this state; carries the story."""


class Slot:
    """A permanent place for a worker; workers come and go in it.

    Parameters
    ----------
    number : `int`
        The slot's number.
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
        self.visit_number = 0
        """Visits that the present worker was given."""
        self.used_bytes = 0
        self.repo_bytes = 0
        self.note = ""
        """Why the worker was last stopped."""
        self.after_death = S.BACKOFF
        """Where death leads: `BACKOFF` or `STOPPED`."""
        self.story: deque[tuple[float, SlotState, object]] = deque(maxlen=STORY)
        self.config = config
        self._budget = RestartBudget(jitter)
        self._verdict: PendingOutcome | None = None
        self._jitter = jitter
        self._last_visit = config.recycle_visits
        self._last_moment = 0.0
        self._cpu_from = (0, 0.0)
        """A visit's number, and the CPU time when it was first weighed."""

    def open(self, now: float) -> Actions:
        """Fill the slot for the first time.

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

    def handle(self, event: object, now: float) -> Actions:
        """Decide what follows from an event.

        Parameters
        ----------
        event : `object`
            One of `ppdaemon.node.slots.events`, or a worker's fact.
        now : `float`
            Monotonic seconds.

        Returns
        -------
        actions : `list`
            To be performed in order.

        Raises
        ------
        InvalidTransition
            Raised if the table has no entry; the slot is as before.
        """
        self.story.append((now, self.state, event))
        if isinstance(event, messages.Fact):
            if event.visit_number < self.visit_number:
                return []  # late words about an earlier visit
            if event.visit_number > self.visit_number:
                return self._refuse(
                    events.ProtocolViolation(f"{type(event).__name__} of visit {event.visit_number}"), now
                )
        rule = TABLE.get((self.state, type(event))) or ANY_STATE.get(type(event))
        if rule is None:
            if isinstance(event, messages.Fact):
                return self._refuse(
                    events.ProtocolViolation(f"{type(event).__name__} while {self.state}"), now
                )
            raise InvalidTransition(self.tell())
        return rule(self, event, now)

    # --- STARTING --------------------------------------------------------

    def _forked(self, event: events.WorkerForked, now: float) -> Actions:
        self.pid = event.pid
        self._budget.forked()
        return []

    def _not_forked(self, event: events.WorkerNotForked, now: float) -> Actions:
        self.note = f"not forked: {event.reason}"
        return self._without_process(now)

    def _without_process(self, now: float) -> Actions:
        """There is no process, and one that still comes is refused by its epoch."""
        if self.after_death == S.STOPPED:
            return self._go(S.STOPPED, now, None)
        return self._go(S.BACKOFF, now, now + self._budget.put_off(now))

    def _ready(self, event: messages.Ready, now: float) -> Actions:
        self.served = True
        return self._free(now)

    def _kill_late_starter(self, event: events.DeadlinePassed, now: float) -> Actions:
        self.note = f"not ready after {self.config.times.boot_s:g} s"
        return self._kill(now) if self.pid is not None else self._without_process(now)

    def _restart_starter(self, event: events.RestartAsked, now: float) -> Actions:
        return self._restart(event, now) if self.pid is not None else self._fork(now)

    def _kill_starter(self, event: events.KillAsked, now: float) -> Actions:
        return self._kill_asked(event, now) if self.pid is not None else self._without_process(now)

    # --- a visit ---------------------------------------------------------

    def _prepare(self, event: events.VisitAssigned, now: float) -> Actions:
        assignment = event.assignment
        self.visit_number += 1
        self.assignment = assignment
        order = messages.Prepare(
            visit_number=self.visit_number,
            visit=assignment.visit,
            detector=assignment.key.detector,
            attempt=assignment.key.attempt,
            pipelines=assignment.pipelines,
        )
        return [
            events.NoteStage(assignment.key, Stage.ASSIGNED),
            events.Send(order),
            *self._go(S.PREPARING, now, now + self.config.times.prepare_s),
        ]

    def _keep_raw(self, event: events.RawArrived, now: float) -> Actions:
        """Remember a raw that came while the worker was still preparing."""
        held = self._held
        if self._superfluous(event.raw):
            return []
        self.assignment = replace(held, raws=(*held.raws, event.raw), came_at=now)
        return [] if held.raws else [events.NoteStage(held.key, Stage.ARRIVED, event.raw.seen_tai)]

    def _keep_list(self, event: events.ExposureListed, now: float) -> Actions:
        held = self._held
        if event.exposure not in dict(held.lists) and len(held.lists) < MOST_RAWS:
            self.assignment = replace(held, lists=(*held.lists, (event.exposure, event.included)))
        return []

    def _superfluous(self, raw: messages.Raw) -> bool:
        return self._held.has(raw.exposure) or len(self._held.raws) >= MOST_RAWS

    def _wait(self, event: messages.Prepared, now: float) -> Actions:
        held = self._held
        waiting = self._go(S.WAITING, now, max(held.wait_until, now))
        ingest = [events.Send(messages.Ingest(raw=raw)) for raw in held.raws]
        ended = self._end_wait(now) if held.complete else []
        noted = [events.NoteStage(held.key, Stage.PREPARED), *_figures(held.key, event.detail)]
        return [*noted, *waiting, *ingest, *ended]

    def _ingest(self, event: events.RawArrived, now: float) -> Actions:
        if self._superfluous(event.raw):
            return []
        return [
            *self._keep_raw(event, now),
            events.Send(messages.Ingest(raw=event.raw)),
            self._deadline_of_wait(now),
        ]

    def _list(self, event: events.ExposureListed, now: float) -> Actions:
        return [*self._keep_list(event, now), *self._wait_on(now)]

    def _ingested(self, event: messages.Ingested, now: float) -> Actions:
        held = self._held
        if not held.has(event.exposure) or event.exposure in held.ingested:
            return self._refuse(
                events.ProtocolViolation(f"ingested exposure {event.exposure}, not asked for"), now
            )
        self.assignment = held = replace(held, ingested=tuple(sorted((*held.ingested, event.exposure))))
        return [events.NoteRaw(held.key, held.ingested, event.shutter_close_tai), *self._wait_on(now)]

    def _raw_refused(self, event: messages.RawRefused, now: float) -> Actions:
        held = self._held
        if not held.has(event.exposure) or event.exposure in (*held.ingested, *held.refused):
            return self._refuse(
                events.ProtocolViolation(f"refused exposure {event.exposure}, not asked for"), now
            )
        self.assignment = held = replace(
            held, refused=(*held.refused, event.exposure), remarks=(*held.remarks, event.reason)
        )
        if held.complete and not held.ingested:
            return self._give_up(event.outcome, "", now)
        return self._wait_on(now)

    def _wait_on(self, now: float) -> Actions:
        """Run, if that was all."""
        return self._end_wait(now) if self._held.complete else [self._deadline_of_wait(now)]

    def _deadline_of_wait(self, now: float) -> events.SetDeadline:
        held, at = self._held, self._held.wait_until
        if self.state == S.RESCANNING:  # what is being ingested still counts
            at = self.since + (RESCAN_S if held.settled else self.config.times.ingest_s)
        return events.SetDeadline(max(at, now))

    def _process(self, now: float) -> Actions:
        held = self._held
        return [
            events.NoteStage(held.key, Stage.INGESTED),
            events.Send(messages.Process(exposures=held.ingested, partial=held.partial)),
            *self._go(S.PROCESSING, now, now + self.config.times.run_s),
        ]

    def _look(self, event: events.DeadlinePassed, now: float) -> Actions:
        """Time is over; an event of a raw may have been lost."""
        return [events.RescanRaws(self._held.key), *self._go(S.RESCANNING, now, now + RESCAN_S)]

    def _looked(self, event: events.RescanDone, now: float) -> Actions:
        return self._end_wait(now) if self._held.settled else [self._deadline_of_wait(now)]

    def _no_more_raws(self, event: events.DeadlinePassed, now: float) -> Actions:
        if self._held.settled:
            return self._end_wait(now)
        limit_s = self.config.times.ingest_s
        if now >= self.since + limit_s:
            return self._overdue(Outcome.RUN_TIMEOUT, "ingest", limit_s, now)
        return [self._deadline_of_wait(now)]

    def _end_wait(self, now: float) -> Actions:
        """Run with what there is, or give up."""
        held = self._held
        if held.ingested:
            return self._process(now)
        if held.refused:
            return self._give_up(Outcome.BAD_RAW, "no usable raw came in time", now)
        without = held.all_came
        reason = "the exposures were taken without this detector" if without else "no raw came in time"
        return self._give_up(Outcome.NO_IMAGE, reason, now)

    def _give_up(self, outcome: Outcome, reason: str, now: float) -> Actions:
        return [
            *self._finish(outcome, reason),
            events.Send(messages.GiveUp(reason=outcome)),
            *self._free(now),
        ]

    def _stage(self, event: messages.StageReached, now: float) -> Actions:
        key = self._held.key
        noted: Actions = [events.NoteStage(key, event.stage, event.tai), *_figures(key, event.detail)]
        if self.state == S.PROCESSING and event.stage == Stage.PROCESSED:
            return [*noted, *self._go(S.EXPORTING, now, now + self.config.times.export_s)]
        return noted

    def _no_return(self, event: messages.PointOfNoReturn, now: float) -> Actions:
        if self.assignment is not None and not self.assignment.no_return:
            self.assignment = replace(self.assignment, no_return=event.what)
        return []

    def _done(self, event: messages.Done, now: float) -> Actions:
        done = self._finish_done(event)
        if event.tainted:
            return [*done, *self._quit(f"recycled: its visit changed {event.tainted}", now)]
        return [*done, *self._free(now)]

    def _done_at_last(self, event: messages.Done, now: float) -> Actions:
        """The worker ended its visit although it is being stopped."""
        if self.assignment is not None:
            self._verdict = PendingOutcome(event.outcome, event.reason, event.retriable, event)
        return []

    def _cancel_waiting(self, event: events.CancelReceived, now: float) -> Actions:
        done = self._finish(Outcome.CANCELLED, event.reason)
        return [*done, events.Send(messages.GiveUp(reason="cancelled")), *self._free(now)]

    def _cancel_preparing(self, event: events.CancelReceived, now: float) -> Actions:
        # The worker may be deep in a query: a fork is sooner than its end.
        verdict = PendingOutcome(Outcome.CANCELLED, event.reason, retriable=False)
        return self._stop(verdict, "its visit was cancelled", now)

    # --- limits ----------------------------------------------------------

    def _overdue(self, outcome: Outcome, what: str, limit_s: float, now: float) -> Actions:
        text = f"{what} took more than {limit_s:g} s"
        return self._stop(PendingOutcome(outcome, text, retriable=True), text, now)

    def _prepare_overdue(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._overdue(Outcome.PREPARE_TIMEOUT, "preparation", self.config.times.prepare_s, now)

    def _run_overdue(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._overdue(Outcome.RUN_TIMEOUT, "the pipeline", self.config.times.run_s, now)

    def _export_overdue(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._overdue(Outcome.EXPORT_TIMEOUT, "spooling", self.config.times.export_s, now)

    def _grace_over(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._kill(now)

    def _unkillable(self, event: events.DeadlinePassed, now: float) -> Actions:
        self.note = f"process {self.pid} survives KILL"
        return [*self._judge(retriable=False), *self._go(S.UNKILLABLE, now, None)]

    def _weigh(self, event: events.MemorySampled, now: float) -> Actions:
        self._note_weight(event, now)
        memory, cpu_limit_s = self.config.memory, self.config.times.cpu_s
        if event.repo_bytes > memory.ramdisk:
            text = f"{event.repo_bytes / 1e6:.0f} MB on the RAM disk, {memory.ramdisk / 1e6:.0f} MB allowed"
            verdict = PendingOutcome(Outcome.RAMDISK_FULL, text, retriable=False)
        elif event.used_bytes > memory.hard:
            text = f"{event.used_bytes / 1e6:.0f} MB used, {memory.hard / 1e6:.0f} MB allowed"
            verdict = PendingOutcome(Outcome.OUT_OF_MEMORY, text, retriable=False)
        elif self.assignment is not None and event.cpu_s - self._cpu_from[1] > cpu_limit_s:
            text = f"the visit took more than {cpu_limit_s:g} s of CPU time"
            verdict = PendingOutcome(Outcome.RUN_TIMEOUT, text, retriable=True)
        else:
            return []
        return self._stop(verdict, verdict.reason, now)

    def _note_weight(self, event: events.MemorySampled, now: float) -> Actions:
        self.used_bytes, self.repo_bytes = event.used_bytes, event.repo_bytes
        if self._cpu_from[0] != self.visit_number:
            self._cpu_from = (self.visit_number, event.cpu_s)
        return []

    def _refuse(self, event: events.ProtocolViolation, now: float) -> Actions:
        """Words that make no sense: this worker cannot be trusted."""
        if self.state in BUSY_STATES | {S.STARTING, S.IDLE}:
            text = f"the worker said nonsense: {event.reason}"
            return self._stop(PendingOutcome(Outcome.CRASHED, text, retriable=True), text, now)
        return []

    # --- death -----------------------------------------------------------

    def _died(self, event: events.WorkerDied, now: float) -> Actions:
        """Nobody asked it to: a crash."""
        state, self.pid = self.state, None
        self.note = f"worker {manner(event.status)} while {state}"
        outcome = Outcome.CRASHED
        if event.out_of_memory:
            outcome = Outcome.OUT_OF_MEMORY
            self.note += ": the kernel killed it for its memory"
        finish: Actions = []
        if self.assignment is not None:
            retriable = outcome == Outcome.CRASHED
            finish = self._finish(outcome, self.note, retriable=retriable, may_have_left=True)
        if state == S.STARTING and event.status == ExitCode.CONFIG:
            self.note = "quarantined: the worker says that its configuration is wrong; see its log"
            return [*finish, events.WipeRepo(), *self._go(S.QUARANTINED, now, None)]
        if self.after_death == S.STOPPED:
            return [*finish, events.WipeRepo(), *self._go(S.STOPPED, now, None)]
        return [*finish, events.WipeRepo(), *self._back_off(now)]

    def _stopped_died(self, event: events.WorkerDied, now: float) -> Actions:
        """It was told to go."""
        self.pid = None
        judged = self._judge()
        if self.after_death == S.STOPPED:
            return [*judged, events.WipeRepo(), *self._go(S.STOPPED, now, None)]
        if not self.served:  # stopped at boot: that is a failure like a crash there
            return [*judged, events.WipeRepo(), *self._back_off(now)]
        return [*judged, events.WipeRepo(), *self._go(S.BACKOFF, now, now)]

    def _fork_again(self, event: object, now: float) -> Actions:
        return self._fork(now)

    def _age_out(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._quit_of_age(now)

    # --- operators -------------------------------------------------------

    def _restart(self, event: events.RestartAsked, now: float) -> Actions:
        verdict = PendingOutcome(Outcome.INTERRUPTED, "an operator restarted the worker", retriable=True)
        return self._stop(verdict, "restarted by an operator", now)

    def _restart_now(self, event: events.RestartAsked, now: float) -> Actions:
        self._budget.forgive()
        return self._fork(now)

    def _recycle(self, event: events.RecycleAsked, now: float) -> Actions:
        return self._quit("recycled: the configuration is new", now)

    def _recycle_later(self, event: events.RecycleAsked, now: float) -> Actions:
        self._last_moment = now
        return []

    def _kill_asked(self, event: events.KillAsked, now: float) -> Actions:
        self.note = event.reason
        if self.assignment is not None and self._verdict is None:
            self._verdict = PendingOutcome(Outcome.INTERRUPTED, event.reason, retriable=True)
        return self._kill(now)

    def _retire(self, event: events.RetireAsked, now: float) -> Actions:
        self.after_death = S.STOPPED
        return self._quit("retired", now)

    def _retire_later(self, event: events.RetireAsked, now: float) -> Actions:
        self.after_death = S.STOPPED
        return []

    def _retire_empty(self, event: events.RetireAsked, now: float) -> Actions:
        self.after_death = S.STOPPED
        return self._go(S.STOPPED, now, None)

    def _ignore(self, event: object, now: float) -> Actions:
        return []

    # --- small steps -----------------------------------------------------

    def _go(self, state: SlotState, now: float, deadline: float | None) -> Actions:
        before, self.state, self.since = self.state, state, now
        deadline_action = events.ClearDeadline() if deadline is None else events.SetDeadline(deadline)
        return [deadline_action, events.SlotChanged(before, state)]

    @property
    def _held(self) -> Assignment:
        assert self.assignment is not None, self.tell()
        return self.assignment

    def _fork(self, now: float) -> Actions:
        self.epoch += 1
        self.pid = None
        self.served = False
        self.visit_number = 0
        self.used_bytes = self.repo_bytes = 0
        self._cpu_from = (0, 0.0)
        self.after_death = S.BACKOFF
        # Workers that were born together should not be replaced together.
        stretch = 1.0 + JITTER * (2.0 * self._jitter() - 1.0)
        self._last_visit = max(1, round(self.config.recycle_visits * stretch))
        self._last_moment = now + self.config.recycle_age_s * stretch
        return [events.Fork(self.epoch), *self._go(S.STARTING, now, now + self.config.times.boot_s)]

    def _finish(
        self, outcome: Outcome, reason: str = "", *, retriable: bool = False, may_have_left: bool = False
    ) -> Actions:
        assignment, self.assignment = self._held, None
        retriable = retriable and not assignment.no_return
        reason = assignment.with_remarks(reason)
        return [events.Finish(assignment, outcome, reason, retriable, may_have_left=may_have_left)]

    def _finish_done(self, done: messages.Done) -> Actions:
        assignment, self.assignment = self._held, None
        if done.nothing_permanent:
            assignment = replace(assignment, no_return="")
        return [
            events.Finish(
                assignment,
                done.outcome,
                assignment.with_remarks(done.reason),
                done.retriable and not assignment.no_return,
                done.pipeline,
                done.engine,
                done.spool,
                done.datasets,
                may_have_left=done.spool is None and done.outcome != Outcome.SUCCEEDED,
            )
        ]

    def _free(self, now: float) -> Actions:
        """After a visit: idle again, or replaced if it is time."""
        if self.used_bytes > self.config.memory.soft:
            return self._quit(f"recycled: {self.used_bytes / 1e6:.0f} MB after the visit", now)
        if self.visit_number >= self._last_visit:
            return self._quit(f"recycled after {self.visit_number} visits", now)
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
        return [events.Send(messages.Quit()), *self._go(S.STOPPING, now, now + self.config.times.grace_s)]

    def _stop(self, verdict: PendingOutcome | None, note: str, now: float) -> Actions:
        """Climb the ladder: TERM now, KILL after the grace."""
        self.note = note
        self._verdict = verdict if self.assignment else None
        return [events.Signal(signal.SIGTERM), *self._go(S.STOPPING, now, now + self.config.times.grace_s)]

    def _kill(self, now: float) -> Actions:
        return [events.Signal(signal.SIGKILL), *self._go(S.KILLING, now, now + self.config.times.kill_s)]

    def _judge(self, *, retriable: bool = True) -> Actions:
        """Give the visit of a stopped worker its outcome, if it has none."""
        verdict, self._verdict = self._verdict, None
        if self.assignment is None:
            return []
        if verdict is None:
            return self._finish(Outcome.CRASHED, self.note, retriable=retriable, may_have_left=True)
        if verdict.done is not None:
            return self._finish_done(verdict.done)
        retriable = verdict.retriable and retriable
        return self._finish(verdict.outcome, verdict.reason, retriable=retriable, may_have_left=True)

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


def _figures(key: Key, detail: Mapping[str, Any]) -> Actions:
    """Keep what a worker tells of a step; most have nothing to tell."""
    return [events.NoteMeasurements(key, detail)] if detail else []


Rule = Callable[..., Actions]

TABLE: dict[tuple[SlotState, type], Rule] = {
    (S.STARTING, events.WorkerForked): Slot._forked,
    (S.STARTING, events.WorkerNotForked): Slot._not_forked,
    (S.STARTING, messages.Ready): Slot._ready,
    (S.STARTING, events.DeadlinePassed): Slot._kill_late_starter,
    (S.STARTING, events.RestartAsked): Slot._restart_starter,
    (S.STARTING, events.KillAsked): Slot._kill_starter,
    (S.STARTING, events.RetireAsked): Slot._retire_later,
    (S.STARTING, events.RecycleAsked): Slot._recycle_later,
    (S.IDLE, events.VisitAssigned): Slot._prepare,
    (S.IDLE, events.DeadlinePassed): Slot._age_out,
    (S.IDLE, messages.Ingested): Slot._ignore,  # it was on its way when the visit was cancelled
    (S.IDLE, messages.RawRefused): Slot._ignore,
    (S.IDLE, events.RetireAsked): Slot._retire,
    (S.IDLE, events.RecycleAsked): Slot._recycle,
    (S.PREPARING, events.RawArrived): Slot._keep_raw,
    (S.PREPARING, events.ExposureListed): Slot._keep_list,
    (S.PREPARING, messages.Prepared): Slot._wait,
    (S.PREPARING, messages.StageReached): Slot._stage,
    (S.PREPARING, messages.Done): Slot._done,
    (S.PREPARING, events.CancelReceived): Slot._cancel_preparing,
    (S.PREPARING, events.DeadlinePassed): Slot._prepare_overdue,
    (S.WAITING, events.DeadlinePassed): Slot._look,
    (S.RESCANNING, events.RescanDone): Slot._looked,
    (S.RESCANNING, events.DeadlinePassed): Slot._no_more_raws,
    (S.PROCESSING, messages.StageReached): Slot._stage,
    (S.PROCESSING, messages.Done): Slot._done,
    (S.PROCESSING, events.DeadlinePassed): Slot._run_overdue,
    (S.EXPORTING, messages.StageReached): Slot._stage,
    (S.EXPORTING, messages.Done): Slot._done,
    (S.EXPORTING, events.DeadlinePassed): Slot._export_overdue,
    (S.STOPPING, events.DeadlinePassed): Slot._grace_over,
    (S.STOPPING, events.WorkerDied): Slot._stopped_died,
    (S.STOPPING, messages.Done): Slot._done_at_last,
    (S.STOPPING, events.RestartAsked): Slot._ignore,
    (S.KILLING, events.DeadlinePassed): Slot._unkillable,
    (S.KILLING, events.WorkerDied): Slot._stopped_died,
    (S.KILLING, messages.Done): Slot._done_at_last,
    (S.KILLING, events.RestartAsked): Slot._ignore,
    (S.KILLING, events.KillAsked): Slot._ignore,
    (S.UNKILLABLE, events.WorkerDied): Slot._stopped_died,
    (S.UNKILLABLE, events.RestartAsked): Slot._ignore,
    (S.UNKILLABLE, events.KillAsked): Slot._ignore,
    (S.BACKOFF, events.DeadlinePassed): Slot._fork_again,
    (S.BACKOFF, events.RestartAsked): Slot._restart_now,
    (S.BACKOFF, events.KillAsked): Slot._ignore,
    (S.BACKOFF, events.RetireAsked): Slot._retire_empty,
    (S.QUARANTINED, events.RestartAsked): Slot._restart_now,
    (S.QUARANTINED, events.KillAsked): Slot._ignore,
    (S.QUARANTINED, events.RetireAsked): Slot._retire_empty,
    (S.QUARANTINED, events.RecycleAsked): Slot._restart_now,
    (S.STOPPED, events.RestartAsked): Slot._restart_now,
    (S.STOPPED, events.KillAsked): Slot._ignore,
}
"""What each state does with each event."""

TABLE |= {(state, events.RecycleAsked): Slot._recycle_later for state in BUSY_STATES}

_WAITING = {
    (state, event): rule
    for state in (S.WAITING, S.RESCANNING)
    for event, rule in (
        (events.RawArrived, Slot._ingest),
        (messages.Ingested, Slot._ingested),
        (messages.RawRefused, Slot._raw_refused),
        (events.ExposureListed, Slot._list),
        (messages.StageReached, Slot._stage),
        (events.CancelReceived, Slot._cancel_waiting),
    )
}
_LIVING = {
    (state, event): rule
    for state in (S.STARTING, S.IDLE, *BUSY_STATES)
    for event, rule in (
        (events.WorkerDied, Slot._died),
        (events.RestartAsked, Slot._restart),
        (events.MemorySampled, Slot._weigh),
    )
}
TABLE = _LIVING | _WAITING | TABLE

ANY_STATE: dict[type, Rule] = {
    # A raw, a list, a cancellation or a sample may cross the end of a visit;
    # memory of a worker that is going already changes nothing.
    events.RawArrived: Slot._ignore,
    events.ExposureListed: Slot._ignore,
    events.RescanDone: Slot._ignore,
    events.CancelReceived: Slot._ignore,
    events.DeadlinePassed: Slot._ignore,
    events.MemorySampled: Slot._note_weight,
    events.ProtocolViolation: Slot._refuse,
    messages.PointOfNoReturn: Slot._no_return,
    events.RetireAsked: Slot._retire_later,
    events.KillAsked: Slot._kill_asked,
    # Who comes next here is of the new configuration anyway.
    events.RecycleAsked: Slot._ignore,
}
"""What holds where the table says nothing."""
