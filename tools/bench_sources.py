#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure on this machine how soon messages of each source reach the workers, and whether any is lost."""

from collections.abc import Callable, Mapping
from typing import Any

import click
from benching.cli import SETTINGS, Bench, options, progress, run
from benching.folders import BenchFolders, FolderRoots
from benching.orders import Samples
from benching.results import Scalar
from sourcesbench.bridge import bridging, measure_ring, posting, posting_again
from sourcesbench.floor import measure_floor
from sourcesbench.redis import measure_redis
from sourcesbench.results import GOALS, beside, bursts
from sourcesbench.site import Workload, groups, running
from sourcesbench.zeromq import publishing

type Measure = Callable[[BenchFolders, Workload], Mapping[str, Scalar]]

OTHERS: Mapping[str, Measure] = {"ring": measure_ring, "redis": measure_redis}
"""Sections of a module of their own, with goals in `GOALS`: each runs what it needs, and sends messages over
ZeroMQ in turn, beside which its results stand."""
SECTIONS = ("zeromq", "bridge", "burst", *OTHERS)
QUICK = {"exposures": 2, "detectors": 40, "within_s": 0.5}


def measure(sections: frozenset[str], folder_roots: FolderRoots, workload: Workload) -> dict[str, Any]:
    """Measure section by section; the sources of notices take turns, so that they have the same load."""
    results: dict[str, Any] = {}
    if sections & {"zeromq", "bridge", "burst"}:
        results |= _measure_notices(sections, folder_roots, workload)
    for name in (each for each in OTHERS if each in sections):
        with folder_roots.temporary() as folders:
            results[name] = OTHERS[name](folders, workload)
    return results


def _measure_notices(
    sections: frozenset[str], folder_roots: FolderRoots, workload: Workload
) -> dict[str, Any]:
    visits = Samples()
    samples = {name: Samples() for name in ("zeromq", "bridge", "burst", "kept_burst", "zeromq_burst")}
    chosen = [name for name in samples if name.rpartition("_")[2] in sections or name == "zeromq"]
    progress(f"starting {workload.detectors} workers")
    with folder_roots.temporary() as folders:
        address = f"ipc://{folders.ramdisk}/notices"
        with (
            publishing(address) as publish,
            bridging(folders) as bridge,
            running(folders, workload, {"subscribe": [address], "bridges": [bridge.nodes]}) as site,
            posting_again(bridge, site.detectors) as post_again,
        ):
            senders = {"zeromq": publish, "zeromq_burst": publish, "kept_burst": post_again}
            senders |= dict.fromkeys(("bridge", "burst"), posting(bridge))
            for number, suffix in enumerate(groups("-", workload.exposures)):
                progress(f"exposure {number} of {workload.exposures}; the first one is not counted")
                for name in chosen:
                    within_s = 0.0 if name.endswith("burst") else workload.within_s
                    # The first visits of a worker import modules.
                    taken = samples[name] if number else Samples()
                    group = f"{name}{suffix}"
                    site.visit(
                        group, lambda group=group: site.announce(group), visits if number else Samples()
                    )
                    site.expose(group, senders[name], within_s, taken)
    zeromq = samples["zeromq"]
    results: dict[str, Any] = {
        "lost": visits.lost + sum(each.lost for each in samples.values()),
        "doubled": visits.doubled + sum(each.doubled for each in samples.values()),
        "zeromq": visits.results("prepare") | zeromq.results("notice"),
    }
    if "bridge" in chosen:
        bridged = samples["bridge"]
        results["bridge"] = bridged.results("notice") | beside(bridged, zeromq)
    if "burst" in chosen:
        with folder_roots.temporary() as folders:
            floor = measure_floor(folders, workload)
        results["burst"] = bursts(samples["burst"], samples["kept_burst"], samples["zeromq_burst"], floor)
    return results


@click.command(name="bench_sources", context_settings=SETTINGS)
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be repeated.")
@click.option(
    "--exposures",
    default=5,
    type=click.IntRange(1, 9999),
    help="Exposures for each source, after one that warms up.",
)
@click.option("--detectors", default=205, type=click.IntRange(1, 205), help="Of each exposure.")
@click.option(
    "--within",
    "within_s",
    default=2.0,
    type=click.FloatRange(0),
    help="Seconds in which the notices of an exposure are sent.",
)
@click.option("--ring", default=100_000, type=click.IntRange(1), help="Notices in a bridge's ring.")
@options(QUICK)
def command(bench: Bench, only: tuple[str, ...], **workload: Any) -> None:
    """Measure the time from a message to the order to a worker: a visit, from the relay's
    submit socket; a notice of a raw, from ZeroMQ and over a bridge of object stores by
    HTTP, also in bursts; an entry of a stream of Redis; and the memory of a bridge whose
    ring is full.

    Takes some minutes; other load on the machine changes the results. Goals are for two
    idle cores. All files are deleted.
    """
    results = measure(frozenset(only or SECTIONS), bench.folders, Workload(**workload))
    bench.report(results, GOALS)


if __name__ == "__main__":
    run(command)
