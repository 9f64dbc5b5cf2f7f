# SPDX-License-Identifier: BSD-3-Clause
"""The time to replace a killed worker while others keep all cores busy."""

import os
import signal
import time
from statistics import median

from benching.cli import progress
from benching.folders import BenchFolders
from benching.results import Scalar, percentile

from poolbench.butler import INSTRUMENT, PRELOAD, butler_parts, make_central
from poolbench.node import Node, node_config, running
from ppdaemon.reports import WorkerRow
from ppdaemon.states import SlotState

DETECTORS = 9
"""Largest number of busy workers: one visit of the camera."""
# Short against the goal of one second.
POLL_S = 0.005


def measure_replacement(folders: BenchFolders, kills: int, busy: int) -> dict[str, Scalar]:
    """Kill idle workers, one per slot, while `busy` others loop.

    Measures the time from the signal until the supervisor has received READY.
    """
    progress(f"replace: starting {kills + busy} workers")
    make_central(folders.scratch / "central")
    workers = {"max": kills + busy, "work": "poolbench.busy_work", "preload": PRELOAD}
    config = node_config(
        folders, {INSTRUMENT: f"0-{DETECTORS - 1}"}, workers, **butler_parts(folders.scratch / "central")
    )
    with running(config, folders) as node:
        if busy:
            node.relay.reserve("busy", range(busy), instrument=INSTRUMENT)
        node.wait(lambda: node.daemon.status().slots.get(SlotState.PREPARING, 0) == busy, pause_s=0.05)
        victims = [row for row in node.daemon.workers() if row.state == SlotState.IDLE][:kills]
        progress(f"replace: {len(victims)} kills while {busy} workers are busy")
        replaced_ms = [_replace(node, victim) for victim in victims]
    return {
        "replace_p95_ms": percentile(replaced_ms, 95),
        "replace_median_ms": median(replaced_ms),
        "replace_worst_ms": max(replaced_ms),
        "replace_kills": len(replaced_ms),
        "replace_busy": busy,
    }


def _replace(node: Node, victim: WorkerRow) -> float:
    """Kill a worker; return the milliseconds until its successor is ready."""

    def replaced() -> bool:
        row = node.daemon.workers()[victim.slot]
        return row.epoch > victim.epoch and row.state == SlotState.IDLE

    assert victim.pid is not None, victim
    killed = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    node.wait(replaced, pause_s=POLL_S)
    return (time.monotonic() - killed) * 1e3
