# SPDX-License-Identifier: BSD-3-Clause
"""Show the progress of a demonstration while it runs. All times are UTC."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ppdaemon.clock import TAI_MINUS_UTC_S, tai_iso
from ppdaemon.ctl.glyphs import glyph, legend
from ppdaemon.demo.telescope import TelescopeEvent, TelescopeStep
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.night.totals import last_attempts
from ppdaemon.reports import StatusReport, VisitRow
from ppdaemon.states import Outcome, Stage

__all__ = ("NightScreen", "making_bar", "utc")

# The last events of the telescope; all of them would not fit below the table.
EVENT_LINES = 6
# The visits of the demonstration; a playground shows its last ones.
VISIT_LINES = 7
BEHIND_S = 1.0
"""Later than this, an event has a note: less is nothing to worry about."""


def utc(tai_s: float) -> str:
    """Return the time of the day in UTC, with its ``Z``."""
    return f"{tai_iso(tai_s - TAI_MINUS_UTC_S)[11:19]}Z"


@contextmanager
def making_bar(
    console: Console, title: str
) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Show one bar that names what is being made; elsewhere than on a terminal a single line.

    Yields what takes a line for each step, and what takes the number of finished jobs and of all.
    """
    if not console.is_terminal:
        console.print(title)
        yield lambda line: None, lambda jobs, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(title, total=None)
        yield (
            lambda line: progress.update(bar, description=f"{title}: {line.partition(' (')[0]}"),
            lambda jobs, total: progress.update(bar, completed=jobs, total=total),
        )


class NightScreen:
    """A live table on a terminal; single lines elsewhere."""

    def __init__(self, console: Console, visits: Sequence[VisitPlan], detectors: int):
        self._console = console
        self._visits = deque(visits, maxlen=VISIT_LINES)
        self._detectors = detectors
        self._events: deque[str] = deque(maxlen=EVENT_LINES)
        # A log file gets plain lines: no control sequences of a live table.
        # The standard output stays: rich's replacement has no encoding, from which the letters are chosen.
        self._live = (
            Live(console=console, auto_refresh=False, redirect_stdout=False) if console.is_terminal else None
        )
        self._reported: dict[str, int] = {}

    def __enter__(self) -> "NightScreen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def add(self, visits: Sequence[VisitPlan]) -> None:
        """Show further visits, instead of the oldest ones if there are too many."""
        self._visits.extend(visits)

    def on_event(self, event: TelescopeEvent) -> None:
        """Show an event of the telescope; may be called from any thread."""
        # The pixels are made while the shutter is open: only the raws may be late.
        late = event.late_s >= BEHIND_S and event.step is not TelescopeStep.EXPOSE
        behind = f", behind by {event.late_s:.0f} s" if late else ""
        text = f"{utc(event.tai_s)}  {event.step:9} {event.visit.group[11:]}  {event.detail}{behind}"
        self._events.append(text)
        if not self._live:
            self._console.print(text, highlight=False)

    def show(self, rows: Sequence[VisitRow], status: StatusReport) -> None:
        """Show the state of the visits."""
        if self._live:
            self._live.update(self._screen(rows, status), refresh=True)
            return
        for visit in self._visits:
            ended = sum(
                1
                for (group, _), row in last_attempts(rows).items()
                if group == visit.group and row.outcome is not None
            )
            if ended and ended != self._reported.get(visit.group):
                self._reported[visit.group] = ended
                self._console.print(
                    f"{visit.group}: {ended} of {self._detectors} detectors done", highlight=False
                )

    def _screen(self, rows: Sequence[VisitRow], status: StatusReport) -> RenderableType:
        title = f"visits in progress, {utc(status.tai)} (their names are TAI)"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        for name in ("visit", "purpose", "filter", "snaps", "detectors", "done"):
            table.add_column(name)
        latest = last_attempts(rows)
        for visit in self._visits:
            visit_rows = [latest.get((visit.group, detector)) for detector in range(self._detectors)]
            first = visit.exposures[0]
            done = sum(1 for row in visit_rows if row is not None and row.outcome is not None)
            table.add_row(
                visit.group[11:],
                first.program,
                first.physical_filter,
                str(len(visit.exposures)),
                Text(" ").join(map(_glyph, visit_rows)),
                f"{done}/{self._detectors}",
            )
        return Group(
            table,
            legend(),
            Text(f"ppdaemon {status.text}"),
            *(Text(line) for line in self._events),
        )


def _glyph(row: VisitRow | None) -> Text:
    if row is None:
        return Text(" ")
    if row.outcome not in (None, Outcome.SUCCEEDED):
        return glyph(row.outcome)
    return glyph(max(row.stages, key=list(Stage).index, default=""))
