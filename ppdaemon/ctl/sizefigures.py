# SPDX-License-Identifier: BSD-3-Clause
"""The figures of ``ppctl size`` of a configuration, a host and a running daemon."""

import os
from pathlib import Path

import click

from ppdaemon.config import load_node
from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.size import Figures, measured
from ppdaemon.errors import NotRunning
from ppdaemon.states import BUSY_STATES
from ppdaemon.thishost import filesystem_size, host_memory, nearest_existing

__all__ = ("OPTIONS", "of_host", "of_journal")

ROWS = 5000
"""Visit-detectors of the journal that are measured: the visits of some hours."""
OPTIONS = {
    "detectors": "--detectors",
    "cadence_s": "--cadence",
    "visit_s": "--visit-s",
    "run_s": "--run-s",
    "memory_gb": "--memory-gb",
    "ramdisk_gb": "--ramdisk-gb",
}
"""By name of a figure: the option that gives it."""


def of_host(path: Path | None, camera: str | None) -> Figures:
    """Return the cores and the memory of this host, and what a configuration has: detectors, limits of
    memory and RAM disk of a worker, which it does not exceed.
    """
    figures = Figures.of("this host", cores=len(os.sched_getaffinity(0)), host_gb=host_memory() / 1e9)
    if path is None:
        return figures
    config = load_node(path, os.environ, writing=False)
    served = config.node.instruments
    if camera is not None and camera not in served:
        raise click.UsageError(f"--camera: node.instruments has {', '.join(served)}")
    largest = max(served, key=lambda name: len(served[name]))
    tmpfs = filesystem_size(nearest_existing(config.node.ramdisk)) / 1e9
    memory = config.workers.memory
    return (
        figures
        | Figures.of("this host", tmpfs_gb=tmpfs or None)
        | Figures.of(f"node.instruments, {camera or largest}", detectors=len(served[camera or largest]))
        | Figures.of(
            "workers.memory, its limits", memory_gb=memory.soft / 1e9, ramdisk_gb=memory.ramdisk / 1e9
        )
        | Figures.of("configuration", workers=config.workers.max)
    )


def of_journal(daemon: Daemon, camera: str | None) -> Figures:
    """Return the times in a node's journal, and the memory of its largest busy worker, if it runs."""
    try:
        figures = measured(daemon.visits(ROWS, instrument=camera))
        busy = [row.memory_mb for row in daemon.workers() if row.state in BUSY_STATES and row.memory_mb]
    except NotRunning:  # without a journal either, or only without workers
        return figures if daemon.from_journal else Figures()
    return figures | Figures.of("largest busy worker now", memory_gb=max(busy, default=0) / 1e3 or None)
