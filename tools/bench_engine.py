#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine the overhead of the engines over the tasks' own work."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from benching.cli import options, print_results, progress, run
from benching.results import Scalar
from enginebench.results import GOALS, Sample, flatten, ratios, summarize

from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.errors import Unavailable

if TYPE_CHECKING:  # imported only by the workers' processes: this one has no LSST code
    from enginebench.sections import Section, SectionFolders

NAMES = ("empty", "twenty", "images", "appipe", "snaps")
_CONTEXT = multiprocessing.get_context("forkserver")
# For one answer: making repos and raws takes most of a minute on an idle machine.
_LIMIT_S = 600.0


class BenchProcess:
    """A process of the bench and its channel; it is stopped at the end of the context."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self._channel, child_end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=function, args=(*arguments, child_end))
        self._process.start()
        # Without a copy in this process, the exit of the child closes the channel.
        child_end.close()

    def request(self, message: object) -> Any:
        """Send a message and return the answer; raise `Unavailable` if there is none."""
        try:
            self._channel.send(message)
            if self._channel.poll(_LIMIT_S):
                return self._channel.recv()
        except (EOFError, BrokenPipeError):
            pass
        raise Unavailable("a process of the bench exited or did not answer; see the output above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._channel.send(None)
        else:
            self._process.kill()
        self._process.join()
        self._channel.close()


def prepare_section(section: "Section", folders: "SectionFolders", channel: Connection) -> None:
    """Make repos and raws of a section; runs in its own process."""
    from enginebench.sections import prepare

    visits = channel.recv()
    channel.send(prepare(section, folders, visits, progress))
    channel.recv()


def worker(setup: Any, channel: Connection) -> None:
    """Run a worker; runs in its own process."""
    from enginebench.worker import run_worker

    run_worker(setup, channel)


def measure(
    section: "Section", folders: "SectionFolders", visits: int, progress: Callable[[str], None]
) -> dict[str, dict[str, Scalar]]:
    """Measure the same visits with each worker, in turn."""
    from enginebench.sections import plan

    plans = plan(visits + 1, section.snaps)
    with BenchProcess(prepare_section, section, folders) as maker:
        setups = maker.request(plans)
    samples: dict[str, list[Sample]] = {name: [] for name in setups}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(BenchProcess(worker, setup)) for name, setup in setups.items()}
        for number, each in enumerate(plans):
            # Another worker is the first in each visit: none always runs after the same other one.
            first = number % len(workers)
            for name in [*workers][first:] + [*workers][:first]:
                samples[name].append(workers[name].request(each))
            progress(f"{section.name}: visit {number} of {visits}")
    return {
        name: dict(summarize(taken, section.task_count, idle=section.is_idle))
        for name, taken in samples.items()
    }


def measure_all(
    chosen: Sequence[str],
    visits: int,
    parents: Mapping[str, Path],
    progress: Callable[[str], None],
    *,
    quick: bool,
) -> dict[str, dict[str, Scalar]]:
    """Measure section by section, each in its own folders."""
    from enginebench.sections import SECTIONS, SectionFolders

    host: dict[str, Scalar] = {
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "quick": int(quick),
    }
    found: dict[str, dict[str, Scalar]] = {}
    for name, section in SECTIONS.items():
        if name in chosen:
            with (
                tempfile.TemporaryDirectory(prefix="bench-", dir=parents["scratch"]) as disk,
                tempfile.TemporaryDirectory(prefix="bench-", dir=parents["ramdisk"]) as memory,
            ):
                found |= measure(section, SectionFolders(Path(disk), Path(memory), quick), visits, progress)
    compared: dict[str, Scalar] = dict(ratios(found))  # type: ignore[arg-type]
    return {"host": host | {"load_at_end": os.getloadavg()[0]}} | found | {"ratios": compared}


@click.command(name="bench_engine", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="This section; may be repeated.")
@click.option(
    "--visits",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Measured visits of each worker.",
)
@click.option("--quick", is_flag=True, help="Two visits and small images, only to test the bench.")
@options
def command(
    only: tuple[str, ...], as_json: bool, visits: int, quick: bool, scratch: Path, ramdisk: Path
) -> None:
    """Measure the time of engines from the raw to the outputs ready for export.

    Each engine has a worker, a process that does the same as the daemon's
    workers: prepare, ingest, process. All of them do the same visits in turn.
    Times are medians; the first visit of a worker is listed separately. The
    time begins when the raw is complete and ends when the outputs are in the
    spool.

    Sections: "empty" has five tasks that do nothing, with all their outputs
    exported; "twenty" has 20 tasks with 60 dataset types. "images" passes an
    image of a real detector (4072 x 4000 pixels, mask and variance) through
    five tasks that each make a new one; metadata are exported, and with a
    second pair of workers the last image, too. Images are compressed as in the
    demo. "appipe" is the demo's alert pipeline; its floor is the time of the
    tasks' run methods with inputs in memory, without reading the raw and
    without outputs. written_ms includes writing the outputs; processed_ms of
    an engine does not. direct_2 may use two processes (engine.processes).
    "snaps" has two exposures in each visit.

    memory_peak_mb is the resident memory of the worker and, if it starts one,
    of the command beside it, ramdisk_mb the size of its repo at the end. All
    files are deleted.
    """
    os.environ.update(CHILD_ENVIRONMENT)
    # Imported once in the fork server: each process would need seconds for it.
    _CONTEXT.set_forkserver_preload(["enginebench.sections", "ppdaemon.demo.tasks.alerts"])
    groups = measure_all(
        only or NAMES,
        2 if quick else visits,
        {"scratch": scratch, "ramdisk": ramdisk},
        progress,
        quick=quick,
    )
    print_results(flatten(groups), GOALS, as_json=as_json, groups=groups)


if __name__ == "__main__":
    run(command)
