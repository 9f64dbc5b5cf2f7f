# SPDX-License-Identifier: BSD-3-Clause
"""A table that is drawn in one pass is that of rich, letter by letter."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppdaemon.fittingtable import FittingTable
from ppdaemon.terminal import new_table

WORDS = st.text(alphabet="ab 日é█✗-", max_size=9)
STYLES = st.sampled_from(["", "red", "bold green"])
CELLS = st.one_of(
    WORDS,
    st.builds(Text, WORDS, STYLES),
    st.builds(lambda word, style: Text.assemble((word, style), ("x", "dim")), WORDS, STYLES),
    st.sampled_from(["two\nlines", "a\ttab", "a ", Text("two\nlines"), Text.assemble(("b ", "red"))]),
)


def drawn(table: FittingTable, width: int, kind: type[Table]) -> list[tuple[str, str]]:
    """Return each letter with its style; blanks look alike in all that are used."""
    console = Console(
        markup=False,
        highlight=False,
        emoji=False,
        width=width,
        force_terminal=True,
        color_system="truecolor",
        file=io.StringIO(),
    )
    segments = list(kind.__rich_console__(table, console, console.options))
    return [
        (letter, str(segment.style) if segment.style and letter != " " else "")
        for segment in segments
        for letter in segment.text
    ]


@given(
    st.lists(
        st.sampled_from(["a", "b>", "c~", "longer name", "longer name>", "日本"]), min_size=1, max_size=6
    ),
    st.lists(st.tuples(st.lists(CELLS, max_size=6), STYLES), max_size=5),
    st.sampled_from([20, 40, 80, 1000]),
    st.booleans(),
)
def test_a_table_is_that_of_rich(names, rows, width, header):
    table = new_table(*names)
    table.show_header = header
    for cells, style in rows:
        table.add_row(*cells[: len(names)], style=style)
    assert drawn(table, width, FittingTable) == drawn(table, width, Table)


@pytest.mark.parametrize(("width", "drawing"), [(80, 0), (20, 1)])
def test_rich_draws_a_table_only_if_it_does_not_fit(monkeypatch, width, drawing):
    asked = []
    monkeypatch.setattr(Table, "__rich_console__", lambda *_: asked.append(1) or iter(()))
    table = new_table("group", "why~")
    table.add_row("2026-11-30T01:02:03", "no template")
    drawn(table, width, FittingTable)
    assert len(asked) == drawing


GROUP = "2026-11-22T03:25:16.123"


def lines_of(table: FittingTable, width: int) -> list[str]:
    console = Console(markup=False, highlight=False, emoji=False, width=width, file=io.StringIO())
    with console.capture() as text:
        console.print(table)
    return text.get().splitlines()


@pytest.mark.parametrize("width", [50, 60, 80])
def test_in_a_narrow_terminal_names_are_cut_before_numbers_and_words_of_texts(width):
    table = new_table("group", "instrument", "received", "det>", "pid>", "why~")
    table.add_row(GROUP, "LSSTComCamSim", GROUP, "203", "1234567", "no raw arrived in time")
    header, *rows = lines_of(table, width)
    assert header.split()[-3:] == ["det", "pid", "why"]
    assert " 203 1234567 " in rows[0]
    assert len(rows) <= 3
    assert all(len(line) <= width for line in (header, *rows))


def test_in_a_terminal_that_is_too_narrow_for_names_the_widest_numbers_are_cut_first():
    table = new_table("det>", "try>", "assigned>", "prepared>", "first_task>")
    table.add_row("203", "1", "0.003", "15.894", "38.054")
    header, row = lines_of(table, 32)
    assert header.split()[:2] == ["det", "try"]
    assert row.split() == ["203", "1", "0.003", "15.894", "38.054"]
