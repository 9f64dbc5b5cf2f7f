#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The slot's table as the README shows it: ``tools/slottable.py``."""

import re

from ppdaemon.node.slots.slot import ANY_STATE, TABLE, Slot
from ppdaemon.states import SlotState

__all__ = ("slot_table",)


def _words(name: str) -> str:
    """Write a rule's name as words: ``_kill_late_starter``."""
    return name.strip("_").replace("_", " ")


def _event(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def slot_table() -> str:
    """Write the table in reStructuredText.

    Returns
    -------
    text : `str`
        A ``list-table``: state, and for each event what the slot does.
    """
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 15 85",
        "",
        "   * - state",
        "     - event: what follows",
    ]
    for state in SlotState:
        rules = [(event, rule) for (when, event), rule in TABLE.items() if when == state]
        told = [
            f"{_event(event)}: *{_words(rule.__name__)}*" for event, rule in rules if rule is not Slot._ignore
        ]
        lines += [f"   * - {state}", f"     - {'; '.join(told)}"]
    anywhere = [
        f"{_event(event)}: *{_words(rule.__name__)}*"
        for event, rule in ANY_STATE.items()
        if rule is not Slot._ignore
    ]
    lines += ["   * - in any other case", f"     - {'; '.join(anywhere)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(slot_table(), end="")
