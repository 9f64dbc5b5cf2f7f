# SPDX-License-Identifier: BSD-3-Clause
"""The seats and what happens in them: performs what the slots decide.

Covers channels, pidfds, signals, deadlines and RAM-disk repos of all workers,
without a thread or a task per worker. Decisions are `ppdaemon.node.slot`'s;
what concerns a visit and not a seat is handed to the supervisor.
"""

import asyncio
import contextlib
import logging
import os
import random
import select
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import BadMessage
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import FACTS, PACKET_LIMIT, Forked, ForkFailed, ForkWorker, Reaped, Role
from ppdaemon.node.deadlines import Deadlines
from ppdaemon.node.events import (
    Action,
    ClearDeadline,
    DeadlinePassed,
    Finish,
    Fork,
    NoteRaw,
    NoteStage,
    SeatChanged,
    Send,
    SetDeadline,
    Signal,
    WipeRepo,
    WordsRefused,
    WorkerDied,
    WorkerForked,
    WorkerNotForked,
)
from ppdaemon.node.slot import InvalidTransition, Slot
from ppdaemon.states import SlotState
from ppdaemon.wire import decode, encode

__all__ = ("Child", "Pool", "VisitAction", "wipe")

_LOG = logging.getLogger(__name__)

REAPED_WAIT_S = 0.2
"""How long a pidfd's news waits for the zygote's, which has the status."""

LOG_LIMIT = 50_000_000
"""A worker's log is begun anew above this, bytes."""

VisitAction = Finish | NoteStage | NoteRaw


def wipe(folder: Path) -> None:
    """Delete a folder with everything in it; a missing one is fine.

    Parameters
    ----------
    folder : `pathlib.Path`
        What is to go.

    Raises
    ------
    OSError
        Raised if something in it cannot be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


@dataclass(slots=True)
class Child:
    """A forked process: who owns its channel and pidfd."""

    role: Role
    slot: int
    epoch: int
    pid: int
    channel: socket.socket
    pidfd: int

    def send(self, message: bytes) -> bool:
        """Send without waiting; tell whether it went.

        Parameters
        ----------
        message : `bytes`
            One packet.

        Returns
        -------
        sent : `bool`
            `False` if the process does not read, or is gone.
        """
        try:
            self.channel.send(message)
        except OSError:
            return False
        return True

    def signal(self, number: int) -> None:
        """Signal the process, never another one of the same pid.

        Parameters
        ----------
        number : `int`
            Signal.
        """
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Kill what the dead process has left, and let go of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.channel.close()
        os.close(self.pidfd)


class Pool:
    """All seats of a node.

    Parameters
    ----------
    config : `~ppdaemon.config.NodeConfig`
        The node's configuration.
    clock : `~ppdaemon.clock.Clock`
        For deadlines.
    ask_fork : `~collections.abc.Callable`
        Gets a `~ppdaemon.messages.ForkWorker`, returns whether it was asked.
    tell : `~collections.abc.Callable`
        Gets what concerns visits, with the slot.
    changed : `~collections.abc.Callable`
        Gets a slot and its change of state.
    count : `collections.Counter`
        Counts what operators want to know.
    """

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        ask_fork: Callable[[ForkWorker], bool],
        tell: Callable[[VisitAction, Slot], None],
        changed: Callable[[Slot, SeatChanged], None],
        count: Counter[str],
    ):
        self.slots: dict[int, Slot] = {}
        self._config = config
        self._folders = NodeFolders.of(config)
        self._clock = clock
        self._ask_fork = ask_fork
        self._tell = tell
        self._changed = changed
        self._count = count
        self._children: dict[int, Child] = {}
        self._statuses: dict[int, int] = {}
        self._deadlines = Deadlines()
        self._wiping: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # --- from the supervisor ---------------------------------------------

    def open_seat(self) -> Slot:
        """Open a seat and fill it.

        Returns
        -------
        slot : `~ppdaemon.node.slot.Slot`
            The new one, or one that was stopped before.
        """
        stopped = (slot for slot in self.slots.values() if slot.state == SlotState.STOPPED)
        slot = next(stopped, None)
        if slot is None:
            slot = Slot(len(self.slots), self._config.workers, random.random)
            self.slots[slot.number] = slot
        self._perform(slot, slot.open(self._clock.mono()))
        return slot

    def pids(self) -> dict[int, int]:
        """Return the living workers.

        Returns
        -------
        pids : `dict` [`int`, `int`]
            Process id by seat.
        """
        return {number: child.pid for number, child in self._children.items()}

    def handle(self, number: int, event: object) -> None:
        """Give a slot an event and perform what it asks for.

        Parameters
        ----------
        number : `int`
            The seat.
        event : `object`
            What happened.
        """
        slot = self.slots[number]
        try:
            actions = slot.handle(event, self._clock.mono())
        except InvalidTransition:
            self._count["invalid_transition"] += 1
            _LOG.exception("slot %d cannot handle %r", number, event)
            return
        self._perform(slot, actions)

    def deadline_of(self, number: int) -> float | None:
        """Return when a seat's present state ends by itself.

        Parameters
        ----------
        number : `int`
            The seat.

        Returns
        -------
        at : `float` or `None`
            Monotonic seconds.
        """
        return self._deadlines.of(number)

    def seats(self) -> Counter[SlotState]:
        """Count the seats in each state.

        Returns
        -------
        seats : `collections.Counter`
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
        self._loop.add_reader(child.channel, self._read, child)
        self._loop.add_reader(child.pidfd, self._ended, child)
        self.handle(words.slot, WorkerForked(words.pid))

    def not_forked(self, words: ForkFailed) -> None:
        """Tell a slot that its fork failed.

        Parameters
        ----------
        words : `~ppdaemon.messages.ForkFailed`
            What the zygote said.
        """
        self._count["fork_failed"] += 1
        slot = self.slots[words.slot]
        if slot.epoch == words.epoch and slot.state == SlotState.STARTING:
            self.handle(words.slot, WorkerNotForked(words.reason))

    def reaped(self, words: Reaped) -> None:
        """Keep a dead process's status until its pidfd is read.

        Parameters
        ----------
        words : `~ppdaemon.messages.Reaped`
            What the zygote said.
        """
        if any(child.pid == words.pid for child in self._children.values()):
            self._statuses[words.pid] = words.status

    def zygote_gone(self) -> None:
        """Fail the forks that were asked for and will not come."""
        for slot in self.slots.values():
            if slot.state == SlotState.STARTING and slot.number not in self._children:
                self.handle(slot.number, WorkerNotForked("the zygote ended"))

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
            self._count[f"bad_words.{error.kind}"] += 1
            event = WordsRefused(str(error))
        self.handle(child.slot, event)

    def _ended(self, child: Child) -> None:
        """A pidfd became readable: the process is dead."""
        self._loop.remove_reader(child.pidfd)
        if child.pid in self._statuses:
            self._bury(child)
        else:
            self._loop.call_later(REAPED_WAIT_S, self._bury, child)

    def _bury(self, child: Child) -> None:
        """Hear the last words, then tell the slot."""
        if self._children.get(child.slot) is not child:
            return
        while self._has_words(child):
            self._read(child)
        self.handle(child.slot, WorkerDied(self._statuses.pop(child.pid, None)))

    @staticmethod
    def _has_words(child: Child) -> bool:
        poll = select.poll()
        poll.register(child.channel, select.POLLIN)
        return any(mask & select.POLLIN for _, mask in poll.poll(0)) and bool(
            child.channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        )

    def _unwatch(self, child: Child) -> None:
        self._loop.remove_reader(child.channel)
        self._loop.remove_reader(child.pidfd)

    # --- what slots ask for ----------------------------------------------

    def _perform(self, slot: Slot, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SetDeadline(at=at):
                    self._deadlines.set(slot.number, at)
                case ClearDeadline():
                    self._deadlines.clear(slot.number)
                case Send(order=order):
                    self._send(slot, encode(order))
                case Signal(number=number):
                    if child := self._children.get(slot.number):
                        child.signal(number)
                case Fork(epoch=epoch):
                    self._fork(slot, epoch)
                case WipeRepo():
                    self._wipe(slot)
                case Finish() | NoteStage() | NoteRaw():
                    self._tell(action, slot)
                case SeatChanged():
                    self._changed(slot, action)
                case unexpected:
                    raise AssertionError(unexpected)
        self._set_timer()

    def _send(self, slot: Slot, packet: bytes) -> None:
        child = self._children.get(slot.number)
        if child is not None and not child.send(packet):
            # It is gone, and its pidfd will say so; or it does not read, and
            # its deadline will.
            self._count["order_unheard"] += 1

    def _fork(self, slot: Slot, epoch: int) -> None:
        """Ask the zygote, after the repo of the worker before is gone."""
        wiping = self._wiping.get(slot.number)
        if wiping is not None:
            wiping.add_done_callback(lambda _: self._fork(slot, epoch))
            return
        if slot.epoch != epoch or slot.state != SlotState.STARTING:
            return
        repo = self._folders.slots / f"{slot.number:04d}"
        log = self._folders.logs / f"worker-{slot.number:04d}.log"
        try:
            repo.mkdir(parents=True, exist_ok=True)
            if log.exists() and log.stat().st_size > LOG_LIMIT:
                log.rename(log.with_suffix(".old.log"))
        except OSError as error:
            self._loop.call_soon(self.handle, slot.number, WorkerNotForked(str(error)))
            return
        order = ForkWorker(role="worker", slot=slot.number, epoch=epoch, repo=str(repo), log=str(log))
        if not self._ask_fork(order):
            self._loop.call_soon(self.handle, slot.number, WorkerNotForked("no zygote"))

    def _wipe(self, slot: Slot) -> None:
        """Close what the dead worker held, and delete its repo beside the loop."""
        if child := self._children.pop(slot.number, None):
            self._unwatch(child)
            child.close()
        future = self._loop.run_in_executor(None, wipe, self._folders.slots / f"{slot.number:04d}")
        self._wiping[slot.number] = future
        future.add_done_callback(lambda done: self._wiped(slot, done))

    def _wiped(self, slot: Slot, done: "asyncio.Future[None]") -> None:
        del self._wiping[slot.number]
        if not done.cancelled() and (error := done.exception()):
            self._count["wipe_failed"] += 1
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
        for number in self._deadlines.due(self._clock.mono()):
            self.handle(number, DeadlinePassed())
        self._set_timer()


def adopt(words: Forked, descriptors: list[int]) -> Child:
    """Own the descriptors that came with a `~ppdaemon.messages.Forked`.

    Parameters
    ----------
    words : `~ppdaemon.messages.Forked`
        What the zygote said.
    descriptors : `list` [`int`]
        Channel and pidfd.

    Returns
    -------
    child : `Child`
        The process.
    """
    channel = socket.socket(fileno=descriptors[0])
    channel.setblocking(False)
    return Child(words.role, words.slot, words.epoch, words.pid, channel, descriptors[1])
