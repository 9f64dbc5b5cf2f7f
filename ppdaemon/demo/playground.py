# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl demo --stay``: relay, daemon and a visit every 40 s until Ctrl-C, to try all commands on.

The central repo, journal and alerts are kept for the next time.
"""

import importlib.util
import os
import shutil
import signal
import socket
import time
import uuid
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ppdaemon.clock import Clock
from ppdaemon.demo.geometry import CAMERA_NAME, DETECTOR_COUNT
from ppdaemon.demo.night import NIGHT, plan_visit
from ppdaemon.demo.nightreport import NightMeter
from ppdaemon.demo.observing import DemoFailed, Observing, observing
from ppdaemon.demo.quickstart import make_central, output_folder, short_folder
from ppdaemon.demo.rules import SURVEYS, DemoRule
from ppdaemon.demo.services import DemoPaths, leftover_processes, leftover_repos, running, start_module
from ppdaemon.demo.sky import DEFAULT_DEC_DEG, DEFAULT_RA_DEG
from ppdaemon.errors import Unavailable
from ppdaemon.night.totals import last_attempts
from ppdaemon.reports import VisitRow

__all__ = ("EVERY_S", "Pace", "play", "seq_num_at", "suggestions")

EVERY_S = 40.0
"""From one visit to the next, as at the telescope."""
WEB = "ppdaemon.web"
"""The page, where it is installed."""
PAGE_S = 20.0
"""Time limit for the page's start; a playground does without it."""


def suggestions(paths: DemoPaths, metrics: str) -> list[tuple[str, str]]:
    """Return commands for another terminal, and what each of them shows."""
    ctl = f"ppctl --socket {paths.control}"
    send = f"ppctl send --relay {paths.submit} --instrument {CAMERA_NAME} --filter r_03"
    send += f" --survey {SURVEYS[DemoRule.IN_MAP]}"  # without it no rule matches
    return [
        (f"{ctl} top", "slots, visits and problems, live"),
        (f"{ctl} visits", "a line for each visit"),
        (f"{ctl} visit latest", "all about the newest visit"),
        (f"{ctl} timeline latest", "where its time went"),
        (f"{ctl} log latest", "what was logged for it"),
        (f"{ctl} restart 0", "replace a worker after its visit"),
        (f"{ctl} night", "the night in numbers; with --html FILE as a page"),
        (f"{ctl} drain", "take no more visits"),
        (f"{ctl} resume", "take visits again"),
        (f"{send} --ra {DEFAULT_RA_DEG} --dec {DEFAULT_DEC_DEG} --angle 0", "a visit that gets no raws"),
        (f"curl -s http://{metrics}/metrics", "what Prometheus reads"),
    ]


def seq_num_at(tai_s: float) -> int:
    """Return a sequence number that only this second of the observing day has.

    The raws of earlier playgrounds are deleted, but their exposures are in the central repo.
    """
    return int((tai_s - 43_200.0) % 86_400.0) + 1


@dataclass(slots=True)
class Pace:
    """Decides when the next visit begins: `EVERY_S` after the last one, and not before its end."""

    group: str
    """Name of the last visit."""
    print: Callable[[str], None]
    next_mono: float
    late: bool = False
    """Whether the note was printed: once is enough."""

    def may_begin(self, now_mono: float, rows: Sequence[VisitRow]) -> bool:
        """Return whether the last visit has ended, by the rows of visits, and it is time for the next one."""
        last = [row for row in last_attempts(rows).values() if row.group == self.group]
        ended = len(last) >= DETECTOR_COUNT and all(row.outcome is not None for row in last)
        if now_mono < self.next_mono:
            return False
        if not ended and not self.late:
            self.late = True
            self.print(f"a visit takes longer than {EVERY_S:g} s here: the next one begins when it has ended")
        return ended


def play(output: Path, console: Console, *, workers: int, open_page: bool) -> list[str]:
    """Take visits until Ctrl-C; return the names of leftover processes and repos."""
    output = output_folder(output)
    mark = uuid.uuid4().hex
    with short_folder() as ramdisk:
        paths = DemoPaths(output, ramdisk)
        if not paths.central.exists():
            make_central(paths, output, console)
        metrics = _free_address()
        console.print(f"starting pprelay and ppdaemon; logs in {output}", highlight=False, soft_wrap=True)
        try:
            with (
                running(paths, workers, mark, metrics=metrics) as services,
                _page(paths, mark, console) as url,
            ):
                _print_suggestions(console, suggestions(paths, metrics), url)
                if url and open_page and os.environ.get("DISPLAY"):
                    webbrowser.open(url)
                with (
                    _until_interrupted(console),
                    observing(paths, console, services, NightMeter()) as telescope,
                ):
                    _take_visits(telescope, console)
        finally:
            shutil.rmtree(paths.raws, ignore_errors=True)
        return [*leftover_processes(mark), *leftover_repos(paths)]


def _take_visits(telescope: Observing, console: Console) -> None:
    """Take the kinds of visits of the demonstration in turn."""
    number = 0
    while True:
        begin_tai = Clock().tai()
        visit = plan_visit(number % len(NIGHT), begin_tai, seq_num_at(begin_tai))
        pace = Pace(
            visit.group, lambda line: console.print(line, highlight=False), time.monotonic() + EVERY_S
        )
        try:
            telescope.take(visit, lambda _, rows, pace=pace: pace.may_begin(time.monotonic(), rows))  # type: ignore[misc]
        except (
            DemoFailed,
            Unavailable,
        ) as error:  # a node may be drained or restarted from the other terminal
            console.print(Text(f"{error}; the next visit begins in {EVERY_S:g} s", "yellow"))
            time.sleep(EVERY_S)
        number += 1


@contextmanager
def _until_interrupted(console: Console) -> Iterator[None]:
    """End the block at Ctrl-C; another one does not disturb the programs' stop."""
    try:
        yield
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        console.print("stopping ppdaemon and pprelay: this takes some seconds")


@contextmanager
def _page(paths: DemoPaths, mark: str, console: Console) -> Iterator[str]:
    """Serve the web page where it is installed; yield its URL, or nothing."""
    if importlib.util.find_spec(WEB) is None:
        yield ""
        return
    address = _free_address()
    page = start_module(
        "ppweb", [f"{WEB}.app", "--socket", str(paths.control), "--listen", address], paths, mark
    )
    try:
        until = time.monotonic() + PAGE_S
        while not (served := _answers(address)) and page.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if not served:
            console.print(Text(f"there is no page: {page.tail(1)}", "yellow"))
        yield f"http://{address}/" if served else ""
    finally:
        page.stop()


def _answers(address: str) -> bool:
    """Return whether a program listens at an address."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True


def _free_address() -> str:
    """Return an address of the loopback that no program uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def _print_suggestions(console: Console, lines: Sequence[tuple[str, str]], url: str) -> None:
    """Print commands unfolded, so that they can be copied."""
    console.print(f"\na visit every {EVERY_S:g} s until Ctrl-C; try in another terminal:\n", highlight=False)
    for command, shows in lines:
        console.print(Text.assemble(("# ", "dim"), (shows, "dim")))
        console.print(Text(command), soft_wrap=True)
    if url:
        console.print(f"\nthe page: {url}", highlight=False)
    console.print()
