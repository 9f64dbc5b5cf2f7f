# SPDX-License-Identifier: BSD-3-Clause
"""One configuration's zygote and template: what its processes come from.

Covers how both are made, how a zygote that dies or hangs is replaced, and how
a generation whose time is over waits for its last process. Which generation
is the present one is `ppdaemon.node.processes.reload`'s matter.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from enum import Enum, auto

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Forked, ForkFailed, ForkWorker, Reaped, Role, ZygoteReady
from ppdaemon.node.processes.child import adopt, wipe
from ppdaemon.node.processes.spawn import Spawner
from ppdaemon.node.processes.template import TemplateBuild, last_lines, size_of
from ppdaemon.node.processes.zygote import Forker, Lifeline, ZygoteGone

__all__ = ("Generation", "Hear", "ZygoteFailed", "pause_after")

_LOG = logging.getLogger(__name__)

BOOT_S = 120.0
"""How long imports may take, and then the template."""
STEADY_S = 60.0
"""The death of a zygote that has lived longer is not one in a row."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

type Words = Forked | ForkFailed | Reaped
type Hear = Callable[[Words, list[int]], None]


class ZygoteFailed(PPDaemonError):
    """The zygote cannot import what the workers need."""


class Phase(Enum):
    """Of a generation's zygote."""

    BOOTING = auto()
    SERVING = auto()
    PAUSING = auto()
    """It is dead, and the next one is not started yet."""
    RETIRED = auto()
    """It forks no more, and ends after its last child."""
    CLOSED = auto()


def pause_after(deaths: int) -> float:
    """Return how long to wait before the next zygote.

    Parameters
    ----------
    deaths : `int`
        In a row, at least one.

    Returns
    -------
    pause_s : `float`
        1, 2, 4 ... seconds, at most 60.
    """
    return float(min(FIRST_PAUSE_S * 2.0 ** min(deaths - 1, 16), LONGEST_PAUSE_S))


class Generation:
    """Processes of one configuration.

    Parameters
    ----------
    number : `int`
        Names its template and settings.
    config : `~ppdaemon.config.NodeConfig`
        The configuration.
    folders : `~ppdaemon.folders.NodeFolders`
        The node's folders.
    lifeline : `~ppdaemon.node.processes.zygote.Lifeline`
        Ends the processes with the supervisor.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the processes, beside what the configuration adds.
    clock : `~ppdaemon.clock.Clock`
        For how long a zygote has lived.
    hear : `~collections.abc.Callable`
        Hears what becomes of workers and exporters; owns the descriptors.
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
        hear: Hear,
        count: Counter[str],
    ):
        self.number = number
        self.config = config
        self.template_ms: float | None = None
        self._folders = folders
        self._lifeline = lifeline
        self._environment = {**environment, **config.workers.environment}
        self._clock = clock
        self._hear = hear
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._kind: type[Forker] | type[Spawner] = Forker if config.workers.start == "fork" else Spawner
        self._log = folders.logs / "zygote.log"
        self._build_folder = folders.slots / f"template-build-{number}"
        self._phase = Phase.PAUSING
        self._forker: Forker | Spawner | None = None
        self._booted: asyncio.Future[ZygoteReady] = self._loop.create_future()
        self._template: TemplateBuild | None = None
        self._asked: dict[tuple[Role, int, int], tuple[ForkWorker, float]] = {}
        self._living: set[int] = set()
        self._born = 0.0
        self._deaths = 0
        self._manner = ""
        self._overdue_with = ""
        self._wiping: asyncio.Future[None] | None = None
        self._not_forked = ""
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process that forks (`int` or `None`)."""
        return self._forker.pid if self._forker else None

    @property
    def living(self) -> Collection[int]:
        """Processes that were forked and are not known to be dead."""
        return self._living

    @property
    def problem(self) -> str:
        """Why there may be no new processes, or blank (`str`)."""
        if self._phase in (Phase.PAUSING, Phase.BOOTING) and self._deaths:
            text = "the next one boots"
            if self._phase == Phase.PAUSING and self._timer is not None:
                text = f"the next one starts in {max(0.0, self._timer.when() - self._loop.time()):.0f} s"
            return f"{self._told_deaths()}; {text}; see {self._log}"
        if self._deaths > 1 and self._clock.mono() - self._born < STEADY_S:
            return f"{self._told_deaths()}; see {self._log}"
        return f"forking fails: {self._not_forked}" if self._not_forked else ""

    def _told_deaths(self) -> str:
        times = f", {self._deaths} deaths in a row" if self._deaths > 1 else ""
        return f"the zygote {self._manner}{times}"

    async def start(self) -> None:
        """Have a zygote and a template.

        Raises
        ------
        ZygoteFailed
            Raised with the end of its log if it cannot import everything.
        ppdaemon.node.processes.template.TemplateFailed
            Raised with the end of its log if there is no template.
        """
        log_size = size_of(self._log)
        self._folders.settings(self.number).write_text(self.config.model_dump_json())
        self._boot()
        try:
            ready = await self._booted
        except ZygoteFailed as error:
            end = last_lines(self._log, since=log_size)
            raise ZygoteFailed(f"the zygote cannot start: {error}\n{end}".strip()) from None
        if ready.modules:
            _LOG.info("zygote %d has imported %d modules in %.1f s", ready.pid, ready.modules, ready.import_s)
        started = self._clock.mono()
        self._template = TemplateBuild(self._build_folder, self._folders.logs / "template.log")
        await self._template.run(self.ask, BOOT_S)
        self._template = None
        self.template_ms = (self._clock.mono() - started) * 1e3

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process of this generation.

        Parameters
        ----------
        order : `~ppdaemon.messages.ForkWorker`
            What for.

        Returns
        -------
        asked : `bool`
            `False` if there is no zygote now. Else `hear` gets a
            `~ppdaemon.messages.Forked` or a `~ppdaemon.messages.ForkFailed`.
        """
        if self._phase != Phase.SERVING or self._forker is None:
            return False
        if not self._forker.ask(order.model_copy(update={"generation": self.number})):
            return False
        self._asked[order.role, order.slot, order.epoch] = (order, self._clock.mono())
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience_s, self._look)
        return True

    def retire(self) -> None:
        """Start nothing more; end after the last process."""
        if self._phase == Phase.SERVING:
            self._phase = Phase.RETIRED
            self._end_if_done()
        elif self._phase != Phase.CLOSED:
            self.close()  # whoever is there has no zygote already

    def close(self) -> None:
        """End the zygote now; its children live on."""
        self._phase = Phase.CLOSED
        self._stop_timers()
        if self._template is not None:
            self._template.close()
            self._template = None
        if self._forker is not None:
            self._forker.close()

    def discard(self) -> None:
        """End now and delete the files: there is no process that needs them."""
        self.close()
        self._wiping = self._loop.run_in_executor(None, self._wipe)

    async def closed(self) -> None:
        """Wait until nothing of it is left to be done."""
        if self._wiping is not None:
            await self._wiping
        if self._forker is not None:
            await asyncio.shield(self._forker.ended)

    @property
    def over(self) -> bool:
        """Whether it has ended for good (`bool`)."""
        return self._phase == Phase.CLOSED

    def _wipe(self) -> None:
        """Blocks for a moment."""
        try:
            for folder in (self._folders.template(self.number), self._build_folder):
                wipe(folder)
            self._folders.settings(self.number).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("files of generation %d are left until the end: %s", self.number, error)

    # --- the zygote's life -----------------------------------------------

    @property
    def _patience_s(self) -> float:
        """How long an order may be without an answer: so long that the seat
        does not give up before, and a zygote can fork all workers of a host.
        """
        return self.config.workers.times.boot_s / 2

    def _boot(self) -> None:
        self._phase = Phase.BOOTING
        self._born = self._clock.mono()
        try:
            self._forker = self._kind(
                self._folders.settings(self.number),
                self._lifeline,
                self._environment,
                self._log,
                self._said,
            )
        except OSError as error:
            self._gone(f"cannot be started: {error}")
            return
        self._timer = self._loop.call_later(BOOT_S, self._overdue, f"has not imported all in {BOOT_S:g} s")

    def _ready(self, words: ZygoteReady) -> None:
        self._stop_timers()
        if self._phase == Phase.BOOTING:
            self._phase = Phase.SERVING
        if not self._booted.done():
            self._booted.set_result(words)

    def _look(self) -> None:
        """See whether the oldest order has waited too long."""
        self._watch = None
        if not self._asked:
            return
        _, asked_at = next(iter(self._asked.values()))
        rest = asked_at + self._patience_s - self._clock.mono()
        if rest > 0:
            self._watch = self._loop.call_later(rest, self._look)
        else:
            self._overdue(f"has not answered for {self._patience_s:g} s")

    def _overdue(self, what: str) -> None:
        _LOG.error("the zygote %s: it is killed", what)
        self._overdue_with = what
        if self._forker is not None:
            self._forker.kill()

    def _gone(self, manner: str) -> None:
        """Its children live on; a new one serves the next orders."""
        self._count["zygote_gone"] += 1
        self._stop_timers()
        self._forker = None
        self._living.clear()
        steady = self._clock.mono() - self._born > STEADY_S
        self._deaths = 1 if steady else self._deaths + 1
        self._manner, self._overdue_with = self._overdue_with or manner, ""
        if not self._booted.done():
            self._phase = Phase.CLOSED
            self._booted.set_exception(ZygoteFailed(f"it {self._manner}"))
        elif self._phase in (Phase.RETIRED, Phase.CLOSED):
            self._phase = Phase.CLOSED
        else:
            self._phase = Phase.PAUSING
            self._timer = self._loop.call_later(pause_after(self._deaths), self._boot)
        asked, self._asked = self._asked, {}
        for order, _ in asked.values():
            failed = ForkFailed(
                role=order.role, slot=order.slot, epoch=order.epoch, reason=f"the zygote {self._manner}"
            )
            self._pass_on(failed, [])

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        self._timer = self._watch = None

    # --- what it says ----------------------------------------------------

    def _said(
        self, words: ZygoteReady | Forked | ForkFailed | Reaped | ZygoteGone, descriptors: list[int]
    ) -> None:
        match words:
            case ZygoteReady():
                self._ready(words)
            case ZygoteGone(manner=manner):
                self._gone(manner)
            case Forked(role=role, slot=slot, epoch=epoch, pid=pid):
                self._asked.pop((role, slot, epoch), None)
                self._living.add(pid)
                self._not_forked = ""
                self._pass_on(words, descriptors)
            case ForkFailed(role=role, slot=slot, epoch=epoch, reason=reason):
                self._asked.pop((role, slot, epoch), None)
                self._not_forked = reason
                self._pass_on(words, descriptors)
            case Reaped(pid=pid):
                self._living.discard(pid)
                self._pass_on(words, descriptors)
        self._end_if_done()

    def _pass_on(self, words: Words, descriptors: list[int]) -> None:
        """Tell the template's build what is its, and the supervisor the rest."""
        role: Role | None = None if isinstance(words, Reaped) else words.role
        if role != "template":
            self._hear(words, descriptors)
        elif isinstance(words, Forked):
            if self._template is not None:
                self._template.forked(words, descriptors)
            else:
                orphan = adopt(words, descriptors)
                orphan.signal(9)
                orphan.close()
        elif isinstance(words, ForkFailed) and self._template is not None:
            self._template.failed(words.reason)

    def _end_if_done(self) -> None:
        if self._phase == Phase.RETIRED and not self._living and not self._asked:
            _LOG.info("generation %d has no process left", self.number)
            self.discard()
