#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine the latency of raws, and whether any is missed."""

from typing import Any

import click
from arrivalbench.bursts import measure_old_tree, measure_races, measure_storm
from arrivalbench.exposures import SOURCES, Workload, measure_exposures
from arrivalbench.results import goals
from benching.cli import SETTINGS, Bench, options, run
from benching.folders import FolderRoots
from benching.results import Scalar

SECTIONS = (*SOURCES, "races", "storm", "old")
QUICK = {"exposures": 3, "within_s": 1.0, "races": 500, "storm": 4000, "old": 50_000}


def measure(sections: frozenset[str], folder_roots: FolderRoots, workload: Workload) -> dict[str, Scalar]:
    """Measure section by section, each with its own daemon."""
    results: dict[str, Scalar] = {}
    counts = []
    for source in (each for each in SOURCES if each in sections):
        with folder_roots.temporary() as folders:
            source_counts, found = measure_exposures(folders, source, workload)
        counts.append(source_counts)
        results |= found
    if counts:
        results |= {
            "files": sum(each.sent for each in counts),
            "missed": sum(each.lost for each in counts),
            "twice": sum(each.doubled for each in counts),
        }
    bursts = {"races": measure_races, "storm": measure_storm, "old": measure_old_tree}
    for section, measured in bursts.items():
        if section in sections:
            with folder_roots.temporary() as folders:
                results |= measured(folders, workload)
    return results


@click.command(name="bench_arrival", context_settings=SETTINGS)
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be repeated.")
@click.option("--exposures", default=10, type=click.IntRange(1, 9999), help="Exposures for each source.")
@click.option("--detectors", default=205, type=click.IntRange(1, 205), help="Files in each exposure.")
@click.option(
    "--within", "within_s", default=2.0, type=click.FloatRange(0), help="Seconds in which they are written."
)
@click.option(
    "--poll", "poll_s", default=0.4, type=click.FloatRange(0.05), help="Period of polling in seconds."
)
@click.option("--races", default=3000, type=click.IntRange(1), help="New folders.")
@click.option(
    "--storm", default=20_000, type=click.IntRange(1), help="Files written while the daemon is stopped."
)
@click.option("--old", default=1_000_000, type=click.IntRange(1), help="Files of past nights.")
@options(QUICK)
def command(bench: Bench, only: tuple[str, ...], **workload: Any) -> None:
    """Measure the time from complete raws to the orders to workers, by inotify,
    also of bursts, by ZeroMQ and by polling; whether any file is missed in new folders or
    after an overflow; and the start on a tree of old files.

    Takes some minutes; other load on the machine changes the results. Goals
    are for two idle cores. All files are deleted.
    """
    results = measure(frozenset(only or SECTIONS), bench.folders, Workload(**workload))
    bench.report(results, goals(workload["poll_s"]))


if __name__ == "__main__":
    run(command)
