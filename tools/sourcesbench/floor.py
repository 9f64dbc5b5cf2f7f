# SPDX-License-Identifier: BSD-3-Clause
"""What workers alone need for the orders of a burst: no supervisor, no notices, no files and no checks."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from benching.cli import progress
from benching.folders import BenchFolders
from benching.orders import Orders, Samples
from poolbench.forks import running_zygote
from poolbench.node import BenchFailed

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig, WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    FACTS,
    PACKET_LIMIT,
    Forked,
    ForkWorker,
    GiveUp,
    Ingest,
    Ingested,
    Pipelines,
    Prepare,
    Prepared,
    Raw,
    Ready,
)
from ppdaemon.testing.node import node_config
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import Model, decode, encode
from sourcesbench.site import CAMERA, START_S, Workload, groups, record_in_memory

type _Channels = Mapping[int, socket.socket]
"""By detector."""


def measure_floor(folders: BenchFolders, workload: Workload) -> Samples:
    """Send each of many workers an order to ingest, all at once; return the times until they have read it."""
    progress(f"floor: starting {workload.detectors} workers without a supervisor")
    scratch, sockets = folders.scratch / "floor", folders.ramdisk / "f"
    scratch.mkdir()
    sockets.mkdir()
    workers = {"max": workload.detectors, "nice": WorkersConfig().nice}
    config = NodeConfig.model_validate(node_config(scratch, sockets, workers=workers))
    config.node.state_dir.mkdir()
    record_in_memory(config.node.state_dir, sockets)
    return asyncio.run(_measure(config, workload))


async def _measure(config: NodeConfig, workload: Workload) -> Samples:
    samples, visits = Samples(), groups("floor-", workload.exposures)
    async with _workers(config, workload.detectors) as channels:
        for number, group in enumerate(visits, 1):
            _prepare(config, channels, group, number)
            orders = {detector: encode(Ingest(raw=_raw(group, detector, number))) for detector in channels}
            sent = {}
            for detector, channel in channels.items():
                sent[detector] = time.monotonic()
                channel.send(orders[detector])
            _receive(channels, Ingested)
            if number > 1:  # as in the other sections
                samples.add(sent, Orders(config.node.state_dir / "ingested").of(group))
            _send(channels, GiveUp(reason="the measurement is complete"))
    return samples


@asynccontextmanager
async def _workers(config: NodeConfig, count: int) -> AsyncIterator[_Channels]:
    """Fork workers; they end when their channels are closed."""
    folders = NodeFolders.of(config)
    for folder in (folders.slots, folders.cache, folders.spool, folders.logs):
        folder.mkdir(parents=True)
    async with running_zygote(1, config) as zygote:
        with ExitStack() as stack:
            channels = {}
            for slot in range(count):
                repo = folders.repo(slot)
                repo.mkdir()
                log = folders.logs / f"worker-{slot}.log"
                zygote.generation.ask(
                    ForkWorker(role="worker", slot=slot, epoch=1, repo=str(repo), log=str(log))
                )
                _, (channel, pidfd) = await zygote.receive(Forked)
                os.close(pidfd)
                channels[slot] = stack.enter_context(socket.socket(fileno=channel))
                channels[slot].settimeout(START_S)
            await asyncio.to_thread(_receive, channels, Ready)  # the loop answers the zygote meanwhile
            yield channels


def _prepare(config: NodeConfig, channels: _Channels, group: str, number: int) -> None:
    visit = read_next_visit({"groupId": group, "instrument": CAMERA, "nimages": 1, "survey": "idle"})
    pipelines = Pipelines(main=config.pipelines.main[0].pipelines)
    for detector, channel in channels.items():
        order = Prepare(visit_number=number, visit=visit, detector=detector, attempt=1, pipelines=pipelines)
        channel.send(encode(order))
    _receive(channels, Prepared)


def _raw(group: str, detector: int, exposure: int) -> Raw:
    return Raw(
        path=f"/raws/{exposure}/{detector}.fits",
        instrument=CAMERA,
        group=group,
        detector=detector,
        exposure=exposure,
        seen_tai=Clock().tai(),
    )


def _send(channels: _Channels, order: Model) -> None:
    for channel in channels.values():
        channel.send(encode(order))


def _receive(channels: _Channels, kind: type[Any]) -> None:
    """Receive a fact of each worker."""
    for channel in channels.values():
        fact = decode(channel.recv(PACKET_LIMIT), FACTS, limit=PACKET_LIMIT)
        if not isinstance(fact, kind):
            raise BenchFailed(f"a worker has sent {fact!r} instead of {kind.__name__}")
