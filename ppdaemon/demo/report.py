# SPDX-License-Identifier: BSD-3-Clause
"""What came of a demonstration: outcomes, alerts against truth, latencies.

The numbers come from the daemon's journal, from the alert files, and from
the difference images in the central repo.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from lsst.daf.butler import Butler
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppdaemon.ctl.tables import failures_table
from ppdaemon.ctl.timeline import elapsed_s
from ppdaemon.demo.geometry import CAMERA_NAME, DETECTOR_COUNT
from ppdaemon.demo.progress import last_attempts
from ppdaemon.demo.score import DetectorScore, score_alerts, total_score
from ppdaemon.demo.services import Places, surveys
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.tasks.alerts import alert_file_name
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.middleware.provenance import output_chain
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage
from ppdaemon.wire import Model

__all__ = ("Latency", "Report", "make_report", "show_report")


class Latency(Model):
    """How long something took, over all visit-detectors that did it."""

    p50_ms: float
    p99_ms: float
    count: int

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> "Latency | None":
        """Return the percentiles of some times; `None` where there is none."""
        known = [1e3 * value for value in seconds if value is not None]
        if not known:
            return None
        middle, high = np.percentile(known, [50, 99])
        return cls(p50_ms=round(float(middle), 1), p99_ms=round(float(high), 1), count=len(known))


class Report(Model):
    """The demonstration in numbers."""

    announced: int
    """Visit-detectors that the telescope announced."""
    accepted: int
    """Of these, what the journal has."""
    succeeded: int
    outcomes: dict[Outcome, int]
    retried: int
    """Visit-detectors that needed a second attempt."""
    exposures: int
    """Detector images processed."""
    central: int
    """Visit-detectors whose outputs are in the central repo."""
    datasets: int
    """Datasets in the central repo's output collections."""
    pipelines: dict[str, int]
    """Visit-detectors by the pipeline that they got."""
    engine: str
    injected: int
    """Transients above 10 sigma in their images."""
    recovered: int
    false_positives: int
    alerts: int
    scored: int
    """Difference images that were compared with the truth."""
    leaked_processes: int
    leaked_repos: int
    left: tuple[str, ...]
    """What was leaked, by name."""
    total_s: float
    """The whole demonstration."""
    latencies: dict[str, Latency]
    """Milliseconds, by what is measured."""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def completeness(self) -> float | None:
        """Recovered over injected (`float` or `None`)."""
        return round(self.recovered / self.injected, 4) if self.injected else None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def false_positives_per_detector(self) -> float | None:
        """False positives over difference images (`float` or `None`)."""
        return round(self.false_positives / self.scored, 4) if self.scored else None

    @property
    def good(self) -> bool:
        """Whether every announced visit-detector succeeded and nothing leaked."""
        complete = self.announced == self.accepted == self.succeeded == self.central > 0
        return complete and not self.left

    def write(self, path: Path) -> None:
        """Write the report as JSON.

        Parameters
        ----------
        path : `pathlib.Path`
            The file.
        """
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")


def make_report(
    rows: Sequence[VisitRow],
    visits: Sequence[VisitPlan],
    places: Places,
    left: tuple[Sequence[str], Sequence[str]],
    total_s: float,
) -> Report:
    """Gather what came of it.

    Parameters
    ----------
    rows : `~collections.abc.Sequence` [`~ppdaemon.reports.VisitRow`]
        The journal.
    visits : `~collections.abc.Sequence` [`~ppdaemon.demo.visits.VisitPlan`]
        What was taken.
    places : `~ppdaemon.demo.services.Places`
        The folders; the daemons have stopped.
    left : `tuple`
        Processes and repos that were left behind.
    total_s : `float`
        How long it took until here.

    Returns
    -------
    report : `Report`
        The report.
    """
    last = last_attempts(rows)
    outcomes = Counter(row.outcome for row in last.values() if row.outcome is not None)
    succeeded = [row for row in last.values() if row.outcome == Outcome.SUCCEEDED]
    days = {visit.exposures[0].day_obs for visit in visits}
    with Butler.from_config(str(places.central), writeable=False) as butler:
        score = total_score(_scores(butler, visits, places, days))
        datasets = sum(_count(butler, day) for day in days)
    processes, repos = left
    return Report(
        announced=len(visits) * DETECTOR_COUNT,
        accepted=len(last),
        succeeded=len(succeeded),
        outcomes=dict(outcomes),
        retried=sum(1 for row in last.values() if row.attempt > 1),
        exposures=sum(len(row.exposures) for row in succeeded),
        central=sum(1 for row in last.values() if Stage.CENTRAL in row.stages),
        datasets=datasets,
        pipelines=dict(Counter(Path(row.pipeline).stem for row in succeeded)),
        engine=", ".join(sorted({row.engine for row in succeeded})),
        injected=score.injected,
        recovered=score.recovered,
        false_positives=score.false_positives,
        alerts=score.alerts,
        scored=score.detectors,
        leaked_processes=len(processes),
        leaked_repos=len(repos),
        left=(*processes, *repos),
        total_s=round(total_s, 1),
        latencies=_latencies(succeeded),
    )


def _latencies(rows: Sequence[VisitRow]) -> dict[str, Latency]:
    spans = {
        "prepare_ms": (Stage.ASSIGNED, Stage.PREPARED),
        "raw_to_first_task_ms": (Stage.ARRIVED, Stage.FIRST_TASK),
        "tasks_ms": (Stage.FIRST_TASK, Stage.PROCESSED),
        "spool_ms": (Stage.PROCESSED, Stage.SPOOLED),
        "central_ms": (Stage.SPOOLED, Stage.CENTRAL),
    }
    # A second snap comes later than the first: its wait is not latency.
    single = [row for row in rows if len(row.exposures) == 1]
    found = {
        name: Latency.of(elapsed_s(row, first, last) for row in single)
        for name, (first, last) in spans.items()
    }
    alerts = surveys["ApPipe"]
    found["shutter_to_alerts_ms"] = Latency.of(
        row.stages[Stage.PROCESSED] - row.shutter_close_tai
        for row in rows
        if row.survey == alerts and row.shutter_close_tai is not None
    )
    return {name: latency for name, latency in found.items() if latency is not None}


def _count(butler: Butler, day_obs: int) -> int:
    chain = output_chain(CAMERA_NAME, day_obs)
    if chain not in butler.collections.query("*"):
        return 0
    return len(butler.query_all_datasets(chain, find_first=False, limit=None))


def _scores(
    butler: Butler, visits: Sequence[VisitPlan], places: Places, days: Iterable[int]
) -> list[DetectorScore]:
    sky = Sky()
    chains = [output_chain(CAMERA_NAME, day) for day in days]
    known = [chain for chain in chains if chain in butler.collections.query("*")]
    scores = []
    for exposure in (e for visit in visits for e in visit.exposures if e.program == surveys["ApPipe"]):
        refs = butler.query_datasets(
            "difference_image",
            collections=known,
            instrument=CAMERA_NAME,
            visit=exposure.exposure_id,
            explain=False,
            limit=None,
        )
        for ref in refs:
            file = places.alerts / alert_file_name(exposure.exposure_id, int(ref.dataId["detector"]))
            scores.append(score_alerts(file, butler.get(ref), sky))
    return scores


def show_report(report: Report, rows: Sequence[VisitRow], console: Console) -> None:
    """Print the report for people.

    Parameters
    ----------
    report : `Report`
        The report.
    rows : `~collections.abc.Sequence` [`~ppdaemon.reports.VisitRow`]
        The journal.
    console : `rich.console.Console`
        Where to.
    """
    table = Table(title="outcomes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("visit", "pipeline", "snaps", "succeeded", "others"):
        table.add_column(name)
    last = last_attempts(rows).values()
    for group in sorted({row.group for row in last}):
        mine = [row for row in last if row.group == group]
        good = [row for row in mine if row.outcome == Outcome.SUCCEEDED]
        others = Counter(str(row.outcome) for row in mine if row.outcome != Outcome.SUCCEEDED)
        pipelines = sorted({Path(row.pipeline).stem for row in good})
        table.add_row(
            group,
            ", ".join(pipelines),
            str(max((len(row.exposures) for row in mine), default=0)),
            f"{len(good)} of {len(mine)}",
            ", ".join(f"{count} {name}" for name, count in others.items()),
        )
    console.print()
    console.print(table)
    bad = [row for row in rows if row.outcome != Outcome.SUCCEEDED]
    if bad:
        console.print()
        console.print(failures_table(bad))
    console.print()
    console.print(_figures(report))
    for name in report.left:
        console.print(Text(f"left behind: {name}"))


def _figures(report: Report) -> Table:
    table = Table(title="figures", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    facts: list[tuple[str, Any]] = [
        ("visit-detectors announced, succeeded, exported",
         f"{report.announced}, {report.succeeded}, {report.central}"),
        ("transients above 10 sigma: injected, recovered",
         f"{report.injected}, {report.recovered} ({report.completeness})"),
        ("alerts, false positives per detector", f"{report.alerts}, {report.false_positives_per_detector}"),
        ("processes and repos left behind", f"{report.leaked_processes}, {report.leaked_repos}"),
    ]  # fmt: skip
    for name, latency in report.latencies.items():
        label = name.removesuffix("_ms").replace("_", " ")
        facts.append((label, f"{latency.p50_ms:.0f} ms median, {latency.p99_ms:.0f} ms p99"))
    for label, value in facts:
        table.add_row(label, str(value))
    return table
