#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine how soon raws are noticed, and whether any is missed."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from arrivalbench.crowds import measure_old_tree, measure_races, measure_storm
from arrivalbench.exposures import SOURCES, Effort, measure_exposures
from arrivalbench.figures import missed_of, table, targets
from poolbench.figures import Scalar
from poolbench.node import Places
from rich.console import Console

from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode

SECTIONS = (*SOURCES, "races", "storm", "old")
QUICK = {"exposures": 2, "detectors": 9, "within_s": 0.5, "races": 60, "storm": 600, "old": 5000}

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True, writable=True)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where scratch folders are made."""

    disk: Path
    ramdisk: Path

    @contextmanager
    def places(self) -> Iterator[Places]:
        """Give empty folders, and delete them."""
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=self.disk) as scratch,
            tempfile.TemporaryDirectory(prefix="bench-", dir=self.ramdisk) as ramdisk,
        ):
            yield Places(Path(scratch), Path(ramdisk))


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
@click.option(
    "--scratch",
    default=tempfile.gettempdir,
    type=_FOLDER,
    help="A folder on a disk.  [default: the system's]",
)
@click.option("--ramdisk", default="/dev/shm", show_default=True, type=_FOLDER, help="A folder on a tmpfs.")
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

    Takes some minutes; other load on the machine shows. Targets are for two
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
        lambda line: click.echo(line, err=True),
    )
    wanted = targets(effort["poll_s"])
    if as_json:
        click.echo(
            json.dumps(figures | {"targets": {name: wanted[name] for name in figures if name in wanted}})
        )
    else:
        Console().print(table(figures, wanted))
    if missed_of(figures):
        context.exit(ExitCode.FAILED)


def main() -> None:
    """Run the command line and exit."""
    try:
        sys.exit(command.main(prog_name="bench_arrival", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.Abort:
        sys.exit(ExitCode.FAILED)
    except PPDaemonError as error:
        click.echo(f"bench_arrival: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
