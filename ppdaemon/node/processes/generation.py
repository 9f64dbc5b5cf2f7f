# SPDX-License-Identifier: BSD-3-Clause
"""One configuration's zygote, template and files: what its processes come from.

Covers how they are made, how a zygote that dies or hangs is replaced, and how
a generation whose time is over waits for its last process. Which generation
is the present one is `ppdaemon.node.processes.reload`'s matter.
"""

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon import messages
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.node.processes.child import Child, Lifeline, adopt, launch, wipe
from ppdaemon.node.processes.lifecycle import Lifecycle, State
from ppdaemon.node.processes.supervised import ForkedProcess, SupervisedProcess

__all__ = ("Generation", "OnMessage", "TemplateFailed", "TemplateProcess", "ZygoteFailed")

_LOG = logging.getLogger(__name__)

BOOT_S = 120.0
"""How long imports may take."""
TEMPLATE_SLOT = -2
TEMPLATE_S = 120.0
"""How long a template may take."""
STEADY_S = 60.0
"""The death of a zygote that has served longer is not one in a row."""

type OnMessage = Callable[[messages.ForkFact, list[int]], None]
"""Called in the event loop with each message, and with the channel and pidfd
of a `~ppdaemon.messages.Forked`; the callee owns them."""


class TemplateFailed(PPDaemonError):
    """There is no template repo: no worker could start."""


class ZygoteFailed(PPDaemonError):
    """The zygote cannot import what the workers need."""


class TemplateProcess(ForkedProcess[messages.Ready]):
    """One process that makes the template and ends."""

    def __init__(self, repo: Path, log: Path, ask_fork: Callable[[messages.ForkWorker], bool]):
        lifecycle = Lifecycle(boot_s=TEMPLATE_S, answer_s=TEMPLATE_S, first_pause_s=0.0, longest_pause_s=0.0)
        super().__init__(
            "template", TEMPLATE_SLOT, repo, log, pydantic.TypeAdapter(messages.Ready), lifecycle, ask_fork
        )
        self._problem_of_end: asyncio.Future[str] = self._loop.create_future()

    async def run(self) -> None:
        """Have the template made.

        Raises
        ------
        TemplateFailed
            Raised with the end of its log if it was not made in time.
        """
        self.start()
        try:
            problem = await asyncio.wait_for(self._problem_of_end, TEMPLATE_S)
        except TimeoutError:
            problem = f"not made within {TEMPLATE_S:g} s"
        finally:
            self.close()
        if problem:
            raise TemplateFailed(f"the template repo was not made: {problem}\n{self._last_lines()}")

    def _received(self, message: messages.Ready, descriptors: list[int]) -> None:
        """Its only message: the template is made. Workers copy it after its end, when it is closed, too."""
        self.retire()

    def _serve(self) -> None:
        """It gets no orders."""

    def _lost(self, manner: str, owed: list[Any]) -> None:
        if not self._problem_of_end.done():
            made = self.lifecycle.state is State.CLOSED  # after it was retired
            self._problem_of_end.set_result("" if made else f"its process {manner}; see {self._log}")
        self.close()


class Generation(SupervisedProcess[messages.ZygoteFact]):
    """Keeps the zygote of one configuration; its children outlive it, and the
    next one serves the next orders.

    Parameters
    ----------
    number : `int`
        Names its template and settings.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the processes, beside what the configuration adds.
    on_message : `OnMessage`
        What becomes of workers and exporters.
    count : `collections.Counter`
        Counts dead zygotes.
    """

    descriptors = 2

    def __init__(
        self,
        number: int,
        config: NodeConfig,
        folders: NodeFolders,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        clock: Clock,
        on_message: OnMessage,
        count: Counter[str],
    ):
        lifecycle = Lifecycle(
            boot_s=BOOT_S,
            # So long that the slot does not give up before, and a zygote can
            # start all workers of a host.
            answer_s=config.workers.times.boot_s / 2,
            first_pause_s=1.0,
            longest_pause_s=60.0,
            steady_s=STEADY_S,
        )
        super().__init__("zygote", folders.logs / "zygote.log", messages.ZYGOTE_FACTS, lifecycle)
        self.number = number
        self.config = config
        self.template_ms: float | None = None
        self.living: set[int] = set()
        """Processes that were forked and are not known to be dead."""
        self._folders = folders
        self._lifeline = lifeline
        self._environment = {**environment, **config.workers.environment}
        self._clock = clock
        self._on_message = on_message
        self._count = count
        self._build_folder = folders.slots / f"template-build-{number}"
        self._booted: asyncio.Future[None] = self._loop.create_future()
        self._template: TemplateProcess | None = None
        self._not_forked = ""
        self._wiping: asyncio.Future[None] | None = None

    @property
    def problem(self) -> str:
        """Why there may be no new processes, or blank."""
        return super().problem or (f"forking fails: {self._not_forked}" if self._not_forked else "")

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.lifecycle.state is State.CLOSED

    async def make(self) -> None:
        """Have a zygote and a template.

        Raises
        ------
        ZygoteFailed
            Raised with the end of its log if it cannot import everything.
        TemplateFailed
            Raised with the end of its log if there is no template.
        """
        self._folders.settings(self.number).write_text(self.config.model_dump_json())
        self.start()
        await self._booted
        started = self._clock.mono()
        self._template = TemplateProcess(self._build_folder, self._folders.logs / "template.log", self.ask)
        await self._template.run()
        self._template = None
        self.template_ms = (self._clock.mono() - started) * 1e3

    def ask(self, order: messages.ForkWorker) -> bool:
        """Ask for a process of this generation.

        Returns
        -------
        asked : `bool`
            `False` if there is no zygote now. Else `on_message` gets a
            `~ppdaemon.messages.Forked` or a `~ppdaemon.messages.ForkFailed`.
        """
        order = order.model_copy(update={"generation": self.number})
        return self._order((order.role, order.slot, order.epoch), order)

    def retire(self) -> None:
        """Start nothing more; end after the last process."""
        if self.lifecycle.state is State.SERVING:
            super().retire()
            self._end_if_idle()
        else:
            self.close()  # whoever is there has no zygote already

    def close(self) -> None:
        """Kill the zygote; its children live on."""
        super().close()
        if self._template is not None:
            self._template.close()
            self._template = None

    def discard(self) -> None:
        """Close and delete the files: there is no process that needs them."""
        self.close()
        self._wiping = self._loop.run_in_executor(None, self._wipe)

    async def wiped(self) -> None:
        """Wait until the files are deleted, if they are."""
        if self._wiping is not None:
            await self._wiping

    def _wipe(self) -> None:
        """Blocks for a moment."""
        try:
            for folder in (self._folders.template(self.number), self._build_folder):
                wipe(folder)
            self._folders.settings(self.number).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("files of generation %d are left until the end: %s", self.number, error)

    def _end_if_idle(self) -> None:
        if self.lifecycle.state is State.RETIRED and not self.living and not self.lifecycle.owed:
            _LOG.info("generation %d has no process left", self.number)
            self.discard()

    # --- the zygote -------------------------------------------------------

    def _launch(self) -> Child:
        arguments = ["--config", str(self._folders.settings(self.number))]
        return launch("ppdaemon.worker.zygote", arguments, self._lifeline, self._environment, self._log)

    def _serve(self) -> None:
        if not self._booted.done():
            self._booted.set_result(None)

    def _received(self, message: messages.ZygoteFact, descriptors: list[int]) -> None:
        match message:
            case messages.ZygoteReady(pid=pid, modules=modules, import_s=import_s):
                _LOG.info("zygote %d has imported %d modules in %.1f s", pid, modules, import_s)
                self._ready()
                return
            case messages.Reaped(pid=pid):
                self.living.discard(pid)
            case messages.Forked() if len(descriptors) != 2:
                message, descriptors = _disown(message, descriptors), []
            case messages.Forked(pid=pid):
                self.living.add(pid)
                self._not_forked = ""
        if not isinstance(message, messages.Reaped):
            self._answered((message.role, message.slot, message.epoch))
        if isinstance(message, messages.ForkFailed):
            self._not_forked = message.reason
        self._pass_on(message, descriptors)
        self._end_if_idle()

    def _pass_on(self, message: messages.ForkFact, descriptors: list[int]) -> None:
        """Give the template's process what is its, and the supervisor the rest."""
        match message:
            case messages.Forked(role="template") if self._template is not None:
                self._template.forked(message, descriptors)
            case messages.Forked(role="template"):
                orphan = adopt(message, descriptors)
                orphan.signal(signal.SIGKILL)
                orphan.close()
            case messages.ForkFailed(role="template", reason=reason):
                if self._template is not None:
                    self._template.not_forked(reason)
            case _:
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
            self._pass_on(messages.ForkFailed(role=role, slot=slot, epoch=epoch, reason=reason), [])


def _disown(message: messages.Forked, descriptors: list[int]) -> messages.ForkFailed:
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
    return messages.ForkFailed(role=message.role, slot=message.slot, epoch=message.epoch, reason=reason)
