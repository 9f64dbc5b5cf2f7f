#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure how long an operator waits for ``ppctl`` at a busy node with a long journal."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.folders import BenchFolders, FolderRoots
from benching.processes import private_mb
from benching.results import Scalar
from operatorbench import commands
from operatorbench.commands import PPCTL, PYTHON, Times
from operatorbench.journal import fill, night_of
from operatorbench.results import GOALS
from poolbench.node import WORK, Node, node_config, running

from ppdaemon.reports import JOURNAL_NAME
from ppdaemon.states import SlotState
from ppdaemon.testing.raws import RawWriter

CAMERA = "LSSTCam"
BUSY = "busy"
"""Group of the visit that is being processed."""
QUICK = {"rows": 200_000, "rounds": 3}


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement."""

    detectors: int
    rows: int
    rounds: int


def measure(folder_roots: FolderRoots, workload: Workload) -> dict[str, Scalar]:
    """Measure at one node, all of whose slots are processing."""
    results: dict[str, Scalar] = {
        "detectors": workload.detectors,
        "rows": workload.rows,
    }
    with folder_roots.temporary() as folders:
        config = node_config(
            folders,
            {CAMERA: f"0-{workload.detectors - 1}"},
            {"max": workload.detectors, "work": WORK},
        )
        path = folders.scratch / "state" / JOURNAL_NAME
        path.parent.mkdir()
        progress(f"filling a journal with {workload.rows} rows")
        began = time.monotonic()
        group = fill(path, workload.rows, workload.detectors, CAMERA)
        results |= {"fill_s": time.monotonic() - began, "journal_mb": path.stat().st_size / 1e6}
        progress(f"starting {workload.detectors} workers")
        began = time.monotonic()
        with running(config, folders) as node:
            results["start_s"] = time.monotonic() - began
            results |= _measure_busy(node, folders, group, workload)
    return results


def _measure_busy(node: Node, folders: BenchFolders, group: str, workload: Workload) -> dict[str, Scalar]:
    """Make all workers busy; then run each command in turn, so that all have the same load beside them."""
    node.raws = RawWriter(node.raw_root, CAMERA, "MC")
    node.relay.reserve(BUSY, range(workload.detectors), instrument=CAMERA, survey="process:hang")
    node.raws.land(BUSY, range(workload.detectors))
    processing = {SlotState.PROCESSING: workload.detectors}
    node.wait(lambda: node.status().slots == processing, 300, 0.2)
    before_mb = node.status().supervisor_mb
    ppctl = (*PPCTL, "--socket", str(node.control))
    rows: dict[str, Sequence[str]] = {
        "floor_python": (*PYTHON, "pass"),
        "floor_ppctl": (*PPCTL, "--version"),
        "status": (*ppctl, "status"),
        "status_json": (*ppctl, "status", "--json"),
        "workers": (*ppctl, "workers"),
        "visits": (*ppctl, "visits"),
        "visits_1000": (*ppctl, "visits", "--limit", "1000"),
        "failed_night": (*ppctl, "failed", "--night", night_of()),
        "visit": (*ppctl, "visit", group),
        "late": (*ppctl, "late"),
    }
    times = {name: Times() for name in (*rows, "top")}
    for number in range(workload.rounds):
        progress(f"round {number + 1} of {workload.rounds}")
        for name, command in rows.items():
            commands.run(command, times[name])
            node.relay.listen()
        commands.first_frame((*ppctl, "top"), b"busy", times["top"], node.relay.listen)
        node.relay.listen()
    results: dict[str, Scalar] = {}
    for name, each in times.items():
        results |= each.results(name)
    return results | {
        "supervisor_mb": node.status().supervisor_mb,
        "supervisor_before_mb": before_mb,
        "supervisor_private_mb": private_mb(node.pid),
    }


@click.command(name="bench_operator", context_settings=SETTINGS)
@click.option(
    "--detectors",
    default=205,
    type=click.IntRange(1, 205),
    help="Workers that are processing, and detectors of a visit in the journal.",
)
@click.option("--rows", default=1_000_000, type=click.IntRange(1), help="Rows of the journal.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Times that each command is run.")
@options(QUICK)
def command(bench: Bench, **workload: int) -> None:
    """Measure how long an operator waits for ppctl, whose processes start anew each
    time, while all workers of a camera are busy and the journal has many nights.

    Takes some minutes and 1 GB on the disk; other load on the machine changes the
    results. Goals are for two idle cores. All files are deleted.
    """
    bench.report(measure(bench.folders, Workload(**workload)), GOALS)


if __name__ == "__main__":
    run(command)
