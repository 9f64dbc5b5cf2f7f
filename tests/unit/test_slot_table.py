# SPDX-License-Identifier: BSD-3-Clause
"""The slot's table is complete, and the documentation shows it as it is."""

import re

import pytest
from doctools import codetext

from ppdaemon.node.slots.slot import ANY_STATE, TABLE, Slot
from ppdaemon.states import SlotState


def test_every_state_has_a_way_on():
    assert {state for state, _ in TABLE} == set(SlotState)


def rows(text: str) -> list[list[str]]:
    """Return the cells of a list-table."""
    _, _, body = text.partition("   * - ")
    return [re.split(r"\n     - ?", row.rstrip()) for row in body.split("   * - ")]


def test_the_documentation_shows_each_rule_in_the_column_of_its_state():
    header, *body = rows(codetext().slot_table(list(SlotState)))
    shown = {(header[column], event): cell for event, *cells in body for column, cell in enumerate(cells, 1)}
    for state in SlotState:
        for event in {event for _, event in TABLE} | ANY_STATE.keys():
            rule = TABLE.get((state, event)) or ANY_STATE.get(event)
            name = codetext()._spaced(event.__name__)
            if rule not in (None, Slot._ignore):
                assert shown[state, name] == rule.__name__.strip("_").replace("_", " ")
            else:
                assert shown.get((state, name), "") in ("", "·")


@pytest.mark.parametrize(
    ("rule", "states"),
    [
        ("prepare", "preparing"),
        ("grace over", "killing"),
        ("died", "backoff, quarantined, stopped"),  # through another method
        ("weigh", "stopping"),
        ("keep raw", "the same"),
    ],
)
def test_the_documentation_shows_where_a_rule_leads(rule, states):
    assert dict(rows(codetext().slot_rules()))[rule] == states
