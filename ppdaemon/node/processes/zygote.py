# SPDX-License-Identifier: BSD-3-Clause
"""The zygote: one process that starts all others of a configuration."""

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import ZYGOTE_WORDS, Forked, ForkFailed, ForkWorker, Reaped, ZygoteReady
from ppdaemon.node.processes.child import Child, Lifeline, launch
from ppdaemon.node.processes.lifecycle import Lifecycle
from ppdaemon.node.processes.supervised import SupervisedProcess

__all__ = ("OnMessage", "Zygote", "ZygoteFailed")

_LOG = logging.getLogger(__name__)

BOOT_S = 120.0
"""How long imports may take."""
STEADY_S = 60.0
"""The death of a zygote that has served longer is not one in a row."""

type OnMessage = Callable[[Forked | ForkFailed | Reaped, list[int]], None]
"""Called in the event loop with each message, and with the channel and pidfd
of a `~ppdaemon.messages.Forked`; the callee owns them."""


class ZygoteFailed(PPDaemonError):
    """The zygote cannot import what the workers need."""


class Zygote(SupervisedProcess[ZygoteReady | Forked | ForkFailed | Reaped]):
    """Keeps one zygote; its children outlive it, and the next one serves the next orders.

    Parameters
    ----------
    settings : `pathlib.Path`
        The configuration as JSON.
    lifeline : `~ppdaemon.node.processes.child.Lifeline`
        Ends the processes with the supervisor.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the zygote and its children, beside `~ppdaemon.node.processes.child.ENVIRONMENT`.
    log : `pathlib.Path`
        Takes its standard output and error.
    answer_s : `float`
        How long it may owe an answer.
    on_message : `OnMessage`
        What becomes of orders and processes.
    count : `collections.Counter`
        Counts dead zygotes.
    """

    descriptors = 2

    def __init__(
        self,
        settings: Path,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        answer_s: float,
        on_message: OnMessage,
        count: Counter[str],
    ):
        lifecycle = Lifecycle(
            boot_s=BOOT_S, answer_s=answer_s, first_pause_s=1.0, longest_pause_s=60.0, steady_s=STEADY_S
        )
        super().__init__("zygote", log, ZYGOTE_WORDS, lifecycle)
        self.living: set[int] = set()
        """Processes that it has forked and that are not known to be dead."""
        self._settings = settings
        self._lifeline = lifeline
        self._environment = environment
        self._on_message = on_message
        self._count = count
        self._booted: asyncio.Future[None] = self._loop.create_future()

    @property
    def idle(self) -> bool:
        """Whether it has no process, and owes none."""
        return not self.living and not self.lifecycle.owed

    async def boot(self) -> None:
        """Start the first one.

        Raises
        ------
        ZygoteFailed
            Raised with the end of its log if it cannot import everything.
        """
        self.start()
        await self._booted

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process; `False` if there is no zygote now."""
        return self._order((order.role, order.slot, order.epoch), order)

    def _launch(self) -> Child:
        arguments = ["--config", str(self._settings)]
        return launch("ppdaemon.worker.zygote", arguments, self._lifeline, self._environment, self._log)

    def _serve(self) -> None:
        if not self._booted.done():
            self._booted.set_result(None)

    def _received(self, message: ZygoteReady | Forked | ForkFailed | Reaped, descriptors: list[int]) -> None:
        match message:
            case ZygoteReady(pid=pid, modules=modules, import_s=import_s):
                _LOG.info("zygote %d has imported %d modules in %.1f s", pid, modules, import_s)
                self._ready()
                return
            case Reaped(pid=pid):
                self.living.discard(pid)
            case Forked() if len(descriptors) != 2:
                message, descriptors = _disown(message, descriptors), []
            case Forked(pid=pid):
                self.living.add(pid)
        if isinstance(message, Forked | ForkFailed):
            self._answered((message.role, message.slot, message.epoch))
        self._on_message(message, descriptors)

    def _lost(self, manner: str, owed: list[Any]) -> None:
        self._count["zygote_gone"] += 1
        self.living.clear()
        if not self._booted.done():
            text = f"the zygote cannot start: it {manner}\n{self._last_lines()}"
            self._booted.set_exception(ZygoteFailed(text.strip()))
            self.close()
        for role, slot, epoch in owed:
            reason = f"the zygote {manner}"
            self._on_message(ForkFailed(role=role, slot=slot, epoch=epoch, reason=reason), [])


def _disown(message: Forked, descriptors: list[int]) -> ForkFailed:
    """Refuse a process whose descriptors did not all come: this process has
    no room for them, and the kernel has dropped the others.
    """
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        # By number, since there is no pidfd: it was forked a moment ago, and
        # a number is not used again before all others were.
        os.kill(message.pid, signal.SIGKILL)
    except ProcessLookupError:
        _LOG.debug("process %d has ended already", message.pid)
    reason = "too many open files in the supervisor"
    return ForkFailed(role=message.role, slot=message.slot, epoch=message.epoch, reason=reason)
