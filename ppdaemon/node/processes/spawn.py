# SPDX-License-Identifier: BSD-3-Clause
"""Processes without a zygote: each one a fresh interpreter.

Has the methods of `ppdaemon.node.processes.zygote.Zygote`, so that a
generation needs to know only one of them. Here the supervisor is the parent:
it reaps, by pidfd and without waiting.
"""

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from ppdaemon.messages import Forked, ForkFailed, ForkWorker
from ppdaemon.node.processes.child import Child, Lifeline, launch
from ppdaemon.node.processes.lifecycle import State
from ppdaemon.node.processes.zygote import OnMessage
from ppdaemon.wire import encode

__all__ = ("Spawner",)

_LOG = logging.getLogger(__name__)


class Spawner:
    """Starts processes, and reports when they are there and when they have ended."""

    problem = ""

    def __init__(
        self, settings: Path, lifeline: Lifeline, environment: Mapping[str, str], on_message: OnMessage
    ):
        self.state = State.SERVING
        self.living: dict[int, Child] = {}  # by pid
        self._settings = settings
        self._lifeline = lifeline
        self._environment = environment
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._orders: deque[ForkWorker] = deque()

    @property
    def pid(self) -> int:
        """The parent's process id: this one's."""
        return os.getpid()

    @property
    def idle(self) -> bool:
        """Whether it has no process, and owes none."""
        return not self.living and not self._orders

    async def boot(self) -> None:
        """Do nothing: there is no process between."""

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process; `False` if none is started any more."""
        if self.state is not State.SERVING:
            return False
        self._orders.append(order)
        if len(self._orders) == 1:
            self._loop.call_soon(self._spawn_next)
        return True

    def retire(self) -> None:
        """Take no more orders."""
        self.state = State.RETIRED

    def close(self) -> asyncio.Future[None]:
        """Start nothing and report nothing more; return when all that live are reaped."""
        self.state = State.CLOSED
        self._orders.clear()
        self._end_if_idle()
        return self._gone

    def _spawn_next(self) -> None:
        """Start one process in each turn of the loop: it takes some
        milliseconds, and others have something to do, too.
        """
        if not self._orders:
            return
        order = self._orders.popleft()
        if self._orders:
            self._loop.call_soon(self._spawn_next)
        try:
            self._spawn(order)
        except OSError as error:
            _LOG.warning("%s %d is not spawned: %s", order.role, order.slot, error)
            failed = ForkFailed(role=order.role, slot=order.slot, epoch=order.epoch, reason=str(error))
            self._on_message(failed, [])

    def _spawn(self, order: ForkWorker) -> None:
        arguments = ["--config", str(self._settings), "--order", encode(order).decode()]
        child = launch("ppdaemon.worker.spawn", arguments, self._lifeline, self._environment, Path(order.log))
        try:
            pidfd = os.dup(child.pidfd)
        except OSError:
            child.signal(signal.SIGKILL)
            child.reap()
            child.close()
            raise
        self.living[child.pid] = child
        self._loop.add_reader(child.pidfd, self._on_end, child)
        message = Forked(role=order.role, slot=order.slot, epoch=order.epoch, pid=child.pid)
        self._on_message(message, [child.channel.detach(), pidfd])

    def _on_end(self, child: Child) -> None:
        self._loop.remove_reader(child.pidfd)
        del self.living[child.pid]
        reaped = child.reap()
        child.close()
        if reaped is not None and self.state is not State.CLOSED:
            self._on_message(reaped, [])
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.state is State.CLOSED and not self.living and not self._gone.done():
            self._gone.set_result(None)
