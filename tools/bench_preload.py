#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure preloads on this machine, from a central repo of a survey's size."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.processes import CONTEXT, BenchProcess
from benching.results import Scalar
from preloadbench.results import (
    GOALS,
    MOVES,
    Crowd,
    VisitSamples,
    ratios,
    summarize_copies,
    summarize_crowd,
    summarize_single,
)

from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.errors import Unavailable

if TYPE_CHECKING:  # imported only by the workers' processes: this one has no LSST code
    from preloadbench.repo import Size
    from preloadbench.worker import Host

QUICK = {
    "workers": 2,
    "visits": 3,
    "crowd": (20,),
    "rounds": 1,
    "database": ("sqlite",),
    "epochs": 2,
    "tracts": 2,
    "image_mb": 10.0,
}

LIMIT_S = 600.0
WHOLE_HOST_IMAGE_MB = 0.5
"""Size of images where all detectors are prepared at once: they would take 50 GB otherwise."""
OTHERS = ("p50_ms", "p95_ms", "max_ms", "cpu_ms", "queries", "workers_asking", "connections", "bytes_copied")
"""Results that are shown of another build, too."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement."""

    workers: int
    visits: int
    crowd: tuple[int, ...]
    rounds: int


def gather(started: Iterable[tuple[object, ...]]) -> list[Any]:
    """Run functions, each with its arguments in its own process; return their answers."""
    with ExitStack() as stack:
        processes = [stack.enter_context(BenchProcess(*each)) for each in started]  # type: ignore[arg-type]
        return [each.answer() for each in processes]


def prepare(host: "Host", size: "Size", database: str, end: Connection) -> None:
    """Make the central repo and the template; runs in its own process."""
    from preloadbench.repo import make_central
    from preloadbench.worker import build_template

    make_central(host.central, size, database)
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


def measure_single(host: "Host", workload: Workload) -> dict[str, Scalar]:
    """Measure workers one after the other."""
    single: list[VisitSamples] = []
    for number in range(workload.workers):
        fields = (*[0.0] * workload.visits, *MOVES)
        single += run_workers(host, f"single-{number}", [host.detectors // 2], fields)
        progress(f"worker {number + 1} of {workload.workers}")
    return summarize_single(single)


def measure_crowds(
    host: "Host", workload: Workload, database: str, other: Path | None
) -> dict[str, dict[str, Scalar]]:
    """Measure many workers at once, in turn with those of another build."""
    builds = {"": Path(__file__).parents[1]} | ({} if other is None else {"other": other})
    middle = host.detectors // 2
    (alone,) = [run_crowd(host, builds[""], detectors=[middle])]
    results = {}
    for count in workload.crowd:
        detectors = [(max(0, middle - count // 2) + k) % host.detectors for k in range(count)]
        rounds: dict[str, list[Crowd]] = {name: [] for name in (*builds, "copies")}
        for number in range(workload.rounds):
            # Another one is the first in each round.
            for name in sorted(builds, reverse=bool(number % 2)):
                rounds[name].append(run_crowd(host, builds[name], detectors=detectors))
            copied = sum(each["fetched_bytes"] for each in rounds[""][-1].workers)
            rounds["copies"].append(run_crowd(host, builds[""], copies=round(copied / host.image_bytes)))
            progress(f"{count} workers at once, {database}, round {number + 1} of {workload.rounds}")
        found = summarize_crowd(rounds[""], alone)
        found |= ratios(found, summarize_copies(rounds["copies"]), "copies")
        if other is not None:
            before = summarize_crowd(rounds["other"], alone)
            found |= ratios(found, before, "other") | {f"other_{key}": before[key] for key in OTHERS}
        results[f"cold_{count}_{database}"] = found
    return results


def run_crowd(host: "Host", build: Path, **order: Any) -> Crowd:
    """Run workers of a build at once, or plain copies; the cache is empty before and deleted after."""
    cache = "cache"
    # Each build has its own template. The names are those of a node: its asker is one of the processes.
    ramdisk = host.ramdisk / f"ppdaemon-{'this' if build == Path(__file__).parents[1] else 'other'}"
    ramdisk.mkdir(exist_ok=True)
    places = {"central": str(host.central), "ramdisk": str(ramdisk), "pipelines": host.pipelines}
    content = json.dumps({**places, "camera": host.detectors, "cache": cache, **order})
    path = os.pathsep.join((str(build), str(Path(__file__).parent)))
    command = [sys.executable, "-m", "preloadbench.crowd", content]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}, timeout=LIMIT_S
    )
    if done.returncode:
        raise Unavailable("the workers of a crowd have failed; see the output above")
    for folder in ramdisk.glob(f"{cache}*"):
        shutil.rmtree(folder)
    return Crowd(**json.loads(done.stdout))


@contextmanager
def databases(names: Iterable[str], folder: Path) -> Iterator[dict[str, str]]:
    """Yield the URL of a database by name; that of a file is blank. PostgreSQL is left out where it is
    not installed.
    """
    from exportbench.server import find_programs, new_database, running_server

    found = {name: "" for name in names if name == "sqlite"}
    if "postgresql" not in names:
        yield found
    elif (programs := find_programs()) is None:
        progress("no PostgreSQL server on this machine: not measured")
        yield found
    else:
        with running_server(programs, folder) as server:
            yield found | {"postgresql": new_database(programs, server)}


@click.command(name="bench_preload", context_settings=SETTINGS)
@click.option("--workers", default=5, type=click.IntRange(1), help="Workers measured one at a time.")
@click.option("--visits", default=6, type=click.IntRange(2), help="Visits of each worker to one field.")
@click.option(
    "--crowd",
    default=(4, 20),
    multiple=True,
    type=click.IntRange(1),
    help="Workers at once; may be repeated.",
)
@click.option(
    "--database",
    default=("sqlite", "postgresql"),
    multiple=True,
    type=click.Choice(("sqlite", "postgresql")),
    help="Of the central repo; may be repeated. Single workers are measured with the first one.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Checkout of another build, whose workers run in turn with these.",
)
@click.option("--rounds", default=3, type=click.IntRange(1), help="Rounds of workers at once.")
@click.option("--detectors", default=205, type=click.IntRange(2), help="Detectors of the camera.")
@click.option("--epochs", default=4, type=click.IntRange(1), help="Validity ranges of calibrations.")
@click.option("--tracts", default=3, type=click.IntRange(1), help="Tracts along each side of the field.")
@click.option(
    "--image-mb",
    default=30.0,
    type=click.FloatRange(0.001),
    help="Size of a calibration image or a template.",
)
@click.option(
    "--table-mb",
    default=0.5,
    type=click.FloatRange(0.001),
    help="Size of a table or a shard of a reference catalog.",
)
@click.option(
    "--whole-host",
    is_flag=True,
    help=f"Only workers of all detectors at once, with images of {WHOLE_HOST_IMAGE_MB:g} MB.",
)
@options(QUICK)
def command(
    bench: Bench, database: tuple[str, ...], against: Path | None, whole_host: bool, **amounts: Any
) -> None:
    """Measure a preload, from the order to the inputs in the worker's repo.

    The central repo on SQLite has the calibrations of a whole camera, and
    templates and reference catalogs of a field. Its files are hard links to
    two files, so that it takes little space, but each is copied in full. One
    visit reads about 22 datasets of 15 types, as the connections of an alert
    pipeline require. Ten of them are images: 4000 x 4000 pixels of 4 bytes are
    64 MB, half of that when compressed.

    Cold is the first visit of a new worker with an empty cache, warm is each
    later one of the same field, moved is a visit to another field that is in
    the cache, too. Times are medians.

    Then many workers at once, all of them cold, one for each of so many
    neighboring detectors, with an asker as on a node; "p95" is the slowest but
    one of 20. "cpu_ms" is of all workers and the asker together, "queries" the
    statements that the central repo gets from them. "queries_of_each" compares
    those with workers that ask one by one, "p95_of_copies" the time with plain
    copies of the same bytes by a process on each core, "of_other" with the
    build of --against. "grown_bytes" is by how much the peak of the memory of
    the largest worker has grown. With --whole-host, "max_of_limit" compares
    the slowest worker with the default of the time limit.

    Workers are processes, forked from one that has imported all modules. Files
    are copied from the page cache: with a real store, cold takes longer. All
    files are deleted.
    """
    from preloadbench.repo import Size
    from preloadbench.survey import write_pipelines
    from preloadbench.worker import Host

    os.environ.update(CHILD_ENVIRONMENT)
    # Imported once in the fork server: each process would need seconds for it.
    CONTEXT.set_forkserver_preload(["preloadbench.worker"])
    if whole_host:
        amounts |= {"crowd": (amounts["detectors"],), "image_mb": WHOLE_HOST_IMAGE_MB}
    workload = Workload(*(amounts[name] for name in ("workers", "visits", "crowd", "rounds")))
    size = Size(
        epochs=amounts["epochs"],
        tracts=amounts["tracts"],
        bands=3,
        image_bytes=round(amounts["image_mb"] * 1e6),
        table_bytes=round(amounts["table_mb"] * 1e6),
        detectors=amounts["detectors"],
    )
    results: dict[str, Any] = {}
    with bench.folders.temporary() as folders, databases(database, folders.scratch) as urls:
        pipelines = write_pipelines(folders.scratch)
        for name, url in urls.items():
            ramdisk = folders.ramdisk / name
            ramdisk.mkdir()
            host = Host(folders.scratch / name, ramdisk, pipelines, size.detectors, size.image_bytes)
            gather([(prepare, host, size, url)])
            if not (results or whole_host):
                results |= measure_single(host, workload)
            results |= measure_crowds(host, workload, name, against)
    bench.report(results, GOALS)


if __name__ == "__main__":
    run(command)
