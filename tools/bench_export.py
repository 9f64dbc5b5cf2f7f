#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure exports of an exposure's outputs to a central repo on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.results import Scalar
from exportbench.results import DATABASES, goals, summarize_database, summarize_held

from ppdaemon.errors import Unavailable

QUICK = {"detectors": 40, "databases": ("sqlite",)}


@contextmanager
def new_databases(name: str, folder: Path) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the URL of a new database; SQLite needs none."""
    if name == "sqlite":
        yield lambda: ""
        return
    from exportbench.server import find_programs, new_database, running_server

    programs = find_programs()
    if programs is None:
        raise Unavailable("no PostgreSQL server on this machine: choose --database sqlite")
    with running_server(programs, folder) as server:
        yield lambda: new_database(programs, server)


@click.command(name="bench_export", context_settings=SETTINGS)
@click.option("--detectors", default=205, type=click.IntRange(2))
@click.option("--images", default=3, help="Images of a detector.")
@click.option("--others", default=9, help="Other datasets of a detector.")
@click.option("--image-kb", default=500.0, help="Size of an image.")
@click.option("--other-kb", default=20.0, help="Size of another dataset.")
@click.option(
    "--database",
    "databases",
    multiple=True,
    type=click.Choice(DATABASES),
    default=DATABASES,
    help="Only this database.",
)
@options(QUICK)
def command(
    bench: Bench,
    detectors: int,
    images: int,
    others: int,
    image_kb: float,
    other_kb: float,
    databases: tuple[str, ...],
) -> None:
    """Measure how the outputs of an exposure get into a central repo.

    "direct" is what a service without a spool does: each worker copies its
    outputs with transfer_from, as many workers at once as there are cores.
    "batched" is one export of all spools, from the filesystem of the datastore,
    to which files are linked; "apart" is the same from the RAM disk, from which
    they are copied. "registered" is the batched time
    without the copies, per dataset. Of it, files are "placed" (renamed, and their
    folders synced), spools "removed"; "rows" is the rest, from reading the
    manifests to the commits. "bare" inserts the same rows into the same
    tables in one transaction; "statements" is the part of the database in the
    batched time, with its queries. CPU times are those of the exporter and of the
    workers, without the database's server. "held" is the time for which a worker
    writes its spool; "before" is the same without checksums, file by file, and
    "floor" the same bytes as one file that is synced.
    """
    from exportbench.measure import Amounts, make_local, measure_database, measure_held

    amounts = Amounts(detectors, images, others, round(image_kb * 1000), round(other_kb * 1000))
    results: dict[str, Scalar] = {"datasets": amounts.datasets}
    with bench.folders.temporary() as folders:
        progress("outputs of all detectors")
        local = make_local(folders.ramdisk, amounts)
        for name in databases:
            progress(f"exports to {name}")
            work = folders.scratch / name
            work.mkdir()
            with new_databases(name, folders.scratch) as new_database:
                samples = measure_database(work, folders.ramdisk, local, amounts, new_database)
            results |= summarize_database(name, samples, (detectors - 1) * (images + others))
        progress("spools")
        results |= summarize_held(*measure_held(local, folders.scratch, range(detectors)))
    bench.report(results, goals(databases))


if __name__ == "__main__":
    run(command)
