# SPDX-License-Identifier: BSD-3-Clause
"""One supervised child process: started, killed when it is late, and started again when it has
ended.

`ppdaemon.node.processes.lifecycle` decides; this module carries out. Subclasses define how the
process is started, its orders and its messages.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon.config import WorkersConfig
from ppdaemon.controlgroup import own_memory_kills
from ppdaemon.errors import BadMessage
from ppdaemon.messages import PACKET_LIMIT, Forked, ForkWorker, Reaped, Role
from ppdaemon.node.processes.child import REAPED_WAIT_S, ChildProcess, adopt
from ppdaemon.node.processes.lifecycle import Kill, Lifecycle, ProcessState, Serve, Start
from ppdaemon.processes import describe_end
from ppdaemon.terminal import size
from ppdaemon.wire import decode, encode

__all__ = ("ForkedProcess", "SupervisedProcess")

_LOG = logging.getLogger(__name__)

LAST_LINES = 15
"""Of a log, in an error message: enough for a traceback."""
LAST_BYTES = 20_000
"""Read from the end of the log to find these lines."""


class SupervisedProcess[Message: pydantic.BaseModel](ABC):
    """Supervises one child process, whose output goes to `log`."""

    descriptors = 0
    """How many descriptors may arrive with a message."""

    def __init__(self, name: str, log: Path, messages: pydantic.TypeAdapter[Message], lifecycle: Lifecycle):
        self.lifecycle = lifecycle
        self._name = name
        self._log = log
        self._log_size = 0
        self._memory_kills = 0
        """Of this process's control group, when the process was started."""
        self._messages = messages
        self._child: ChildProcess | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._child.pid if self._child else None

    @property
    def problem(self) -> str:
        """Why there is no process, or why it is unreliable; or blank."""
        text = self.lifecycle.problem(self._loop.time())
        return f"the {self._name} {text}; see {self._log}" if text else ""

    def start(self) -> None:
        """Start the process, unless there is one or none is to follow."""
        if self._child is not None or self.lifecycle.state is ProcessState.CLOSED:
            return
        self.lifecycle.started(self._loop.time())
        self._memory_kills = own_memory_kills()
        self._log_size = self._log.stat().st_size if self._log.exists() else 0
        try:
            child = self._launch()
        except OSError as error:
            self._end(f"cannot be started: {error}")
        else:
            if child is not None:
                self._watch(child)
        self._set_timer()

    def measured(self, used_bytes: int, config: WorkersConfig) -> None:
        """Kill the process if it has more memory than any may."""
        if used_bytes > (most := config.memory.hard):
            self._kill(f"uses {size(used_bytes)}, more than the {size(most)} of workers.memory.hard")

    def retire(self) -> None:
        """Send the process no more orders, and start no other when it has ended."""
        self.lifecycle.retire()
        self._set_timer()

    def close(self) -> None:
        """Kill the process, and start no other. Does not wait: the cleanup of orphans reaps it,
        also if KILL does not end it for a while.
        """
        self.lifecycle.close()
        self._set_timer()
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
        self._release()

    # --- for subclasses ---------------------------------------------------

    @abstractmethod
    def _launch(self) -> ChildProcess | None:
        """Start a process, or ask for one that is passed to `_watch` later; may raise `OSError`."""

    @abstractmethod
    def _received(self, message: Message, descriptors: list[int]) -> None:
        """Handle a message; close the descriptors."""

    @abstractmethod
    def _serve(self) -> None:
        """Send pending orders: the process takes orders now."""

    @abstractmethod
    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        """Give up these orders. Called once for each process that ends unexpectedly, could not be
        started, or is killed because it is late.
        """

    def _watch(self, child: ChildProcess) -> None:
        self._child = child
        self._loop.add_reader(child.channel, self._receive)
        self._loop.add_reader(child.pidfd, self._on_end)

    def _ready(self) -> None:
        self.lifecycle.ready()
        self._set_timer()
        self._serve()

    def _order(self, key: Hashable, message: pydantic.BaseModel) -> bool:
        """Send an order for which `_answered` has to be called; return whether it was sent."""
        if self.lifecycle.state is not ProcessState.SERVING or self._child is None:
            return False
        if not self._child.send(encode(message)):
            _LOG.warning("the %s has ended, or does not read its channel: an order was not sent", self._name)
            return False
        self.lifecycle.ordered(key, self._loop.time())
        self._set_timer()
        return True

    def _answered(self, key: Hashable) -> None:
        self.lifecycle.answered(key, self._loop.time())
        self._set_timer()

    def _last_lines(self) -> str:
        """Return the last lines that were logged since the start."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            # A log that is shorter than at the start was cut meanwhile: read all of it.
            stream.seek(max(self._log_size if self._log_size <= size else 0, size - LAST_BYTES))
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-LAST_LINES:])
        return ""

    # --- what happens to the process --------------------------------------

    def _receive(self) -> bool:
        """Receive one message; return whether there may be another one."""
        assert self._child is not None
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._child.channel, PACKET_LIMIT, self.descriptors)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # it ended with unread orders: reported once, before its last messages
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self._loop.remove_reader(self._child.channel)
            return False
        try:
            message = decode(packet, self._messages, limit=PACKET_LIMIT)
        except BadMessage as error:
            for descriptor in descriptors:
                os.close(descriptor)
            self._kill(f"sent an invalid message: {error}")
        else:
            self._received(message, descriptors)
        return True

    def _on_end(self) -> None:
        """Handle the last messages before the end: orders that they answer were carried out."""
        while self._child is not None and self._receive():
            pass
        if self._child is not None:  # it is `None` if a message closed the process
            self._end(self._describe_end(self._exit_status(self._child)))
            self._set_timer()

    def _exit_status(self, child: ChildProcess) -> int | None:
        return child.reap()

    def _describe_end(self, status: int | None) -> str:
        how = describe_end(status)
        if status == -signal.SIGKILL and own_memory_kills() > self._memory_kills:
            how += ", out of memory: the kernel has killed it, or another process of the service meanwhile"
        return how

    def _end(self, cause: str) -> None:
        before, unanswered = self.lifecycle.state, list(self.lifecycle.unanswered)  # `ended` clears them
        self._release()
        self.lifecycle.ended(cause, self._loop.time())
        if before not in (ProcessState.CLOSED, ProcessState.REPLACING, ProcessState.KILLED):
            level = logging.INFO if before is ProcessState.RETIRED else logging.ERROR
            _LOG.log(level, "the %s %s; see %s", self._name, cause, self._log)
            self._give_up(cause, unanswered)

    def _kill(self, reason: str) -> None:
        if self.lifecycle.state in (ProcessState.KILLED, ProcessState.CLOSED):
            return
        _LOG.error("the %s %s: it is killed", self._name, reason)
        self.lifecycle.killed(reason)
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
        self._give_up(reason, list(self.lifecycle.unanswered))
        if self._child is None:  # it was requested and not forked in time
            self.lifecycle.ended(reason, self._loop.time())
        self._set_timer()

    def _release(self) -> None:
        if self._child is not None:
            self._loop.remove_reader(self._child.channel)
            self._loop.remove_reader(self._child.pidfd)
            self._child.close()
            self._child = None

    # --- time -------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self.lifecycle.deadline
        # A timer that is late does no harm: `due` compares the time again.
        self._timer = None if at is None else self._loop.call_at(at, self._due)

    def _due(self) -> None:
        match self.lifecycle.due(self._loop.time()):
            case Start():
                self.start()
            case Serve():
                self._serve()
            case Kill(reason=reason):
                self._kill(reason)
        self._set_timer()


class ForkedProcess[Message: pydantic.BaseModel](SupervisedProcess[Message]):
    """Supervises one process that a generation starts. `slot` is a negative number that
    identifies it among processes without a slot.
    """

    def __init__(
        self,
        role: Role,
        slot: int,
        repo: Path,
        log: Path,
        messages: pydantic.TypeAdapter[Message],
        lifecycle: Lifecycle,
        request_fork: Callable[[ForkWorker], bool],
    ):
        super().__init__(role, log, messages, lifecycle)
        self._role = role
        self._slot = slot
        self._repo = repo
        self._ask_fork = request_fork
        self._epoch = 0
        self._status: int | None = None
        """Of the process, once its zygote has reaped it."""
        self._awaits_status: asyncio.TimerHandle | None = None

    def _launch(self) -> None:
        self._epoch += 1
        self._repo.mkdir(parents=True, exist_ok=True)
        order = ForkWorker(
            role=self._role, slot=self._slot, epoch=self._epoch, repo=str(self._repo), log=str(self._log)
        )
        if not self._ask_fork(order):
            raise OSError("there is no zygote")

    def forked(self, message: Forked, descriptors: list[int]) -> None:
        """Take over the process, or kill it if it was started too late."""
        child = adopt(message, descriptors)
        if (
            message.epoch == self._epoch
            and self._child is None
            and self.lifecycle.state is ProcessState.STARTING
        ):
            self._watch(child)
        else:
            child.signal(signal.SIGKILL)
            child.close()

    def not_forked(self, reason: str) -> None:
        """Try again after a pause: the process could not be started."""
        if self._child is None and self.lifecycle.state is ProcessState.STARTING:
            self._end(f"was not forked: {reason}")
            self._set_timer()

    def reaped(self, message: Reaped) -> None:
        """Store the exit status if the process is this one. Usually the pidfd was read before, since the
        kernel reports both at once.
        """
        if message.pid == self.pid:
            self._status = message.status
            if self._awaits_status is not None:
                self._on_end()

    def _on_end(self) -> None:
        """Wait for the exit status if it is unknown: the process is dead."""
        if self._child is not None and self._status is None:
            self._status = self._child.reap()
        if self._child is None or self._status is not None or self._awaits_status is not None:
            super()._on_end()
        else:
            self._loop.remove_reader(self._child.pidfd)  # it stays readable
            self._awaits_status = self._loop.call_later(REAPED_WAIT_S, self._on_end)

    def _exit_status(self, child: ChildProcess) -> int | None:
        return self._status

    def _release(self) -> None:
        super()._release()
        if self._awaits_status is not None:
            self._awaits_status.cancel()
        self._status = self._awaits_status = None
