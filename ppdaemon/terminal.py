# SPDX-License-Identifier: BSD-3-Clause
"""Text output of the programs in a terminal.

Consoles have markup off, and text from other programs is printed without control
characters. The daemon uses the latter only and imports no consoles.
"""

import io
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ppdaemon.fittingtable import FittingTable

__all__ = ("PIPE_WIDTH", "duration", "new_table", "plain", "show", "size", "terminal_console")

PIPE_WIDTH = 10_000
"""Width of output that does not go to a terminal: lines are not folded, for ``grep``."""


def terminal_console() -> "Console":
    """Return a console on standard output, as wide as the terminal or `PIPE_WIDTH`."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the terminal lacks must not end the program
    wide = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=wide)


def show(view: "RenderableType", *, fold: bool = True) -> None:
    """Print to standard output; in a pipe without the blanks that fill the columns of tables. Without `fold`
    a long line stays one line.
    """
    console = terminal_console()
    if console.is_terminal:
        console.print(view, soft_wrap=not fold)
        return
    with console.capture() as text:
        console.print(view, soft_wrap=not fold)
    console.file.writelines(f"{line.rstrip()}\n" for line in text.get().splitlines())


def plain(text: object) -> str:
    """Return text on one line without control characters; empty for `None`."""
    if text is None:
        return ""
    text = str(text)
    if text.isprintable():  # nearly all is: a table has 100,000 letters
        return text
    spaced = " ".join(text.splitlines())
    return "".join("?" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in spaced)


def duration(seconds: float | None) -> str:
    """Return a duration as text, such as ``42 ms``, ``3.2 s`` or ``2 h 13 min``."""
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
    """Return a number of bytes as text with a decimal prefix, such as ``4.2 kB``."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000.0, next(units)
    digits = 1 if unit != "B" and count < 9.95 else 0
    return f"{count:.{digits}f} {unit}"


def number_of(count: int, noun: str) -> str:
    """Return a number of things as text, such as ``1 node`` or ``2 nodes``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def new_table(*names: str) -> "FittingTable":
    """Return a table without lines that fits 80 columns.

    A column whose name ends in ``>`` is aligned right; one that ends in ``~`` is
    narrowed first, and its text wraps.
    """
    from ppdaemon.fittingtable import FittingTable

    table = FittingTable()
    for name in names:
        wrapping = name.endswith("~")
        table.add_column(
            name.rstrip(">~"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=not wrapping,
            overflow="fold" if wrapping else "ellipsis",
        )
    return table
