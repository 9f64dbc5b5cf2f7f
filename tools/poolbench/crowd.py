# SPDX-License-Identifier: BSD-3-Clause
"""What a supervisor costs beside a full camera of idle workers, and how soon
it gives them all a visit.
"""

import time
from collections.abc import Callable
from statistics import median

from benching.figures import Scalar
from benching.places import Places

from poolbench.node import WORK, Node, node_config, private_mb_of, running

__all__ = ("CAMERA", "DETECTORS", "measure_crowd", "measure_few")

CAMERA = "LSSTCam"
DETECTORS = 205
SETTLED_S = 2.0
FEW = 2
"""Workers of the daemon whose threads are compared with the crowd's."""


def measure_crowd(
    places: Places, observe_s: float, rounds: int, progress: Callable[[str], None]
) -> dict[str, Scalar]:
    """Measure a daemon with 205 workers.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    observe_s : `float`
        How long to look at the idle daemon; 0 to leave that out.
    rounds : `int`
        How many visits to reserve; 0 to leave that out.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    figures : `dict`
        As of the supervisor alone.
    """
    workers = {"max": DETECTORS, "work": WORK}
    config = node_config(places, {CAMERA: f"0-{DETECTORS - 1}"}, workers)
    progress(f"idle, reserve: starting {DETECTORS} workers")
    started = time.monotonic()
    with running(config, places) as node:
        figures: dict[str, Scalar] = {"start_205_s": time.monotonic() - started}
        node.relay.listen_for(SETTLED_S)
        if observe_s:
            figures |= _idle(node, observe_s, progress)
        if rounds:
            figures |= _reserve(node, rounds, progress)
    return figures


def measure_few(places: Places, threads: int) -> dict[str, Scalar]:
    """Compare with a supervisor of two workers.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    threads : `int`
        How many the supervisor of 205 has.

    Returns
    -------
    figures : `dict`
        Threads of the supervisor of two, and what each further worker costs.
    """
    config = node_config(places, {CAMERA: "0-1"}, {"max": FEW, "work": WORK})
    with running(config, places) as node:
        node.relay.listen_for(SETTLED_S)
        of_few = node.usage().threads
    return {
        "supervisor_threads_of_2": of_few,
        "threads_per_worker": (threads - of_few) / (DETECTORS - FEW),
    }


def _idle(node: Node, observe_s: float, progress: Callable[[str], None]) -> dict[str, Scalar]:
    progress(f"idle: looking at the supervisor for {observe_s:g} s")
    before, since = node.usage(), time.monotonic()
    node.relay.listen_for(observe_s)
    after, passed_s = node.usage(), time.monotonic() - since
    return {
        "supervisor_cpu_percent": 100 * (after.cpu_s - before.cpu_s) / passed_s,
        "supervisor_mb": after.rss_bytes / 1e6,
        "supervisor_private_mb": private_mb_of(node.daemon.status().pid),
        "supervisor_threads": after.threads,
        "supervisor_descriptors": after.descriptors,
    }


def _reserve(node: Node, rounds: int, progress: Callable[[str], None]) -> dict[str, Scalar]:
    """Reserve all detectors in one message, again and again."""
    took = []
    for number in range(rounds):
        progress(f"reserve: visit {number + 1} of {rounds}")
        group = f"reserve{number}"
        sent = node.relay.reserve(group, range(DETECTORS), instrument=CAMERA, survey="idle")
        node.wait(lambda group=group: len(_told(node, group)) == DETECTORS, pause_s=0.05)  # type: ignore[misc]
        took.append([(told - sent) * 1e3 for told in sorted(_told(node, group))])
        node.relay.cancel(group, instrument=CAMERA)
        node.wait_until_idle()
    last = [each[-1] for each in took]
    return {
        "reserve_205_ms": median(last),
        "reserve_205_worst_ms": max(last),
        "reserve_first_ms": median(each[0] for each in took),
        "reserve_half_ms": median(each[DETECTORS // 2] for each in took),
    }


def _told(node: Node, group: str) -> list[float]:
    """Return when workers were told to prepare for a visit, monotonic seconds."""
    lines = (line.split() for line in (node.state / "prepared").read_text().splitlines())
    return [float(words[2]) for words in lines if words[0] == group]
