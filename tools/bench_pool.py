#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure the worker pool on this machine, with the real parts."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from benching.cli import SETTINGS, Bench, options, run
from benching.folders import BenchFolders, FolderRoots
from benching.results import Scalar
from poolbench.dispatch import measure_dispatch
from poolbench.endurance import BATCH, measure_endurance
from poolbench.forks import measure_forks
from poolbench.fullcamera import measure_full_camera, measure_two_workers
from poolbench.leftovers import measure_leftovers
from poolbench.replacement import DETECTORS, measure_replacement
from poolbench.results import GOALS

SECTIONS = ("fork", "idle", "reserve", "event", "leftovers", "replace", "slope")
QUICK = {"forks": 10, "observe": 5.0, "rounds": 3, "kills": 10, "visits": 4000}


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement."""

    forks: int
    spawns: int
    observe: float
    rounds: int
    kills: int
    busy: int
    visits: int
    raws: bool
    against: Path | None


def measure(chosen: frozenset[str], folder_roots: FolderRoots, workload: Workload) -> dict[str, Scalar]:
    """Measure section by section, each in its own folders."""

    def full_camera(folders: BenchFolders) -> dict[str, Scalar]:
        observe_s = workload.observe if "idle" in chosen else 0.0
        return measure_full_camera(folders, observe_s, workload.rounds if "reserve" in chosen else 0)

    def two_workers(folders: BenchFolders) -> dict[str, Scalar]:
        return measure_two_workers(folders, int(results["supervisor_threads"] or 0))

    results: dict[str, Scalar] = {}
    sections: Mapping[str, Callable[[BenchFolders], dict[str, Scalar]]] = {
        "fork": partial(measure_forks, forks=workload.forks, spawns=workload.spawns, other=workload.against),
        "idle reserve": full_camera,
        "idle": two_workers,
        "event": measure_dispatch,
        "leftovers": measure_leftovers,
        "replace": partial(measure_replacement, kills=workload.kills, busy=workload.busy),
        "slope": partial(measure_endurance, visits=workload.visits, raws=workload.raws),
    }
    for names, section in sections.items():
        if chosen & set(names.split()):
            with folder_roots.temporary() as folders:
                results |= section(folders)
    return results


@click.command(name="bench_pool", context_settings=SETTINGS)
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be repeated.")
@click.option("--forks", default=15, type=click.IntRange(10), help="Workers forked.")
@click.option("--spawns", default=3, type=click.IntRange(3), help="Workers spawned.")
@click.option(
    "--observe", default=20.0, type=click.FloatRange(1), help="Seconds for which the idle daemon is observed."
)
@click.option("--rounds", default=5, type=click.IntRange(1), help="Visits of 205 detectors reserved.")
@click.option("--kills", default=20, type=click.IntRange(1, 500), help="Workers killed.")
@click.option(
    "--busy",
    type=click.IntRange(0, DETECTORS),
    help="Workers that keep a core busy during the kills.  [default: one per core]",
)
@click.option(
    "--visits",
    default=20_000,
    type=click.IntRange(10 * BATCH),
    help=f"Visit-detectors for the slopes, in visits of {BATCH}.",
)
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Another checkout, whose workers are forked in turn.",
)
@click.option("--raws", is_flag=True, help="Write a raw for each visit-detector of the slopes.")
@options(QUICK)
def command(bench: Bench, only: tuple[str, ...], busy: int | None, **workload: Any) -> None:
    """Measure the start of workers, the memory and CPU time of workers and
    supervisor, the latency of visits, the replacement of killed workers, and
    leaks.

    Takes some minutes; other load on the machine changes the results. Goals
    are for two idle cores. All files are deleted.
    """
    busy_count = min(os.cpu_count() or 1, DETECTORS) if busy is None else busy
    results = measure(frozenset(only or SECTIONS), bench.folders, Workload(busy=busy_count, **workload))
    bench.report(results, GOALS)


if __name__ == "__main__":
    run(command)
