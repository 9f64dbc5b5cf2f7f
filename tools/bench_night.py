#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure the exposures of a whole camera, from the announcement to the central repo."""

from collections.abc import Mapping

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.results import Scalar
from nightbench.exposures import measure_night
from nightbench.results import compare, goals

QUICK = {"exposures": 4, "flood": 0}


@click.command(name="bench_night", context_settings=SETTINGS)
@click.option(
    "--rows",
    multiple=True,
    default=(1000, 1_000_000),
    type=click.IntRange(1),
    help="Rows of the node's journal before the night; may be repeated, in ascending order.",
)
@click.option("--detectors", default=205, type=click.IntRange(1, 205), help="Of an exposure.")
@click.option("--exposures", default=15, type=click.IntRange(1), help="Of each night.")
@click.option(
    "--flood",
    default=300,
    type=click.IntRange(0),
    help="Visits without work after each night, for the growth of memory and files; 0 omits it.",
)
@options(QUICK)
def command(bench: Bench, rows: tuple[int, ...], **amounts: int) -> None:
    """Measure an exposure of scripted workers through relay, node, arrivals,
    spool and exporter, all of them the real programs: its files are renamed into a new folder at once.

    Each night has a relay and a node of its own. "relayed" is from the
    announcement until a detector is in the journal, "noticed" from the rename
    of a raw until the supervisor takes it, "whole" from the rename until its
    outputs are exported; the others are from one stage of the journal to the
    next. CPU times are medians, for one visit-detector. "long_journal" is the
    last night over the first one.

    Takes some minutes and 1 GB on the disk; other load on the machine changes
    the results. Goals are for two idle cores. All files are deleted.
    """
    nights: dict[str, Mapping[str, Scalar]] = {}
    for count in rows:
        progress(f"a night with {count} rows in the journal")
        with bench.folders.temporary() as folders:
            nights[f"rows_{count}"] = measure_night(folders, count, **amounts)
    bench.report({**nights, "long_journal": compare([*nights.values()])}, goals(nights))


if __name__ == "__main__":
    run(command)
