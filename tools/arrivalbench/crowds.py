# SPDX-License-Identifier: BSD-3-Clause
"""Many files at once: races with new folders, an overflow, a million old ones."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benching.figures import Scalar
from benching.places import Places
from poolbench.node import WORK, Node, node_config, running

from arrivalbench.exposures import NEVER_S, Effort
from arrivalbench.writer import CAMERA, MakeFolders, Pile, Race, WriteOld, Writer

__all__ = ("measure_old_tree", "measure_races", "measure_storm")

DETECTORS = 205
RESCAN_S = 0.02
STILL_S = 10.0
"""What is not found while nothing else was for so long is missed."""
LIMIT_S = 600.0


def measure_races(places: Places, effort: Effort, progress: Callable[[str], None]) -> dict[str, Scalar]:
    """Make folders and put a file into each at once, by writing or renaming.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    effort : `~arrivalbench.exposures.Effort`
        How many.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    figures : `dict`
        How many the watch alone did not find, and how many came twice.
    """
    progress(f"races: {effort.races} folders")
    with _daemon(places, places.scratch / "raw") as node, Writer(node.raw_root, range(DETECTORS)) as writer:
        _write(node, writer, Race(effort.races))
        _settle(node, effort.races, _delivered)
        found = _delivered(node)
    return {
        "races": effort.races,
        "races_missed": max(effort.races - found, 0),
        "races_twice": max(found - effort.races, 0),
    }


def measure_storm(places: Places, effort: Effort, progress: Callable[[str], None]) -> dict[str, Scalar]:
    """Land files in watched folders while the supervisor is stopped.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    effort : `~arrivalbench.exposures.Effort`
        How many.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    figures : `dict`
        How long after it went on, and for how much CPU time, all were seen; and
        when all were delivered.
    """
    exposures = -(-effort.storm // DETECTORS)
    with _daemon(places, places.scratch / "raw") as node, Writer(node.raw_root, range(DETECTORS)) as writer:
        _write(node, writer, MakeFolders(exposures))
        pid = node.daemon.status().pid
        node.wait(lambda: _watches(pid) >= exposures, pause_s=RESCAN_S)
        progress(f"storm: {effort.storm} files while the daemon is stopped")
        os.kill(pid, signal.SIGSTOP)
        try:
            writer.order(Pile(effort.storm))
            until = time.monotonic() + LIMIT_S
            while writer.answer() is None and time.monotonic() < until:
                node.relay.listen(RESCAN_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        went_on, used_s = time.monotonic(), node.usage().cpu_s
        seen_at = _settle(node, effort.storm, _seen)
        used_s = node.usage().cpu_s - used_s
        seen = _seen(node)
        delivered_at = _settle(node, effort.storm, _delivered)
        delivered = _delivered(node)
    return {
        "storm": effort.storm,
        "storm_missed": max(effort.storm - min(seen, delivered), 0),
        "storm_twice": max(delivered - effort.storm, 0),
        "storm_s": seen_at - went_on,
        "storm_cpu_s": used_s,
        "storm_delivered_s": delivered_at - went_on,
    }


def measure_old_tree(places: Places, effort: Effort, progress: Callable[[str], None]) -> dict[str, Scalar]:
    """Start on a tree of old files on the RAM disk, and on an empty one.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    effort : `~arrivalbench.exposures.Effort`
        How many.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    figures : `dict`
        Until all sources are live, and what the supervisor then has.
    """
    root = places.ramdisk / "raw"
    figures: dict[str, Scalar] = {}
    root.mkdir()
    for name, count in (("empty_tree", 0), ("old_tree", effort.old)):
        with Writer(root, range(DETECTORS)) as writer:
            progress(f"{name}: writing {count} files")
            writer.order(WriteOld(count))
            while writer.answer() is None:
                time.sleep(RESCAN_S)
        progress(f"{name}: starting")
        began = time.monotonic()
        scratch = places.scratch / name
        scratch.mkdir()
        with _daemon(Places(scratch, places.ramdisk), root) as node:
            node.wait(lambda node=node: _all_live(node), pause_s=RESCAN_S)  # type: ignore[misc]
            figures[f"{name}_start_s"] = time.monotonic() - began
            figures[f"{name}_mb"] = node.usage().rss_bytes / 1e6
    return {"old_tree_files": effort.old} | figures


@contextmanager
def _daemon(places: Places, root: Path) -> Iterator[Node]:
    """Run a daemon whose only source is the watch."""
    arrivals = {"roots": [str(root)], "watch": "inotify", "scan_s": NEVER_S}
    workers = {"max": 1, "work": WORK}
    config = node_config(places, {CAMERA: f"0-{DETECTORS - 1}"}, workers, arrivals=arrivals)
    with running(config, places) as node:
        node.wait(lambda: _all_live(node), pause_s=RESCAN_S)
        yield node


def _write(node: Node, writer: Writer, order: object) -> None:
    writer.order(order)
    node.wait(lambda: writer.answer() is not None, LIMIT_S, RESCAN_S)


def _settle(node: Node, wanted: int, count: Callable[[Node], int]) -> float:
    """Wait until a count is reached or stands still; return when it last grew."""
    last, grown = -1, time.monotonic()

    def settled() -> bool:
        nonlocal last, grown
        now = count(node)
        if now != last:
            last, grown = now, time.monotonic()
        return now >= wanted or time.monotonic() - grown > STILL_S

    node.wait(settled, LIMIT_S, RESCAN_S)
    return grown


def _seen(node: Node) -> int:
    return sum(source.files for source in node.daemon.status().arrivals)


def _delivered(node: Node) -> int:
    return node.daemon.status().counters.get("arrivals.delivered", 0)


def _all_live(node: Node) -> bool:
    return all(source.live for source in node.daemon.status().arrivals)


def _watches(pid: int) -> int:
    """Return how many folders a process watches."""
    count = 0
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            count += sum(line.startswith("inotify wd:") for line in info.read_text().splitlines())
    return count
