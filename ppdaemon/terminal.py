# SPDX-License-Identifier: BSD-3-Clause
"""How the programs write for people in a terminal.

Consoles have markup off, and text of others is shown without its control
characters.
"""

import sys
import unicodedata

from rich.console import Console
from rich.table import Table

__all__ = ("PIPE_WIDTH", "duration", "new_table", "plain", "size", "terminal_console")

PIPE_WIDTH = 200
"""Columns where the output is no terminal: lines for ``grep``, not folded."""


def terminal_console() -> Console:
    """Return a console on standard output."""
    wide = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=wide)


def plain(text: object) -> str:
    """Return text that cannot move a terminal's cursor."""
    if text is None:
        return ""
    spaced = " ".join(str(text).splitlines())
    return "".join("?" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in spaced)


def duration(seconds: float | None) -> str:
    """Write a duration with two units at the most."""
    if seconds is None:
        return ""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(count: float) -> str:
    """Write a number of bytes with a decimal prefix."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000.0, next(units)
    digits = 1 if unit != "B" and count < 9.95 else 0
    return f"{count:.{digits}f} {unit}"


def new_table(*names: str) -> Table:
    """Make a table without rules that fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in names:
        wrapping = name.endswith("~")
        table.add_column(
            name.rstrip(">~"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=not wrapping,
            overflow="fold" if wrapping else "ellipsis",
        )
    return table
