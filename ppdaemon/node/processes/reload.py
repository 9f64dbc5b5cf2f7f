# SPDX-License-Identifier: BSD-3-Clause
"""Replaces the configuration while the daemon runs.

A new generation is created beside the current one, and takes over when it can serve. An error
before that leaves everything as it was.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import PPDaemonError, Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import ForkWorker
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.generation import Generation, OnMessage

__all__ = ("Generations", "needs_restart")

_LOG = logging.getLogger(__name__)

FIXED_PARTS = ("node", "relay", "arrivals")
"""Their folders, sockets and watches are created once, at the start."""
RUN_TIME_KEYS = frozenset({"node.expiry_s", "arrivals.image_timeout_s", "arrivals.quiet_s"})
"""Keys that may change although the rest of their part may not."""


def needs_restart(old: NodeConfig, new: NodeConfig) -> list[str]:
    """Return the keys, such as ``node.name``, that differ and cannot change while the daemon runs."""
    keys = []
    for part in FIXED_PARTS:
        before, after = getattr(old, part), getattr(new, part)
        fields = type(before).model_fields
        keys += [f"{part}.{name}" for name in fields if getattr(before, name) != getattr(after, name)]
    return [key for key in keys if key not in RUN_TIME_KEYS]


class Generations:
    """The current generation, earlier ones that still have processes, and one that is being
    created. `switch` is called with the new configuration when its generation can serve.
    """

    def __init__(
        self,
        config: NodeConfig,
        read_config: Callable[[], NodeConfig],
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
        """Why the last reload by a signal was refused, or blank."""
        self._read_config = read_config
        self._clock = clock
        self._switch = switch
        self._count = count
        self._create = partial(
            Generation,
            folders=NodeFolders.of(config),
            lifeline=lifeline,
            environment=environment,
            clock=clock,
            on_message=on_message,
            count=count,
        )
        self._last_number = 0
        self._generations: list[Generation] = []
        self._reloading = False
        self._current = self._new(config)

    @property
    def number(self) -> int:
        """The number of the current generation."""
        return self._current.number

    @property
    def template_ms(self) -> float | None:
        """The time that the current template took to create."""
        return self._current.template_ms

    @property
    def problems(self) -> tuple[str, ...]:
        """Problems for operators."""
        return tuple(filter(None, (self._current.problem, self.refusal)))

    async def start(self) -> None:
        """Create the first generation; raises the errors of `Generation.make`."""
        await self._current.make()

    def processes(self) -> tuple[set[int], set[int]]:
        """Return the zygotes of all generations, and the processes forked by them that are not
        known to have ended.
        """
        zygotes = {generation.pid for generation in self._generations if generation.pid is not None}
        return zygotes, {pid for generation in self._generations for pid in generation.running_pids}

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process of the current generation; return `False` if that is impossible now."""
        return self._current.ask(order)

    async def reload(self) -> None:
        """Read the configuration file again and apply it. Raise `~ppdaemon.errors.ConfigError`
        with all errors of the file, `~ppdaemon.errors.Refused` if a key cannot change at run
        time or another reload runs, and `~ppdaemon.errors.PPDaemonError` if the new zygote or
        template cannot be created; the old configuration stays in each case.
        """
        # The reload awaits a thread and a process; a second one would interleave.
        if self._reloading:
            raise Refused("another reload is under way; try again when it has ended")
        self._reloading = True
        try:
            await self._reload()
        finally:
            self._reloading = False
        self.refusal = ""

    async def reload_unattended(self) -> None:
        """Reload; record the reason of a refusal for `problems`."""
        try:
            await self.reload()
        except PPDaemonError as error:
            _LOG.error("reload refused, the old configuration stays: %s", error)
            self.refusal = "reload refused: " + "; ".join(str(error).splitlines())

    async def _reload(self) -> None:
        config = await asyncio.to_thread(self._read_config)
        if keys := needs_restart(self._current.config, config):
            raise Refused(f"{', '.join(keys)}: cannot change while the daemon runs; restart it instead")
        new = self._new(config)
        try:
            await new.make()
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

    async def close(self) -> None:
        """Kill all zygotes."""
        for generation in self._generations:
            generation.close()
            await generation.wait_wiped()

    def _new(self, config: NodeConfig) -> Generation:
        self._generations = [generation for generation in self._generations if not generation.closed]
        self._last_number += 1
        generation = self._create(self._last_number, config)
        self._generations.append(generation)
        return generation
