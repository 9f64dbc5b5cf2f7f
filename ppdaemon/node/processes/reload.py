# SPDX-License-Identifier: BSD-3-Clause
"""From one configuration to the next while the daemon runs.

A new generation is made beside the present one, and takes over when it can
serve. Whatever goes wrong before leaves everything as it was.
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
RUN_TIME_KEYS = frozenset({"node.expiry_s", "arrivals.image_timeout_s", "arrivals.quiet_s"})
"""What may change in the parts that are fixed otherwise."""


def needs_restart(old: NodeConfig, new: NodeConfig) -> list[str]:
    """Return the keys, such as ``node.name``, that differ and cannot change while the daemon runs."""
    keys = []
    for part in FIXED_PARTS:
        before, after = getattr(old, part), getattr(new, part)
        fields = type(before).model_fields
        keys += [f"{part}.{name}" for name in fields if getattr(before, name) != getattr(after, name)]
    return [key for key in keys if key not in RUN_TIME_KEYS]


class Generations:
    """The present generation, those before it that still have processes, and
    one that is to come.

    Parameters
    ----------
    read_config : `~collections.abc.Callable`
        Reads and checks the configuration file.
    on_message : `~ppdaemon.node.processes.generation.OnMessage`
        What becomes of workers and exporters.
    switch : `~collections.abc.Callable`
        Called with the new configuration when its generation can serve.
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
        """When the present generation took over, if it is not the first."""
        self.refusal = ""
        """Why the last reload that nobody waited for was refused, or blank."""
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
        """The present generation's."""
        return self._current.number

    @property
    def template_ms(self) -> float | None:
        """How long the present template took to make."""
        return self._current.template_ms

    @property
    def problems(self) -> tuple[str, ...]:
        """What an operator should look at."""
        return tuple(filter(None, (self._current.problem, self.refusal)))

    async def start(self) -> None:
        """Have the first generation; raises as its `~Generation.make` does."""
        await self._current.make()

    def processes(self) -> tuple[set[int], set[int]]:
        """Return the zygotes of all generations, and what they have forked that
        is not known to be dead.
        """
        zygotes = {generation.pid for generation in self._generations if generation.pid is not None}
        return zygotes, {pid for generation in self._generations for pid in generation.running_pids}

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process of the present generation; `False` if there can be none now."""
        return self._current.ask(order)

    async def reload(self) -> None:
        """Read the file again and go over to what it says.

        Raises
        ------
        ppdaemon.errors.ConfigError
            Raised with all errors of the file.
        ppdaemon.errors.Refused
            Raised if a key cannot change at run time, or another reload runs.
        ppdaemon.errors.PPDaemonError
            Raised if there is no zygote or no template of the new kind. In
            each case everything is as before.
        """
        if self._reloading:
            raise Refused("a reload is under way")
        self._reloading = True
        try:
            await self._reload()
        finally:
            self._reloading = False
        self.refusal = ""

    async def reload_unattended(self) -> None:
        """Reload; keep the reason of a refusal for `problems`."""
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
                raise Refused(f"the new generation cannot be made: {error}") from error
            raise
        before, self._current = self._current, new
        self.reloaded_tai = self._clock.tai()
        self._count["reloaded"] += 1
        self._switch(config)
        before.retire()
        _LOG.info("reloaded: generation %d follows %d", new.number, before.number)

    async def close(self) -> None:
        """End all zygotes."""
        for generation in self._generations:
            generation.close()
            await generation.wait_wiped()

    def _new(self, config: NodeConfig) -> Generation:
        self._generations = [generation for generation in self._generations if not generation.closed]
        self._last_number += 1
        generation = self._create(self._last_number, config)
        self._generations.append(generation)
        return generation
