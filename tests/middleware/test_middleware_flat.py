# SPDX-License-Identifier: BSD-3-Clause
"""Two hundred visits of one worker leave no trace in its repo, its process or its speed.

Good visits and bad ones, at several positions, in two filters and on all
detectors; the second hundred repeats the first with other groups and
exposures. Times are only compared with each other.
"""

import gc
import logging
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from toycam import DAY, DEC, DETECTORS, RA, MakeRig, Rig

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process
from ppdaemon.middleware.butlerwork import ButlerWork

pytest_plugins = ("toyfixtures",)

VISITS = 100
"""Visits before the repetition: all kinds of visits are in twenty, and there are five positions."""
SLOWER_AT_MOST = 1.5
"""Median cost of a query in the last quarter of the visits over that in the first."""
OBJECTS_AT_MOST = 1_000
"""Growth of what the garbage collector sees in the second hundred visits: ten
for each; a single Butler that is not released has twenty times as many."""
PRIVATE_BYTES_AT_MOST = 20_000_000
"""Growth of private memory in the second hundred visits; a worker with an
open Butler has about as much in all."""


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """The files, descriptors, threads, objects and memory of a worker between two visits."""

    repo: frozenset[tuple[str, int]]
    """Path and size of each file in its folder."""
    shared: frozenset[tuple[str, int]]
    """The same for all other files on the RAM disk."""
    databases: int
    """Open SQLite connections to files."""
    descriptors: int
    threads: int
    objects: int
    private_bytes: int


def measure_resources(rig: Rig) -> ResourceUsage:
    ramdisk = rig.config.node.ramdisk
    files = frozenset((str(path), path.stat().st_size) for path in ramdisk.rglob("*") if path.is_file())
    own = frozenset(each for each in files if each[0].startswith(f"{rig.context.repo}/"))
    opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return ResourceUsage(
        repo=own,
        shared=files - own,
        databases=sum(name.endswith(".sqlite3") for name in opened),
        descriptors=len(opened),
        threads=len(os.listdir("/proc/self/task")),
        objects=len(gc.get_objects()),
        private_bytes=private_bytes(),
    )


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def cost_of_query(butler: Butler) -> float:
    """Return how much CPU time it takes to list what a repo has, over that of
    a fixed calculation: a core is slower while others are busy.
    """
    start = time.thread_time()
    butler.query_all_datasets("*", find_first=False, limit=None)
    butler.query_dimension_records("group", explain=False)
    listed = time.thread_time()
    sorted(f"{number % 97}" for number in range(10_000))
    return (listed - start) / (time.thread_time() - listed)


class Night:
    """The visits of one worker, by number from 1."""

    def __init__(self, rig: Rig, worker: ButlerWork, visits: int):
        self._rig = rig
        self._worker = worker
        self._visits = visits

    def visit(self, number: int) -> str:
        """Run a visit; return its outcome, or "cancelled"."""
        try:
            match number % 10:
                case 0 if number % 20 == 0:
                    self._prepare(number, main="Full", before="Known")
                case 0:
                    self._prepare(number)
                case 5:
                    self._prepare(number, main="Unbuildable,Short")
                case 2:
                    self._prepare(number)
                    self._ingest(number, GROUPID="another")
                case 8 | 9:
                    self._prepare(number, main="Full", position=[RA + 2.0, DEC])
                case _:
                    self._prepare(number)
                    return "cancelled"
            self._ingest(number)
            return self._worker.process(Process(exposures=(DAY * 100_000 + number,))).outcome
        except VisitFailed as failure:
            return failure.outcome

    def finish_visit(self) -> None:
        """End a visit, as a worker does, and export its outputs."""
        self._worker.reset()
        self._rig.reports.clear()
        for folder in (self._rig.context.spool, self._rig.raws):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def cost_of_query(self) -> float:
        return cost_of_query(self._worker._repo.butler)

    def _order(self, number: int, **changes: Any) -> Any:
        index = number % self._visits
        usual = {
            "groupId": f"group {number}",
            "detector": (index + index // 20) % DETECTORS,
            "filters": "r_03" if index % 3 else "g_01",
            "position": [RA + 0.05 * (index // 20), DEC - 0.05 * (index % 4)],
            "main": "Short",
            "before": "",
        }
        return self._rig.order(**usual | changes)

    def _prepare(self, number: int, **changes: Any) -> None:
        self._worker.prepare(self._order(number, **changes))

    def _ingest(self, number: int, **header: Any) -> None:
        order = self._order(number)
        ra, dec = order.visit.position
        usual = {"GROUPID": order.visit.group, "FILTER": order.visit.filters, "RA": ra, "DEC": dec}
        raw = self._rig.raw(order.detector, number, **usual | header)
        self._worker.ingest(raw.model_copy(update={"group": order.visit.group}))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_repeated_visits_leave_no_trace(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pytest's handlers keep all records, and objects in their tracebacks.
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    rig, worker = rigs()
    night = Night(rig, worker, VISITS)
    usages, costs, outcomes = [measure_resources(rig)], [], []
    few = VISITS // 2
    for number in range(1, 2 * VISITS + 1):
        outcomes.append(night.visit(number))
        if not few < number <= 2 * VISITS - few:
            costs.append(night.cost_of_query())
        night.finish_visit()
        usages.append(measure_resources(rig))
    tenths = {name: 5 * outcomes.count(name) / VISITS for name in outcomes}
    assert tenths == {"succeeded": 2, "cancelled": 5, "no_pipeline": 2, "bad_raw": 1}
    new, middle, last = usages[0], usages[VISITS], usages[-1]
    for earlier, later in zip(usages[1 : VISITS + 1], usages[VISITS + 1 :], strict=True):
        assert later.repo == earlier.repo, "the same visit leaves the same files"
    assert last.shared == middle.shared, "what visits share was fetched in the first round"
    assert {(usage.databases, usage.threads) for usage in usages[1:]} == {(2, new.threads)}
    assert last.descriptors == middle.descriptors
    # The queries of this test, which a worker does not make, fill caches of SQLAlchemy.
    assert usages[2 * VISITS - few].objects - middle.objects < OBJECTS_AT_MOST
    assert last.private_bytes - middle.private_bytes < PRIVATE_BYTES_AT_MOST
    assert statistics.median(costs[-few:]) < SLOWER_AT_MOST * statistics.median(costs[:few])
