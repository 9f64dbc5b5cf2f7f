# SPDX-License-Identifier: BSD-3-Clause
"""How soon the workers of a whole camera have the raws of an exposure."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benching.figures import Scalar
from benching.places import Places
from poolbench.node import WORK, Node, node_config, running

from arrivalbench.figures import Tally, figures_of, read_notes
from arrivalbench.writer import CAMERA, Expose, Writer, Written
from ppdaemon.states import SlotState

__all__ = ("NEVER_S", "SOURCES", "Effort", "measure_exposures")

SOURCES = ("inotify", "zmq", "poll")
NEVER_S = 86_400.0
LATE_S = 15.0
"""A raw that no worker has so long after it landed counts as missed."""
RESCAN_S = 0.05


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    exposures: int
    detectors: int
    within_s: float
    """How long the files of an exposure take to land."""
    poll_s: float
    races: int
    storm: int
    old: int


def measure_exposures(
    places: Places, source: str, effort: Effort, progress: Callable[[str], None]
) -> tuple[Tally, dict[str, Scalar]]:
    """Let exposures land, each of which all workers wait for.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    source : `str`
        One of `SOURCES`: what the daemon has to find the files with.
    effort : `Effort`
        How many.
    progress : `~collections.abc.Callable`
        Gets one line per step.

    Returns
    -------
    tally : `~arrivalbench.figures.Tally`
        What became of the files.
    figures : `dict`
        How long it took, and what the supervisor used.
    """
    notices = f"ipc://{places.ramdisk}/notices" if source == "zmq" else None
    root = str(places.scratch / "raw")
    workers = {"max": effort.detectors, "work": WORK}
    instruments = {CAMERA: f"0-{effort.detectors - 1}"}
    config = node_config(
        places, instruments, workers, arrivals={"roots": [root]} | _source(source, effort, notices)
    )
    renamed, in_place, used_s = Tally(), Tally(), 0.0
    progress(f"{source}: starting {effort.detectors} workers")
    with (
        running(config, places) as node,
        Writer(node.raw_root, range(effort.detectors), notices) as writer,
    ):
        for number in range(1, effort.exposures + 1):
            progress(f"{source}: exposure {number} of {effort.exposures}")
            _reserve(node, f"{source}{number}", effort.detectors)
            before_s = node.usage().cpu_s
            order = Expose(number, f"{source}{number}", effort.within_s, renamed=bool(number % 2))
            _land(node, writer, order, renamed if order.renamed else in_place)
            used_s += node.usage().cpu_s - before_s
            node.relay.cancel(order.group, instrument=CAMERA)
            node.wait_until_idle()
    both = renamed.with_those_of(in_place)
    cpu = {f"{source}_supervisor_cpu_ms_per_file": 1e3 * used_s / max(both.files, 1)}
    if source == "poll":
        # Without events a file written in place is believed only after a while.
        return both, figures_of("poll", renamed) | figures_of("poll_in_place", in_place) | cpu
    return both, figures_of(source, both) | cpu


def _source(source: str, effort: Effort, notices: str | None) -> dict[str, Any]:
    """Return a configuration in which only one source can find a file in time."""
    match source:
        case "inotify":
            return {"watch": "inotify", "scan_s": NEVER_S}
        case "zmq":
            return {"watch": "poll", "poll_s": NEVER_S, "scan_s": NEVER_S, "subscribe": [notices]}
        case "poll":
            return {"watch": "poll", "poll_s": effort.poll_s, "scan_s": NEVER_S}
        case unexpected:
            raise AssertionError(unexpected)


def _reserve(node: Node, group: str, detectors: int) -> None:
    node.relay.reserve(group, range(detectors), instrument=CAMERA, survey="idle")
    waiting = {SlotState.WAITING: detectors}
    node.wait(lambda: node.daemon.status().slots == waiting, pause_s=RESCAN_S)


def _land(node: Node, writer: Writer, order: Expose, tally: Tally) -> None:
    answers: list[Written] = []

    def written() -> bool:
        answer = writer.answer()
        answers.extend([answer] if answer is not None else [])
        return answer is not None

    writer.order(order)
    node.wait(written, pause_s=RESCAN_S)
    (landed,) = answers
    until = time.monotonic() + LATE_S
    node.wait(
        lambda: len(_notes(node, landed.exposure)) >= len(landed.complete) or time.monotonic() > until,
        pause_s=RESCAN_S,
    )
    tally.add(landed.complete, _notes(node, landed.exposure))


def _notes(node: Node, exposure: int) -> list[tuple[int, float]]:
    path = node.state / "ingested"
    return list(read_notes(path.open(), exposure)) if path.exists() else []
