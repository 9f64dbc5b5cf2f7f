# SPDX-License-Identifier: BSD-3-Clause
"""Performs the actions of all slots.

Covers channels, pidfds, signals, deadlines and RAM-disk repos of all workers, without a thread
or a task per worker. Decisions are made in `ppdaemon.node.slots.slot`; actions that concern a
visit are posted to the visits.
"""

import asyncio
import logging
import math
import random
import select
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import BadMessage
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import FACTS, PACKET_LIMIT, Forked, ForkFailed, ForkWorker, Reaped
from ppdaemon.node.processes.child import REAPED_WAIT_S, ChildProcess, adopt, wipe
from ppdaemon.node.slots import events
from ppdaemon.node.slots.cgroups import Cgroups
from ppdaemon.node.slots.deadlines import Deadlines
from ppdaemon.node.slots.slot import InvalidTransition, Slot
from ppdaemon.states import SlotState
from ppdaemon.wire import decode, encode

__all__ = ("Pool", "VisitAction")

_LOG = logging.getLogger(__name__)

READ_AT_ONCE = 2
"""Messages of workers that are handled before other tasks run: some 2 ms. When all detectors of an exposure
answer, the raws that are still to be ordered would wait for the messages of all the others."""
HELD_S = 0.2
"""How long at most no message of a worker is handled while raws are checked: the threads that read them share
the interpreter with the event loop, and wait for it after each system call. For as long again none is held
afterwards: raws that arrive without end must not stop the workers."""
SETTLE_S = 0.03
"""How long at most they are held afterwards, and not longer than before: the workers with the last orders of
a burst get the cores before those whose next order would follow."""
LOOK_AGAIN_S = 0.002
"""Pause before the next look whether messages are still held."""
AVOIDABLE = frozenset({"leftovers", "memory"})
"""Causes of a new worker that depend on tasks and configuration."""

VisitAction = (
    events.Finish
    | events.AskToCross
    | events.NoteStage
    | events.NoteMeasurements
    | events.NoteRaw
    | events.NoteRecycled
    | events.RescanRaws
)


@dataclass(eq=False)
class Pool:
    """All slots of a node. `request_fork` returns whether the order was sent to a zygote; `post`
    takes the actions that concern visits.
    """

    config: NodeConfig
    clock: Clock
    request_fork: Callable[[ForkWorker], bool]
    post: Callable[[VisitAction], None]
    count: Counter[str]
    urgent: Callable[[], bool] = lambda: False
    """Whether something is under way that the messages of workers must not delay."""

    def __post_init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.cgroups = Cgroups.claim(self.config.workers)
        self._folders = NodeFolders.of(self.config)
        self._watchers: list[Callable[[Slot, events.SlotChanged], None]] = []
        self._children: dict[int, ChildProcess] = {}
        # One descriptor for all channels: the loop would call the reader of each that has a message, and
        # reports those again in each turn.
        self._channels = select.epoll()
        self._by_channel: dict[int, ChildProcess] = {}
        self._held_since = -math.inf
        self._settled_at = -math.inf
        self._calm = True
        """Whether nothing urgent was under way at some time since then."""
        self._resuming: asyncio.TimerHandle | None = None
        self._statuses: dict[int, int] = {}
        self._unreaped: set[int] = set()  # dead, and the exit status is unknown
        self._late_imports: set[str] = set()  # logged since the configuration was loaded
        self._deadlines = Deadlines()
        self._wiping: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._listen()
        # Once: for each packet the system would map new memory of this size, and unmap it again.
        self._packet = memoryview(bytearray(PACKET_LIMIT + 1))

    # --- from the supervisor ---------------------------------------------

    def watch(self, changed: Callable[[Slot, events.SlotChanged], None]) -> None:
        """Call a function after each change of a slot's state from now on."""
        self._watchers.append(changed)

    def open_slot(self) -> Slot:
        """Open a new slot, or one that was stopped before, and fork its worker."""
        stopped = (slot for slot in self.slots.values() if slot.state == SlotState.STOPPED)
        slot = next(stopped, None)
        if slot is None:
            slot = Slot(len(self.slots), self.config.workers, random.random)
            self.slots[slot.number] = slot
        self._perform(slot, slot.open(self.clock.mono()))
        return slot

    def reconfigure(self, config: NodeConfig) -> None:
        """Use another configuration; workers of the old one are replaced after their visits."""
        self.config = config
        self._late_imports.clear()
        self.cgroups.config = config.workers
        for slot in self.slots.values():
            slot.config = config.workers  # the deadline of the present state stays
            self.handle(slot.number, events.RecycleRequested())

    def pids(self) -> dict[int, int]:
        """Return the process ids of the workers by slot."""
        return {number: child.pid for number, child in self._children.items()}

    def idle_visits(self) -> dict[int, int]:
        """Return how many visits workers have had that have none now, by slot."""
        slots = map(self.slots.__getitem__, self._children)
        return {slot.number: slot.visit_number for slot in slots if slot.state == SlotState.IDLE}

    def used_bytes(self) -> int:
        """Return the memory and RAM-disk repos of all workers, as last sampled."""
        return sum(self.slots[number].usage.used_bytes for number in self._children)

    @property
    def holds(self) -> bool:
        """Whether messages of workers wait for the orders of a burst of raws."""
        return self._resuming is not None

    def handle(self, number: int, event: object) -> None:
        """Give a slot an event and perform its actions. An event that is impossible in its state
        is logged and counted: it must not stop the daemon.
        """
        slot = self.slots[number]
        try:
            actions = slot.handle(event, self.clock.mono())
        except InvalidTransition:
            self.count["invalid_transition"] += 1
            with _about(slot):
                _LOG.exception("slot %d cannot handle %r in its state; the event is ignored", number, event)
            return
        self._perform(slot, actions)

    def deadline_of(self, number: int) -> float | None:
        """Return when the time limit of a slot's state passes, in monotonic seconds, or `None`."""
        return self._deadlines.of(number)

    def state_counts(self) -> Counter[SlotState]:
        """Count the slots in each state."""
        return Counter(slot.state for slot in self.slots.values())

    def close(self) -> None:
        """Kill all workers and close their descriptors; the lifeline ends those that KILL does
        not end at once.
        """
        if self._timer:
            self._timer.cancel()
        for child in self._children.values():
            self._unwatch(child)
            child.signal(signal.SIGKILL)
            child.close()
        self._children.clear()
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._channels.fileno())
        self._channels.close()
        self.cgroups.close()

    # --- from the zygote -------------------------------------------------

    def forked(self, message: Forked, descriptors: list[int]) -> None:
        """Take over a freshly forked worker; `descriptors` are its channel and pidfd."""
        # Before the checks: the descriptors have to be closed in any case.
        child = adopt(message, descriptors)
        slot = self.slots.get(message.slot)
        if slot is None or slot.epoch != message.epoch or slot.state != SlotState.STARTING:
            with log.about(slot=message.slot, epoch=message.epoch):
                _LOG.warning(
                    "a worker of slot %d epoch %d started too late; it is killed", message.slot, message.epoch
                )
            child.signal(signal.SIGKILL)
            child.close()
            return
        self._children[message.slot] = child
        # Before its first order: what a process has allocated is not moved with it.
        self.cgroups.add_worker(child.slot, child.pid)
        self._watch(child)
        self.handle(message.slot, events.WorkerForked(message.pid))

    def not_forked(self, message: ForkFailed) -> None:
        """Report a failed fork to its slot."""
        self.count["fork_failed"] += 1
        slot = self.slots[message.slot]
        if slot.epoch == message.epoch and slot.state == SlotState.STARTING:
            self.handle(message.slot, events.WorkerNotForked(message.reason))

    def reaped(self, message: Reaped) -> None:
        """Store a dead process's exit status until its pidfd is read; usually it was read before,
        since the kernel reports both at once.
        """
        child = next((child for child in self._children.values() if child.pid == message.pid), None)
        if child is None:
            return
        self._statuses[message.pid] = message.status
        if message.pid in self._unreaped:
            self._report_death(child)

    # --- from the workers ------------------------------------------------

    def _listen(self) -> None:
        """Read messages as soon as none is held any more."""
        # The kernel looks through all channels when this descriptor is watched: once, not at each look.
        if self._holds(self._loop.time()):
            self._resuming = self._loop.call_later(LOOK_AGAIN_S, self._listen)
            return
        self._resuming = None
        self._loop.add_reader(self._channels.fileno(), self._read_some)

    def _read_some(self) -> None:
        """Handle one message each of some workers. The event loop calls this again while there are others;
        the kernel names the workers in turn: one that sends without end does not stop the others.
        """
        if self._holds(self._loop.time()):
            # Not only this call: the loop would make it again and again.
            self._loop.remove_reader(self._channels.fileno())
            self._listen()
            return
        for number, _ in self._channels.poll(0, READ_AT_ONCE):
            if child := self._by_channel.get(number):  # not closed because of the messages before
                self._read(child)

    def _holds(self, now: float) -> bool:
        """Return whether the messages of workers have to wait now."""
        if self.urgent():
            if self._calm and now - self._held_since >= 2 * HELD_S:
                self._held_since, self._calm = now, False
            self._settled_at = now + min(SETTLE_S, now - self._held_since)
        elif now >= self._settled_at or self._calm:
            self._calm = True
            return False
        return now - self._held_since < HELD_S

    def _read(self, child: ChildProcess) -> None:
        """Handle one message of a worker."""
        try:
            size = child.channel.recv_into(self._packet)
        except BlockingIOError:
            return
        except OSError as error:
            with _about(self.slots[child.slot]):
                _LOG.warning("channel of slot %d cannot be read and is closed: %s", child.slot, error)
            size = 0
        if not size:
            self._ignore(child)
            return
        try:
            event: object = decode(bytes(self._packet[:size]), FACTS, limit=PACKET_LIMIT)
        except BadMessage as error:
            self.count[f"bad_words.{error.kind}"] += 1
            event = events.ProtocolViolation(str(error))
        self.handle(child.slot, event)

    def _on_exit(self, child: ChildProcess) -> None:
        """Wait for the exit status if it is unknown: the pidfd is readable, the process is dead."""
        self._loop.remove_reader(child.pidfd)  # it stays readable
        if child.pid not in self._statuses and (status := child.reap()) is not None:
            self._statuses[child.pid] = status
        if child.pid in self._statuses:
            self._report_death(child)
        else:
            self._unreaped.add(child.pid)
            self._loop.call_later(REAPED_WAIT_S, self._report_death, child)

    def _report_death(self, child: ChildProcess) -> None:
        """Handle the last messages of a dead worker, then report its death to the slot."""
        # Called a second time by the timer if the status arrives before it.
        self._unreaped.discard(child.pid)
        if self._children.get(child.slot) is not child:
            return
        # A result in the channel counts: the worker sent it before its death.
        while child.has_message():
            self._read(child)
        status = self._statuses.pop(child.pid, None)
        self.handle(child.slot, events.WorkerDied(status, self.cgroups.out_of_memory(child.slot)))

    def _watch(self, child: ChildProcess) -> None:
        self._by_channel[child.channel.fileno()] = child
        self._channels.register(child.channel, select.EPOLLIN)
        self._loop.add_reader(child.pidfd, self._on_exit, child)

    def _ignore(self, child: ChildProcess) -> None:
        """Read no further messages of a worker."""
        if self._by_channel.pop(child.channel.fileno(), None) is not None:
            self._channels.unregister(child.channel)

    def _unwatch(self, child: ChildProcess) -> None:
        self._ignore(child)
        self._loop.remove_reader(child.pidfd)

    # --- actions of the slots ----------------------------------------------

    def _perform(self, slot: Slot, actions: list[events.Action]) -> None:
        for action in actions:
            match action:
                case events.SetDeadline(at=at):
                    self._deadlines.set(slot.number, at)
                case events.ClearDeadline():
                    self._deadlines.clear(slot.number)
                case events.Send(order=order):
                    self._send(slot, encode(order))
                case events.Signal(number=number):
                    if child := self._children.get(slot.number):
                        child.signal(number)
                case events.Fork(epoch=epoch):
                    self._fork(slot, epoch)
                case events.WipeRepo():
                    self._wipe(slot)
                case events.NoteStage(key=key, stage=stage, tai=None):
                    # Stamped now: the event is queued, and the worker may be at
                    # the next stage before it is handled.
                    self.post(events.NoteStage(key, stage, self.clock.tai()))
                case events.NoteRecycled(cause=cause, note=note):
                    with _about(slot):
                        self._count_recycled(slot, cause, note)
                    self.post(action)
                case events.NoteImports():
                    with _about(slot):
                        self._warn_of_imports(action)
                case (
                    events.Finish()
                    | events.NoteStage()
                    | events.NoteMeasurements()
                    | events.NoteRaw()
                    | events.RescanRaws()
                    | events.AskToCross()
                ):
                    self.post(action)
                case events.SlotChanged():
                    for changed in self._watchers:
                        changed(slot, action)
                case unexpected:
                    raise AssertionError(unexpected)
        self._set_timer()

    def _count_recycled(self, slot: Slot, cause: str, note: str) -> None:
        self.count[f"recycled.{cause}"] += 1
        # A new worker after each visit costs seconds and memory; what repeats is logged once in a while.
        if cause in AVOIDABLE and self.count[f"recycled.{cause}"].bit_count() == 1:
            _LOG.warning(
                "slot %d: %s; workers replaced for this cause since the start: %d. See ppctl status",
                slot.number,
                note,
                self.count[f"recycled.{cause}"],
            )

    def _warn_of_imports(self, imports: events.NoteImports) -> None:
        self.count["late_imports"] += 1
        new = [module for module in imports.modules if module not in self._late_imports]
        if not new:
            return
        self._late_imports.update(new)
        _LOG.warning(
            "a worker has imported modules by itself in its first visit (%.1f s, %.0f MB): %s. In"
            " workers.preload they are imported once, and all workers share their memory",
            imports.seconds,
            imports.memory_bytes / 1e6,
            ", ".join(new),
        )

    def _send(self, slot: Slot, packet: bytes) -> None:
        child = self._children.get(slot.number)
        if child is not None and not child.send(packet):
            # It has ended, and its pidfd reports that; or it does not read, and
            # its deadline passes.
            self.count["order_unheard"] += 1

    def _fork(self, slot: Slot, epoch: int) -> None:
        """Ask the zygote for a worker, after the repo of the previous one is deleted."""
        wiping = self._wiping.get(slot.number)
        if wiping is not None:
            wiping.add_done_callback(lambda _: self._fork(slot, epoch))
            return
        # The slot may have changed while the repo was deleted.
        if slot.epoch != epoch or slot.state != SlotState.STARTING:
            return
        repo = self._folders.repo(slot.number)
        log_file = self._folders.logs / f"worker-{slot.number:04d}.log"
        try:
            repo.mkdir(parents=True, exist_ok=True)
            if any(repo.iterdir()):  # the last wipe failed
                self._wipe_in_thread(slot)
                raise OSError(f"{repo} of the previous worker cannot be deleted")
        except OSError as error:
            # Later: this runs within `_perform`, and the slot must not change under it.
            self._loop.call_soon(self.handle, slot.number, events.WorkerNotForked(str(error)))
            return
        order = ForkWorker(role="worker", slot=slot.number, epoch=epoch, repo=str(repo), log=str(log_file))
        if not self.request_fork(order):
            self._loop.call_soon(self.handle, slot.number, events.WorkerNotForked("no zygote"))

    def _wipe(self, slot: Slot) -> None:
        """Close the dead worker's descriptors, and delete its repo in a thread."""
        if child := self._children.pop(slot.number, None):
            self._unwatch(child)
            child.close()
        # Before the deletion: a remaining descendant could write into the repo.
        self.cgroups.kill(slot.number)
        self._wipe_in_thread(slot)

    def _wipe_in_thread(self, slot: Slot) -> None:
        future = self._loop.run_in_executor(None, self._clear, slot.number)
        self._wiping[slot.number] = future
        future.add_done_callback(lambda done: self._wiped(slot, done))

    def _clear(self, number: int) -> None:
        """Delete the repo after the last process that could write into it has ended."""
        self.cgroups.wait_empty(number)
        wipe(self._folders.repo(number))
        self.cgroups.remove(number)

    def _wiped(self, slot: Slot, done: "asyncio.Future[None]") -> None:
        del self._wiping[slot.number]
        if not done.cancelled() and (error := done.exception()):
            self.count["wipe_failed"] += 1
            with _about(slot):
                _LOG.error(
                    "repo of slot %d cannot be deleted; its next worker waits until it can: %s",
                    slot.number,
                    error,
                )

    def _set_timer(self) -> None:
        due = self._deadlines.next()
        # Most deadlines become later: a timer that is early sets the next one.
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for number in self._deadlines.due(self.clock.mono()):
            self.handle(number, events.DeadlinePassed())
        self._set_timer()


def _about(slot: Slot) -> AbstractContextManager[None]:
    """Add a slot, and the visit-detector that it has, to the lines that are logged within."""
    key = {} if slot.assignment is None else slot.assignment.key._asdict()
    return log.about(slot=slot.number, epoch=slot.epoch, **key)
