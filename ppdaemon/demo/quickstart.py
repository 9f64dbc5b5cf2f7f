# SPDX-License-Identifier: BSD-3-Clause
"""The demonstration: a night of a few visits through the whole system.

Makes a central repo, starts ``pprelay`` and ``ppdaemon`` as real processes,
lets the simulated camera take visits faster than they are processed, follows
them, and reports what came of it.
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
from ppdaemon.ctl.submit import RelayClient
from ppdaemon.ctl.tables import timeline_view
from ppdaemon.ctl.timeline import lay_out
from ppdaemon.demo.central import make_central_repo
from ppdaemon.demo.delivery import Delivery, NoticeKind, NoticeSender
from ppdaemon.demo.figures import plot_alerts
from ppdaemon.demo.geometry import DETECTOR_COUNT
from ppdaemon.demo.night import CADENCE, TEMPLATE_BANDS, plan_night
from ppdaemon.demo.progress import NightScreen
from ppdaemon.demo.report import Report, make_report, show_report
from ppdaemon.demo.services import Places, Service, left_processes, left_repos, running
from ppdaemon.demo.telescope import Moment, SimulatedCamera, Telescope, timeline
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.errors import PPDaemonError
from ppdaemon.reports import VisitRow

__all__ = ("demonstrate",)

END_S = 300.0
"""After the last raw everything is done within this, or something is wrong."""
SUBSCRIBER_S = 10.0
"""How long the daemon may take to listen to the camera's notices."""
POLL_S = 0.25


class DemoFailed(PPDaemonError):
    """The demonstration came to no end."""


def demonstrate(output: Path, console: Console, *, workers: int, keep: bool) -> Report:
    """Run the demonstration.

    Parameters
    ----------
    output : `pathlib.Path`
        Where ``report.json`` and the pictures go.
    console : `rich.console.Console`
        Where progress is shown.
    workers : `int`
        Slots at the most.
    keep : `bool`
        Whether repo, raws and alerts stay, below ``output``.

    Returns
    -------
    report : `~ppdaemon.demo.report.Report`
        What came of it.

    Raises
    ------
    ppdaemon.errors.PPDaemonError
        Raised if it came to no end; says why.
    """
    output.mkdir(parents=True, exist_ok=True)
    for old in ("report.json", "alerts.png", "timeline.png"):
        (output / old).unlink(missing_ok=True)
    scratch = output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    shm = Path("/dev/shm")
    ramdisk = Path(tempfile.mkdtemp(prefix="ppdemo-", dir=shm if shm.is_dir() else None))
    places = Places(scratch.absolute(), ramdisk)
    try:
        return _in_places(places, output, console, workers)
    finally:
        shutil.rmtree(ramdisk, ignore_errors=True)
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)


def _in_places(places: Places, output: Path, console: Console, workers: int) -> Report:
    started = time.monotonic()
    mark = uuid.uuid4().hex
    with console.status("making the central repo"):
        make_central_repo(
            places.central,
            bands=TEMPLATE_BANDS,
            progress=lambda line: console.print(f"[dim]{line}[/dim]"),
        )
    console.print("starting pprelay and ppdaemon")
    with running(places, workers, mark) as (relay, node):
        visits = plan_night(Clock().tai() + 1.0)
        rows = _take(visits, places, console, relay, node)
    left = (left_processes(mark), left_repos(places))
    with console.status("comparing alerts with the injected truth"):
        report = make_report(rows, visits, places, left, time.monotonic() - started)
        report.write(output / "report.json")
        timeline_png(rows, output / "timeline.png")
        with contextlib.suppress(ValueError):  # no alerts at all: the report says so
            plot_alerts(sorted(places.alerts.glob("*.avro")), output / "alerts.png")
    show_report(report, rows, console)
    for each in lay_out([row for row in rows if row.group == visits[0].group]):
        console.print(timeline_view(each, console.width))
    console.print(f"\n{output}/report.json, alerts.png, timeline.png", highlight=False)
    return report


class _Night:
    """The telescope at work, in a thread of its own; ends with its context."""

    def __init__(self, telescope: Telescope, moments: Sequence[Moment], stop: threading.Event):
        self._telescope = telescope
        self._moments = moments
        self._stop = stop
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._play, name="telescope")

    def _play(self) -> None:
        try:
            self._telescope.play(self._moments)
        except Exception as error:  # told by the main thread
            self._failure = error

    def over(self) -> bool:
        """Tell whether all visits were taken.

        Raises
        ------
        DemoFailed
            Raised if the telescope failed.
        """
        alive = self._thread.is_alive()
        if self._failure is not None:
            raise DemoFailed(f"the telescope failed: {self._failure}") from self._failure
        return not alive

    def __enter__(self) -> "_Night":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _Stopped(Exception):
    """The night ends before its last visit."""


def _sleep_unless(stop: threading.Event, seconds: float) -> None:
    if stop.wait(seconds):
        raise _Stopped


def _take(
    visits: Sequence[VisitPlan], places: Places, console: Console, relay: Service, node: Service
) -> list[VisitRow]:
    """Let the camera take the visits; follow them to their ends."""
    daemon = Daemon(places.control)
    stop = threading.Event()
    with (
        NightScreen(console, visits, DETECTOR_COUNT) as screen,
        RelayClient(places.submit) as client,
        NoticeSender(places.notices, NoticeKind.PLAIN, bind=True) as sender,
    ):
        sender.wait_for_subscriber(SUBSCRIBER_S)
        telescope = Telescope(
            SimulatedCamera(),
            Delivery(places.raws, Clock().tai, notices=sender),
            client,
            sleep=partial(_sleep_unless, stop),
            watch=screen.happened,
        )
        with _Night(telescope, timeline(visits, CADENCE, announce=True, cancel=False), stop) as night:
            until = None
            while True:
                relay.check()
                node.check()
                over = night.over()  # asked before the status, which is final if it was
                status = daemon.status()
                rows = [row for visit in visits for row in _rows(daemon, visit)]
                screen.show(rows, status)
                if over and not status.open_visits and not status.spooled:
                    return rows
                until = until or (time.monotonic() + END_S if over else None)
                if until and time.monotonic() > until:
                    raise DemoFailed(f"not done {END_S:g} s after the last raw: {status.text}\n{node.tail()}")
                time.sleep(POLL_S)


def _rows(daemon: Daemon, visit: VisitPlan) -> Sequence[VisitRow]:
    try:
        return daemon.visit(visit.group)
    except NotFound:
        return ()
