#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure preloads on this machine, from a central repo of a survey's size."""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import click
from benching.cli import Bench, options, progress, run
from benching.processes import CONTEXT, BenchProcess
from benching.results import Scalar
from preloadbench.results import GOALS, MOVES, VisitSamples, summarize_parallel, summarize_single

from ppdaemon.environment import CHILD_ENVIRONMENT

if TYPE_CHECKING:  # imported only by the workers' processes: this one has no LSST code
    from preloadbench.repo import Size
    from preloadbench.worker import Host

QUICK = {"workers": 2, "visits": 3, "rounds": 1, "epochs": 2, "tracts": 2, "image_mb": 10.0}


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement."""

    workers: int
    visits: int
    crowd: int
    rounds: int


def gather(started: Iterable[tuple[object, ...]]) -> list[Any]:
    """Run functions, each with its arguments in its own process; return their answers."""
    with ExitStack() as stack:
        processes = [stack.enter_context(BenchProcess(*each)) for each in started]  # type: ignore[arg-type]
        return [each.answer() for each in processes]


def prepare(host: "Host", size: "Size", end: Connection) -> None:
    """Make the central repo and the template; runs in its own process."""
    from preloadbench.repo import make_central
    from preloadbench.worker import build_template

    make_central(host.central, size, progress)
    build_template(host)
    end.send(True)


def worker(
    host: "Host", cache: str, detector: int, fields: Sequence[float], barrier: Any, end: Connection
) -> None:
    """Run a worker; runs in its own process."""
    from preloadbench.worker import run_worker

    run_worker(host, cache, detector, fields, barrier.wait, end)


def run_workers(
    host: "Host", cache: str, detectors: Sequence[int], fields: Sequence[float]
) -> list[VisitSamples]:
    """Run workers that preload at the same time; their cache is empty before and deleted after."""
    barrier = CONTEXT.Barrier(len(detectors))
    samples = gather((worker, host, cache, detector, fields, barrier) for detector in detectors)
    for folder in host.ramdisk.glob(f"{cache}*"):
        shutil.rmtree(folder)
    return samples


def measure(host: "Host", workload: Workload, progress: Callable[[str], None]) -> dict[str, Scalar]:
    """Measure single workers, then many at once."""
    middle = host.detectors // 2
    single: list[VisitSamples] = []
    for number in range(workload.workers):
        single += run_workers(host, f"single-{number}", [middle], (*[0.0] * workload.visits, *MOVES))
        progress(f"worker {number + 1} of {workload.workers}")
    first = max(0, middle - workload.crowd // 2)
    parallel = [(first + k) % host.detectors for k in range(workload.crowd)]
    rounds = []
    for number in range(workload.rounds):
        rounds.append(run_workers(host, f"parallel-{number}", parallel, (0.0, 0.0)))
        progress(f"{workload.crowd} workers at once, round {number + 1} of {workload.rounds}")
    return summarize_single(single) | summarize_parallel(rounds)


@click.command(name="bench_preload", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--workers", default=5, show_default=True, type=click.IntRange(1), help="Workers measured one at a time."
)
@click.option(
    "--visits",
    default=6,
    show_default=True,
    type=click.IntRange(2),
    help="Visits of each worker to one field.",
)
@click.option("--crowd", default=20, show_default=True, type=click.IntRange(1), help="Workers at once.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds of workers at once."
)
@click.option(
    "--detectors", default=205, show_default=True, type=click.IntRange(2), help="Detectors of the camera."
)
@click.option(
    "--epochs", default=4, show_default=True, type=click.IntRange(1), help="Validity ranges of calibrations."
)
@click.option(
    "--tracts",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Tracts along each side of the field.",
)
@click.option(
    "--image-mb",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.001),
    help="Size of a calibration image or a template.",
)
@click.option(
    "--table-mb",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0.001),
    help="Size of a table or a shard of a reference catalog.",
)
@options(QUICK)
def command(bench: Bench, **amounts: Any) -> None:
    """Measure a preload, from the order to the inputs in the worker's repo.

    The central repo on SQLite has the calibrations of a whole camera, and
    templates and reference catalogs of a field. Its files are hard links to
    two files, so that it takes little space, but each is copied in full. One
    visit reads about 22 datasets of 15 types, as the connections of an alert
    pipeline require. Ten of them are images: 4000 x 4000 pixels of 4 bytes are
    64 MB, half of that when compressed.

    Cold is the first visit of a new worker with an empty cache, warm is each
    later one of the same field, moved is a visit to another field that is in
    the cache, too. Workers are processes, forked from one that has imported
    all modules. Times are medians; that of many workers at once is the 95th
    percentile, the median over its rounds. Files are copied from the page
    cache: with a real store, cold takes longer. All files are deleted.
    """
    from preloadbench.repo import Size
    from preloadbench.survey import write_pipelines
    from preloadbench.worker import Host

    os.environ.update(CHILD_ENVIRONMENT)
    # Imported once in the fork server: each process would need seconds for it.
    CONTEXT.set_forkserver_preload(["preloadbench.worker"])
    workload = Workload(*(amounts[name] for name in ("workers", "visits", "crowd", "rounds")))
    size = Size(
        epochs=amounts["epochs"],
        tracts=amounts["tracts"],
        bands=3,
        image_bytes=round(amounts["image_mb"] * 1e6),
        table_bytes=round(amounts["table_mb"] * 1e6),
        detectors=amounts["detectors"],
    )
    with bench.folders.temporary() as folders:
        pipelines = write_pipelines(folders.scratch)
        host = Host(folders.scratch / "central", folders.ramdisk, pipelines, size.detectors)
        gather([(prepare, host, size)])
        results = measure(host, workload, progress)
    bench.report(results, GOALS)


if __name__ == "__main__":
    run(command)
