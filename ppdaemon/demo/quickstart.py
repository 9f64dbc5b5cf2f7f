# SPDX-License-Identifier: BSD-3-Clause
"""The demonstration: a few visits through the whole system.

Makes a central repo, starts ``pprelay`` and ``ppdaemon`` as real processes,
simulates visits faster than they are processed, follows them until they end,
and reports the results.
"""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from ppdaemon.clock import Clock
from ppdaemon.ctl.plots import timeline_png
from ppdaemon.ctl.tables import timeline_view
from ppdaemon.ctl.timeline import build_timelines
from ppdaemon.demo.alertplot import plot_alerts
from ppdaemon.demo.keptcentral import provide_central_repo
from ppdaemon.demo.night import NIGHT, TEMPLATE_BANDS, may_announce, plan_visit
from ppdaemon.demo.nightreport import NightMeter
from ppdaemon.demo.observing import Observing, observing
from ppdaemon.demo.progress import making_bar
from ppdaemon.demo.report import Report, make_report, show_report
from ppdaemon.demo.services import DemoPaths, leftover_processes, leftover_repos, running
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.errors import StateUnusable
from ppdaemon.night.page import write_page
from ppdaemon.reports import StatusReport, VisitRow

__all__ = ("demonstrate", "make_central", "output_folder", "short_folder")

KEPT = "central-kept"
"""Folder of the central repo that the next demonstration copies, below the folder of results."""


def demonstrate(output: Path, console: Console, *, workers: int, keep: bool) -> Report:
    """Run the demonstration; write ``report.json``, ``night.html`` and pictures below `output`.

    With `keep` the repo, raws, alerts and logs stay below `output`, too. A central repo without
    outputs always stays there for the next demonstration.
    Raises `~ppdaemon.errors.PPDaemonError` with the reason if it does not
    finish.
    """
    output = output_folder(output)
    for old in ("report.json", "night.html", "alerts.png", "timeline.png"):
        (output / old).unlink(missing_ok=True)
    scratch = output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        with short_folder() as ramdisk:
            return _run_demo(DemoPaths(scratch, ramdisk), output, console, workers)
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)


def output_folder(path: Path) -> Path:
    """Make the folder of results; return its path without links, which the programs do not follow."""
    path = path.resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateUnusable(f"the output folder cannot be made: {error}") from error
    return path


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Make a temporary folder on a RAM disk if there is one, and delete it.

    Sockets are in it, and their paths must be short.
    """
    shm = Path("/dev/shm")
    ramdisk = Path(tempfile.mkdtemp(prefix="ppdemo-", dir=shm if shm.is_dir() else None)).resolve()
    try:
        yield ramdisk
    finally:
        shutil.rmtree(ramdisk, ignore_errors=True)


def make_central(paths: DemoPaths, output: Path, console: Console) -> bool:
    """Make the central repo, or copy one that is kept below `output`; return whether it was kept.

    Shows one bar meanwhile.
    """
    with making_bar(console, "making the central repo") as (progress, done):
        return provide_central_repo(
            output / KEPT, paths.central, TEMPLATE_BANDS, progress=progress, done=done
        )


def _run_demo(paths: DemoPaths, output: Path, console: Console, workers: int) -> Report:
    meter = NightMeter()
    # Other demonstrations may run at the same time: their processes are not leftovers of this one.
    mark = uuid.uuid4().hex
    central_kept = make_central(paths, output, console)
    console.print("starting pprelay and ppdaemon")
    with (
        running(paths, workers, mark) as services,
        observing(paths, console, services, meter) as telescope,
    ):
        visits, rows = _take_night(telescope)
    # Counted when both programs have stopped.
    leftovers = (leftover_processes(mark), leftover_repos(paths))
    with console.status("comparing alerts with the injected truth"):
        report = make_report(rows, visits, paths, leftovers, meter, central_kept=central_kept)
        report.write(output / "report.json")
        write_page(output / "night.html", report, "the demonstration")
        timeline_png(rows, output / "timeline.png")
        with contextlib.suppress(ValueError):  # no alerts: the report shows a count of 0
            plot_alerts(sorted(paths.alerts.glob("*.avro")), output / "alerts.png")
    show_report(report, rows, console)
    for each in build_timelines([row for row in rows if row.group == visits[0].group]):
        console.print(timeline_view(each, console.width))
    console.print(f"\n{output}/report.json, night.html, alerts.png, timeline.png", highlight=False)
    return report


def _take_night(telescope: Observing) -> tuple[list[VisitPlan], list[VisitRow]]:
    """Take all visits, as often as the machine can; return them with the journal's rows."""
    visits: list[VisitPlan] = []

    def ended(status: StatusReport, rows: Sequence[VisitRow]) -> bool:
        if len(visits) < len(NIGHT):
            return may_announce(status.tai, visits, rows)
        return not status.open_visits and not status.spooled

    while len(visits) < len(NIGHT):
        seq_num = 1 + sum(len(visit.exposures) for visit in visits)
        visits.append(plan_visit(len(visits), Clock().tai(), seq_num))
        rows = telescope.take(visits[-1], ended)
    return visits, rows
