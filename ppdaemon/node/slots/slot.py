# SPDX-License-Identifier: BSD-3-Clause
"""The state machine of a worker's slot, pure: events in, actions out, one state, one table.

Covers every decision about one slot: the orders to its worker, time limits, when the worker is
stopped, and the outcome of its visit. Does not cover which visit a slot gets
(`ppdaemon.node.slots.scheduler`), nor any I/O (`ppdaemon.node.slots.pool`).
"""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ppdaemon import messages
from ppdaemon.config import WorkersConfig
from ppdaemon.node.slots import events
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.budget import RestartBudget
from ppdaemon.node.slots.usage import Usage
from ppdaemon.processes import STOP_SIGNAL, describe_end
from ppdaemon.states import BUSY_STATES, ExitCode, Outcome, SlotState, Stage

__all__ = ("InvalidTransition", "Slot", "TABLE")

S = SlotState
Actions = list[events.Action]
STORY_EVENTS = 40
"""Events that are logged when an impossible one occurs."""
MAX_RAWS = 32
"""Maximum of exposures per visit; further ones are ignored, so that the assignment stays bounded."""
RESCAN_S = 2.0
"""Time limit of the final rescan for expected raws."""


@dataclass(frozen=True, slots=True)
class PendingOutcome:
    """The outcome of a visit whose worker is being stopped."""

    outcome: Outcome
    reason: str
    retriable: bool
    done: messages.Done | None = None
    """The result that the worker sent before it ended."""


class InvalidTransition(Exception):
    """An event that is impossible in this state; its text has the last events."""


class Slot:
    """A permanent position for a worker; workers are replaced in it. `jitter` returns random
    numbers in [0, 1).
    """

    def __init__(self, number: int, config: WorkersConfig, jitter: Callable[[], float]):
        self.number = number
        self.state = S.BACKOFF
        self.since = 0.0
        self.epoch = 0
        self.pid: int | None = None
        self.assignment: Assignment | None = None
        self.was_ready = False
        """Whether the present worker was ever ready."""
        self.visit_number = 0
        """Number of visits assigned to the present worker."""
        self.usage = Usage(jitter)
        self.note = ""
        """Why the last worker was stopped."""
        self.after_exit = S.BACKOFF
        """The state after the worker's exit: `BACKOFF` or `STOPPED`."""
        self.story: deque[tuple[float, SlotState, object]] = deque(maxlen=STORY_EVENTS)
        self.config = config
        self._budget = RestartBudget(jitter)
        self._pending: PendingOutcome | None = None
        self._tainted = ""
        """What the present visit has left in the worker's process, as far as it is known."""

    @property
    def quarantined(self) -> bool:
        """Whether no worker can start here as far as is known, also while one is tried."""
        return self._budget.exhausted

    def open(self, now: float) -> Actions:
        """Fork the first worker."""
        return self._fork(now)

    def format_story(self) -> str:
        """Return the last events for the log, one line each."""
        lines = [
            f"{now:.3f} {state} {type(event).__name__} {event}"[:200] for now, state, event in self.story
        ]
        return f"slot {self.number} epoch {self.epoch}:\n" + "\n".join(lines)

    def handle(self, event: object, now: float) -> Actions:
        """Return the actions that follow from an event at a monotonic time, in order. Raise
        `InvalidTransition` if the table has no entry; the slot is unchanged then.
        """
        self.story.append((now, self.state, event))
        if isinstance(event, messages.Fact):
            # Before the table: a fact of another visit must not change this one.
            if event.visit_number < self.visit_number:
                return []  # a late message about an earlier visit
            if event.visit_number > self.visit_number:
                return self._stop_faulty(
                    events.ProtocolViolation(f"{type(event).__name__} of visit {event.visit_number}"), now
                )
        rule = TABLE.get((self.state, type(event))) or ANY_STATE.get(type(event))
        if rule is None:
            if isinstance(event, messages.Fact):
                return self._stop_faulty(
                    events.ProtocolViolation(f"{type(event).__name__} while {self.state}"), now
                )
            raise InvalidTransition(self.format_story())
        return rule(self, event, now)

    # --- STARTING --------------------------------------------------------

    def _set_pid(self, event: events.WorkerForked, now: float) -> Actions:
        self.pid = event.pid
        return []

    def _retry_fork(self, event: events.WorkerNotForked, now: float) -> Actions:
        self.note = f"not forked: {event.reason}"
        return self._back_off_without_process(now)

    def _back_off_without_process(self, now: float) -> Actions:
        """Wait for the next fork. A process that still arrives is refused because of its epoch."""
        if self.after_exit == S.STOPPED:
            return self._enter(S.STOPPED, now, None)
        return self._enter(S.BACKOFF, now, now + self._budget.fork_failed(now))

    def _mark_ready(self, event: messages.Ready, now: float) -> Actions:
        self.was_ready = True
        self._budget.ready()
        return self._idle_or_recycle(now)

    def _kill_slow_start(self, event: events.DeadlinePassed, now: float) -> Actions:
        self.note = f"not ready after {self.config.times.boot_s:g} s"
        return self._kill(now) if self.pid is not None else self._back_off_without_process(now)

    def _restart_start(self, event: events.RestartRequested, now: float) -> Actions:
        return self._restart(event, now) if self.pid is not None else self._fork(now)

    def _kill_start(self, event: events.KillRequested, now: float) -> Actions:
        return self._kill_now(event, now) if self.pid is not None else self._back_off_without_process(now)

    # --- a visit ---------------------------------------------------------

    def _prepare(self, event: events.VisitAssigned, now: float) -> Actions:
        assignment, self._tainted = event.assignment, ""
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
            *self._enter(S.PREPARING, now, now + self.config.times.prepare_s),
        ]

    def _store_raw(self, event: events.RawArrived, now: float) -> Actions:
        """Store a raw that arrived before the worker was prepared; another file of the same exposure
        replaces it.
        """
        current = self._current
        if current.has(event.raw.exposure):
            self.assignment = current.with_other_file(event.raw)
            return []
        if self._is_surplus(event.raw):
            return []
        self.assignment = current._replace(raws=(*current.raws, event.raw), last_raw_at=now)
        return [] if current.raws else [events.NoteStage(current.key, Stage.ARRIVED, event.raw.seen_tai)]

    def _store_list(self, event: events.ExposureListed, now: float) -> Actions:
        current = self._current
        if event.exposure not in dict(current.detector_lists) and len(current.detector_lists) < MAX_RAWS:
            self.assignment = current._replace(
                detector_lists=(*current.detector_lists, (event.exposure, event.included))
            )
        return []

    def _is_surplus(self, raw: messages.Raw) -> bool:
        return self._current.has(raw.exposure) or len(self._current.raws) >= MAX_RAWS

    def _wait_for_raws(self, event: messages.Prepared, now: float) -> Actions:
        current, self._tainted = self._current._replace(pipeline=event.pipeline), event.tainted
        self.assignment = current
        # Entered first: `_process_or_give_up` may leave the state again.
        waiting = self._enter(S.WAITING, now, max(current.wait_deadline, now))
        ingest = [events.Send(messages.Ingest(raw=raw)) for raw in current.raws]
        ended = self._process_or_give_up(now) if current.complete else []
        notes = [events.NoteStage(current.key, Stage.PREPARED), *_measurements(current.key, event.detail)]
        return [*notes, *waiting, *ingest, *ended]

    def _ingest(self, event: events.RawArrived, now: float) -> Actions:
        current, raw = self._current, event.raw
        if current.has(raw.exposure):
            before = next(each for each in current.raws if each.exposure == raw.exposure)
            if raw.exposure in current.ingested or raw.is_same_file(before):
                return []
            self.assignment = current.with_other_file(raw)
            if raw.exposure in current.refused:
                return [events.Send(messages.Ingest(raw=raw)), self._wait_deadline(now)]
            # The worker has an order for the former file: this one follows if that is refused.
            self.assignment = self.assignment._replace(replaced=(*current.replaced, raw.exposure))
            return []
        if self._is_surplus(event.raw):
            return []
        return [
            *self._store_raw(event, now),
            events.Send(messages.Ingest(raw=event.raw)),
            self._wait_deadline(now),
        ]

    def _use_list(self, event: events.ExposureListed, now: float) -> Actions:
        return [*self._store_list(event, now), *self._process_if_complete(now)]

    def _record_ingest(self, event: messages.Ingested, now: float) -> Actions:
        current = self._current
        if not current.has(event.exposure) or event.exposure in current.ingested:
            return self._stop_faulty(
                events.ProtocolViolation(f"exposure {event.exposure} was ingested without an order"), now
            )
        self.assignment = current = current._replace(
            ingested=tuple(sorted((*current.ingested, event.exposure)))
        )
        return [
            events.NoteRaw(current.key, current.ingested, event.shutter_close_tai),
            *self._process_if_complete(now),
        ]

    def _record_refusal(self, event: messages.RawRefused, now: float) -> Actions:
        current = self._current
        if not current.has(event.exposure) or event.exposure in (*current.ingested, *current.refused):
            return self._stop_faulty(
                events.ProtocolViolation(f"exposure {event.exposure} was refused without an order"), now
            )
        if event.exposure in current.replaced:
            others = tuple(exposure for exposure in current.replaced if exposure != event.exposure)
            self.assignment = current._replace(replaced=others)
            raw = next(each for each in current.raws if each.exposure == event.exposure)
            return [events.Send(messages.Ingest(raw=raw)), self._wait_deadline(now)]
        self.assignment = current = current._replace(
            refused=(*current.refused, event.exposure), remarks=(*current.remarks, event.reason)
        )
        if current.complete and not current.ingested:
            return self._give_up_visit(event.outcome, "", now)
        return self._process_if_complete(now)

    def _process_if_complete(self, now: float) -> Actions:
        """Process if all raws are ingested or refused, else adapt the deadline."""
        return self._process_or_give_up(now) if self._current.complete else [self._wait_deadline(now)]

    def _wait_deadline(self, now: float) -> events.SetDeadline:
        current, at = self._current, self._current.wait_deadline
        if self.state == S.RESCANNING:  # a raw that is being ingested is still used
            at = self.since + (RESCAN_S if current.all_resolved else self.config.times.ingest_s)
        return events.SetDeadline(max(at, now))

    def _process(self, now: float) -> Actions:
        current = self._current
        self.assignment = current._replace(run_until=now + self.config.times.run_s)
        return [
            events.NoteStage(current.key, Stage.INGESTED),
            events.Send(messages.Process(exposures=current.ingested, partial=current.partial)),
            *self._enter(S.PROCESSING, now, self._current.run_until),
        ]

    def _rescan(self, event: events.DeadlinePassed, now: float) -> Actions:
        """Rescan the raw roots at the deadline: an event of a raw may have been lost."""
        return [events.RescanRaws(self._current.key), *self._enter(S.RESCANNING, now, now + RESCAN_S)]

    def _end_rescan(self, event: events.RescanDone, now: float) -> Actions:
        if not self._current.all_resolved:
            return [self._wait_deadline(now)]
        return self._process_or_give_up(now, event)

    def _end_wait(self, event: events.DeadlinePassed, now: float) -> Actions:
        if self._current.all_resolved:
            return self._process_or_give_up(now)
        limit_s = self.config.times.ingest_s
        if now >= self.since + limit_s:
            return self._stop_overdue(Outcome.RUN_TIMEOUT, "ingest", limit_s, now)
        return [self._wait_deadline(now)]

    def _process_or_give_up(self, now: float, rescan: events.RescanDone | None = None) -> Actions:
        """Process the ingested raws, or end the visit if there are none; the reason names the files that
        the final rescan found and that are not used.
        """
        current = self._current
        if current.ingested:
            return self._process(now)
        if current.refused:
            return self._give_up_visit(Outcome.BAD_RAW, "no usable raw arrived in time", now)
        without = current.all_arrived
        reason = "the exposures were taken without this detector" if without else "no raw arrived in time"
        if rescan is None or not rescan.not_taken:
            return self._give_up_visit(Outcome.NO_IMAGE, reason, now)
        return [
            events.NoteMeasurements(current.key, {"files_not_taken": rescan.not_taken}),
            *self._give_up_visit(Outcome.NO_IMAGE, f"{reason}; {rescan.text}", now),
        ]

    def _give_up_visit(self, outcome: Outcome, reason: str, now: float) -> Actions:
        return [
            *self._finish(outcome, reason),
            events.Send(messages.GiveUp(reason=outcome)),
            *self._idle_or_recycle(now),
        ]

    def _record_stage(self, event: messages.StageReached, now: float) -> Actions:
        key = self._current.key
        notes: Actions = [events.NoteStage(key, event.stage, event.tai), *_measurements(key, event.detail)]
        if self.state == S.PROCESSING and event.stage == Stage.PROCESSED:
            return [*notes, *self._enter(S.EXPORTING, now, now + self.config.times.export_s)]
        return notes

    def _ask_to_cross(self, event: messages.MayCross, now: float) -> Actions:
        current = self._current
        if current.no_return or (current.may_spool and not event.what):
            return [events.Send(messages.Cross())]
        self.assignment = current._replace(at_door=event.what)
        asked: Actions = [events.AskToCross(current.key, event.what)]
        if self.state == S.EXPORTING:  # a spool waits no less than a task
            asked.append(events.SetDeadline(max(current.run_until, now + self.config.times.export_s)))
        return asked

    def _cross(self, event: events.CrossingAllowed, now: float) -> Actions:
        current = self._current
        if current.at_door != event.what:
            return []
        self.assignment = current._replace(at_door=None, no_return=event.what, may_spool=True)
        crossing: Actions = [events.Send(messages.Cross())]
        if self.state == S.EXPORTING:
            crossing.append(events.SetDeadline(now + self.config.times.export_s))
        return crossing

    def _withdraw(self, event: events.Withdrawn, now: float) -> Actions:
        """End a visit that this node may not finish, unless it has written something already."""
        if self._current.may_spool:
            return []
        pending = PendingOutcome(Outcome.CANCELLED, event.reason, retriable=False)
        return self._stop(pending, "its visit was withdrawn by the relay", now)

    def _withdraw_waiting(self, event: events.Withdrawn, now: float) -> Actions:
        return self._cancel(events.CancelReceived(event.reason), now)

    def _finish_visit(self, event: messages.Done, now: float) -> Actions:
        # A visit that ends before it is processed shows nothing of its pipeline.
        done = self._finish_done(event, worker_died=None if self.state == S.PREPARING else False)
        self._tainted = event.tainted
        return [*done, *self._idle_or_recycle(now)]

    def _note_imports(self, event: messages.ImportsMeasured, now: float) -> Actions:
        return [events.NoteImports(event.modules, event.seconds, event.memory_bytes)]

    def _accept_late_result(self, event: messages.Done, now: float) -> Actions:
        """Store the result of a visit whose worker is being stopped."""
        if self.assignment is not None:
            self._pending = PendingOutcome(event.outcome, event.reason, event.retriable, event)
        return []

    def _cancel(self, event: events.CancelReceived, now: float) -> Actions:
        done = self._finish(Outcome.CANCELLED, event.reason)
        return [*done, events.Send(messages.GiveUp(reason="cancelled")), *self._idle_or_recycle(now)]

    def _cancel_preparing(self, event: events.CancelReceived, now: float) -> Actions:
        # The worker may be in a long query: a new fork is available sooner.
        pending = PendingOutcome(Outcome.CANCELLED, event.reason, retriable=False)
        return self._stop(pending, "its visit was canceled", now)

    # --- limits ----------------------------------------------------------

    def _stop_overdue(self, outcome: Outcome, what: str, limit_s: float, now: float) -> Actions:
        text = f"{what} took more than {limit_s:g} s"
        return self._stop(PendingOutcome(outcome, text, retriable=True), text, now)

    def _stop_slow_prepare(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._stop_overdue(Outcome.PREPARE_TIMEOUT, "preparation", self.config.times.prepare_s, now)

    def _stop_slow_run(self, event: events.DeadlinePassed, now: float) -> Actions:
        if self._current.at_door is not None:
            return self._stop_without_permit(now)
        return self._stop_overdue(Outcome.RUN_TIMEOUT, "the pipeline", self.config.times.run_s, now)

    def _stop_slow_export(self, event: events.DeadlinePassed, now: float) -> Actions:
        if self._current.at_door is not None:
            return self._stop_without_permit(now)
        return self._stop_overdue(Outcome.EXPORT_TIMEOUT, "spooling", self.config.times.export_s, now)

    def _stop_without_permit(self, now: float) -> Actions:
        text = f"no permit for {self._current.at_door or 'its outputs'} in time: the relay did not answer"
        return self._stop(PendingOutcome(Outcome.INTERRUPTED, text, retriable=True), text, now)

    def _kill_after_grace(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._kill(now)

    def _mark_unkillable(self, event: events.DeadlinePassed, now: float) -> Actions:
        self.note = f"process {self.pid} does not end after KILL; its slot is not used until it does"
        # No second attempt: this process may still write.
        return [*self._finish_stopped(retriable=False), *self._enter(S.UNKILLABLE, now, None)]

    def _check_limits(self, event: events.MemorySampled, now: float) -> Actions:
        self._record_usage(event, now)
        excess = self.usage.exceeded(event, self.config, in_visit=self.assignment is not None)
        if excess is None:
            return []
        return self._stop(PendingOutcome(*excess), excess.text, now)

    def _record_usage(self, event: events.MemorySampled, now: float) -> Actions:
        self.usage.add(event, self.visit_number)
        return []

    def _stop_faulty(self, event: events.ProtocolViolation, now: float) -> Actions:
        """Stop a worker that sent an invalid message: its further messages cannot be trusted."""
        if self.state in BUSY_STATES | {S.STARTING, S.IDLE}:
            text = f"invalid message from the worker: {event.reason}"
            return self._stop(PendingOutcome(Outcome.CRASHED, text, retriable=True), text, now)
        return []

    # --- death -----------------------------------------------------------

    def _handle_crash(self, event: events.WorkerDied, now: float) -> Actions:
        """End the visit and replace the worker, which ended without an order."""
        state, self.pid = self.state, None
        self.note = f"worker {describe_end(event.status)} while {state}"
        outcome = Outcome.CRASHED
        if event.out_of_memory:
            outcome = Outcome.OUT_OF_MEMORY
            self.note += ": the kernel killed it because of its memory"
        finish: Actions = []
        if self.assignment is not None:
            # Not where memory was exceeded: the second attempt would exceed it, too.
            retriable = outcome == Outcome.CRASHED
            worker_died = None if event.by_others or event.out_of_memory else True
            finish = self._finish(
                outcome, self.note, retriable=retriable, may_have_leftovers=True, worker_died=worker_died
            )
        # Wiped before the pause: the next fork waits for the deletion.
        return [*finish, events.WipeRepo(), *self._replace_crashed(event, state, now)]

    def _replace_crashed(self, event: events.WorkerDied, state: SlotState, now: float) -> Actions:
        """Enter the state that follows from the death of a worker in a `state`."""
        if state == S.STARTING and event.status == ExitCode.CONFIG:
            self.note = (
                "quarantined: the worker reported a wrong configuration; see its log, then correct it and"
                " reload, or restart the slot"
            )
            self._budget.exhaust()
            return self._enter(S.QUARANTINED, now, None)
        if self.after_exit == S.STOPPED:
            return self._enter(S.STOPPED, now, None)
        if state in BUSY_STATES:  # whatever the cause, it is not the slot
            return self._enter(S.BACKOFF, now, now + self._budget.pause_s())
        if event.by_others:
            return self._enter(S.BACKOFF, now, now + self._budget.fork_failed(now))
        return self._back_off(now)

    def _handle_stop(self, event: events.WorkerDied, now: float) -> Actions:
        """Replace the worker, which was ordered to end."""
        self.pid = None
        finished = self._finish_stopped()
        if self.after_exit == S.STOPPED:
            following = self._enter(S.STOPPED, now, None)
        elif self.was_ready:
            following = self._enter(S.BACKOFF, now, now)
        else:  # stopped while starting: counted like a crash while starting
            following = self._back_off(now)
        return [*finished, events.WipeRepo(), *following]

    def _fork_again(self, event: object, now: float) -> Actions:
        return self._fork(now)

    def _recycle_old(self, event: events.DeadlinePassed, now: float) -> Actions:
        return self._recycle(self.usage.because, now)

    # --- operators -------------------------------------------------------

    def _restart(self, event: events.RestartRequested, now: float) -> Actions:
        pending = PendingOutcome(Outcome.INTERRUPTED, "an operator restarted the worker", retriable=True)
        return self._stop(pending, "restarted by an operator", now)

    def _restart_now(self, event: events.RestartRequested, now: float) -> Actions:
        self._budget.reset()
        return self._fork(now)

    def _recycle(self, event: events.RecycleRequested, now: float) -> Actions:
        return self._quit(event.note, now, event.cause)

    def _recycle_later(self, event: events.RecycleRequested, now: float) -> Actions:
        self.usage.request(event, now)
        return []

    def _kill_now(self, event: events.KillRequested, now: float) -> Actions:
        self.note = event.reason
        if self.assignment is not None and self._pending is None:
            self._pending = PendingOutcome(Outcome.INTERRUPTED, event.reason, retriable=True)
        return self._kill(now)

    def _retire(self, event: events.RetireRequested, now: float) -> Actions:
        self.after_exit = S.STOPPED
        return self._quit("retired", now)

    def _retire_later(self, event: events.RetireRequested, now: float) -> Actions:
        self.after_exit = S.STOPPED
        return []

    def _close(self, event: events.RetireRequested, now: float) -> Actions:
        self.after_exit = S.STOPPED
        return self._enter(S.STOPPED, now, None)

    def _ignore(self, event: object, now: float) -> Actions:
        return []

    # --- small steps -----------------------------------------------------

    def _enter(self, state: SlotState, now: float, deadline: float | None) -> Actions:
        before, self.state, self.since = self.state, state, now
        deadline_action = events.ClearDeadline() if deadline is None else events.SetDeadline(deadline)
        return [deadline_action, events.SlotChanged(before, state)]

    @property
    def _current(self) -> Assignment:
        assert self.assignment is not None, self.format_story()
        return self.assignment

    def _fork(self, now: float) -> Actions:
        self.epoch += 1
        self.pid = None
        self.was_ready = False
        self.visit_number = 0
        self.usage.start(self.config, now)
        self.after_exit = S.BACKOFF
        return [events.Fork(self.epoch), *self._enter(S.STARTING, now, now + self.config.times.boot_s)]

    def _finish(
        self,
        outcome: Outcome,
        reason: str = "",
        *,
        retriable: bool = False,
        may_have_leftovers: bool = False,
        worker_died: bool | None = None,
    ) -> Actions:
        assignment, self.assignment = self._current, None
        # Past the point of no return a second attempt would write twice.
        retriable = retriable and not assignment.no_return
        reason = assignment.with_remarks(reason)
        return [
            events.Finish(
                assignment,
                outcome,
                reason,
                retriable,
                may_have_leftovers=may_have_leftovers,
                worker_died=worker_died,
            )
        ]

    def _finish_done(self, done: messages.Done, *, worker_died: bool | None = None) -> Actions:
        assignment, self.assignment = self._current, None
        if done.nothing_permanent:
            assignment = assignment._replace(no_return="")
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
                done.fallback,
                may_have_leftovers=done.spool is None and done.outcome != Outcome.SUCCEEDED,
                worker_died=worker_died,
            )
        ]

    def _idle_or_recycle(self, now: float) -> Actions:
        """Become idle after a visit, or recycle the worker if it is due."""
        tainted, self._tainted = self._tainted, ""  # the next worker has left nothing
        if tainted:
            return self._quit(f"recycled: its visit left {tainted}", now, "leftovers")
        if reason := self.usage.due(self.config.memory, self.visit_number, now):
            return self._recycle(reason, now)
        if self.after_exit == S.STOPPED:
            return self._quit("retired", now)
        return self._enter(S.IDLE, now, self.usage.recycle_at)

    def _quit(self, note: str, now: float, cause: str = "") -> Actions:
        """Order the worker to end; it is killed if it has not ended after the grace period. With a
        cause it is counted as recycled.
        """
        self.note = note
        return [
            *([events.NoteRecycled(cause, note)] if cause else []),
            events.Send(messages.Quit()),
            *self._enter(S.STOPPING, now, now + self.config.times.grace_s),
        ]

    def _stop(self, pending: PendingOutcome | None, note: str, now: float) -> Actions:
        """Send the stop signal now, and KILL after the grace period."""
        self.note = note
        self._pending = pending if self.assignment else None
        return [events.Signal(STOP_SIGNAL), *self._enter(S.STOPPING, now, now + self.config.times.grace_s)]

    def _kill(self, now: float) -> Actions:
        return [events.Signal(signal.SIGKILL), *self._enter(S.KILLING, now, now + self.config.times.kill_s)]

    def _finish_stopped(self, *, retriable: bool = True) -> Actions:
        """End the visit of a stopped worker, if it has one, with its pending outcome."""
        pending, self._pending = self._pending, None
        if self.assignment is None:
            return []
        if pending is None:
            return self._finish(Outcome.CRASHED, self.note, retriable=retriable, may_have_leftovers=True)
        if pending.done is not None:
            return self._finish_done(pending.done)
        retriable = pending.retriable and retriable
        return self._finish(pending.outcome, pending.reason, retriable=retriable, may_have_leftovers=True)

    def _back_off(self, now: float) -> Actions:
        pause = self._budget.failed(now)
        if pause is None:
            probe_s = self.config.times.probe_s
            advice = f"a worker is tried every {probe_s:g} s"
            self.note = f"quarantined after repeated failures, last: {self.note}; {advice}"
            return self._enter(S.QUARANTINED, now, now + probe_s)
        return self._enter(S.BACKOFF, now, now + pause)


def _measurements(key: Key, detail: Mapping[str, Any]) -> Actions:
    """Return the action that records the measurements of a step, if there are any."""
    return [events.NoteMeasurements(key, detail)] if detail else []


type Handler = Callable[..., Actions]


def _each(
    states: Iterable[SlotState], rules: Mapping[type, Handler]
) -> dict[tuple[SlotState, type], Handler]:
    """Return rows that several states have."""
    return {(state, event): rule for state in states for event, rule in rules.items()}


TABLE: dict[tuple[SlotState, type], Handler] = {
    **_each(
        (S.STARTING, S.IDLE, *BUSY_STATES),
        {
            events.WorkerDied: Slot._handle_crash,
            events.RestartRequested: Slot._restart,
            events.MemorySampled: Slot._check_limits,
        },
    ),
    **_each(BUSY_STATES, {events.RecycleRequested: Slot._recycle_later}),
    **_each(
        (S.WAITING, S.RESCANNING),
        {
            events.RawArrived: Slot._ingest,
            messages.Ingested: Slot._record_ingest,
            messages.RawRefused: Slot._record_refusal,
            events.ExposureListed: Slot._use_list,
            messages.StageReached: Slot._record_stage,
            events.CancelReceived: Slot._cancel,
            events.Withdrawn: Slot._withdraw_waiting,
        },
    ),
    **_each(
        (S.PREPARING, S.PROCESSING, S.EXPORTING),
        {
            messages.MayCross: Slot._ask_to_cross,
            events.CrossingAllowed: Slot._cross,
            events.Withdrawn: Slot._withdraw,
        },
    ),
    # The rows of a single state replace those above.
    (S.STARTING, events.WorkerForked): Slot._set_pid,
    (S.STARTING, events.WorkerNotForked): Slot._retry_fork,
    (S.STARTING, messages.Ready): Slot._mark_ready,
    (S.STARTING, events.DeadlinePassed): Slot._kill_slow_start,
    (S.STARTING, events.RestartRequested): Slot._restart_start,
    (S.STARTING, events.KillRequested): Slot._kill_start,
    (S.STARTING, events.RetireRequested): Slot._retire_later,
    (S.STARTING, events.RecycleRequested): Slot._recycle_later,
    (S.IDLE, events.VisitAssigned): Slot._prepare,
    (S.IDLE, events.DeadlinePassed): Slot._recycle_old,
    (S.IDLE, messages.Ingested): Slot._ignore,  # sent before the worker received the cancellation
    (S.IDLE, messages.RawRefused): Slot._ignore,
    (S.IDLE, events.RetireRequested): Slot._retire,
    (S.IDLE, events.RecycleRequested): Slot._recycle,
    (S.PREPARING, events.RawArrived): Slot._store_raw,
    (S.PREPARING, events.ExposureListed): Slot._store_list,
    (S.PREPARING, messages.Prepared): Slot._wait_for_raws,
    (S.PREPARING, messages.StageReached): Slot._record_stage,
    (S.PREPARING, messages.Done): Slot._finish_visit,
    (S.PREPARING, events.CancelReceived): Slot._cancel_preparing,
    (S.PREPARING, events.DeadlinePassed): Slot._stop_slow_prepare,
    (S.WAITING, events.DeadlinePassed): Slot._rescan,
    (S.RESCANNING, events.RescanDone): Slot._end_rescan,
    (S.RESCANNING, events.DeadlinePassed): Slot._end_wait,
    (S.PROCESSING, messages.StageReached): Slot._record_stage,
    (S.PROCESSING, messages.Done): Slot._finish_visit,
    (S.PROCESSING, events.DeadlinePassed): Slot._stop_slow_run,
    (S.EXPORTING, messages.StageReached): Slot._record_stage,
    (S.EXPORTING, messages.Done): Slot._finish_visit,
    (S.EXPORTING, events.DeadlinePassed): Slot._stop_slow_export,
    (S.STOPPING, events.DeadlinePassed): Slot._kill_after_grace,
    (S.STOPPING, events.WorkerDied): Slot._handle_stop,
    (S.STOPPING, messages.Done): Slot._accept_late_result,
    (S.STOPPING, events.RestartRequested): Slot._ignore,
    (S.KILLING, events.DeadlinePassed): Slot._mark_unkillable,
    (S.KILLING, events.WorkerDied): Slot._handle_stop,
    (S.KILLING, messages.Done): Slot._accept_late_result,
    (S.KILLING, events.RestartRequested): Slot._ignore,
    (S.KILLING, events.KillRequested): Slot._ignore,
    (S.UNKILLABLE, events.WorkerDied): Slot._handle_stop,
    (S.UNKILLABLE, events.RestartRequested): Slot._ignore,
    (S.UNKILLABLE, events.KillRequested): Slot._ignore,
    (S.BACKOFF, events.DeadlinePassed): Slot._fork_again,
    (S.BACKOFF, events.RestartRequested): Slot._restart_now,
    (S.BACKOFF, events.KillRequested): Slot._ignore,
    (S.BACKOFF, events.RetireRequested): Slot._close,
    (S.QUARANTINED, events.DeadlinePassed): Slot._fork_again,
    (S.QUARANTINED, events.RestartRequested): Slot._restart_now,
    (S.QUARANTINED, events.KillRequested): Slot._ignore,
    (S.QUARANTINED, events.RetireRequested): Slot._close,
    (S.QUARANTINED, events.RecycleRequested): Slot._restart_now,
    (S.STOPPED, events.RestartRequested): Slot._restart_now,
    (S.STOPPED, events.KillRequested): Slot._ignore,
}
"""The handler of each event in each state."""

ANY_STATE: dict[type, Handler] = {
    # A raw, a list, a cancellation or a sample may arrive after the end of its
    # visit; a worker that is stopped already is not stopped for its memory.
    events.RawArrived: Slot._ignore,
    events.ExposureListed: Slot._ignore,
    events.RescanDone: Slot._ignore,
    events.CancelReceived: Slot._ignore,
    events.DeadlinePassed: Slot._ignore,
    events.MemorySampled: Slot._record_usage,
    events.ProtocolViolation: Slot._stop_faulty,
    events.CrossingAllowed: Slot._ignore,
    events.Withdrawn: Slot._ignore,
    messages.ImportsMeasured: Slot._note_imports,
    events.RetireRequested: Slot._retire_later,
    events.KillRequested: Slot._kill_now,
    # The next worker of this slot has the new configuration anyway.
    events.RecycleRequested: Slot._ignore,
}
"""Handlers for events that the table does not have in the present state."""
