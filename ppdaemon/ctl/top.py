# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl top``: shows the state of the daemon continuously."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.tables import (
    counted,
    failures_table,
    head_line,
    problem_lines,
    summaries_table,
    workers_table,
)
from ppdaemon.errors import Unavailable
from ppdaemon.reports import StatusReport
from ppdaemon.states import BUSY_STATES, SlotState
from ppdaemon.terminal import plain

__all__ = ("VIEWS", "follow", "screen")

TICK_S = 0.25
"""Longest time between two looks at the keyboard, and shortest one between two screens: the state may change
hundreds of times a second."""
REFRESH_S = 1.0
"""Longest time between two screens: times go on although nothing changes."""
MAX_PROBLEMS = 3
"""Lines for problems; `ppctl status` has all of them."""
LETTERS = 24
"""Detectors of a visit that have a letter each; with more, a line of 80 columns would not do."""
PIPE_LINES = 200
"""Lines of the only screen if this is no terminal."""

_INACTIVE = frozenset({SlotState.IDLE, SlotState.STOPPED})


@dataclass(frozen=True, slots=True)
class View:
    """What the largest part of the screen shows."""

    name: str
    make: Callable[[Daemon, int], RenderableType]
    """Returns at most so many lines."""


def _visits(daemon: Daemon, room: int) -> RenderableType:
    return summaries_table(daemon.summaries(max(1, room - 1)), LETTERS)


def _workers(daemon: Daemon, room: int) -> RenderableType:
    """Show slots that are at work first, then those in trouble."""
    rows = sorted(
        daemon.workers(), key=lambda row: (row.state in _INACTIVE, row.state not in BUSY_STATES, row.slot)
    )
    shown = [row.model_copy(update={"note": ""}) for row in rows[: max(1, room - 2)]]
    hidden = len(rows) - len(shown)
    return Group(workers_table(shown), Text(f"and {hidden} more slots" if hidden else "", style="dim"))


def _both(daemon: Daemon, room: int) -> RenderableType:
    """Show visits in at most half of the room, and slots in the rest."""
    visits = daemon.summaries(max(1, room - room // 2 - 2))
    used = max(1, len(visits)) + 2  # head, blank line
    return Group(summaries_table(visits, LETTERS), Text(), _workers(daemon, room - used))


def _failed(daemon: Daemon, room: int) -> RenderableType:
    return failures_table(daemon.visits(max(1, room - 1), failed=True), one_line=True)


VIEWS: dict[str, View] = {
    "a": View("all", _both),
    "v": View("visits", _visits),
    "w": View("workers", _workers),
    "f": View("failed", _failed),
}
"""By key."""


def screen(report: StatusReport, daemon: Daemon, height: int, key: str = "a") -> RenderableType:
    """Return one screen of at most `height` lines."""
    problems: Sequence[Text] = problem_lines(report)
    if len(problems) > MAX_PROBLEMS:
        more = Text(f"! and {len(problems) - MAX_PROBLEMS + 1} more, see ppctl status", style="red")
        problems = (*problems[: MAX_PROBLEMS - 1], more)
    for line in problems:
        line.no_wrap, line.overflow = True, "ellipsis"
    slots = Text(
        f"slots {counted(sorted(report.slots.items()))}; queued {report.queued};"
        f" spooled {report.spooled}; {report.relay}",
        no_wrap=True,
        overflow="ellipsis",
    )
    keys = Text("  ").join(
        Text(f"{letter} {view.name}", style="reverse" if letter == key else "dim")
        for letter, view in VIEWS.items()
    )
    keys.append("  q quit", style="dim")
    room = height - len(problems) - 5  # head, slots, keys, and two blank lines
    return Group(head_line(report), *problems, slots, Text(), VIEWS[key].make(daemon, room), Text(), keys)


def follow(daemon: Daemon, console: Console) -> None:
    """Show the screen until the user presses ``q`` or interrupts; one screen if this is no terminal.

    Raises `~ppdaemon.errors.Unavailable` if the daemon does not answer at first; later it is asked again, as
    it is restarted while somebody watches.
    """
    if not console.is_terminal:
        console.print(screen(daemon.status(), daemon, PIPE_LINES))
        return
    # The standard output stays: rich's replacement has no encoding, from which the letters are chosen.
    shown = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False)
    with _keyboard() as pressed, shown as live:
        key, drawn, report = "a", 0.0, None
        for change in _states(daemon):
            letter = pressed()
            if letter == "q":
                return
            if isinstance(change, Unavailable):
                live.update(_away(change), refresh=True)
                report = None
                continue
            due = change is not None or letter in VIEWS or time.monotonic() - drawn >= REFRESH_S
            key = letter if letter in VIEWS else key
            report = change or report
            if report is not None and due:
                try:
                    live.update(screen(report, daemon, console.height, key), refresh=True)
                except Unavailable as error:  # ended since its last report
                    live.update(_away(error), refresh=True)
                drawn = time.monotonic()


def _states(daemon: Daemon) -> Iterator[StatusReport | Unavailable | None]:
    """Yield what changes, `None` after each `TICK_S` without, and the error while the daemon is away."""
    was_there = False
    while True:
        try:
            for change in daemon.watch(TICK_S):
                was_there = True
                yield change
        except Unavailable as error:
            if not was_there:
                raise
            yield error
            time.sleep(TICK_S)


def _away(error: Unavailable) -> RenderableType:
    text = Text(f"{plain(error)} (asking again)", style="bold red")
    return Group(text, Text(), Text("q quit", style="dim"))


@contextlib.contextmanager
def _keyboard() -> Iterator[Callable[[], str]]:
    """Yield a function that returns the letter of the last key since the last call, or a blank."""
    if not sys.stdin.isatty():
        yield lambda: ""
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> str:
        ready, _, _ = select.select([descriptor], [], [], 0)
        return os.read(descriptor, 64).decode(errors="replace")[-1:] if ready else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
