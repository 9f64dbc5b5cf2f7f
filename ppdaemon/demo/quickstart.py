# SPDX-License-Identifier: BSD-3-Clause
"""The demonstration: a few visits through the whole system.

Makes a central repo, starts ``pprelay`` and ``ppdaemon`` as real processes,
simulates visits faster than they are processed, follows them until they end,
and reports the results.
"""

import contextlib
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ppdaemon.clock import Clock
from ppdaemon.ctl.client import Daemon, NotFound
from ppdaemon.ctl.plots import timeline_png
from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.ctl.tables import timeline_view
from ppdaemon.ctl.timeline import build_timelines
from ppdaemon.demo.alertplot import plot_alerts
from ppdaemon.demo.central import make_central_repo
from ppdaemon.demo.delivery import Delivery, NoticeKind, NoticeSender
from ppdaemon.demo.geometry import DETECTOR_COUNT
from ppdaemon.demo.night import CADENCE, TEMPLATE_BANDS, plan_night
from ppdaemon.demo.progress import NightScreen
from ppdaemon.demo.report import Report, make_report, show_report
from ppdaemon.demo.services import DemoPaths, Service, leftover_processes, leftover_repos, running
from ppdaemon.demo.telescope import PlannedEvent, SimulatedCamera, Telescope, timeline
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.errors import PPDaemonError
from ppdaemon.reports import VisitRow

__all__ = ("demonstrate",)

END_S = 300.0
"""Time limit for all outputs after the last raw."""
SUBSCRIBER_S = 10.0
"""Time limit for the daemon to subscribe to the camera's notices."""
# Often enough for a live table.
POLL_S = 0.25


class DemoFailed(PPDaemonError):
    """The demonstration did not finish."""


def demonstrate(output: Path, console: Console, *, workers: int, keep: bool) -> Report:
    """Run the demonstration; write ``report.json`` and pictures below `output`.

    With `keep` the repo, raws, alerts and logs stay below `output`, too.
    Raises `~ppdaemon.errors.PPDaemonError` with the reason if it does not
    finish.
    """
    output = output.resolve()  # programs follow no links to their folders
    output.mkdir(parents=True, exist_ok=True)
    for old in ("report.json", "alerts.png", "timeline.png"):
        (output / old).unlink(missing_ok=True)
    scratch = output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    shm = Path("/dev/shm")
    # Not below the output: sockets are here, and their paths must be short.
    ramdisk = Path(tempfile.mkdtemp(prefix="ppdemo-", dir=shm if shm.is_dir() else None)).resolve()
    paths = DemoPaths(scratch, ramdisk)
    try:
        return _run_demo(paths, output, console, workers)
    finally:
        shutil.rmtree(ramdisk, ignore_errors=True)
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)


def _run_demo(paths: DemoPaths, output: Path, console: Console, workers: int) -> Report:
    started = time.monotonic()
    # Other demonstrations may run at the same time: their processes are not leftovers of this one.
    mark = uuid.uuid4().hex
    with console.status("making the central repo"):
        make_central_repo(
            paths.central,
            bands=TEMPLATE_BANDS,
            progress=lambda line: console.print(f"[dim]{line}[/dim]"),
        )
    console.print("starting pprelay and ppdaemon")
    with running(paths, workers, mark) as (relay, node):
        visits = plan_night(Clock().tai() + 1.0)
        rows = _take_visits(visits, paths, console, relay, node)
    # Counted when both programs have stopped.
    leftovers = (leftover_processes(mark), leftover_repos(paths))
    with console.status("comparing alerts with the injected truth"):
        report = make_report(rows, visits, paths, leftovers, time.monotonic() - started)
        report.write(output / "report.json")
        timeline_png(rows, output / "timeline.png")
        with contextlib.suppress(ValueError):  # no alerts: the report shows a count of 0
            plot_alerts(sorted(paths.alerts.glob("*.avro")), output / "alerts.png")
    show_report(report, rows, console)
    for each in build_timelines([row for row in rows if row.group == visits[0].group]):
        console.print(timeline_view(each, console.width))
    console.print(f"\n{output}/report.json, alerts.png, timeline.png", highlight=False)
    return report


class _TelescopeThread:
    """The telescope in its own thread; entering starts it, leaving stops it."""

    def __init__(self, telescope: Telescope, events: Sequence[PlannedEvent], stop: threading.Event):
        self._telescope = telescope
        self._timeline = events
        self._stop = stop
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="telescope")

    def _run(self) -> None:
        try:
            self._telescope.run(self._timeline)
        except Exception as error:  # raised in the main thread by finished()
            self._failure = error

    def finished(self) -> bool:
        """Return whether all visits were taken; raise `DemoFailed` if the telescope failed."""
        alive = self._thread.is_alive()
        if self._failure is not None:
            raise DemoFailed(f"the telescope failed: {self._failure}") from self._failure
        return not alive

    def __enter__(self) -> "_TelescopeThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _TelescopeStopped(Exception):
    """The telescope is stopped before its last visit."""


def _interruptible_sleep(stop: threading.Event, seconds: float) -> None:
    if stop.wait(seconds):
        raise _TelescopeStopped


def _take_visits(
    visits: Sequence[VisitPlan], paths: DemoPaths, console: Console, relay: Service, node: Service
) -> list[VisitRow]:
    """Simulate the visits and follow them until the last outcome; return the journal's rows."""
    daemon = Daemon(paths.control)
    stop = threading.Event()
    with (
        NightScreen(console, visits, DETECTOR_COUNT) as screen,
        VisitSubmitter(paths.submit) as client,
        NoticeSender(paths.notices, NoticeKind.PLAIN, bind=True) as sender,
    ):
        # The daemon subscribes some time after its start; earlier notices would be lost.
        sender.wait_for_subscriber(SUBSCRIBER_S)
        telescope = Telescope(
            SimulatedCamera(),
            Delivery(paths.raws, Clock().tai, notices=sender),
            client,
            sleep=partial(_interruptible_sleep, stop),
            on_event=screen.on_event,
        )
        with _TelescopeThread(
            telescope, timeline(visits, CADENCE, announce=True, cancel=False), stop
        ) as night:
            until = None
            while True:
                relay.check()
                node.check()
                # Checked before the status: if the telescope has finished, no later visit is missing in it.
                finished = night.finished()
                status = daemon.status()
                rows = [row for visit in visits for row in _rows(daemon, visit)]
                screen.show(rows, status)
                if finished and not status.open_visits and not status.spooled:
                    return rows
                until = until or (time.monotonic() + END_S if finished else None)
                if until and time.monotonic() > until:
                    raise DemoFailed(
                        f"visits have not ended {END_S:g} s after the last raw: {status.text}\n{node.tail()}"
                    )
                time.sleep(POLL_S)


def _rows(daemon: Daemon, visit: VisitPlan) -> Sequence[VisitRow]:
    try:
        return daemon.visit(visit.group)
    except NotFound:
        return ()
