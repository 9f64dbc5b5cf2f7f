# SPDX-License-Identifier: BSD-3-Clause
"""One configuration's zygote and template: what its processes come from.

Covers how both are made, and how a generation whose time is over waits for
its last process. Which generation is the present one is
`ppdaemon.node.processes.reload`'s matter.
"""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Collection, Mapping

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Forked, ForkFailed, ForkWorker, Reaped
from ppdaemon.node.processes.child import Lifeline, adopt, wipe
from ppdaemon.node.processes.lifecycle import State
from ppdaemon.node.processes.template import TemplateProcess
from ppdaemon.node.processes.zygote import OnMessage, Zygote

__all__ = ("Generation",)

_LOG = logging.getLogger(__name__)


class Generation:
    """Processes of one configuration.

    Parameters
    ----------
    number : `int`
        Names its template and settings.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the processes, beside what the configuration adds.
    on_message : `~ppdaemon.node.processes.zygote.OnMessage`
        What becomes of workers and exporters.
    count : `collections.Counter`
        Counts dead zygotes.
    """

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
        self.number = number
        self.config = config
        self.template_ms: float | None = None
        self._folders = folders
        self._clock = clock
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._build_folder = folders.slots / f"template-build-{number}"
        self._template: TemplateProcess | None = None
        self._not_forked = ""
        self._wiping: asyncio.Future[None] | None = None
        self._zygote = Zygote(
            folders.settings(number),
            lifeline,
            {**environment, **config.workers.environment},
            folders.logs / "zygote.log",
            # So long that the slot does not give up before, and a zygote can
            # start all workers of a host.
            config.workers.times.boot_s / 2,
            self._received,
            count,
        )

    @property
    def pid(self) -> int | None:
        """The process that forks."""
        return self._zygote.pid

    @property
    def living(self) -> Collection[int]:
        """Processes that were forked and are not known to be dead."""
        return self._zygote.living

    @property
    def problem(self) -> str:
        """Why there may be no new processes, or blank."""
        return self._zygote.problem or (f"forking fails: {self._not_forked}" if self._not_forked else "")

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self._zygote.lifecycle.state is State.CLOSED

    async def start(self) -> None:
        """Have a zygote and a template.

        Raises
        ------
        ppdaemon.node.processes.zygote.ZygoteFailed
            Raised with the end of its log if it cannot import everything.
        ppdaemon.node.processes.template.TemplateFailed
            Raised with the end of its log if there is no template.
        """
        self._folders.settings(self.number).write_text(self.config.model_dump_json())
        await self._zygote.boot()
        started = self._clock.mono()
        self._template = TemplateProcess(self._build_folder, self._folders.logs / "template.log", self.ask)
        await self._template.run()
        self._template = None
        self.template_ms = (self._clock.mono() - started) * 1e3

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process of this generation.

        Returns
        -------
        asked : `bool`
            `False` if there is no zygote now. Else `on_message` gets a
            `~ppdaemon.messages.Forked` or a `~ppdaemon.messages.ForkFailed`.
        """
        return self._zygote.ask(order.model_copy(update={"generation": self.number}))

    def retire(self) -> None:
        """Start nothing more; end after the last process."""
        if self._zygote.lifecycle.state is State.SERVING:
            self._zygote.retire()
            self._end_if_idle()
        else:
            self.close()  # whoever is there has no zygote already

    def close(self) -> None:
        """End the zygote now; its children live on."""
        self._zygote.close()
        if self._template is not None:
            self._template.close()
            self._template = None

    def discard(self) -> None:
        """End now and delete the files: there is no process that needs them."""
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

    def _received(self, message: Forked | ForkFailed | Reaped, descriptors: list[int]) -> None:
        """Give the template's process what is its, and the supervisor the rest."""
        if isinstance(message, Forked):
            self._not_forked = ""
        elif isinstance(message, ForkFailed) and self._zygote.lifecycle.state is State.SERVING:
            self._not_forked = message.reason
        match message:
            case Forked(role="template") if self._template is not None:
                self._template.forked(message, descriptors)
            case Forked(role="template"):
                orphan = adopt(message, descriptors)
                orphan.signal(signal.SIGKILL)
                orphan.close()
            case ForkFailed(role="template", reason=reason):
                if self._template is not None:
                    self._template.not_forked(reason)
            case _:
                self._on_message(message, descriptors)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._zygote.lifecycle.state is State.RETIRED and self._zygote.idle:
            _LOG.info("generation %d has no process left", self.number)
            self.discard()
