# SPDX-License-Identifier: BSD-3-Clause
"""Tables without lines, which are drawn in one pass where they fit the terminal."""

from collections.abc import Iterator
from math import inf

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

__all__ = ("FittingTable",)

TEXT_WIDTH = 8
"""Columns that text which wraps has before names are cut."""
NAME_WIDTH = 8
"""Columns that names such as groups have before numbers are cut."""


class FittingTable(Table):
    """A table whose columns are one blank apart, with cells of text without markup.

    rich measures, wraps, pads and crops each cell twice: of a visit with 205 detectors that takes longer than
    all else that ``ppctl`` does. It is not needed where all cells fit.
    """

    def __init__(self) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table."""
        columns = [[column.header, *column.cells] for column in self.columns]
        widths = [max(map(_width, cells)) for cells in columns]
        if not self.show_header or sum(widths) + len(widths) > options.max_width:
            self._narrow(options.max_width)
            yield from super().__rich_console__(console, options)
            return
        styles = [console.get_style(style or "") for style in ("bold", *(row.style for row in self.rows))]
        rights = [column.justify == "right" for column in self.columns]
        for style, row in zip(styles, zip(*columns, strict=True), strict=True):
            for number, (cell, width, right) in enumerate(zip(row, widths, rights, strict=True)):
                if number:
                    yield Segment(" ", style)
                blanks = Segment(" " * int(width - _width(cell)), style)
                if right:
                    yield blanks
                yield from _segments(cell, console, style)
                if not right:
                    yield blanks
            yield Segment.line()

    def _narrow(self, width: int) -> None:
        """Limit the columns, so that all that are numbers can be read, and texts that wrap have `TEXT_WIDTH`.

        rich would narrow those that wrap down to one letter, then all others alike.
        """
        widths = [
            max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in self.columns
        ]
        widths = [
            wide if column.no_wrap else min(wide, TEXT_WIDTH)
            for wide, column in zip(widths, self.columns, strict=True)
        ]
        excess = sum(widths) + len(widths) - 1 - width
        names = [k for k, column in enumerate(self.columns) if column.no_wrap and column.justify == "left"]
        for narrowed, least in ((names, NAME_WIDTH), (range(len(widths)), 1)):
            for _ in range(excess):
                widest = max(narrowed, key=widths.__getitem__, default=None)
                if widest is None or widths[widest] <= least:
                    break
                widths[widest] -= 1
                excess -= 1
        for wide, column in zip(widths, self.columns, strict=True):
            column.max_width = wide if column.no_wrap else None


def _width(cell: RenderableType) -> float:
    """Return how many columns of a terminal a cell takes; infinite if it is not one line of text, or ends
    with a blank, which rich removes from some.
    """
    text = cell.plain if isinstance(cell, Text) else cell
    return cell_len(text) if isinstance(text, str) and text.isprintable() and text[-1:] != " " else inf


def _segments(cell: RenderableType, console: Console, style: Style) -> Iterator[Segment]:
    if not isinstance(cell, Text):
        yield Segment(str(cell), style)
    elif cell.spans:
        yield from Segment.apply_style(cell.render(console, end=""), style)
    else:
        yield Segment(cell.plain, style + console.get_style(cell.style))
