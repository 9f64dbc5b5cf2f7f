#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure the worker pool on this machine, with the real parts."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from benching.cli import options, progress, run, tell
from benching.figures import Scalar
from benching.places import Ground, Places
from poolbench.crowd import measure_crowd, measure_few
from poolbench.dispatch import measure_dispatch
from poolbench.endurance import BATCH, measure_endurance
from poolbench.figures import GOALS
from poolbench.forks import measure_forks
from poolbench.replacement import DETECTORS, measure_replacement

SECTIONS = ("fork", "idle", "reserve", "event", "replace", "slope")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    forks: int
    spawns: int
    observe: float
    rounds: int
    kills: int
    busy: int
    visits: int
    raws: bool


def measure(
    wanted: frozenset[str], ground: Ground, effort: Effort, progress: Callable[[str], None]
) -> dict[str, Scalar]:
    """Measure section by section, each in folders of its own."""

    def crowd(places: Places) -> dict[str, Scalar]:
        observe_s = effort.observe if "idle" in wanted else 0.0
        return measure_crowd(places, observe_s, effort.rounds if "reserve" in wanted else 0, progress)

    def few(places: Places) -> dict[str, Scalar]:
        return measure_few(places, int(figures["supervisor_threads"] or 0))

    figures: dict[str, Scalar] = {
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
    }
    sections: Mapping[str, Callable[[Places], dict[str, Scalar]]] = {
        "fork": partial(measure_forks, forks=effort.forks, spawns=effort.spawns, progress=progress),
        "idle reserve": crowd,
        "idle": few,
        "event": measure_dispatch,
        "replace": partial(measure_replacement, kills=effort.kills, busy=effort.busy, progress=progress),
        "slope": partial(measure_endurance, visits=effort.visits, raws=effort.raws, progress=progress),
    }
    for names, section in sections.items():
        if wanted & set(names.split()):
            with ground.places() as places:
                figures |= section(places)
    return figures | {"load_at_end": os.getloadavg()[0]}


@click.command(name="bench_pool", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be repeated.")
@click.option("--forks", default=15, show_default=True, type=click.IntRange(10), help="Workers forked.")
@click.option("--spawns", default=3, show_default=True, type=click.IntRange(3), help="Workers spawned.")
@click.option(
    "--observe", default=20.0, show_default=True, type=click.FloatRange(1), help="Seconds of idleness."
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Visits of 205 detectors reserved."
)
@click.option("--kills", default=20, show_default=True, type=click.IntRange(1, 500), help="Workers killed.")
@click.option(
    "--busy",
    type=click.IntRange(0, DETECTORS),
    help="Workers that spin meanwhile.  [default: one per core]",
)
@click.option(
    "--visits",
    default=20_000,
    show_default=True,
    type=click.IntRange(10 * BATCH),
    help=f"Visit-detectors of the slope, in visits of {BATCH}.",
)
@click.option("--raws", is_flag=True, help="Let a raw land for each visit-detector of the slope.")
@options
def command(
    only: tuple[str, ...],
    as_json: bool,
    scratch: Path,
    ramdisk: Path,
    busy: int | None,
    **effort: int | float | bool,
) -> None:
    """Measure how soon workers start, what they and the supervisor use, how
    soon visits reach them and killed ones are replaced, and whether anything
    grows.

    Takes some minutes; other load on the machine shows. Goals are for two
    cores without it. Everything made is deleted.
    """
    spinning = min(os.cpu_count() or 1, DETECTORS) if busy is None else busy
    figures = measure(
        frozenset(only or SECTIONS),
        Ground(scratch, ramdisk),
        Effort(busy=spinning, **effort),  # type: ignore[arg-type]
        progress,
    )
    tell(figures, GOALS, as_json=as_json)


if __name__ == "__main__":
    run(command)
