# SPDX-License-Identifier: BSD-3-Clause
"""Take visits with the simulated telescope, and follow them until they end."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from rich.console import Console

from ppdaemon.clock import Clock
from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.demo.delivery import Delivery, NoticeKind, NoticeSender
from ppdaemon.demo.geometry import DETECTOR_COUNT
from ppdaemon.demo.night import CADENCE
from ppdaemon.demo.nightreport import NightMeter
from ppdaemon.demo.progress import VISIT_LINES, NightScreen
from ppdaemon.demo.services import DemoPaths, Service
from ppdaemon.demo.telescope import (
    PlannedEvent,
    SimulatedCamera,
    Telescope,
    TelescopeEvent,
    TelescopeStep,
    timeline,
)
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.errors import NotFound, PPDaemonError
from ppdaemon.reports import StatusReport, VisitRow
from ppdaemon.states import Stage

__all__ = ("DemoFailed", "Observing", "TelescopeThread", "interruptible_sleep", "observing")

END_S = 300.0
"""Time limit for all outputs after the last raw."""
SUBSCRIBER_S = 10.0
"""Time limit for the daemon to subscribe to the camera's notices."""
# Often enough for a live table.
POLL_S = 0.25


class DemoFailed(PPDaemonError):
    """The demonstration did not finish."""


class TelescopeThread:
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

    def __enter__(self) -> "TelescopeThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class TelescopeStopped(Exception):
    """The telescope is stopped before its last visit."""


def interruptible_sleep(stop: threading.Event, seconds: float) -> None:
    """Sleep unless the telescope is stopped; raise `TelescopeStopped` then."""
    if stop.wait(seconds):
        raise TelescopeStopped


class Observing:
    """The telescope at a running relay and node, and the screen that shows its visits."""

    def __init__(
        self,
        client: VisitSubmitter,
        delivery: Delivery,
        daemon: Daemon,
        screen: NightScreen,
        services: Sequence[Service],
        meter: NightMeter,
    ):
        self._client = client
        self._delivery = delivery
        self._daemon = daemon
        self._screen = screen
        self._services = services
        self._meter = meter
        self._camera = SimulatedCamera()
        self._taken: dict[str, Sequence[VisitRow]] = {}
        """Rows of the last visits by group, in order."""

    def take(
        self, visit: VisitPlan, ended: Callable[[StatusReport, Sequence[VisitRow]], bool]
    ) -> list[VisitRow]:
        """Take a visit; return the journal's rows of the last visits as soon as `ended` is true.

        It is called after the last raw, with the daemon's status and these rows. Raises
        `DemoFailed` if it is false `END_S` later, or if the telescope failed.
        """
        self._taken[visit.group] = ()
        for group in list(self._taken)[:-VISIT_LINES]:
            del self._taken[group]
        self._screen.add([visit])
        stop = threading.Event()
        telescope = Telescope(
            self._camera,
            self._delivery,
            self._client,
            sleep=partial(interruptible_sleep, stop),
            on_event=self._on_event,
        )
        events = timeline([visit], CADENCE, announce=True, cancel=False)
        with TelescopeThread(telescope, events, stop) as night:
            until = None
            while True:
                for service in self._services:
                    service.check()
                # Checked before the status: if the telescope has finished, no later visit is missing in it.
                finished = night.finished()
                status, rows = self._daemon.status(), self._rows()
                self._screen.show(rows, status)
                if finished and ended(status, rows):
                    return rows
                until = until or (time.monotonic() + END_S if finished else None)
                if until and time.monotonic() > until:
                    log = self._services[-1].tail()
                    raise DemoFailed(
                        f"visits have not ended {END_S:g} s after the last raw: {status.text}\n{log}"
                    )
                time.sleep(POLL_S)

    def _on_event(self, event: TelescopeEvent) -> None:
        """Measure the camera; called in the telescope's thread."""
        if event.step is TelescopeStep.WRITE:
            self._meter.late_s.append(event.late_s)
        self._screen.on_event(event)

    def _rows(self) -> list[VisitRow]:
        """Return the rows of the last visits; a visit that is in the central repo is not asked for again."""
        for group, rows in self._taken.items():
            if sum(Stage.CENTRAL in row.stages for row in rows) < DETECTOR_COUNT:
                with suppress(NotFound):  # it was announced just now
                    self._taken[group] = self._daemon.visit(group)
        return [row for rows in self._taken.values() for row in rows]


@contextmanager
def observing(
    paths: DemoPaths, console: Console, services: Sequence[Service], meter: NightMeter
) -> Iterator[Observing]:
    """Connect a telescope to relay and daemon, which are the first and the last of the services."""
    with (
        NightScreen(console, (), DETECTOR_COUNT) as screen,
        VisitSubmitter(paths.submit) as client,
        NoticeSender(paths.notices, NoticeKind.PLAIN, bind=True) as sender,
    ):
        # The daemon subscribes some time after its start; earlier notices would be lost.
        sender.wait_for_subscriber(SUBSCRIBER_S)
        delivery = Delivery(paths.raws, Clock().tai, notices=sender)
        yield Observing(client, delivery, Daemon(paths.control), screen, services, meter)
