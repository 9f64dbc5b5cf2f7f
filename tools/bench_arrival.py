#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine how soon raws are noticed, and whether any is missed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from arrivalbench.crowds import measure_old_tree, measure_races, measure_storm
from arrivalbench.exposures import SOURCES, Effort, measure_exposures
from arrivalbench.figures import goals, missed_of
from benching.cli import options, progress, run, tell
from benching.figures import Scalar
from benching.places import Ground

from ppdaemon.states import ExitCode

SECTIONS = (*SOURCES, "races", "storm", "old")
QUICK = {"exposures": 2, "detectors": 9, "within_s": 0.5, "races": 60, "storm": 600, "old": 5000}


def measure(
    wanted: frozenset[str], ground: Ground, effort: Effort, progress: Callable[[str], None]
) -> dict[str, Scalar]:
    """Measure section by section, each with a daemon of its own."""
    figures: dict[str, Scalar] = {"cores": os.cpu_count(), "load_at_start": os.getloadavg()[0]}
    tallies = []
    for source in (each for each in SOURCES if each in wanted):
        with ground.places() as places:
            tally, found = measure_exposures(places, source, effort, progress)
        tallies.append(tally)
        figures |= found
    if tallies:
        figures |= {
            "files": sum(each.files for each in tallies),
            "missed": sum(each.missed for each in tallies),
            "twice": sum(each.twice for each in tallies),
        }
    crowds = {"races": measure_races, "storm": measure_storm, "old": measure_old_tree}
    for section, measured in crowds.items():
        if section in wanted:
            with ground.places() as places:
                figures |= measured(places, effort, progress)
    return figures | {"load_at_end": os.getloadavg()[0]}


@click.command(name="bench_arrival", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be repeated.")
@click.option("--quick", is_flag=True, help="Small numbers, but for those that are given.")
@click.option(
    "--exposures", default=10, show_default=True, type=click.IntRange(1, 9999), help="By each source."
)
@click.option(
    "--detectors", default=205, show_default=True, type=click.IntRange(1, 205), help="Files of an exposure."
)
@click.option(
    "--within",
    "within_s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds in which they land.",
)
@click.option(
    "--poll",
    "poll_s",
    default=0.4,
    show_default=True,
    type=click.FloatRange(0.05),
    help="Seconds between two looks where there is no watch.",
)
@click.option("--races", default=3000, show_default=True, type=click.IntRange(1), help="New folders.")
@click.option(
    "--storm", default=20_000, show_default=True, type=click.IntRange(1), help="Files while it is stopped."
)
@click.option(
    "--old", default=1_000_000, show_default=True, type=click.IntRange(1), help="Files of former nights."
)
@options
@click.pass_context
def command(
    context: click.Context,
    only: tuple[str, ...],
    as_json: bool,
    quick: bool,
    scratch: Path,
    ramdisk: Path,
    **effort: Any,
) -> None:
    """Measure how soon workers have their orders after raws are complete, by
    inotify, by ZeroMQ and by polling; whether any file is missed in new folders
    or after an overflow; and the start on a tree of old files.

    Takes some minutes; other load on the machine shows. Goals are for two
    cores without it. The status is 1 if a file was missed. Everything made is
    deleted.
    """
    if quick:
        given = click.core.ParameterSource.COMMANDLINE
        effort |= {
            name: value for name, value in QUICK.items() if context.get_parameter_source(name) is not given
        }
    figures = measure(
        frozenset(only or SECTIONS),
        Ground(scratch, ramdisk),
        Effort(**effort),
        progress,
    )
    tell(figures, goals(effort["poll_s"]), as_json=as_json)
    if missed_of(figures):
        context.exit(ExitCode.FAILED)


if __name__ == "__main__":
    run(command)
