# SPDX-License-Identifier: BSD-3-Clause
"""What one event costs: the slot decides, the pool acts, an order is sent."""

import asyncio
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from benching.figures import Scalar
from benching.places import Places

from poolbench.crowd import CAMERA
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

__all__ = ("measure_dispatch",)

EXPOSURE = 2026112200001
SEAT = 0
MOST_VISITS = 150
"""Fewer than recycle a worker."""


def measure_dispatch(places: Places) -> dict[str, Scalar]:
    """Take one slot through visits, in this process.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.

    Returns
    -------
    figures : `dict`
        Microseconds per event, with all that the pool does about it.
    """
    config = NodeConfig.model_validate(node_config(places, {CAMERA: "0-8"}, {"max": 1}, butler=_BUTLER))
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
                pool.handle(SEAT, event)
            passed_s += time.perf_counter() - began
            events += len(visit)
            _drain(channel)
    return passed_s / events * 1e6


@contextmanager
def _worker(pool: Pool) -> Iterator[socket.socket]:
    """Seat a process that does nothing; it is killed with its session."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process, theirs:
        try:
            words = Forked(role="worker", slot=SEAT, epoch=1, pid=process.pid)
            pool.forked(words, [ours.detach(), os.pidfd_open(process.pid)])
            pool.handle(SEAT, Ready(pid=process.pid))
            yield theirs
        finally:
            pool.close()
            process.kill()


def _visit(visit_number: int, clock: Clock) -> list[object]:
    """Return what happens to a slot in one visit."""
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
    """Take in the orders of one visit: prepare, ingest, process."""
    for _ in range(3):
        channel.recv(PACKET_LIMIT)
