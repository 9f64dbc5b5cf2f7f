# SPDX-License-Identifier: BSD-3-Clause
"""The cost of a supervisor with a full camera of idle workers, and the latency of a visit."""

import time
from statistics import median

from benching.cli import progress
from benching.folders import BenchFolders
from benching.processes import cpu_s, private_mb
from benching.results import Scalar

from poolbench.node import WORK, Node, node_config, running

CAMERA = "LSSTCam"
DETECTORS = 205
# After the start, so that its CPU time is not counted.
PAUSE_S = 2.0
FEW = 2
"""Workers of the daemon whose threads are compared with those of the full camera."""


def measure_full_camera(folders: BenchFolders, observe_s: float, rounds: int) -> dict[str, Scalar]:
    """Measure a daemon with 205 workers; the results are those of the supervisor alone.

    `observe_s` is the time for which the idle daemon is observed, `rounds` the
    number of visits that are reserved; 0 omits the measurement.
    """
    workers = {"max": DETECTORS, "work": WORK}
    config = node_config(folders, {CAMERA: f"0-{DETECTORS - 1}"}, workers)
    progress(f"idle, reserve: starting {DETECTORS} workers")
    started = time.monotonic()
    with running(config, folders) as node:
        results: dict[str, Scalar] = {"start_205_s": time.monotonic() - started}
        node.relay.listen_for(PAUSE_S)
        if observe_s:
            results |= _idle(node, observe_s)
        if rounds:
            results |= _reserve(node, rounds)
    return results


def measure_two_workers(folders: BenchFolders, threads: int) -> dict[str, Scalar]:
    """Compare with a supervisor of two workers; `threads` are those of the full camera's."""
    config = node_config(folders, {CAMERA: "0-1"}, {"max": FEW, "work": WORK})
    with running(config, folders) as node:
        node.relay.listen_for(PAUSE_S)
        threads_of_two = node.usage().threads
    return {
        "supervisor_threads_of_2": threads_of_two,
        "threads_per_worker": (threads - threads_of_two) / (DETECTORS - FEW),
    }


def _idle(node: Node, observe_s: float) -> dict[str, Scalar]:
    progress(f"idle: observing the supervisor for {observe_s:g} s")
    before_s, since = cpu_s(node.pid), time.monotonic()
    node.relay.listen_for(observe_s)
    used_s, passed_s = cpu_s(node.pid) - before_s, time.monotonic() - since
    after = node.usage()
    return {
        "supervisor_cpu_percent": 100 * used_s / passed_s,
        "supervisor_mb": after.rss_bytes / 1e6,
        "supervisor_private_mb": private_mb(node.daemon.status().pid),
        "supervisor_threads": after.threads,
        "supervisor_descriptors": after.descriptors,
    }


def _reserve(node: Node, rounds: int) -> dict[str, Scalar]:
    """Reserve all detectors in one message, several times."""
    latencies_ms = []
    for number in range(rounds):
        progress(f"reserve: visit {number + 1} of {rounds}")
        group = f"reserve{number}"
        sent = node.relay.reserve(group, range(DETECTORS), instrument=CAMERA, survey="idle")
        node.wait(lambda group=group: len(_order_times(node, group)) == DETECTORS, pause_s=0.05)  # type: ignore[misc]
        latencies_ms.append([(at - sent) * 1e3 for at in sorted(_order_times(node, group))])
        node.relay.cancel(group, instrument=CAMERA)
        node.wait_until_idle()
    last = [each[-1] for each in latencies_ms]
    return {
        "reserve_205_ms": median(last),
        "reserve_205_worst_ms": max(last),
        "reserve_first_ms": median(each[0] for each in latencies_ms),
        "reserve_half_ms": median(each[DETECTORS // 2] for each in latencies_ms),
    }


def _order_times(node: Node, group: str) -> list[float]:
    """Return the times of the orders to prepare for a visit, monotonic seconds."""
    notes = node.state / "prepared"
    if not notes.exists():  # no worker has its first order yet
        return []
    rows = (line.split() for line in notes.read_text().splitlines())
    return [float(row[2]) for row in rows if row[0] == group]
