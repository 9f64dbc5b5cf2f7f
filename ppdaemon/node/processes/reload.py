# SPDX-License-Identifier: BSD-3-Clause
"""Replaces the configuration while the daemon runs.

A new generation is created beside the current one, and takes over when it can serve. An error
before that leaves everything as it was.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.configfile import ConfigFile
from ppdaemon.errors import ConfigError, NeedsRestart, PPDaemonError, Refused, Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import ForkWorker
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.generation import (
    Generation,
    OnMessage,
    TemplateFailed,
    TemplateUnavailable,
    ZygoteFailed,
)
from ppdaemon.node.processes.names import NameCheck, Resolution, retry_pauses
from ppdaemon.problemlog import Finding
from ppdaemon.reports import ProblemSource

__all__ = ("Generations", "brief", "needs_restart")

_LOG = logging.getLogger(__name__)

NAMES_S = 5.0
"""How long the start waits for the check of names when all else is ready; the check began with the
start. Names without an answer are resolved later."""
TASK_NAMES_S = 30.0
"""How long the start waits for the names of tasks, after all modules are imported: some ten times the
time that they take."""
FIXED_PARTS = ("node", "relay", "redis", "arrivals", "shadow")
"""Their folders, sockets and watches are created once, at the start; so is the folder `export.spill`. In
shadow mode nothing of the journal may be of the other mode."""
RUN_TIME_KEYS = frozenset(
    {"node.expiry_s", "node.keep_days", "arrivals.image_timeout_s", "arrivals.quiet_s", "relay.server"}
)
"""Keys that may change although the rest of their part may not."""


def needs_restart(old: NodeConfig, new: NodeConfig) -> list[str]:
    """Return the keys, such as ``node.name``, that differ and cannot change while the daemon runs."""
    keys = []
    for part in FIXED_PARTS:
        before, after = getattr(old, part), getattr(new, part)
        fields = type(before).model_fields
        keys += [f"{part}.{name}" for name in fields if getattr(before, name) != getattr(after, name)]
    if old.export.spill != new.export.spill:
        keys.append("export.spill")
    return [key for key in keys if key not in RUN_TIME_KEYS]


def _require_checked(config: NodeConfig, task_names: asyncio.Future[Resolution]) -> None:
    """Raise `~ppdaemon.errors.Unavailable` in shadow mode if nobody knows where tasks would write."""
    if config.shadow.enabled and not task_names.done():
        text = (
            "shadow mode: the tasks of the pipelines could not be checked, and might write where those of the"
        )
        raise Unavailable(f"{text} present service do; see ppdaemon check-config")


def brief(error: PPDaemonError) -> str:
    """Return an error in one line: the first error of a file, or the first and last line of another text,
    between which a process may have logged a traceback.
    """
    if isinstance(error, ConfigError):
        return error.brief
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join((*lines[:1], *lines[1:][-1:]))


async def _cancel(task: asyncio.Task[Resolution]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Generations:
    """The current generation, earlier ones that still have processes, and one that is being
    created. `switch` is called with the new configuration when its generation can serve.
    """

    def __init__(
        self,
        file: ConfigFile,
        read_config: Callable[[], ConfigFile],
        names: NameCheck,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        clock: Clock,
        on_message: OnMessage,
        switch: Callable[[NodeConfig], None],
        count: Counter[str],
    ):
        self.reloaded_tai: float | None = None
        """When the current generation took over, if it is not the first."""
        self.refusal = ""
        """Why the last reload was refused, or blank."""
        self._not_made: Finding | None = None
        """Why the first generation cannot be created yet."""
        self._resolving: asyncio.Task[Resolution] | None = None
        self._task_names: asyncio.Future[Resolution] | None = None
        """The findings when those of tasks are complete."""
        self._file = file
        self._read_config = read_config
        self._names = names
        self._clock = clock
        self._switch = switch
        self._count = count
        self._create = partial(
            Generation,
            folders=NodeFolders.of(file.config),
            lifeline=lifeline,
            environment=environment,
            clock=clock,
            on_message=on_message,
            count=count,
        )
        self._last_number = 0
        self._generations: list[Generation] = []
        self._reloading = False
        self._current = self._new(file.config)

    @property
    def number(self) -> int:
        """The number of the current generation."""
        return self._current.number

    @property
    def template_ms(self) -> float | None:
        """The time that the current template took to create."""
        return self._current.template_ms

    def findings(self) -> Iterator[Finding]:
        """Yield the problems of now."""
        if self._not_made is not None:
            yield self._not_made
        elif self._current.problem:
            yield Finding("zygote", self._current.problem)
        if self.refusal:
            yield Finding("configuration", self.refusal, "reload", degrades=False)
        yield from (Finding("configuration", problem) for problem in self._names.problems)

    @property
    def stage(self) -> str:
        """What the creation of the current generation does now; blank after it."""
        return self._current.stage

    @property
    def waiting(self) -> bool:
        """Whether the first generation could not be created, and is tried again."""
        return self._not_made is not None

    @property
    def fork_problem(self) -> str:
        """Why no process has started for a while, or blank."""
        return self._current.fork_problem

    async def start(self) -> None:
        """Create the first generation, and again after growing pauses while that fails: a restart of the
        daemon would not help. Raise `~ppdaemon.errors.ConfigError` with all names that do not exist, unless
        the daemon is already READY and waits: then the repo may be made now.
        """
        pauses = retry_pauses(self._current.config.export)
        while True:
            self._task_names = asyncio.get_running_loop().create_future()
            try:
                self._resolving = await self._make(self._current, self._file, self._task_names)
            except (TemplateFailed, ZygoteFailed, ConfigError) as error:
                if isinstance(error, ConfigError) and not self.waiting:
                    raise
                pause_s = pauses.failed(self._clock.mono())
                _LOG.error("no worker can start: %s; tried again in %.1f s", error, pause_s)
                text = f"no worker can start: {brief(error)}; tried again all the time"
                source: ProblemSource = "zygote"
                if isinstance(error, TemplateUnavailable):
                    source = "central_repo"
                self._not_made = Finding(source, text)
                await asyncio.sleep(pause_s)
                if self._current.closed:
                    self._current = self._new(self._current.config)
            else:
                self._not_made = None
                return

    async def wait_for_task_names(self) -> None:
        """Wait until the names of tasks of the first configuration are resolved; if they hang or crash, no
        longer than `TASK_NAMES_S`. Raise `~ppdaemon.errors.ConfigError` if a task that must not be
        repeated does not exist.
        """
        assert self._task_names is not None  # the start has begun both
        assert self._resolving is not None
        await asyncio.wait(
            (self._task_names, self._resolving),
            timeout=TASK_NAMES_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self._task_names.done() and (found := self._task_names.result()).repeating:
            # All errors are reported at once, unless a database hangs.
            await asyncio.wait((self._resolving,), timeout=NAMES_S)
            if not self._resolving.done():
                raise ConfigError(found.errors)
        if self._resolving.done():
            self._resolving.result()
        _require_checked(self._file.config, self._task_names)
        if not self._task_names.done():
            _LOG.critical(
                "the names of tasks could not be resolved; visits are processed all the same. If a name in"
                " engine.no_return does not exist, they could be written twice: see ppdaemon check-config"
            )

    async def wait_for_names(self) -> None:
        """Wait until the names of the first configuration are resolved, but not long. Raise
        `~ppdaemon.errors.ConfigError` with all that do not exist.
        """
        assert self._resolving is not None  # the start has begun it
        try:
            resolution = await asyncio.wait_for(self._resolving, NAMES_S)
        except TimeoutError:
            text = f"{self._file.path}: names without an answer {NAMES_S:g} s after the start"
            resolution = Resolution(unavailable=(text,))
        self._names.use(self._file, resolution)

    async def _make(
        self,
        generation: Generation,
        file: ConfigFile,
        task_names: asyncio.Future[Resolution] | None = None,
    ) -> asyncio.Task[Resolution]:
        """Create a generation; return the check of names, which began at the same time. Raise
        `~ppdaemon.errors.ConfigError` with all names that do not exist if it cannot be created.
        """
        names = asyncio.create_task(self._names.resolve(file, task_names))
        try:
            await generation.make()
        except BaseException as error:
            try:
                # A name that does not exist is the usual cause: report all of them.
                if isinstance(error, PPDaemonError):
                    await asyncio.wait([names])
                    if names.exception() is not None:
                        _LOG.error("%s", error)  # with the traceback of the process
                    names.result()
            finally:
                await _cancel(names)
            raise
        return names

    def processes(self) -> tuple[set[int], set[int]]:
        """Return the zygotes of all generations, and the processes forked by them that are not
        known to have ended.
        """
        zygotes = {generation.pid for generation in self._generations if generation.pid is not None}
        return zygotes, {pid for generation in self._generations for pid in generation.running_pids}

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process of the current generation; return `False` if that is impossible now."""
        return self._current.ask(order)

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration file again and apply it; return warnings. Raise
        `~ppdaemon.errors.ConfigError` with all errors of the file, all keys that cannot change at run time,
        or all names that do not exist, `~ppdaemon.errors.Refused` if another reload runs, and
        `~ppdaemon.errors.PPDaemonError` if the new zygote or template cannot be created; the old
        configuration stays in each case.
        """
        # The reload awaits a thread and a process; a second one would interleave.
        if self._reloading:
            raise Refused("another reload is under way; try again when it has ended")
        self._reloading = True
        try:
            warnings = await self._reload()
        except PPDaemonError as error:
            self.refusal = f"reload refused, the old configuration stays: {brief(error)}"
            raise
        finally:
            self._reloading = False
        self.refusal = ""
        return warnings

    async def reload_unattended(self) -> None:
        """Reload; log the reason of a refusal."""
        try:
            await self.reload()
        except PPDaemonError as error:
            _LOG.error("reload refused, the old configuration stays: %s", error)

    async def _reload(self) -> tuple[str, ...]:
        file = await asyncio.to_thread(self._read_config)
        config, remarks = file.config, await asyncio.to_thread(file.remarks)
        if keys := needs_restart(self._current.config, config):
            # Not `Refused`: the same request fails until the file is another one.
            raise NeedsRestart(keys)
        new = self._new(config)
        try:
            task_names: asyncio.Future[Resolution] = asyncio.get_running_loop().create_future()
            names = await self._make(new, file, task_names)
            try:
                resolution = await names
                _require_checked(config, task_names)
            finally:
                await _cancel(names)
        except BaseException as error:
            new.discard()
            if isinstance(error, OSError):
                raise Refused(f"the new generation cannot be created: {error}") from error
            raise
        # Switched before the old one is retired: there is always one that takes orders.
        before, self._current = self._current, new
        self.reloaded_tai = self._clock.tai()
        self._count["reloaded"] += 1
        self._switch(config)
        before.retire()
        _LOG.info("reloaded: generation %d replaces %d", new.number, before.number)
        for remark in remarks:
            _LOG.warning("%s", remark)
        self._names.use(file, resolution)
        return (*remarks, *resolution.remarks)

    async def close(self) -> None:
        """Kill all zygotes, and the check of names."""
        if self._resolving is not None:
            await _cancel(self._resolving)
        for generation in self._generations:
            generation.close()
            await generation.wait_wiped()

    def _new(self, config: NodeConfig) -> Generation:
        self._generations = [generation for generation in self._generations if not generation.closed]
        self._last_number += 1
        generation = self._create(self._last_number, config)
        self._generations.append(generation)
        return generation
