# SPDX-License-Identifier: BSD-3-Clause
"""Resolves the names in a configuration by a process with the environment of a worker.

``ppdaemon check-config``, the start and each reload use the same process. Names that cannot be
resolved then, because a database or a mount is away, are resolved later.
"""

import asyncio
import logging
import tempfile
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdaemon import messages
from ppdaemon.backoff import Backoff
from ppdaemon.config import ExportConfig
from ppdaemon.configfile import ConfigFile
from ppdaemon.errors import ConfigError
from ppdaemon.node.processes.child import ChildProcess, Lifeline, launch
from ppdaemon.node.processes.exporter import LONGEST_PAUSE
from ppdaemon.node.processes.lifecycle import LONGEST_BOOT, Lifecycle
from ppdaemon.node.processes.supervised import SupervisedProcess
from ppdaemon.yamlfile import KeyPath

__all__ = ("NameCheck", "Resolution", "resolve", "retry_pauses")

_LOG = logging.getLogger(__name__)

RESOLVE_S = 90.0
"""The imports take seconds, or a minute from a busy network filesystem; a database that does not
answer takes minutes."""
NO_RETURN_KEYS = frozenset(
    {("engine", "no_return"), ("engine", "apdb_tasks"), ("shadow", "overrides"), ("shadow", "central")}
)
"""Keys without which a visit could be written twice, in shadow mode beside the present service."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The findings about one configuration, each with file, line and key."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    """Rules whose first pipeline is dropped for every detector."""
    unavailable: tuple[str, ...] = ()
    """What could not be resolved now."""
    repeating: tuple[str, ...] = ()
    """Those errors with which a task that must not be repeated could be."""

    @classmethod
    def of(cls, file: ConfigFile, findings: list[messages.NameFinding]) -> "Resolution":
        """Sort the findings by their level."""

        def located(level: str, keys: Container[KeyPath] | None = None) -> tuple[str, ...]:
            found = (each for each in findings if each.level == level)
            return tuple(
                file.located((each.key, each.text) for each in found if keys is None or each.key[:2] in keys)
            )

        return cls(
            located("error"),
            located("warning"),
            located("fallback"),
            located("unavailable"),
            located("error", NO_RETURN_KEYS),
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything that does not keep the configuration from being used."""
        unavailable = (f"{text}; it is resolved later" for text in self.unavailable)
        return (*self.warnings, *self.fallbacks, *unavailable)


class NameProcess(SupervisedProcess[messages.NameFact]):
    """One process that resolves the names of a configuration, and ends."""

    def __init__(
        self,
        file: ConfigFile,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        limit_s: float,
        task_names: asyncio.Future[Resolution] | None = None,
    ):
        lifecycle = Lifecycle(boot_s=limit_s, answer_s=limit_s, first_pause_s=0.0, longest_pause_s=0.0)
        super().__init__("check of names", log, messages.NAME_FACTS, lifecycle)
        self._file = file
        self._lifeline = lifeline
        self._environment = {**environment, **file.config.workers.environment}
        self._settings = ""
        self._findings: list[messages.NameFinding] = []
        self._what = "all names"
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._task_names = task_names or self._loop.create_future()

    async def run(self) -> Resolution:
        """Resolve all names; those that the process does not reach are unavailable."""
        folder = self._environment.get("TMPDIR")
        with tempfile.NamedTemporaryFile("w", prefix="names-", suffix=".json", dir=folder) as settings:
            settings.write(self._file.config.model_dump_json())
            settings.flush()
            self._settings = settings.name
            self.start()
            try:
                problem = await self._ended
            finally:
                self.close()
        if problem:
            text = f"not resolved: {self._what}: {problem}"
            self._findings.append(messages.NameFinding(level="unavailable", key=(), text=text))
        return Resolution.of(self._file, self._findings)

    def _launch(self) -> ChildProcess:
        arguments = ["--config", self._settings, "--log", str(self._log)]
        return launch("ppdaemon.worker.names", arguments, self._lifeline, self._environment, self._log)

    def _received(self, message: messages.NameFact, descriptors: list[int]) -> None:
        match message:
            case messages.Resolving(what=what):
                self._what = what
            case messages.NameFinding():
                self._findings.append(message)
            case messages.TaskNamesResolved():
                self._finish_task_names()
            case messages.NamesResolved():
                self._finish_task_names()
                self._finish("")
                self.retire()

    def _serve(self) -> None:
        """Send nothing: it takes no orders."""

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        last = self._last_lines().splitlines()[-1:]
        self._finish(": ".join([f"the process that resolves names {cause}", *last]))

    def _finish_task_names(self) -> None:
        if not self._task_names.done():
            self._task_names.set_result(Resolution.of(self._file, self._findings))

    def _finish(self, problem: str) -> None:
        if not self._ended.done():
            self._ended.set_result(problem)


async def resolve(
    file: ConfigFile,
    lifeline: Lifeline,
    environment: Mapping[str, str],
    log: Path,
    on_start: Callable[[SupervisedProcess[Any]], None] = lambda process: None,
    task_names: asyncio.Future[Resolution] | None = None,
    limit_s: float = RESOLVE_S,
) -> Resolution:
    """Resolve the names of a configuration once, within `limit_s` seconds. `on_start` gets the process,
    `task_names` the findings when those of tasks are complete, if they are.
    """
    process = NameProcess(file, lifeline, environment, log, limit_s, task_names)
    on_start(process)
    try:
        return await process.run()
    except OSError as error:  # a full disk: the daemon can serve all the same
        return Resolution(unavailable=(f"{file.path}: names not resolved: {error}",))


def retry_pauses(config: ExportConfig) -> Backoff:
    """Return the pauses between attempts at the central repo, which are those of the exporter."""
    return Backoff(config.retry_s, LONGEST_PAUSE * config.retry_s)


class NameCheck:
    """Resolves the names of configurations, and again those of the current one until each has an answer.

    `stop_accepting` is called if an error is found while the configuration is in use, with which
    a visit could be written twice.
    """

    def __init__(
        self,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        mono: Callable[[], float],
        stop_accepting: Callable[[], None],
    ):
        self._lifeline = lifeline
        self._environment = environment
        self._log = log
        self._mono = mono
        self._stop_accepting = stop_accepting
        self._processes: set[SupervisedProcess[Any]] = set()
        self._file: ConfigFile | None = None
        self._resolution = Resolution()
        self._reported: set[str] = set()
        """Errors of the current configuration that have been reported."""
        self._changed = asyncio.Event()

    @property
    def pids(self) -> set[int]:
        """The ids of the running processes."""
        return {process.pid for process in self._processes if process.pid is not None}

    @property
    def problems(self) -> tuple[str, ...]:
        """Errors of the current configuration, and names that are not resolved yet."""
        unavailable = (f"not resolved yet: {text}" for text in self._resolution.unavailable)
        return (*self._resolution.errors, *unavailable)

    async def resolve(
        self, file: ConfigFile, task_names: asyncio.Future[Resolution] | None = None
    ) -> Resolution:
        """Resolve the names of a configuration. Raise `~ppdaemon.errors.ConfigError` with all errors.
        `task_names` gets the findings when those of tasks are complete, if they are.
        """
        resolution = await self._resolve(file, task_names)
        if resolution.errors:
            raise ConfigError(resolution.errors)
        return resolution

    def use(self, file: ConfigFile, resolution: Resolution) -> None:
        """Make a configuration the current one."""
        self._file, self._resolution = file, resolution
        self._reported.clear()
        for text in resolution.remarks:
            _LOG.warning("%s", text)
        self._changed.set()

    async def run(self) -> None:
        """Resolve again what is not resolved, with growing pauses, until canceled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._file is None:
                continue
            file, pauses = self._file, retry_pauses(self._file.config.export)
            limit_s = RESOLVE_S
            while self._resolution.unavailable and self._file is file:
                # Ends early if another configuration is used.
                try:
                    async with asyncio.timeout(pauses.failed(self._mono())):
                        await self._changed.wait()
                    break
                except TimeoutError:
                    # The last one may have been late because the host is busy.
                    limit_s = min(2 * limit_s, LONGEST_BOOT * RESOLVE_S)
                    resolution = await self._resolve(file, limit_s=limit_s)
                if self._file is file:
                    self._answered(resolution)

    def _answered(self, resolution: Resolution) -> None:
        known, self._resolution = self._resolution, resolution
        for text in (*resolution.warnings, *resolution.fallbacks):
            if text not in (*known.warnings, *known.fallbacks):
                _LOG.warning("%s", text)
        # Once for each error: an operator may have resumed since.
        new = [text for text in resolution.errors if text not in self._reported]
        self._reported.update(new)
        for text in new:
            _LOG.error("the configuration in use has an error: %s", text)
        if not set(new).isdisjoint(resolution.repeating):
            _LOG.critical(
                "visits could be written twice: no more are accepted; correct the file, ppctl reload,"
                " then ppctl resume"
            )
            self._stop_accepting()
        if not resolution.unavailable:
            _LOG.info("all names of the configuration have been resolved")

    async def _resolve(
        self,
        file: ConfigFile,
        task_names: asyncio.Future[Resolution] | None = None,
        limit_s: float = RESOLVE_S,
    ) -> Resolution:
        started: list[SupervisedProcess[Any]] = []

        def note(process: SupervisedProcess[Any]) -> None:
            started.append(process)
            self._processes.add(process)

        try:
            return await resolve(
                file, self._lifeline, self._environment, self._log, note, task_names, limit_s
            )
        finally:
            self._processes.difference_update(started)
