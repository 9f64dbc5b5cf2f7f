#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure the way of a visit from the relay to the workers of many nodes, with the real programs."""

from dataclasses import dataclass

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.folders import FolderRoots
from benching.results import Scalar, percentile
from fanoutbench.bare import BareWorkers, bare_workers
from fanoutbench.complete import measure_complete_visits
from fanoutbench.doors import measure_doors
from fanoutbench.flood import measure_flood
from fanoutbench.floor import Floor, measured_floor
from fanoutbench.latency import Latencies, measure_latencies
from fanoutbench.observatory import Observatory, running
from fanoutbench.results import GOALS

QUICK = {"rounds": 15, "visits": 100, "complete": 3, "doors": 4, "curve": False}


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement; 0 omits a part."""

    detectors: int
    nodes: int
    rounds: int
    visits: int
    complete: int
    doors: int
    curve: bool


def measure_latency(
    folder_roots: FolderRoots,
    workload: Workload,
    plain: Observatory,
    floor: Floor,
    bare: BareWorkers,
) -> dict[str, Scalar]:
    """Measure visit by visit in turn without and with keys: the load of the machine is the same."""
    if not workload.curve:
        (latencies,), paced = measure_latencies([plain], workload.rounds, floor, bare)
        return latencies.results(floor, bare) | _paced_results(paced)
    progress("starting the same with keys")
    with (
        folder_roots.temporary() as folders,
        running(folders, workload.nodes, workload.detectors, encrypted=True) as encrypted,
    ):
        both, paced = measure_latencies([plain, encrypted], workload.rounds, floor, bare)
    latencies, with_keys = both
    curve = {
        f"curve_{name}": value
        for name, value in with_keys.results(floor, bare).items()
        if "floor" not in name
    }
    ratio = percentile(with_keys.fanout_ms, 50) / percentile(latencies.fanout_ms, 50)
    return latencies.results(floor, bare) | _paced_results(paced) | curve | {"curve_over_plain": ratio}


def _paced_results(paced: Latencies) -> dict[str, Scalar]:
    return {f"paced_fanout_p{percent}_ms": percentile(paced.fanout_ms, percent) for percent in (50, 99)}


def measure(folder_roots: FolderRoots, workload: Workload) -> dict[str, Scalar]:
    """Measure with one relay and its nodes."""
    results: dict[str, Scalar] = {
        "detectors": workload.detectors,
        "nodes": workload.nodes,
    }
    progress(f"starting {workload.nodes} nodes for {workload.detectors} detectors")
    with (
        folder_roots.temporary() as folders,
        running(folders, workload.nodes, workload.detectors) as observatory,
        measured_floor(folders.ramdisk) as floor,
        bare_workers(workload.detectors) as bare,
    ):
        results["slots"] = observatory.slots
        if workload.rounds:
            results |= measure_latency(folder_roots, workload, observatory, floor, bare)
        if workload.visits:
            results |= measure_flood(observatory, workload.visits)
        if workload.complete:
            skipped_ms = float(results.get("relay_ms_per_visit") or 0.0)
            results |= measure_complete_visits(observatory, workload.complete, skipped_ms)
    if workload.doors:
        results |= measure_doors(folder_roots, workload.doors)
    return results


@click.command(name="bench_fanout", context_settings=SETTINGS)
@click.option(
    "--detectors", default=205, type=click.IntRange(1, 205), help="Detectors of a visit, of LSSTCam."
)
@click.option("--nodes", default=4, type=click.IntRange(1), help="Nodes on this machine.")
@click.option(
    "--rounds",
    default=100,
    type=click.IntRange(0),
    help="Visits whose announcement and cancellation are timed.",
)
@click.option(
    "--visits", default=1000, type=click.IntRange(0), help="Visits that are sent as fast as they go."
)
@click.option("--complete", default=10, type=click.IntRange(0), help="Visits with raws and permanent writes.")
@click.option(
    "--doors",
    default=10,
    type=click.IntRange(0),
    help="Visits of few detectors whose wait before a permanent write is timed, with and without relay.",
)
@click.option(
    "--curve/--no-curve",
    default=True,
    help="Time the same visits at a second relay with nodes that have keys.",
)
@options(QUICK)
def command(bench: Bench, curve: bool, **workload: int) -> None:
    """Measure the latency of visits and cancellations from the client to the
    last worker, visits as fast as they go, memory and CPU time of the relay,
    and the cost of permission for permanent writes.

    Takes some minutes; other load on the machine changes the results. Goals
    are for two idle cores. All files are deleted.
    """
    bench.report(measure(bench.folders, Workload(**workload, curve=curve)), GOALS)


if __name__ == "__main__":
    run(command)
