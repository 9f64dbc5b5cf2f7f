# SPDX-License-Identifier: BSD-3-Clause
"""The cost of one event: the slot decides, the pool acts, an order is sent."""

import asyncio
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from benching.folders import BenchFolders
from benching.results import Scalar

from poolbench.fullcamera import CAMERA
from poolbench.node import node_config
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.messages import (
    PACKET_LIMIT,
    Done,
    Fact,
    Forked,
    Ingested,
    Pipelines,
    Prepared,
    Raw,
    Ready,
    StageReached,
)
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.node.slots.events import RawArrived, VisitAssigned
from ppdaemon.node.slots.pool import Pool
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import read_next_visit

EXPOSURE = 2026112200001
SLOT = 0
MOST_VISITS = 150
"""Fewer visits than those after which a worker is replaced."""


def measure_dispatch(folders: BenchFolders) -> dict[str, Scalar]:
    """Take one slot through visits, in this process; measure microseconds per event."""
    config = NodeConfig.model_validate(node_config(folders, {CAMERA: "0-8"}, {"max": 1}, butler=_BUTLER))
    return {"event_us": asyncio.run(_measure(config))}


_BUTLER = {"central": "none", "instrument_class": {CAMERA: "none.None"}}


async def _measure(config: NodeConfig) -> float:
    clock = Clock()
    pool = Pool(config, clock, lambda _: True, lambda _: None, Counter())
    pool.open_slot()
    with _worker(pool) as channel:
        passed_s, events = 0.0, 0
        for visit_number in range(1, MOST_VISITS + 1):
            visit = _visit(visit_number, clock)
            began = time.perf_counter()
            for event in visit:
                pool.handle(SLOT, event)
            passed_s += time.perf_counter() - began
            events += len(visit)
            _drain(channel)
    return passed_s / events * 1e6


@contextmanager
def _worker(pool: Pool) -> Iterator[socket.socket]:
    """Start a process that does nothing as the worker of the slot; kill it at the end."""
    pool_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # In its own process group, as a worker is: the pool kills the group of a worker.
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process, worker_end:
        try:
            message = Forked(role="worker", slot=SLOT, epoch=1, pid=process.pid)
            pool.forked(message, [pool_end.detach(), os.pidfd_open(process.pid)])
            pool.handle(SLOT, Ready(pid=process.pid))
            yield worker_end
        finally:
            pool.close()
            process.kill()


def _visit(visit_number: int, clock: Clock) -> list[object]:
    """Return the events of one visit for a slot."""
    key = Key(CAMERA, f"g{visit_number}", 4)
    fields = {"groupId": key.group, "instrument": CAMERA, "nimages": 1}
    now, tai = clock.mono(), clock.tai()
    assignment = Assignment(key, read_next_visit(fields), Pipelines(main=("any.yaml",)), now + 100, now + 100)
    raw = Raw(
        path="/raw.fits",
        instrument=CAMERA,
        group=key.group,
        detector=key.detector,
        exposure=EXPOSURE,
        seen_tai=tai,
    )
    facts: list[Fact] = [
        Ingested(visit_number=visit_number, exposure=EXPOSURE),
        StageReached(visit_number=visit_number, stage=Stage.FIRST_TASK, tai=tai),
        StageReached(visit_number=visit_number, stage=Stage.PROCESSED, tai=tai),
        Done(visit_number=visit_number, outcome=Outcome.SUCCEEDED),
    ]
    return [VisitAssigned(assignment), Prepared(visit_number=visit_number), RawArrived(raw), *facts]


def _drain(channel: socket.socket) -> None:
    """Receive the orders of one visit: prepare, ingest, process."""
    for _ in range(3):
        channel.recv(PACKET_LIMIT)
