# SPDX-License-Identifier: BSD-3-Clause
"""Start time and memory of a forked worker compared with a spawned one, with a bare fork, and with a worker
of another checkout.

Zygote and worker are the real ones, but there is no supervisor. Nothing else
runs on the node.
"""

import asyncio
import os
import resource
import shutil
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from benching.cli import progress
from benching.folders import BenchFolders
from benching.processes import BenchProcess, cpu_s, private_mb
from benching.results import Scalar

from poolbench.butler import INSTRUMENT, PRELOAD, butler_parts, make_central
from poolbench.node import BenchFailed, node_config
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import FACTS, PACKET_LIMIT, Forked, ForkWorker, Quit, Ready, Reaped
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.generation import Generation
from ppdaemon.wire import decode, encode
from ppdaemon.worker.childmain import inherited
from ppdaemon.worker.sharedpages import keep_pages_shared
from ppdaemon.worker.warmup import warm_up

LIMIT_S = 60.0
PAUSE_S = 0.2
"""A worker that has sent READY still has to return from sending."""


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """The measurements of one worker's start."""

    forked_ms: float
    """Until the message that the process exists."""
    ready_ms: float
    cpu_ms: float
    """CPU time of the process until its exit."""
    zygote_cpu_ms: float
    """CPU time of the zygote meanwhile."""
    private_mb: float

    @property
    def whole_cpu_ms(self) -> float:
        """CPU time of both."""
        return self.cpu_ms + self.zygote_cpu_ms


@dataclass(frozen=True, slots=True)
class _Forked:
    """Workers forked in turn."""

    starts: list[WorkerStart]
    others: list[WorkerStart]
    """Of another checkout."""
    zygote_mb: float
    """Private memory of the zygote."""

    def results(self) -> dict[str, Scalar]:
        """Return the CPU time of pairs."""
        if not self.others:
            return {}
        pairs = list(zip(self.starts, self.others, strict=True))
        return {
            "other_cpu_ms": median(other.whole_cpu_ms for _, other in pairs),
            "other_private_mb": median(other.private_mb for _, other in pairs),
            "cpu_of_other": median(own.whole_cpu_ms / other.whole_cpu_ms for own, other in pairs),
        }


class ZygoteClient:
    """A generation that starts one process at a time."""

    def __init__(self, number: int, config: NodeConfig, lifeline: Lifeline):
        self._folders = NodeFolders.of(config)
        self._messages: asyncio.Queue[tuple[object, list[int]]] = asyncio.Queue()
        self.generation = Generation(
            number,
            config,
            self._folders,
            lifeline,
            os.environ,
            Clock(),
            lambda message, descriptors: self._messages.put_nowait((message, descriptors)),
            Counter(),
        )

    async def receive[T](self, kind: type[T]) -> tuple[T, list[int]]:
        """Receive the next message, which must be of a type."""
        message, descriptors = await asyncio.wait_for(self._messages.get(), LIMIT_S)
        if not isinstance(message, kind):
            log = self._folders.logs / "zygote.log"
            raise BenchFailed(f"received {message!r} instead of {kind.__name__}\n{log.read_text()}")
        return message, descriptors

    async def start_worker(self, slot: int) -> WorkerStart:
        """Start a worker, wait until it is ready, measure it, and stop it."""
        repo, log = self._folders.repo(slot), self._folders.logs / "worker.log"
        repo.mkdir()
        order = ForkWorker(role="worker", slot=slot, epoch=1, repo=str(repo), log=str(log))
        zygote = self.generation.pid
        assert zygote is not None
        zygote_cpu_s = cpu_s(zygote)
        ordered_at = time.monotonic()
        self.generation.ask(order)
        forked, descriptors = await self.receive(Forked)
        forked_ms = (time.monotonic() - ordered_at) * 1e3
        # The pidfd; the end of the worker is reported by the zygote.
        os.close(descriptors[1])
        with socket.socket(fileno=descriptors[0]) as channel:
            channel.setblocking(False)
            receive = asyncio.get_running_loop().sock_recv(channel, PACKET_LIMIT)
            packet = await asyncio.wait_for(receive, LIMIT_S)
            ready_ms = (time.monotonic() - ordered_at) * 1e3
            if not packet or not isinstance(decode(packet, FACTS, limit=PACKET_LIMIT), Ready):
                raise BenchFailed(f"the worker is not ready: {packet!r}\n{log.read_text()}")
            await asyncio.sleep(PAUSE_S)
            memory_mb = private_mb(forked.pid)
            channel.send(encode(Quit()))
            reaped, _ = await self.receive(Reaped)
        shutil.rmtree(repo)
        zygote_cpu_ms = (cpu_s(zygote) - zygote_cpu_s) * 1e3
        return WorkerStart(forked_ms, ready_ms, reaped.cpu_s * 1e3, zygote_cpu_ms, memory_mb)


@asynccontextmanager
async def running_zygote(number: int, config: NodeConfig) -> AsyncIterator[ZygoteClient]:
    """Run a zygote without a supervisor, and end it; the folders of `config` exist."""
    lifeline = Lifeline()
    zygote = ZygoteClient(number, config, lifeline)
    try:
        await zygote.generation.make()
        await zygote.receive(Reaped)  # the process that made the template
        yield zygote
    finally:
        pid = zygote.generation.pid
        zygote.generation.close()
        lifeline.close()
        if pid is not None:
            await asyncio.to_thread(os.waitpid, pid, 0)


async def _fork(config: NodeConfig, runs: int, other: Path | None) -> _Forked:
    """Fork workers, and in turn with them those of another checkout."""
    async with AsyncExitStack() as stack:
        zygote = await stack.enter_async_context(running_zygote(1, config))
        rival = None
        if other is not None:
            rival = await stack.enter_async_context(running_zygote(3, _of_checkout(config, other)))
        starts, others = [], []
        for number in range(runs):
            starts.append(await zygote.start_worker(number))
            if rival is not None:
                others.append(await rival.start_worker(number))
        return _Forked(starts, others, private_mb(zygote.generation.pid))


def _of_checkout(config: NodeConfig, checkout: Path) -> NodeConfig:
    """Return a configuration of which zygote and workers run the code of another checkout."""
    environment = config.workers.environment
    path = os.pathsep.join(filter(None, (str(checkout), environment.get("PYTHONPATH"))))
    # Otherwise the working directory would come first, which may be this checkout.
    changed = {**environment, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    workers = config.workers.model_copy(update={"environment": changed})
    return config.model_copy(update={"workers": workers})


def _bare_forks(config: NodeConfig, runs: int, channel: Connection) -> None:
    """Send the CPU time of forking a process that exits at once, milliseconds; runs in its own process,
    which does before what a zygote does.
    """
    os.environ.update(CHILD_ENVIRONMENT)
    warm_up(inherited(config).work, config)
    keep_pages_shared()
    began_s = _cpu_s()
    for _ in range(runs):
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    channel.send((_cpu_s() - began_s) / runs * 1e3)
    channel.recv()


def _cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


async def _spawn(config: NodeConfig, runs: int) -> list[WorkerStart]:
    workers = config.workers.model_copy(update={"start": "spawn"})
    async with running_zygote(2, config.model_copy(update={"workers": workers})) as zygote:
        return [await zygote.start_worker(number) for number in range(runs)]


def measure_forks(folders: BenchFolders, forks: int, spawns: int, other: Path | None) -> dict[str, Scalar]:
    """Measure both ways of starting a worker: medians in milliseconds and 10^6 bytes."""
    progress("fork: making a central repo")
    make_central(folders.scratch / "central")
    workers = {"max": 1, "preload": PRELOAD}
    parts = butler_parts(folders.scratch / "central")
    config = NodeConfig.model_validate(node_config(folders, {INSTRUMENT: "0-8"}, workers, **parts))
    node_folders = NodeFolders.of(config)
    for folder in (node_folders.slots, node_folders.cache, node_folders.spool, node_folders.logs):
        folder.mkdir(parents=True)
    progress(f"fork: {forks} workers forked from a zygote")
    forked = asyncio.run(_fork(config, forks, other))
    with BenchProcess(_bare_forks, config, forks) as forker:
        bare_cpu_ms = forker.answer()
    progress(f"fork: {spawns} workers in fresh interpreters")
    spawned = asyncio.run(_spawn(config, spawns))
    fork_ms, spawn_ms = (median(start.ready_ms for start in each) for each in (forked.starts, spawned))
    ready_cpu_ms = median(start.whole_cpu_ms for start in forked.starts)
    return {
        "fork_ready_ms": fork_ms,
        "fork_ready_worst_ms": max(start.ready_ms for start in forked.starts),
        "fork_alone_ms": median(start.forked_ms for start in forked.starts),
        "fork_cpu_ms": median(start.cpu_ms for start in forked.starts),
        "ready_cpu_ms": ready_cpu_ms,
        "bare_fork_cpu_ms": bare_cpu_ms,
        "ready_cpu_of_bare_fork": ready_cpu_ms / bare_cpu_ms,
        "spawn_ready_ms": spawn_ms,
        "spawn_cpu_ms": median(start.cpu_ms for start in spawned),
        "fork_over_spawn": spawn_ms / fork_ms,
        "idle_private_mb": median(start.private_mb for start in forked.starts),
        "spawn_private_mb": median(start.private_mb for start in spawned),
        "zygote_private_mb": forked.zygote_mb,
        **forked.results(),
    }
