# SPDX-License-Identifier: BSD-3-Clause
"""How soon a killed worker is replaced while others keep all cores busy."""

import os
import signal
import time
from collections.abc import Callable
from statistics import median

from benching.figures import Scalar, percentile
from benching.places import Places

from poolbench.butler import INSTRUMENT, PRELOAD, butler_parts, make_central
from poolbench.node import Node, node_config, running
from ppdaemon.reports import WorkerRow
from ppdaemon.states import SlotState

__all__ = ("DETECTORS", "measure_replacement")

DETECTORS = 9
"""Most workers that can be kept busy: one visit of the camera."""
RESCAN_S = 0.005


def measure_replacement(
    places: Places, kills: int, busy: int, progress: Callable[[str], None]
) -> dict[str, Scalar]:
    """Kill idle workers that have a Butler open, each slot's once.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    kills : `int`
        How many workers.
    busy : `int`
        How many others spin meanwhile.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    figures : `dict`
        From the signal until the supervisor has heard READY.
    """
    progress(f"replace: starting {kills + busy} workers")
    make_central(places.scratch / "central")
    workers = {"max": kills + busy, "work": "poolbench.busy_work", "preload": PRELOAD}
    config = node_config(
        places, {INSTRUMENT: f"0-{DETECTORS - 1}"}, workers, **butler_parts(places.scratch / "central")
    )
    with running(config, places) as node:
        if busy:
            node.relay.reserve("busy", range(busy), instrument=INSTRUMENT)
        node.wait(lambda: node.daemon.status().slots.get(SlotState.PREPARING, 0) == busy, pause_s=0.05)
        victims = [row for row in node.daemon.workers() if row.state == SlotState.IDLE][:kills]
        progress(f"replace: {len(victims)} kills while {busy} workers spin")
        took_ms = [_replace(node, victim) for victim in victims]
    return {
        "replace_p95_ms": percentile(took_ms, 95),
        "replace_median_ms": median(took_ms),
        "replace_worst_ms": max(took_ms),
        "replace_kills": len(took_ms),
        "replace_busy": busy,
    }


def _replace(node: Node, victim: WorkerRow) -> float:
    """Kill a worker; return the milliseconds until the next one is ready."""

    def replaced() -> bool:
        row = node.daemon.workers()[victim.slot]
        return row.epoch > victim.epoch and row.state == SlotState.IDLE

    assert victim.pid is not None, victim
    killed = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    node.wait(replaced, pause_s=RESCAN_S)
    return (time.monotonic() - killed) * 1e3
