# SPDX-License-Identifier: BSD-3-Clause
"""The results of a demonstration: outcomes, alerts against truth, latencies.

The numbers come from the daemon's journal, the alert files, and the difference
images in the central repo.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pydantic
from lsst.daf.butler import Butler
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppdaemon.ctl.tables import failures_table
from ppdaemon.demo.geometry import CAMERA_NAME, DETECTOR_COUNT
from ppdaemon.demo.night import NIGHT
from ppdaemon.demo.nightreport import NightMeter, SimulatedNight, night_facts
from ppdaemon.demo.rules import PIPELINES
from ppdaemon.demo.score import DetectorScore, score_alerts, total_score
from ppdaemon.demo.services import DemoPaths
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.tasks.alerts import alert_file_name
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.night.totals import NightTotals, last_attempts
from ppdaemon.pipelinenames import output_chain
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage
from ppdaemon.wire import Model

__all__ = ("Report", "make_report", "mean_cadence_s", "show_report")

ALERT_PIPELINE = "ApPipe"


class VisitPipelines(Model):
    """The pipeline that a visit's detectors got, and the one expected."""

    group: str
    """Name of the visit."""
    rule: str
    """The rule for main pipelines that applies to the visit."""
    pipelines: tuple[str, ...]
    """The rule's pipelines in order of preference."""
    expected: str
    """The pipeline that must run."""
    ran: dict[str, int]
    """Number of detectors by pipeline."""
    fallbacks: int
    """Detectors that got another pipeline than the rule's first."""
    wrong: int
    """Detectors without the expected pipeline, or without the reason for a fallback."""
    because: str
    """The reason reported for the skipped pipelines."""

    @classmethod
    def of(cls, visit: VisitPlan, rows: Iterable[VisitRow]) -> "VisitPipelines":
        """Compare the pipelines of a visit with the plan of the night."""
        planned = NIGHT[visit.number]
        succeeded = [row for row in rows if row.group == visit.group and row.outcome == Outcome.SUCCEEDED]
        ran = Counter(_pipeline_name(row) for row in succeeded)
        right = [
            row
            for row in succeeded
            if _pipeline_name(row) == planned.pipeline
            and _skipped_pipelines(row) == planned.skipped_pipelines
            and planned.reason in row.reason
        ]
        return cls(
            group=visit.group,
            rule=planned.rule,
            pipelines=PIPELINES[planned.rule],
            expected=planned.pipeline,
            ran=dict(ran),
            fallbacks=len(succeeded) - ran[PIPELINES[planned.rule][0]],
            wrong=len(succeeded) - len(right),
            because=next((row.reason for row in succeeded if row.reason), ""),
        )


class Report(SimulatedNight):
    """The demonstration in numbers."""

    cadence_s: float
    """From one announcement to the next, on average: as often as the machine can."""
    central_kept: bool
    """Whether the central repo was copied from the one that an earlier demonstration made."""
    exposures: int
    """Detector images processed."""
    central: int
    """Visit-detectors whose outputs are in the central repo."""
    datasets: int
    """Datasets in the central repo's output collections."""
    pipelines: dict[str, int]
    """Number of visit-detectors by pipeline."""
    selected: tuple[VisitPipelines, ...]
    """The pipelines of each visit compared with the plan."""
    engine: str
    """Names of the engines that ran the pipelines."""
    injected: int
    """Transients above 10 sigma in their images."""
    recovered: int
    """Of these, with an alert at their position."""
    false_positives: int
    """Alerts at other positions than those of sources that changed."""
    alerts: int
    """Alerts in all files."""
    scored: int
    """Difference images that were compared with the truth."""
    leaked_processes: int
    """Processes that still ran when relay and daemon had stopped."""
    leaked_repos: int
    """Folders that the daemon left on the RAM disk."""
    left: tuple[str, ...]
    """Leftover processes and repos by name."""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def completeness(self) -> float | None:
        """Recovered over injected."""
        return round(self.recovered / self.injected, 4) if self.injected else None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def false_positives_per_detector(self) -> float | None:
        """False positives over difference images."""
        return round(self.false_positives / self.scored, 4) if self.scored else None

    @property
    def good(self) -> bool:
        """Whether every announced visit-detector succeeded with the right pipeline and nothing leaked."""
        complete = self.announced == self.accepted == self.succeeded == self.central > 0
        return complete and not self.wrong and not self.left

    @property
    def wrong(self) -> int:
        """Number of visit-detectors with a wrong pipeline."""
        return sum(each.wrong for each in self.selected)

    @property
    def fell_back(self) -> int:
        """Number of visit-detectors whose first pipeline could not run."""
        return sum(each.fallbacks for each in self.selected)


def make_report(
    rows: Sequence[VisitRow],
    visits: Sequence[VisitPlan],
    paths: DemoPaths,
    leftovers: tuple[Sequence[str], Sequence[str]],
    meter: NightMeter,
    *,
    central_kept: bool,
) -> Report:
    """Collect the results after the daemons have stopped.

    `leftovers` are the names of the leftover processes and of the leftover
    repos.
    """
    totals = NightTotals()
    totals.add(rows)
    last = last_attempts(rows)
    succeeded = [row for row in last.values() if row.outcome == Outcome.SUCCEEDED]
    totals.measure("shutter_to_alerts_ms", map(_shutter_to_alerts_s, succeeded))
    days = {visit.exposures[0].day_obs for visit in visits}
    with Butler.from_config(str(paths.central), writeable=False) as butler:
        score = total_score(_scores(butler, visits, paths, days))
        datasets = sum(_count(butler, day) for day in days)
    processes, repos = leftovers
    return Report(
        **totals.fields() | {"visits": len(visits)},
        **meter.fields(),
        announced=len(visits) * DETECTOR_COUNT,
        doubled=totals.doubled,
        cadence_s=mean_cadence_s(visits),
        central_kept=central_kept,
        exposures=sum(len(row.exposures) for row in succeeded),
        central=sum(1 for row in last.values() if Stage.CENTRAL in row.stages),
        datasets=datasets,
        pipelines=dict(Counter(map(_pipeline_name, succeeded))),
        selected=tuple(VisitPipelines.of(visit, last.values()) for visit in visits),
        engine=", ".join(sorted({row.engine for row in succeeded})),
        injected=score.injected,
        recovered=score.recovered,
        false_positives=score.false_positives,
        alerts=score.alerts,
        scored=score.detectors,
        leaked_processes=len(processes),
        leaked_repos=len(repos),
        left=(*processes, *repos),
    )


def mean_cadence_s(visits: Sequence[VisitPlan]) -> float:
    """Return the mean time from one announcement to the next; 0 for a single visit."""
    passed_s = visits[-1].announced_tai_s - visits[0].announced_tai_s
    return round(passed_s / max(len(visits) - 1, 1), 1)


def _pipeline_name(row: VisitRow) -> str:
    """Return the name of the pipeline that ran."""
    return Path(row.pipeline).stem


def _skipped_pipelines(row: VisitRow) -> tuple[str, ...]:
    """Return the pipelines named in the reason as skipped."""
    known = dict.fromkeys(name for names in PIPELINES.values() for name in names)
    return tuple(name for name in known if name in row.reason and name != _pipeline_name(row))


def _shutter_to_alerts_s(row: VisitRow) -> float | None:
    if _pipeline_name(row) != ALERT_PIPELINE or row.shutter_close_tai is None:
        return None
    return row.stages[Stage.PROCESSED] - row.shutter_close_tai


def _count(butler: Butler, day_obs: int) -> int:
    chain = output_chain(CAMERA_NAME, day_obs)
    if chain not in butler.collections.query("*"):
        return 0
    return len(butler.query_all_datasets(chain, find_first=False, limit=None))


def _scores(
    butler: Butler, visits: Sequence[VisitPlan], paths: DemoPaths, days: Iterable[int]
) -> list[DetectorScore]:
    sky = Sky()
    chains = [output_chain(CAMERA_NAME, day) for day in days]
    known = [chain for chain in chains if chain in butler.collections.query("*")]
    scores = []
    alerting = [visit for visit in visits if NIGHT[visit.number].pipeline == ALERT_PIPELINE]
    for exposure in (each for visit in alerting for each in visit.exposures):
        refs = butler.query_datasets(
            "difference_image",
            collections=known,
            instrument=CAMERA_NAME,
            visit=exposure.exposure_id,
            explain=False,
            limit=None,
        )
        for ref in refs:
            file = paths.alerts / alert_file_name(exposure.exposure_id, int(ref.dataId["detector"]))
            scores.append(score_alerts(file, butler.get(ref), sky))
    return scores


def show_report(report: Report, rows: Sequence[VisitRow], console: Console) -> None:
    """Print the report as tables."""
    console.print()
    console.print(_outcome_table(report, rows))
    for each in report.selected:
        if each.because:
            console.print(Text(f"{_short(each.group)} {each.because}", "dim"))
    bad = [row for row in rows if row.outcome != Outcome.SUCCEEDED]
    if bad:
        console.print()
        console.print(failures_table(bad))
    console.print()
    console.print(_summary_table(report))
    for name in report.left:
        console.print(Text(f"left over: {name}"))


def _outcome_table(report: Report, rows: Sequence[VisitRow]) -> Table:
    table = Table(title="outcomes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("visit", "rule", "pipeline", "snaps", "succeeded"):
        table.add_column(name)
    last = last_attempts(rows).values()
    for selected in report.selected:
        visit_rows = [row for row in last if row.group == selected.group]
        good = sum(row.outcome == Outcome.SUCCEEDED for row in visit_rows)
        others = Counter(str(row.outcome) for row in visit_rows if row.outcome != Outcome.SUCCEEDED)
        table.add_row(
            _short(selected.group),
            selected.rule,
            _pipeline_text(selected),
            str(max((len(row.exposures) for row in visit_rows), default=0)),
            ", ".join(
                [f"{good} of {len(visit_rows)}", *(f"{count} {name}" for name, count in others.items())]
            ),
        )
    return table


def _short(group: str) -> str:
    """Return a group without its date."""
    return group.partition("T")[2] or group


def _pipeline_text(selected: VisitPipelines) -> Text:
    """Return the pipelines that ran, with a mark for fallbacks and wrong ones."""
    text = Text(", ".join(sorted(selected.ran)))
    if selected.fallbacks:
        text.append(" (fallback)", "yellow")
    if selected.wrong:
        text.append(f", {selected.wrong} wrong: {selected.expected} expected", "bold red")
    return text


def _summary_table(report: Report) -> Table:
    table = Table(title="summary", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    facts: list[tuple[str, Any]] = [
        ("visit-detectors announced, succeeded, exported",
         f"{report.announced}, {report.succeeded}, {report.central}"),
        ("fallbacks used, wrong pipelines", f"{report.fell_back}, {report.wrong}"),
        ("transients above 10 sigma: injected, recovered",
         f"{report.injected}, {report.recovered} ({report.completeness})"),
        ("alerts, false positives per detector", f"{report.alerts}, {report.false_positives_per_detector}"),
        ("leftover processes and repos", f"{report.leaked_processes}, {report.leaked_repos}"),
        ("seconds between visits", f"{report.cadence_s:.0f}"),
        ("central repo", "kept from an earlier demonstration" if report.central_kept else "made"),
    ]  # fmt: skip
    facts += night_facts(report)
    for label, value in facts:
        table.add_row(label, str(value))
    return table
