#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine what the engines take beside the tasks' own work."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from benching.cli import options, progress, run, tell
from benching.figures import Scalar
from enginebench.figures import GOALS, Sample, flat, of_visits, ratios

from ppdaemon.errors import Unavailable
from ppdaemon.node.processes.child import ENVIRONMENT

if TYPE_CHECKING:  # the processes of workers import it, this one stays light
    from enginebench.sections import Ground, Section

NAMES = ("empty", "twenty", "images", "appipe", "snaps")
_CONTEXT = multiprocessing.get_context("forkserver")
_LIMIT_S = 600.0


class Beside:
    """A process of the bench, and the channel to it; ended at the end, whatever happens."""

    def __init__(self, function: Callable[..., object], *words: object):
        self._channel, end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=function, args=(*words, end))
        self._process.start()
        end.close()

    def ask(self, word: object) -> Any:
        """Say something and wait for the answer."""
        try:
            self._channel.send(word)
            if self._channel.poll(_LIMIT_S):
                return self._channel.recv()
        except (EOFError, BrokenPipeError):
            pass
        raise Unavailable("a process of the bench has failed; its traceback is above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._channel.send(None)
        else:
            self._process.kill()
        self._process.join()
        self._channel.close()


def make_ready(section: "Section", ground: "Ground", channel: Connection) -> None:
    """Make what a section needs; in a process of its own."""
    from enginebench.sections import prepare

    visits = channel.recv()
    channel.send(prepare(section, ground, visits, progress))
    channel.recv()


def context(setup: Any, channel: Connection) -> None:
    """Be a worker; in a process of its own."""
    from enginebench.context import sit

    sit(setup, channel)


def measure(
    section: "Section", ground: "Ground", visits: int, progress: Callable[[str], None]
) -> dict[str, dict[str, Scalar]]:
    """Let workers do the same visits, in turn."""
    from enginebench.sections import plan

    plans = plan(visits + 1, section.snaps)
    with Beside(make_ready, section, ground) as maker:
        setups = maker.ask(plans)
    samples: dict[str, list[Sample]] = {name: [] for name in setups}
    with ExitStack() as stack:
        contexts = {name: stack.enter_context(Beside(context, setup)) for name, setup in setups.items()}
        for number, each in enumerate(plans):
            turn = number % len(contexts)  # none always comes after the same other one
            for name in [*contexts][turn:] + [*contexts][:turn]:
                samples[name].append(contexts[name].ask(each))
            progress(f"{section.name}: visit {number} of {visits}")
    return {
        name: dict(of_visits(taken, section.task_count, idle=section.is_idle))
        for name, taken in samples.items()
    }


def measure_all(
    wanted: Sequence[str],
    visits: int,
    folders: Mapping[str, Path],
    progress: Callable[[str], None],
    *,
    quick: bool,
) -> dict[str, dict[str, Scalar]]:
    """Measure section by section, each in folders of its own."""
    from enginebench.sections import SECTIONS, Ground

    host: dict[str, Scalar] = {
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "quick": int(quick),
    }
    found: dict[str, dict[str, Scalar]] = {}
    for name, section in SECTIONS.items():
        if name in wanted:
            with (
                tempfile.TemporaryDirectory(prefix="bench-", dir=folders["scratch"]) as disk,
                tempfile.TemporaryDirectory(prefix="bench-", dir=folders["ramdisk"]) as memory,
            ):
                found |= measure(section, Ground(Path(disk), Path(memory), quick), visits, progress)
    compared: dict[str, Scalar] = dict(ratios(found))  # type: ignore[arg-type]
    return {"host": host | {"load_at_end": os.getloadavg()[0]}} | found | {"ratios": compared}


@click.command(name="bench_engine", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="This section; may be repeated.")
@click.option(
    "--visits",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Visits of each worker that count.",
)
@click.option("--quick", is_flag=True, help="Two visits and small images: shows that it works, no more.")
@options
def command(
    only: tuple[str, ...], as_json: bool, visits: int, quick: bool, scratch: Path, ramdisk: Path
) -> None:
    """Measure what engines take, from the raw to the outputs that can be exported.

    Each engine has a worker, a process of its own that does what the daemon's
    do: prepare, ingest, process. All do the same visits in turn. Times are
    medians; the first visit of a worker is told apart. The raw is complete
    when the time begins, and it ends when the outputs are in the spool.

    Sections: "empty" has five tasks that do nothing, and all they make is
    exported; "twenty" has 20 with 60 dataset types. "images" hands an image of
    a real detector (4072 x 4000 pixels, mask and variance) through five tasks
    that each make a new one; metadata are exported, and in a second pair of
    workers the last image, too. Images are compressed as in the demo. "appipe"
    is the demo's alert pipeline; its floor is what the tasks' run methods
    take with inputs in memory, without reading the raw and without outputs.
    With written_ms its outputs are written, too; processed_ms of an engine is
    without writing. direct_2 may use two processes (engine.processes). "snaps"
    has two exposures in each visit.

    memory_peak_mb is the resident memory of the worker and, if it starts one,
    of the command beside it, ramdisk_mb what lies in its repo in the end.
    Everything made is deleted.
    """
    os.environ.update(ENVIRONMENT)
    _CONTEXT.set_forkserver_preload(["enginebench.sections", "ppdaemon.demo.tasks.alerts"])
    groups = measure_all(
        only or NAMES,
        2 if quick else visits,
        {"scratch": scratch, "ramdisk": ramdisk},
        progress,
        quick=quick,
    )
    tell(flat(groups), GOALS, as_json=as_json, groups=groups)


if __name__ == "__main__":
    run(command)
