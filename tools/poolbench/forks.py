# SPDX-License-Identifier: BSD-3-Clause
"""How soon a forked worker is ready and what it weighs, against a spawned one.

Zygote and worker are the real ones, with the Butler opened;
the supervisor is left out. Nothing else runs on the node.
"""

import asyncio
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

from benching.figures import Scalar
from benching.places import Places

from poolbench.butler import INSTRUMENT, PRELOAD, butler_parts, make_central
from poolbench.node import BenchFailed, node_config, private_mb_of
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import FACTS, PACKET_LIMIT, Forked, ForkWorker, Quit, Ready, Reaped
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.generation import Generation
from ppdaemon.wire import decode, encode

__all__ = ("measure_forks",)

LIMIT_S = 60.0
SETTLED_S = 0.2
"""A worker that has said READY still returns from saying so."""


@dataclass(frozen=True, slots=True)
class Birth:
    """One worker's start."""

    born_ms: float
    """Until it was said that there is a process."""
    ready_ms: float
    cpu_ms: float
    """Of the process in its whole life: what other load does not change."""
    private_mb: float


class _Parent:
    """A generation, asked for one process at a time."""

    def __init__(self, number: int, config: NodeConfig, lifeline: Lifeline):
        self._folders = NodeFolders.of(config)
        self._heard: asyncio.Queue[tuple[object, list[int]]] = asyncio.Queue()
        self.generation = Generation(
            number,
            config,
            self._folders,
            lifeline,
            os.environ,
            Clock(),
            lambda message, descriptors: self._heard.put_nowait((message, descriptors)),
            Counter(),
        )

    async def hear[T](self, kind: type[T]) -> tuple[T, list[int]]:
        """Take the next words, which must be of a kind."""
        words, descriptors = await asyncio.wait_for(self._heard.get(), LIMIT_S)
        if not isinstance(words, kind):
            log = self._folders.logs / "zygote.log"
            raise BenchFailed(f"{words!r} instead of {kind.__name__}\n{log.read_text()}")
        return words, descriptors

    async def bear(self, slot: int) -> Birth:
        """Have a worker made, wait until it is ready, weigh it, let it end."""
        repo, log = self._folders.repo(slot), self._folders.logs / "worker.log"
        repo.mkdir()
        order = ForkWorker(role="worker", slot=slot, epoch=1, repo=str(repo), log=str(log))
        asked = time.monotonic()
        self.generation.ask(order)
        forked, descriptors = await self.hear(Forked)
        born_ms = (time.monotonic() - asked) * 1e3
        os.close(descriptors[1])
        with socket.socket(fileno=descriptors[0]) as channel:
            channel.setblocking(False)
            receive = asyncio.get_running_loop().sock_recv(channel, PACKET_LIMIT)
            packet = await asyncio.wait_for(receive, LIMIT_S)
            ready_ms = (time.monotonic() - asked) * 1e3
            if not packet or not isinstance(decode(packet, FACTS, limit=PACKET_LIMIT), Ready):
                raise BenchFailed(f"the worker is not ready: {packet!r}\n{log.read_text()}")
            await asyncio.sleep(SETTLED_S)
            private_mb = private_mb_of(forked.pid)
            channel.send(encode(Quit()))
            reaped, _ = await self.hear(Reaped)
        shutil.rmtree(repo)
        return Birth(born_ms, ready_ms, reaped.cpu_s * 1e3, private_mb)


@asynccontextmanager
async def _parent(number: int, config: NodeConfig) -> AsyncIterator[_Parent]:
    lifeline = Lifeline()
    parent = _Parent(number, config, lifeline)
    try:
        await parent.generation.make()
        await parent.hear(Reaped)  # what has made the template
        yield parent
    finally:
        pid = parent.generation.pid
        parent.generation.close()
        lifeline.close()
        if pid is not None:
            await asyncio.to_thread(os.waitpid, pid, 0)


async def _fork(config: NodeConfig, runs: int) -> tuple[list[Birth], float]:
    """Return the births, and what the zygote weighs."""
    async with _parent(1, config) as parent:
        births = [await parent.bear(number) for number in range(runs)]
        return births, private_mb_of(parent.generation.pid)


async def _spawn(config: NodeConfig, runs: int) -> list[Birth]:
    workers = config.workers.model_copy(update={"start": "spawn"})
    async with _parent(2, config.model_copy(update={"workers": workers})) as parent:
        return [await parent.bear(number) for number in range(runs)]


def measure_forks(
    places: Places, forks: int, spawns: int, progress: Callable[[str], None]
) -> dict[str, Scalar]:
    """Measure both ways of starting a worker.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    forks, spawns : `int`
        How many of each; the medians are returned.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    figures : `dict`
        Times in milliseconds, weights in 10^6 bytes.
    """
    progress("fork: making a central repo")
    make_central(places.scratch / "central")
    workers = {"max": 1, "preload": PRELOAD}
    parts = butler_parts(places.scratch / "central")
    config = NodeConfig.model_validate(node_config(places, {INSTRUMENT: "0-8"}, workers, **parts))
    folders = NodeFolders.of(config)
    for folder in (folders.slots, folders.cache, folders.spool, folders.logs):
        folder.mkdir(parents=True)
    progress(f"fork: {forks} workers of a zygote")
    births, zygote_mb = asyncio.run(_fork(config, forks))
    progress(f"fork: {spawns} workers in fresh interpreters")
    spawned = asyncio.run(_spawn(config, spawns))
    fork_ms, spawn_ms = (median(birth.ready_ms for birth in each) for each in (births, spawned))
    return {
        "fork_ready_ms": fork_ms,
        "fork_ready_worst_ms": max(birth.ready_ms for birth in births),
        "fork_alone_ms": median(birth.born_ms for birth in births),
        "fork_cpu_ms": median(birth.cpu_ms for birth in births),
        "spawn_ready_ms": spawn_ms,
        "spawn_cpu_ms": median(birth.cpu_ms for birth in spawned),
        "fork_over_spawn": spawn_ms / fork_ms,
        "idle_private_mb": median(birth.private_mb for birth in births),
        "spawn_private_mb": median(birth.private_mb for birth in spawned),
        "zygote_private_mb": zygote_mb,
    }
