# SPDX-License-Identifier: BSD-3-Clause
"""The README shows the slot's table as the code has it."""

from pathlib import Path

from benchtools import program

from ppdaemon.node.slots.slot import TABLE
from ppdaemon.states import SlotState

README = Path(__file__).parents[2] / "README.rst"


def test_the_readme_shows_the_table_as_it_is():
    _, _, rest = README.read_text().partition(".. state-table-begin\n\n")
    shown, _, _ = rest.partition("\n.. state-table-end")
    with program("slottable") as tool:
        assert shown == tool.slot_table(), "run tools/slottable.py and copy its output into the README"


def test_every_state_has_a_way_on():
    assert {state for state, _ in TABLE} == set(SlotState)
