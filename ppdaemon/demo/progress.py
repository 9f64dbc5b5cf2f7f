# SPDX-License-Identifier: BSD-3-Clause
"""What is seen of a demonstration while it runs."""

from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ppdaemon.clock import tai_iso
from ppdaemon.demo.telescope import Happening
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.reports import StatusReport, VisitRow
from ppdaemon.states import Outcome, Stage

__all__ = ("NightScreen", "last_attempts")

_SIGNS: tuple[tuple[Stage, str, str], ...] = (
    (Stage.CENTRAL, "█", "green"),
    (Stage.SPOOLED, "▇", "green"),
    (Stage.PROCESSED, "▆", "cyan"),
    (Stage.FIRST_TASK, "▅", "cyan"),
    (Stage.INGESTED, "▄", "yellow"),
    (Stage.ARRIVED, "▃", "yellow"),
    (Stage.PREPARED, "▂", "blue"),
    (Stage.ASSIGNED, "▁", "blue"),
    (Stage.ACCEPTED, "·", "dim"),
)
LEGEND = "· accepted  ▁ preloading  ▂ ready  ▃▄ raw in  ▅ tasks run  ▆▇ outputs  █ in the central repo"
HAPPENINGS = 6


def last_attempts(rows: Iterable[VisitRow]) -> dict[tuple[str, int], VisitRow]:
    """Return the last attempt at each visit-detector.

    Parameters
    ----------
    rows : `~collections.abc.Iterable` [`~ppdaemon.reports.VisitRow`]
        The journal's rows, of all attempts.

    Returns
    -------
    last : `dict` [`tuple`, `~ppdaemon.reports.VisitRow`]
        By group and detector.
    """
    return {(row.group, row.detector): row for row in sorted(rows, key=lambda row: row.attempt)}


class NightScreen:
    """A live table on a terminal; single lines elsewhere.

    Parameters
    ----------
    console : `rich.console.Console`
        Where to.
    visits : `~collections.abc.Sequence` [`~ppdaemon.demo.visits.VisitPlan`]
        What will be taken.
    detectors : `int`
        How many each visit has.
    """

    def __init__(self, console: Console, visits: Sequence[VisitPlan], detectors: int):
        self._console = console
        self._visits = visits
        self._detectors = detectors
        self._happenings: deque[str] = deque(maxlen=HAPPENINGS)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: dict[str, int] = {}

    def __enter__(self) -> "NightScreen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def happened(self, happening: Happening) -> None:
        """Show what the telescope has done.

        Parameters
        ----------
        happening : `~ppdaemon.demo.telescope.Happening`
            From any thread.
        """
        when = tai_iso(happening.tai_s)[11:21]
        text = f"{when}  {happening.step:9} {happening.visit.group[11:]}  {happening.detail}"
        self._happenings.append(text)
        if not self._live:
            self._console.print(text, highlight=False)

    def show(self, rows: Sequence[VisitRow], status: StatusReport) -> None:
        """Show how the visits stand.

        Parameters
        ----------
        rows : `~collections.abc.Sequence` [`~ppdaemon.reports.VisitRow`]
            The journal's rows.
        status : `~ppdaemon.reports.StatusReport`
            The daemon.
        """
        if self._live:
            self._live.update(self._screen(rows, status), refresh=True)
            return
        for visit in self._visits:
            ended = sum(
                1
                for (group, _), row in last_attempts(rows).items()
                if group == visit.group and row.outcome is not None
            )
            if ended and ended != self._told.get(visit.group):
                self._told[visit.group] = ended
                self._console.print(
                    f"{visit.group}: {ended} of {self._detectors} detectors done", highlight=False
                )

    def _screen(self, rows: Sequence[VisitRow], status: StatusReport) -> RenderableType:
        table = Table(title="visits under way", title_justify="left", box=None, padding=(0, 1))
        for name in ("visit", "purpose", "filter", "snaps", "detectors", "done"):
            table.add_column(name)
        latest = last_attempts(rows)
        for visit in self._visits:
            mine = [latest.get((visit.group, detector)) for detector in range(self._detectors)]
            first = visit.exposures[0]
            done = sum(1 for row in mine if row is not None and row.outcome is not None)
            table.add_row(
                visit.group[11:],
                first.program,
                first.physical_filter,
                str(len(visit.exposures)),
                Text(" ").join(map(_sign, mine)),
                f"{done}/{self._detectors}",
            )
        return Group(
            table,
            Text(LEGEND, "dim"),
            Text(f"ppdaemon {status.text}"),
            *(Text(line) for line in self._happenings),
        )


def _sign(row: VisitRow | None) -> Text:
    if row is None:
        return Text(" ")
    if row.outcome not in (None, Outcome.SUCCEEDED):
        return Text("✗", "bold red")
    return next((Text(sign, style) for stage, sign, style in _SIGNS if stage in row.stages), Text(" "))
