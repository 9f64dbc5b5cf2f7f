# SPDX-License-Identifier: BSD-3-Clause
"""The time from complete raws of an exposure to the orders of a whole camera's workers."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from benching.cli import progress
from benching.folders import BenchFolders
from benching.orders import Orders, Samples
from benching.results import Scalar
from poolbench.node import WORK, Node, node_config, running

from arrivalbench.results import source_results
from arrivalbench.writer import CAMERA, Expose, Writer, Written
from ppdaemon.states import SlotState

SOURCES = ("inotify", "burst", "zmq", "poll")
"""``burst``: inotify, with all files of an exposure renamed into their new folder at once."""
# A period that is longer than the measurement: the source never runs.
DISABLED_S = 86_400.0
LATE_S = 15.0
"""A raw without an order to a worker this long after it was written counts as missed."""
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement."""

    exposures: int
    detectors: int
    within_s: float
    """Time in which the files of an exposure are written."""
    poll_s: float
    races: int
    storm: int
    old: int


def measure_exposures(
    folders: BenchFolders, source: str, workload: Workload
) -> tuple[Samples, dict[str, Scalar]]:
    """Write exposures for which all workers wait; return counts and results.

    `source` is one of `SOURCES`, the only one with which the daemon can find
    the files.
    """
    notices = f"ipc://{folders.ramdisk}/notices" if source == "zmq" else None
    root = str(folders.scratch / "raw")
    workers = {"max": workload.detectors, "work": WORK}
    instruments = {CAMERA: f"0-{workload.detectors - 1}"}
    config = node_config(
        folders, instruments, workers, arrivals={"roots": [root]} | _source(source, workload, notices)
    )
    renamed, in_place, used_s = Samples(), Samples(), 0.0
    progress(f"{source}: starting {workload.detectors} workers")
    with (
        running(config, folders) as node,
        Writer(node.raw_root, range(workload.detectors), notices) as writer,
    ):
        orders = Orders(node.state / "ingested")
        for number in range(1, workload.exposures + 1):
            progress(f"{source}: exposure {number} of {workload.exposures}")
            _reserve(node, f"{source}{number}", workload.detectors)
            before_s = node.usage().cpu_s
            is_burst = source == "burst"
            within_s = 0.0 if is_burst else workload.within_s
            order = Expose(number, f"{source}{number}", within_s, renamed=is_burst or bool(number % 2))
            _expose(node, writer, order, orders, renamed if order.renamed else in_place)
            used_s += node.usage().cpu_s - before_s
            node.relay.cancel(order.group, instrument=CAMERA)
            node.wait_until_idle()
    both = Samples(
        renamed.sent + in_place.sent,
        renamed.lost + in_place.lost,
        renamed.doubled + in_place.doubled,
        renamed.latencies_ms + in_place.latencies_ms,
    )
    cpu = {f"{source}_supervisor_cpu_ms_per_file": 1e3 * used_s / max(both.sent, 1)}
    if source == "poll":
        # Without events a file written in place is taken as complete only after some time without change.
        return both, source_results("poll", renamed) | source_results("poll_in_place", in_place) | cpu
    return both, source_results(source, both) | cpu


def _source(source: str, workload: Workload, notices: str | None) -> dict[str, Any]:
    """Return a configuration in which only one source can find a file in time."""
    match source:
        case "inotify" | "burst":
            return {"watch": "inotify", "scan_s": DISABLED_S}
        case "zmq":
            return {"watch": "poll", "poll_s": DISABLED_S, "scan_s": DISABLED_S, "subscribe": [notices]}
        case "poll":
            return {"watch": "poll", "poll_s": workload.poll_s, "scan_s": DISABLED_S}
        case unexpected:
            raise AssertionError(unexpected)


def _reserve(node: Node, group: str, detectors: int) -> None:
    node.relay.reserve(group, range(detectors), instrument=CAMERA, survey="idle")
    waiting = {SlotState.WAITING: detectors}
    node.wait(lambda: node.daemon.status().slots == waiting, pause_s=POLL_S)


def _expose(node: Node, writer: Writer, order: Expose, orders: Orders, samples: Samples) -> None:
    written: Written = writer.execute(order, partial(node.wait, pause_s=POLL_S))
    until = time.monotonic() + LATE_S
    node.wait(
        lambda: len(orders.of(order.group)) >= len(written.complete) or time.monotonic() > until,
        pause_s=POLL_S,
    )
    samples.add(written.complete, orders.of(order.group))
