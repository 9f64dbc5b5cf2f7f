# SPDX-License-Identifier: BSD-3-Clause
"""Many files at once: races with new folders, an overflow, a million old files."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from benching.cli import progress
from benching.folders import BenchFolders
from benching.results import Scalar
from poolbench.node import WORK, Node, node_config, running

from arrivalbench.exposures import DISABLED_S, Workload
from arrivalbench.writer import CAMERA, MakeFolders, RaceFolders, WriteBurst, WriteOld, Writer

DETECTORS = 205
POLL_S = 0.02
STILL_S = 10.0
"""A file that is not found while the count does not change for this time is missed."""
# For one step, on a slow machine.
LIMIT_S = 600.0


def measure_races(folders: BenchFolders, workload: Workload) -> dict[str, Scalar]:
    """Make folders and put a file into each at once, by writing or by renaming.

    Only the watch can find the files: counts missed files and files found
    twice.
    """
    progress(f"races: {workload.races} folders")
    with _daemon(folders, folders.scratch / "raw") as node, Writer(node.raw_root, range(DETECTORS)) as writer:
        _write(node, writer, RaceFolders(workload.races))
        _wait_for_count(node, workload.races, _delivered)
        found = _delivered(node)
    return {
        "races": workload.races,
        "races_missed": max(workload.races - found, 0),
        "races_twice": max(found - workload.races, 0),
    }


def measure_storm(folders: BenchFolders, workload: Workload) -> dict[str, Scalar]:
    """Write files into watched folders while the supervisor is stopped.

    Measures the time from its continuation until all files were seen, the CPU
    time used, and the time until all were delivered.
    """
    exposures = -(-workload.storm // DETECTORS)
    with _daemon(folders, folders.scratch / "raw") as node, Writer(node.raw_root, range(DETECTORS)) as writer:
        _write(node, writer, MakeFolders(exposures))
        pid = node.daemon.status().pid
        node.wait(lambda: _watches(pid) >= exposures, pause_s=POLL_S)
        progress(f"storm: {workload.storm} files while the daemon is stopped")
        # A stopped daemon reads no events, so that the kernel's queue overflows.
        os.kill(pid, signal.SIGSTOP)
        try:
            writer.send(WriteBurst(workload.storm))
            until = time.monotonic() + LIMIT_S
            while writer.receive() is None and time.monotonic() < until:
                node.relay.listen(POLL_S)
        finally:
            # Also after an error: a stopped daemon does not react to SIGTERM.
            os.kill(pid, signal.SIGCONT)
        continued_at, used_s = time.monotonic(), node.usage().cpu_s
        seen_at = _wait_for_count(node, workload.storm, _seen)
        used_s = node.usage().cpu_s - used_s
        seen = _seen(node)
        delivered_at = _wait_for_count(node, workload.storm, _delivered)
        delivered = _delivered(node)
    return {
        "storm": workload.storm,
        "storm_missed": max(workload.storm - min(seen, delivered), 0),
        "storm_twice": max(delivered - workload.storm, 0),
        "storm_s": seen_at - continued_at,
        "storm_cpu_s": used_s,
        "storm_delivered_s": delivered_at - continued_at,
    }


def measure_old_tree(folders: BenchFolders, workload: Workload) -> dict[str, Scalar]:
    """Start on a tree of old files on the RAM disk, and on an empty one.

    Measures the time until all sources are live, and the supervisor's memory.
    """
    root = folders.ramdisk / "raw"
    results: dict[str, Scalar] = {}
    root.mkdir()
    for name, count in (("empty_tree", 0), ("old_tree", workload.old)):
        with Writer(root, range(DETECTORS)) as writer:
            progress(f"{name}: writing {count} files")
            writer.send(WriteOld(count))
            while writer.receive() is None:
                time.sleep(POLL_S)
        progress(f"{name}: starting")
        began = time.monotonic()
        scratch = folders.scratch / name
        scratch.mkdir()
        with _daemon(BenchFolders(scratch, folders.ramdisk), root) as node:
            node.wait(lambda node=node: _all_live(node), pause_s=POLL_S)  # type: ignore[misc]
            results[f"{name}_start_s"] = time.monotonic() - began
            results[f"{name}_mb"] = node.usage().rss_bytes / 1e6
    return {"old_tree_files": workload.old} | results


@contextmanager
def _daemon(folders: BenchFolders, root: Path) -> Iterator[Node]:
    """Run a daemon whose only source is the watch."""
    arrivals = {"roots": [str(root)], "watch": "inotify", "scan_s": DISABLED_S}
    workers = {"max": 1, "work": WORK}
    config = node_config(folders, {CAMERA: f"0-{DETECTORS - 1}"}, workers, arrivals=arrivals)
    with running(config, folders) as node:
        node.wait(lambda: _all_live(node), pause_s=POLL_S)
        yield node


def _write(node: Node, writer: Writer, order: object) -> None:
    writer.execute(order, partial(node.wait, deadline_s=LIMIT_S, pause_s=POLL_S))


def _wait_for_count(node: Node, expected: int, count: Callable[[Node], int]) -> float:
    """Wait until a count reaches a number or stops growing; return the time of its last growth."""
    last, last_growth = -1, time.monotonic()

    def complete_or_still() -> bool:
        nonlocal last, last_growth
        now = count(node)
        if now != last:
            last, last_growth = now, time.monotonic()
        return now >= expected or time.monotonic() - last_growth > STILL_S

    node.wait(complete_or_still, LIMIT_S, POLL_S)
    return last_growth


def _seen(node: Node) -> int:
    return sum(source.files for source in node.daemon.status().arrivals)


def _delivered(node: Node) -> int:
    return node.daemon.status().counters.get("arrivals.delivered", 0)


def _all_live(node: Node) -> bool:
    return all(source.live for source in node.daemon.status().arrivals)


def _watches(pid: int) -> int:
    """Return the number of folders that a process watches."""
    count = 0
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            count += sum(line.startswith("inotify wd:") for line in info.read_text().splitlines())
    return count
