# SPDX-License-Identifier: BSD-3-Clause
"""The slots and what happens in them: performs what the slots decide.

Covers channels, pidfds, signals, deadlines and RAM-disk repos of all workers,
without a thread or a task per worker. Decisions are `ppdaemon.node.slots.slot`'s;
what concerns a visit and not a slot is handed to the supervisor.
"""

import asyncio
import logging
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import BadMessage
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import FACTS, PACKET_LIMIT, Forked, ForkFailed, ForkWorker, Reaped
from ppdaemon.node.processes.child import Child, adopt, wipe
from ppdaemon.node.slots import events
from ppdaemon.node.slots.cgroups import Cgroups
from ppdaemon.node.slots.deadlines import Deadlines
from ppdaemon.node.slots.slot import InvalidTransition, Slot
from ppdaemon.states import SlotState
from ppdaemon.wire import decode, encode

__all__ = ("Pool", "VisitAction")

_LOG = logging.getLogger(__name__)

REAPED_WAIT_S = 0.2
"""How long a pidfd's news waits for the zygote's, which has the status."""

VisitAction = events.Finish | events.NoteStage | events.NoteMeasurements | events.NoteRaw | events.RescanRaws


@dataclass(eq=False)
class Pool:
    """All slots of a node.

    Parameters
    ----------
    config : `~ppdaemon.config.NodeConfig`
        The node's configuration.
    clock : `~ppdaemon.clock.Clock`
        For deadlines.
    ask_fork : `~collections.abc.Callable`
        Gets a `~ppdaemon.messages.ForkWorker`, returns whether it was asked.
    post : `~collections.abc.Callable`
        Gets what concerns visits.
    count : `collections.Counter`
        Counts what operators want to know.
    """

    config: NodeConfig
    clock: Clock
    ask_fork: Callable[[ForkWorker], bool]
    post: Callable[[VisitAction], None]
    count: Counter[str]

    def __post_init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.cgroups = Cgroups.claim(self.config.workers)
        self._folders = NodeFolders.of(self.config)
        self._watchers: list[Callable[[Slot, events.SlotChanged], None]] = []
        self._children: dict[int, Child] = {}
        self._statuses: dict[int, int] = {}
        self._unreaped: set[int] = set()  # dead, and the zygote has not said how
        self._deadlines = Deadlines()
        self._wiping: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # --- from the supervisor ---------------------------------------------

    def watch(self, changed: Callable[[Slot, events.SlotChanged], None]) -> None:
        """Call a function with each change of a slot's state from now on."""
        self._watchers.append(changed)

    def open_slot(self) -> Slot:
        """Open a slot and fill it.

        Returns
        -------
        slot : `~ppdaemon.node.slots.slot.Slot`
            The new one, or one that was stopped before.
        """
        stopped = (slot for slot in self.slots.values() if slot.state == SlotState.STOPPED)
        slot = next(stopped, None)
        if slot is None:
            slot = Slot(len(self.slots), self.config.workers, random.random)
            self.slots[slot.number] = slot
        self._perform(slot, slot.open(self.clock.mono()))
        return slot

    def reconfigure(self, config: NodeConfig) -> None:
        """Go by another configuration; workers of the old one are replaced
        after their visits.

        Parameters
        ----------
        config : `~ppdaemon.config.NodeConfig`
            The new configuration.
        """
        self.config = config
        self.cgroups.config = config.workers
        for slot in self.slots.values():
            slot.config = config.workers  # the present state's deadline stays
            self.handle(slot.number, events.RecycleAsked())

    def pids(self) -> dict[int, int]:
        """Return the living workers.

        Returns
        -------
        pids : `dict` [`int`, `int`]
            Process id by slot.
        """
        return {number: child.pid for number, child in self._children.items()}

    def used_bytes(self) -> int:
        """Return what all living workers use, as last sampled.

        Returns
        -------
        size : `int`
            Private bytes and RAM-disk repos.
        """
        return sum(self.slots[number].used_bytes for number in self._children)

    def handle(self, number: int, event: object) -> None:
        """Give a slot an event and perform what it asks for.

        Parameters
        ----------
        number : `int`
            The slot.
        event : `object`
            What happened.
        """
        slot = self.slots[number]
        try:
            actions = slot.handle(event, self.clock.mono())
        except InvalidTransition:
            self.count["invalid_transition"] += 1
            _LOG.exception("slot %d cannot handle %r", number, event)
            return
        self._perform(slot, actions)

    def deadline_of(self, number: int) -> float | None:
        """Return when a slot's present state ends by itself.

        Parameters
        ----------
        number : `int`
            The slot.

        Returns
        -------
        at : `float` or `None`
            Monotonic seconds.
        """
        return self._deadlines.of(number)

    def state_counts(self) -> Counter[SlotState]:
        """Count the slots in each state.

        Returns
        -------
        slots : `collections.Counter`
            By state.
        """
        return Counter(slot.state for slot in self.slots.values())

    def close(self) -> None:
        """Let go of every process; the lifeline ends those that still live."""
        if self._timer:
            self._timer.cancel()
        for child in self._children.values():
            self._unwatch(child)
            child.signal(signal.SIGKILL)
            child.close()
        self._children.clear()
        self.cgroups.close()

    # --- from the zygote -------------------------------------------------

    def forked(self, words: Forked, descriptors: list[int]) -> None:
        """Take over a freshly forked worker.

        Parameters
        ----------
        words : `~ppdaemon.messages.Forked`
            What the zygote said.
        descriptors : `list` [`int`]
            Channel and pidfd.
        """
        child = adopt(words, descriptors)
        slot = self.slots.get(words.slot)
        if slot is None or slot.epoch != words.epoch or slot.state != SlotState.STARTING:
            _LOG.warning("a worker came too late for slot %d epoch %d", words.slot, words.epoch)
            child.signal(signal.SIGKILL)
            child.close()
            return
        self._children[words.slot] = child
        self.cgroups.enter(child.slot, child.pid)
        self._loop.add_reader(child.channel, self._read, child)
        self._loop.add_reader(child.pidfd, self._ended, child)
        self.handle(words.slot, events.WorkerForked(words.pid))

    def not_forked(self, words: ForkFailed) -> None:
        """Tell a slot that its fork failed.

        Parameters
        ----------
        words : `~ppdaemon.messages.ForkFailed`
            What the zygote said.
        """
        self.count["fork_failed"] += 1
        slot = self.slots[words.slot]
        if slot.epoch == words.epoch and slot.state == SlotState.STARTING:
            self.handle(words.slot, events.WorkerNotForked(words.reason))

    def reaped(self, words: Reaped) -> None:
        """Keep a dead process's status until its pidfd is read; most often
        it has been, since the kernel tells both at once.

        Parameters
        ----------
        words : `~ppdaemon.messages.Reaped`
            What the zygote said.
        """
        child = next((child for child in self._children.values() if child.pid == words.pid), None)
        if child is None:
            return
        self._statuses[words.pid] = words.status
        if words.pid in self._unreaped:
            self._bury(child)

    # --- from the workers ------------------------------------------------

    def _read(self, child: Child) -> None:
        """Hear what a worker has said, up to a share of the pump's time."""
        for _ in range(64):
            try:
                packet = child.channel.recv(PACKET_LIMIT + 1)
            except BlockingIOError:
                return
            except OSError as error:
                _LOG.warning("channel of slot %d: %s", child.slot, error)
                packet = b""
            if not packet:
                self._loop.remove_reader(child.channel)
                return
            self._hear(child, packet)

    def _hear(self, child: Child, packet: bytes) -> None:
        try:
            event: object = decode(packet, FACTS, limit=PACKET_LIMIT)
        except BadMessage as error:
            self.count[f"bad_words.{error.kind}"] += 1
            event = events.ProtocolViolation(str(error))
        self.handle(child.slot, event)

    def _ended(self, child: Child) -> None:
        """A pidfd became readable: the process is dead."""
        self._loop.remove_reader(child.pidfd)
        if child.pid in self._statuses:
            self._bury(child)
        else:
            self._unreaped.add(child.pid)
            self._loop.call_later(REAPED_WAIT_S, self._bury, child)

    def _bury(self, child: Child) -> None:
        """Hear the last words, then tell the slot."""
        self._unreaped.discard(child.pid)
        if self._children.get(child.slot) is not child:
            return
        while child.has_message():
            self._read(child)
        status = self._statuses.pop(child.pid, None)
        self.handle(child.slot, events.WorkerDied(status, self.cgroups.out_of_memory(child.slot)))

    def _unwatch(self, child: Child) -> None:
        self._loop.remove_reader(child.channel)
        self._loop.remove_reader(child.pidfd)

    # --- what slots ask for ----------------------------------------------

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
                    # Now, because the event waits its turn: a worker may be
                    # at the next stage before this one is handled.
                    self.post(events.NoteStage(key, stage, self.clock.tai()))
                case (
                    events.Finish()
                    | events.NoteStage()
                    | events.NoteMeasurements()
                    | events.NoteRaw()
                    | events.RescanRaws()
                ):
                    self.post(action)
                case events.SlotChanged():
                    for changed in self._watchers:
                        changed(slot, action)
                case unexpected:
                    raise AssertionError(unexpected)
        self._set_timer()

    def _send(self, slot: Slot, packet: bytes) -> None:
        child = self._children.get(slot.number)
        if child is not None and not child.send(packet):
            # It is gone, and its pidfd will say so; or it does not read, and
            # its deadline will.
            self.count["order_unheard"] += 1

    def _fork(self, slot: Slot, epoch: int) -> None:
        """Ask the zygote, after the repo of the worker before is gone."""
        wiping = self._wiping.get(slot.number)
        if wiping is not None:
            wiping.add_done_callback(lambda _: self._fork(slot, epoch))
            return
        if slot.epoch != epoch or slot.state != SlotState.STARTING:
            return
        repo = self._folders.repo(slot.number)
        log = self._folders.logs / f"worker-{slot.number:04d}.log"
        try:
            repo.mkdir(parents=True, exist_ok=True)
            if any(repo.iterdir()):  # the last wipe has failed
                self._clear_beside(slot)
                raise OSError(f"{repo} of the worker before cannot be deleted")
        except OSError as error:
            self._loop.call_soon(self.handle, slot.number, events.WorkerNotForked(str(error)))
            return
        order = ForkWorker(role="worker", slot=slot.number, epoch=epoch, repo=str(repo), log=str(log))
        if not self.ask_fork(order):
            self._loop.call_soon(self.handle, slot.number, events.WorkerNotForked("no zygote"))

    def _wipe(self, slot: Slot) -> None:
        """Close what the dead worker held, and delete its repo beside the loop."""
        if child := self._children.pop(slot.number, None):
            self._unwatch(child)
            child.close()
        self.cgroups.kill(slot.number)
        self._clear_beside(slot)

    def _clear_beside(self, slot: Slot) -> None:
        future = self._loop.run_in_executor(None, self._clear, slot.number)
        self._wiping[slot.number] = future
        future.add_done_callback(lambda done: self._wiped(slot, done))

    def _clear(self, number: int) -> None:
        """Delete the repo when nobody is left who could write into it."""
        self.cgroups.wait_empty(number)
        wipe(self._folders.repo(number))
        self.cgroups.remove(number)

    def _wiped(self, slot: Slot, done: "asyncio.Future[None]") -> None:
        del self._wiping[slot.number]
        if not done.cancelled() and (error := done.exception()):
            self.count["wipe_failed"] += 1
            _LOG.error("repo of slot %d cannot be wiped: %s", slot.number, error)

    def _set_timer(self) -> None:
        due = self._deadlines.next()
        if self._timer is not None:
            if due is not None and self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for number in self._deadlines.due(self.clock.mono()):
            self.handle(number, events.DeadlinePassed())
        self._set_timer()
