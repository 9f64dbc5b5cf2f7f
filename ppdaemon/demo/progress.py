# SPDX-License-Identifier: BSD-3-Clause
"""Show the progress of a demonstration while it runs."""

from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ppdaemon.clock import tai_iso
from ppdaemon.ctl.glyphs import glyph, legend
from ppdaemon.demo.telescope import TelescopeEvent
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.reports import StatusReport, VisitRow
from ppdaemon.states import Outcome, Stage

__all__ = ("NightScreen", "last_attempts")

# The last events of the telescope; all of them would not fit below the table.
EVENT_LINES = 6


def last_attempts(rows: Iterable[VisitRow]) -> dict[tuple[str, int], VisitRow]:
    """Return the last attempt at each visit-detector, by group and detector."""
    return {(row.group, row.detector): row for row in sorted(rows, key=lambda row: row.attempt)}


class NightScreen:
    """A live table on a terminal; single lines elsewhere."""

    def __init__(self, console: Console, visits: Sequence[VisitPlan], detectors: int):
        self._console = console
        self._visits = visits
        self._detectors = detectors
        self._events: deque[str] = deque(maxlen=EVENT_LINES)
        # A log file gets plain lines: no control sequences of a live table.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._reported: dict[str, int] = {}

    def __enter__(self) -> "NightScreen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def on_event(self, event: TelescopeEvent) -> None:
        """Show an event of the telescope; may be called from any thread."""
        when = tai_iso(event.tai_s)[11:21]
        text = f"{when}  {event.step:9} {event.visit.group[11:]}  {event.detail}"
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
        table = Table(title="visits in progress", title_justify="left", box=None, padding=(0, 1))
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
