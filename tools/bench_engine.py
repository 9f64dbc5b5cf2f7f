#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine the overhead of the engines over the tasks' own work."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.folders import FolderRoots
from benching.processes import CONTEXT, BenchProcess
from benching.results import Scalar
from enginebench.results import GOALS, Sample, ratios, summarize

from ppdaemon.environment import CHILD_ENVIRONMENT

if TYPE_CHECKING:  # imported only by the workers' processes: this one has no LSST code
    from enginebench.sections import Section, SectionFolders

NAMES = ("empty", "twenty", "images", "appipe", "snaps", "detector", "field")
FIRST_VISITS = 3
"""Workers that do one visit, before the one that does all others."""
QUICK = {"only": ("empty", "appipe", "detector"), "visits": 3}


def prepare_section(section: "Section", folders: "SectionFolders", channel: Connection) -> None:
    """Make repos and raws of a section; runs in its own process."""
    from enginebench.sections import prepare

    visits = channel.recv()
    channel.send(prepare(section, folders, visits))
    channel.recv()


def node(setup: Any, channel: Connection) -> None:
    """Run a node with one worker at a time; runs in its own process."""
    from enginebench.worker import run_node

    run_node(setup, channel)


def measure(
    section: "Section", folders: "SectionFolders", visits: int
) -> dict[str, Mapping[str, float | int]]:
    """Measure the same visits with each engine, in turn."""
    from enginebench.sections import plan

    counts = [*(1,) * FIRST_VISITS, 1 + visits]
    plans = plan(sum(counts), section.snaps)
    with BenchProcess(prepare_section, section, folders) as maker:
        setups = maker.request(plans)
    samples: dict[str, list[list[Sample]]] = {name: [] for name in setups}
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(BenchProcess(node, setup)) for name, setup in setups.items()}
        remaining = iter(enumerate(plans))
        for count in counts:
            for name in nodes:
                nodes[name].request(count)
                samples[name].append([])
            for number, each in islice(remaining, count):
                # Another engine is the first in each visit: none always runs after the same other one.
                first = number % len(nodes)
                for name in [*nodes][first:] + [*nodes][:first]:
                    samples[name][-1].append(nodes[name].request(each))
                progress(f"{section.name}: visit {number + 1} of {len(plans)}")
    return {
        name: summarize(taken, section.task_count, idle=section.is_idle) for name, taken in samples.items()
    }


def measure_all(
    chosen: Sequence[str],
    visits: int,
    folder_roots: FolderRoots,
    *,
    small: bool,
) -> dict[str, Mapping[str, Scalar]]:
    """Measure section by section, each in its own folders."""
    from enginebench.sections import SECTIONS, SectionFolders

    found: dict[str, Mapping[str, float | int]] = {}
    for name, section in SECTIONS.items():
        if name in chosen:
            with folder_roots.temporary() as folders:
                places = SectionFolders(folders.scratch, folders.ramdisk, small)
                found |= measure(section, places, visits)
    return {**found, "ratios": ratios(found)}


@click.command(name="bench_engine", context_settings=SETTINGS)
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="This section; may be repeated.")
@click.option(
    "--visits", default=10, type=click.IntRange(1), help="Measured visits of each engine, without first ones."
)
@click.option("--small", is_flag=True, help="Small images, only to test the bench.")
@options(QUICK)
def command(bench: Bench, only: tuple[str, ...], visits: int, small: bool) -> None:
    """Measure the time of engines from the raw to the outputs ready for export.

    Each engine has a worker, a process that does the same as the daemon's
    workers: prepare, ingest, process, clean up. It is forked as they are, from
    a process that has warmed up. All engines do the same visits in turn. Times
    are medians without the first visit of a worker, which is listed separately,
    as the median of several workers (first_...), and the first one of a node,
    for which nothing is on the RAM disk (node_first_...).

    prepare_ms is from the order to prepare until the worker is prepared.
    total_ms begins when the raw is complete and ends when the outputs are in
    the spool. held_ms is from the end of the last task until the worker has
    answered, its spool durable; free_ms until it is ready for the next visit.
    visit_ms and cpu_ms are all that the worker was busy for. read_mb and
    written_mb are the bytes that went through read and write.

    Sections: "empty" has five tasks that do nothing, with all their outputs
    exported; "twenty" has 20 tasks with 60 dataset types. "images" passes an
    image of a real detector (4072 x 4000 pixels, mask and variance) through
    five tasks that each make a new one; metadata are exported, and with a
    second pair of workers the last image, too. Images are compressed as in the
    demo. "appipe" is the demo's alert pipeline. The floor is the time of the
    tasks' run methods with inputs in memory, without reading the raw and
    without outputs; its written_ms includes writing the outputs, its held_ms
    writing them and one file of them that is synced. processed_ms of an engine
    is without writing. "snaps" has two exposures in each visit; direct_2 may
    use two processes (engine.processes). "detector" does the work of a real
    detector: 4072 x 4000 pixels, 16 amplifiers, a template of four patches.
    "field" passes such images through ten tasks that read them as the field's
    alert pipeline does: whole, by component, and as cutouts of deferred images;
    field_large_overhead_ratio compares total_ms of direct and separable, each
    without that of the floor.

    memory_peak_mb is the resident memory of the worker and, if it starts one,
    of the command beside it, ramdisk_mb the size of its repo at the end. All
    files are deleted.
    """
    os.environ.update(CHILD_ENVIRONMENT)
    # Imported once in the fork server: each process would need seconds for it.
    CONTEXT.set_forkserver_preload(["enginebench.sections", "ppdaemon.demo.tasks.alerts"])
    bench.report(measure_all(only or NAMES, visits, bench.folders, small=small), GOALS)


if __name__ == "__main__":
    run(command)
