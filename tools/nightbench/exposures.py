# SPDX-License-Identifier: BSD-3-Clause
"""Exposures of a whole camera, from the announcement to the central repo, by the real programs."""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from arrivalbench.writer import Expose, Writer, Written
from benching.cli import progress
from benching.folders import BenchFolders
from benching.processes import cpu_s, pss_mb
from benching.results import Scalar
from fanoutbench.flood import measure_flood
from fanoutbench.observatory import Observatory, running
from operatorbench.journal import fill

from nightbench.results import COMPLETE, NightSamples
from ppdaemon.clock import Clock
from ppdaemon.journalfile import visit
from ppdaemon.reports import JOURNAL_NAME, VisitRow
from ppdaemon.sqlitereader import reading
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.processes import descendants, title

CAMERA = "LSSTCam"
WARM_UP = 1
"""Exposures before the first one that counts."""
ASK_S = 0.2
"""Between two looks at the files of the supervisor."""


def measure_night(
    folders: BenchFolders,
    rows: int,
    detectors: int,
    exposures: int,
    flood: int,
) -> dict[str, Scalar]:
    """Take exposures at a relay and a node that has a journal of so many rows; then send `flood` visits
    without work for the growth of memory and files.
    """

    def make_node(folder: Path, config: dict[str, Any], **options: Any) -> NodeProcess:
        path = Path(config["node"]["state_dir"]) / JOURNAL_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        progress(f"filling a journal with {rows} rows")
        fill(path, rows, detectors, CAMERA)
        return NodeProcess(folder, config, **options)

    progress(f"starting a node for {detectors} detectors")
    with (
        running(folders, 1, detectors, slots=detectors, make_node=make_node) as observatory,
        Writer(observatory.telescope.raws.root, range(detectors)) as writer,
    ):
        night = _Night(observatory, writer)
        for number in range(WARM_UP + exposures):
            progress(f"exposure {number} of {exposures}")
            night.expose(number + 1, counted=number >= WARM_UP)
        found = night.samples.results(detectors)
        exported = observatory.telescope.exports()
        found["doubled"] = sum(count > 1 for count in exported.values())
        return found | _growth(observatory, flood)


class _Night:
    """Exposures one after the other, each when the one before is in the central repo."""

    def __init__(self, observatory: Observatory, writer: Writer):
        self.samples = NightSamples()
        self._observatory = observatory
        self._writer = writer
        (self._node,) = observatory.telescope.nodes.values()

    def expose(self, number: int, *, counted: bool) -> None:
        """Announce a visit, rename its raws, wait until its outputs are exported."""
        observatory, group = self._observatory, f"night{number}"
        before = self._cpu_s()
        announced = observatory.announce(group, "scripted") + _tai_offset()
        observatory.wait_for_all(observatory.prepared, group)
        # By its files, as below: each question would take time of the supervisor that is measured.
        observatory.wait(
            lambda: len(self._with(Stage.PREPARED, group)) == observatory.detectors, pause_s=ASK_S
        )
        complete = self._write(number, group)
        observatory.wait_for_all(observatory.released, group)
        exported = number * observatory.detectors
        observatory.wait(lambda: len(self._node.exported()) == exported, pause_s=ASK_S)
        observatory.wait(
            lambda: len(self._with(Stage.CENTRAL, group)) == observatory.detectors, pause_s=ASK_S
        )
        if counted:
            self.samples.add_cpu(before, self._cpu_s())
            self.samples.add(range(observatory.detectors), self._times(group, announced, complete))

    def _write(self, number: int, group: str) -> dict[int, float]:
        """Rename the raws of an exposure; return when, TAI seconds, by detector."""
        order = Expose(number, group, within_s=0.0, renamed=True)
        written: Written = self._writer.execute(order, self._observatory.wait)
        offset = _tai_offset()
        return {detector: at + offset for detector, at in written.complete.items()}

    def _with(self, stage: Stage, group: str) -> dict[int, VisitRow]:
        """Return by detector the attempts that have reached a stage."""
        with reading(self._node.state / JOURNAL_NAME) as db:
            return {row.detector: row for row in visit(db, group) if stage in row.stages}

    def _times(
        self, group: str, announced: float, complete: Mapping[int, float]
    ) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = {}
        for detector, row in self._with(Stage.CENTRAL, group).items():
            if row.outcome == Outcome.SUCCEEDED:
                found[detector] = {**row.stages, "announced": announced}
                if detector in complete:
                    found[detector][COMPLETE] = complete[detector]
        return found

    def _cpu_s(self) -> dict[str, float]:
        """Return the CPU time of all running processes until now, by kind."""
        found = defaultdict(float, relay=self._observatory.relay_cpu_s())
        for pid in (self._node.pid, *descendants(self._node.pid)):
            _, _, kind = title(pid).partition("ppdaemon ")
            found[kind.partition(" ")[0]] += cpu_s(pid)
        return found


def _tai_offset() -> float:
    """Return TAI minus the monotonic clock: called soon after a time that is converted, because the
    system's clock may be slewed.
    """
    return Clock().tai() - time.monotonic()


def _growth(observatory: Observatory, visits: int) -> dict[str, Scalar]:
    """Return what visits without work add to memory and journal, for 1,000 visits; as many before them
    fill the caches.
    """
    if not visits:
        return {}
    (node,) = observatory.telescope.nodes.values()

    def sizes() -> tuple[float, ...]:
        with closing(sqlite3.connect(f"file:{node.state / JOURNAL_NAME}?mode=ro", uri=True)) as db:
            (rows,) = db.execute("SELECT max(rowid) FROM attempt").fetchone()
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        return rows, pages * page_bytes / 1e6, pss_mb(node.pid), observatory.relay_mb()

    measure_flood(observatory, visits, "warm")
    before = sizes()
    flood = measure_flood(observatory, visits)
    grown = [1e3 * (late - early) / visits for early, late in zip(before, sizes(), strict=True)]
    names = ("journal_rows", "journal_mb", "supervisor_mb", "relay_mb")
    found: dict[str, Scalar] = {
        f"{name}_per_1000_visits": each for name, each in zip(names, grown, strict=True)
    }
    return found | {"supervisor_mb": pss_mb(node.pid), "flood_lost": flood["lost"]}
