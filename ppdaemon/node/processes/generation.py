# SPDX-License-Identifier: BSD-3-Clause
"""The zygote, template and files of one configuration.

Covers how they are created, how a zygote that dies or hangs is replaced, and how a retired
generation waits for the end of its last process. Which generation is the current one is
decided in `ppdaemon.node.processes.reload`.
"""

import asyncio
import logging
import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppdaemon import messages
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import ConfigError, PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.node.processes.child import ChildProcess, Lifeline, adopt, launch, wipe
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.supervised import ForkedProcess, SupervisedProcess
from ppdaemon.privatefiles import write_private
from ppdaemon.states import ExitCode

__all__ = (
    "Generation",
    "OnMessage",
    "TemplateFailed",
    "TemplateProcess",
    "TemplateUnavailable",
    "ZygoteFailed",
)

_LOG = logging.getLogger(__name__)

BOOT_S = 120.0
"""Time limit of the imports."""
TEMPLATE_SLOT = -2
"""Instead of the number of a slot, in orders to the zygote; the exporter's is -1."""
TEMPLATE_S = 120.0
"""Time limit of the template; a lost connection to a database may take longer to fail (127 s)."""
FORKS_FAIL_S = 5.0
"""Forks are tried again within 2 s; a host without free memory or processes may have some in a moment."""
STEADY_S = 60.0
"""A zygote that dies after more than this time does not count as one more death in a row."""

type OnMessage = Callable[[messages.ForkFact, list[int]], None]
"""Called in the event loop with each message, and with the channel and pidfd of a
`~ppdaemon.messages.Forked`, which the callee has to close.
"""


class TemplateFailed(PPDaemonError):
    """The template repo cannot be created: no worker could start."""


class TemplateUnavailable(TemplateFailed):
    """The central repo, whose dimensions the template needs, is not available: try again later."""

    exit_code = ExitCode.UNAVAILABLE


class ZygoteFailed(PPDaemonError):
    """The zygote cannot import the modules of the workers."""


class TemplateProcess(ForkedProcess[messages.TemplateFact]):
    """One process that creates the template and ends."""

    def __init__(self, repo: Path, log: Path, request_fork: Callable[[messages.ForkWorker], bool]):
        # Without a limit of its start: `run` limits all of it.
        lifecycle = Lifecycle(boot_s=math.inf, answer_s=math.inf, first_pause_s=0.0, longest_pause_s=0.0)
        super().__init__(
            "template",
            TEMPLATE_SLOT,
            repo,
            log,
            messages.TEMPLATE_FACTS,
            lifecycle,
            request_fork,
        )
        self._problem_of_end: asyncio.Future[str] = self._loop.create_future()
        self._unavailable = self._connecting = ""

    async def run(self) -> None:
        """Create the template. Raise `TemplateFailed` with the end of its log if that fails or
        takes too long, `TemplateUnavailable` if the central repo does not answer.
        """
        self.start()
        try:
            problem = await asyncio.wait_for(self._problem_of_end, TEMPLATE_S)
        except TimeoutError:
            problem = f"not created within {TEMPLATE_S:g} s"
            if self._connecting:
                self._unavailable = f"{self._connecting} has not answered within {TEMPLATE_S:g} s"
        finally:
            self.close()
        if self._unavailable:
            raise TemplateUnavailable(self._unavailable)
        if problem:
            raise TemplateFailed(f"the template repo was not created: {problem}\n{self._last_lines()}")

    def _received(self, message: messages.TemplateFact, descriptors: list[int]) -> None:
        """Retire the process after its last message. Workers copy the template after the end of the
        process, when all its files are closed.
        """
        if isinstance(message, messages.Connecting):
            self._connecting = message.what
            return
        if isinstance(message, messages.NotReady):
            self._unavailable = message.reason
        self._connecting = ""
        self.retire()

    def _serve(self) -> None:
        """Send nothing: it takes no orders."""

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        if not self._problem_of_end.done():
            made = self.lifecycle.state is ProcessState.CLOSED  # it ended after it was retired
            self._problem_of_end.set_result("" if made else f"its process {cause}; see {self._log}")
        self.close()


class Generation(SupervisedProcess[messages.ZygoteFact]):
    """Supervises the zygote of one configuration. The zygote's children outlive it, and its
    successor takes the next orders.
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
            # Less than the time limit of a slot, which must not give up first, but
            # enough to start all workers of a host.
            answer_s=config.workers.times.boot_s / 2,
            first_pause_s=1.0,
            longest_pause_s=60.0,
            steady_s=STEADY_S,
        )
        super().__init__("zygote", folders.logs / "zygote.log", messages.ZYGOTE_FACTS, lifecycle)
        self.number = number
        self.config = config
        self.template_ms: float | None = None
        self.running_pids: set[int] = set()
        """Forked processes that are not known to have ended."""
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
        self._not_forked_since = 0.0
        self._wiping: asyncio.Future[None] | None = None
        self._warms_up = False
        """Whether the zygote is not ready, and may be in its warm-up."""
        self._cold = ""
        """Why the next zygote does not warm up, or blank."""

    @property
    def problem(self) -> str:
        """Why no new process can start, or blank."""
        return super().problem or (f"forking fails: {self._not_forked}" if self._not_forked else "")

    @property
    def fork_problem(self) -> str:
        """Why no process has started for a while, or blank. A zygote that died once starts again."""
        forks_fail = self._not_forked and self._loop.time() - self._not_forked_since > FORKS_FAIL_S
        return self.problem if self.lifecycle.failing or forks_fail else ""

    @property
    def stage(self) -> str:
        """What `make` does now; blank after it."""
        if not self._booted.done():
            return "importing the modules of the workers"
        return "" if self.template_ms is not None else "making the template repo"

    @property
    def closed(self) -> bool:
        """Whether the generation has ended for good."""
        return self.lifecycle.state is ProcessState.CLOSED

    async def make(self) -> None:
        """Start the zygote and create the template. Raise `ZygoteFailed` or `TemplateFailed` with
        the end of the log, or `ConfigError`.
        """
        # Before the start: the zygote reads this file.
        write_private(self._folders.settings(self.number), self.config.model_dump_json())
        self.start()
        await self._booted
        started = self._clock.mono()
        self._template = TemplateProcess(self._build_folder, self._folders.logs / "template.log", self.ask)
        await self._template.run()
        self._template = None
        self.template_ms = (self._clock.mono() - started) * 1e3

    def ask(self, order: messages.ForkWorker) -> bool:
        """Ask for a process of this generation; return `False` if there is no zygote now.
        Otherwise `on_message` is called with a `~ppdaemon.messages.Forked` or a
        `~ppdaemon.messages.ForkFailed`.
        """
        order = order.model_copy(update={"generation": self.number})
        return self._order((order.role, order.slot, order.epoch), order)

    def retire(self) -> None:
        """Start no more processes; end after the last one."""
        if self.lifecycle.state is ProcessState.SERVING:
            super().retire()
            self._end_if_idle()
        else:
            self.close()  # the zygote has ended already

    def close(self) -> None:
        """Kill the zygote; its children continue."""
        super().close()
        if self._template is not None:
            self._template.close()
            self._template = None

    def discard(self) -> None:
        """Close, and delete the files, which no process needs any more."""
        self.close()
        self._wiping = self._loop.run_in_executor(None, self._wipe)

    async def wait_wiped(self) -> None:
        """Wait until the files are deleted, if that has begun."""
        if self._wiping is not None:
            await self._wiping

    def _wipe(self) -> None:
        """Delete the files. Blocks: runs in a thread."""
        try:
            numbered = self._folders.template(self.number), self._folders.questions(self.number)
            for folder in (*numbered, self._build_folder):
                wipe(folder)
            self._folders.settings(self.number).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning(
                "files of generation %d cannot be deleted and stay until the daemon stops: %s",
                self.number,
                error,
            )

    def _end_if_idle(self) -> None:
        if (
            self.lifecycle.state is ProcessState.RETIRED
            and not self.running_pids
            and not self.lifecycle.unanswered
        ):
            _LOG.info("generation %d has ended: its last process has ended", self.number)
            self.discard()

    # --- the zygote -------------------------------------------------------

    def _launch(self) -> ChildProcess:
        arguments = ["--config", str(self._folders.settings(self.number))]
        if self._cold:
            arguments += ["--cold", self._cold]
        zygote = launch("ppdaemon.worker.zygote", arguments, self._lifeline, self._environment, self._log)
        self._warms_up = self.config.workers.start == "fork" and not self._cold
        return zygote

    def _serve(self) -> None:
        if not self._booted.done():
            self._booted.set_result(None)

    def _received(self, message: messages.ZygoteFact, descriptors: list[int]) -> None:
        match message:
            case messages.ZygoteReady(pid=pid, modules=modules, import_s=import_s, cold=cold):
                _LOG.info("zygote %d has imported %d modules in %.1f s", pid, modules, import_s)
                if cold:
                    _LOG.warning("the first visit of each worker takes longer, without a warm-up: %s", cold)
                self._warms_up, self._cold = False, ""
                self._ready()
                return
            case messages.ZygoteRefused(problems=problems):
                if not self._booted.done():
                    self._booted.set_exception(ConfigError(problems))
                    self.close()
                return
            case messages.Reaped(pid=pid):
                self.running_pids.discard(pid)
                if self._template is not None:
                    self._template.reaped(message)
            case messages.Forked() if len(descriptors) != 2:
                message, descriptors = _refuse_forked(message, descriptors), []
            case messages.Forked(pid=pid):
                self.running_pids.add(pid)
                self._not_forked = ""
        if not isinstance(message, messages.Reaped):
            self._answered((message.role, message.slot, message.epoch))
        if isinstance(message, messages.ForkFailed):
            if not self._not_forked:
                self._not_forked_since = self._loop.time()
            self._not_forked = message.reason
        self._forward(message, descriptors)
        self._end_if_idle()

    def _forward(self, message: messages.ForkFact, descriptors: list[int]) -> None:
        """Pass messages about the template's process to it, and all others to the supervisor."""
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

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        self._count["zygote_gone"] += 1
        # Unknown from now on: no zygote reports their end. The supervisor reaps them.
        self.running_pids.clear()
        # A pipeline may have crashed it, which ends only the workers that run this pipeline.
        cold, self._warms_up = self._warms_up, False
        self._cold = f"with one, the zygote {cause}" if cold else ""
        if not self._booted.done() and not cold:
            text = f"the zygote cannot start: it {cause}\n{self._last_lines()}"
            self._booted.set_exception(ZygoteFailed(text.strip()))
            self.close()
        for role, slot, epoch in unanswered:
            reason = f"the zygote {cause}"
            self._forward(messages.ForkFailed(role=role, slot=slot, epoch=epoch, reason=reason), [])


def _refuse_forked(message: messages.Forked, descriptors: list[int]) -> messages.ForkFailed:
    """Kill a process whose descriptors did not all arrive: this process has no free descriptors,
    and the kernel has dropped the others.
    """
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        # By pid, since there is no pidfd: it was forked a moment ago, and the
        # kernel reuses a pid only after all others.
        os.kill(message.pid, signal.SIGKILL)
    except ProcessLookupError:
        _LOG.debug("process %d has ended already", message.pid)
    reason = "too many open files in the supervisor"
    return messages.ForkFailed(role=message.role, slot=message.slot, epoch=message.epoch, reason=reason)
