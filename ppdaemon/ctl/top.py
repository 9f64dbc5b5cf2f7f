# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl top``: shows the state of the daemon continuously."""

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.tables import status_view, visits_table, workers_table
from ppdaemon.reports import StatusReport
from ppdaemon.states import BUSY_STATES, SlotState

__all__ = ("follow", "screen")

REFRESH_S = 1.0
"""Longest time between two screens."""

SHORTEST_S = 0.25
"""Shortest time between two screens: the state may change hundreds of times a second."""

_INACTIVE = frozenset({SlotState.IDLE, SlotState.STOPPED})


def screen(report: StatusReport, daemon: Daemon, height: int) -> RenderableType:
    """Return one screen of `height` lines: status, active slots first, newest visits."""
    room = max(6, height - 16 - len(report.problems) - len(report.arrivals))
    slots = sorted(
        daemon.workers(), key=lambda row: (row.state in _INACTIVE, row.state not in BUSY_STATES, row.slot)
    )
    shown = slots[: max(3, room // 2)]
    hidden = len(slots) - len(shown)
    visits = daemon.visits(max(3, room - len(shown)))
    return Group(
        status_view(report),
        Rule(style="dim"),
        workers_table(shown),
        Text(f"and {hidden} more slots" if hidden else "", style="dim"),
        Rule(style="dim"),
        visits_table(visits),
    )


def follow(daemon: Daemon, console: Console) -> None:
    """Show the screen until the user interrupts; one screen if this is no terminal.

    Raises `~ppdaemon.errors.Unavailable` when the daemon does not answer any more.
    """
    if not console.is_terminal:
        console.print(screen(daemon.status(), daemon, height=200))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        drawn = 0.0
        report = None
        for change in daemon.watch(REFRESH_S):
            report = change or report
            if report is not None and time.monotonic() - drawn >= SHORTEST_S:
                live.update(screen(report, daemon, console.height), refresh=True)
                drawn = time.monotonic()
