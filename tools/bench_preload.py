#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure what a preload takes on this machine, from a central repo of a survey's size."""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from benching.cli import options, progress, run, tell
from benching.figures import Scalar
from benching.places import Ground
from preloadbench.figures import GOALS, MOVES, Visits, of_crowds, of_single

from ppdaemon.errors import Unavailable

if TYPE_CHECKING:  # the processes of workers import it, this one stays light
    from preloadbench.context import Host
    from preloadbench.repo import Size

_CONTEXT = multiprocessing.get_context("forkserver")
_ALONE = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Environment of processes that fork, as the daemon has it."""
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    workers: int
    visits: int
    crowd: int
    rounds: int


@dataclass(slots=True)
class Started:
    """A process and what it will tell."""

    process: Any
    answers: Connection

    @classmethod
    def of(cls, function: Callable[..., object], *words: object) -> "Started":
        """Start a process; it gets the other end of `answers` as its last word."""
        answers, end = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=function, args=(*words, end))
        process.start()
        end.close()
        return cls(process, answers)

    def told(self) -> Any:
        """Wait for its answer."""
        try:
            if self.answers.poll(_LIMIT_S):
                return self.answers.recv()
        except EOFError:
            pass
        raise Unavailable("a process of the bench has failed; its traceback is above")


def gather(started: Sequence[Started]) -> list[Any]:
    """Wait for the answers of processes; none is left after that, whatever happens."""
    try:
        return [each.told() for each in started]
    except BaseException:
        for each in started:
            each.process.kill()
        raise
    finally:
        for each in started:
            each.process.join()


def prepare(host: "Host", size: "Size", end: Connection) -> None:
    """Make the central repo and the template; in a process of its own."""
    from preloadbench.context import build_template
    from preloadbench.repo import make_central

    make_central(host.central, size, progress)
    build_template(host)
    end.send(True)


def context(
    host: "Host", cache: str, detector: int, fields: Sequence[float], barrier: Any, end: Connection
) -> None:
    """Be a worker; in a process of its own."""
    from preloadbench.context import sit

    sit(host, cache, detector, fields, barrier.wait, end)


def run_workers(host: "Host", cache: str, detectors: Sequence[int], fields: Sequence[float]) -> list[Visits]:
    """Let workers preload at once, visit by visit; the cache is empty before and deleted after."""
    barrier = _CONTEXT.Barrier(len(detectors))
    told = gather([Started.of(context, host, cache, detector, fields, barrier) for detector in detectors])
    for folder in host.ramdisk.glob(f"{cache}*"):
        shutil.rmtree(folder)
    return told


def measure(host: "Host", effort: Effort, progress: Callable[[str], None]) -> dict[str, Scalar]:
    """Measure single workers, then crowds."""
    middle = host.detectors // 2
    single: list[Visits] = []
    for number in range(effort.workers):
        single += run_workers(host, f"single-{number}", [middle], (*[0.0] * effort.visits, *MOVES))
        progress(f"worker {number + 1} of {effort.workers}")
    first = max(0, middle - effort.crowd // 2)
    crowd = [(first + k) % host.detectors for k in range(effort.crowd)]
    rounds = []
    for number in range(effort.rounds):
        rounds.append(run_workers(host, f"crowd-{number}", crowd, (0.0, 0.0)))
        progress(f"{effort.crowd} workers at once, round {number + 1} of {effort.rounds}")
    return of_single(single) | of_crowds(rounds)


@click.command(name="bench_preload", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--workers", default=5, show_default=True, type=click.IntRange(1), help="Workers measured alone."
)
@click.option(
    "--visits", default=6, show_default=True, type=click.IntRange(2), help="Visits of each to one field."
)
@click.option("--crowd", default=20, show_default=True, type=click.IntRange(1), help="Workers at once.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Crowds.")
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
@options
def command(as_json: bool, scratch: Path, ramdisk: Path, **amounts: Any) -> None:
    """Measure what a preload takes, from order to inputs in the worker's repo.

    A central repo on SQLite is made for it, with the calibrations of a whole
    camera, templates and reference catalogs of a field; its files are names
    of two, so that it takes little space, but all are copied in full. One
    visit reads about 22 datasets of 15 types, as an alert pipeline's
    connections ask for. Ten of them are images: 4000 x 4000 pixels of 4 bytes
    are 64 MB, half of that when compressed.

    Cold is the first visit of a new worker with an empty cache, warm is each
    further one of the same field, moved is one to another field that is in
    the cache, too. Workers are processes, forked from one that
    has imported all. Times are medians; the crowd's is the 95th percentile,
    the median over its rounds. What is copied comes out of the page cache:
    from a real store, cold takes longer. Everything made is deleted.
    """
    from preloadbench.context import Host
    from preloadbench.repo import Size
    from preloadbench.survey import write_pipelines

    os.environ.update(_ALONE)
    _CONTEXT.set_forkserver_preload(["preloadbench.context"])
    effort = Effort(*(amounts[name] for name in ("workers", "visits", "crowd", "rounds")))
    size = Size(
        epochs=amounts["epochs"],
        tracts=amounts["tracts"],
        bands=3,
        image_bytes=round(amounts["image_mb"] * 1e6),
        table_bytes=round(amounts["table_mb"] * 1e6),
        detectors=amounts["detectors"],
    )
    with Ground(scratch, ramdisk).places() as places:
        pipelines = write_pipelines(places.scratch)
        host = Host(places.scratch / "central", places.ramdisk, pipelines, size.detectors)
        gather([Started.of(prepare, host, size)])
        figures: dict[str, Scalar] = {"cores": os.cpu_count(), "load_at_start": os.getloadavg()[0]}
        figures |= measure(host, effort, progress)
    tell(figures, GOALS, as_json=as_json)


if __name__ == "__main__":
    run(command)
