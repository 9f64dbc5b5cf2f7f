#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Print the table of slot states for the README: ``tools/slottable.py``."""

import re

from ppdaemon.node.slots.slot import ANY_STATE, TABLE, Slot
from ppdaemon.states import SlotState

__all__ = ("slot_table",)


def _rule_text(name: str) -> str:
    """Return a rule's name as text, such as ``kill late starter``."""
    return name.strip("_").replace("_", " ")


def _event_text(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def slot_table() -> str:
    """Return the table in reStructuredText: for each state the rule of each event."""
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
        rules_by_event = [
            f"{_event_text(event)}: *{_rule_text(rule.__name__)}*"
            for event, rule in rules
            if rule is not Slot._ignore
        ]
        lines += [f"   * - {state}", f"     - {'; '.join(rules_by_event)}"]
    in_any_state = [
        f"{_event_text(event)}: *{_rule_text(rule.__name__)}*"
        for event, rule in ANY_STATE.items()
        if rule is not Slot._ignore
    ]
    lines += ["   * - in any other case", f"     - {'; '.join(in_any_state)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(slot_table(), end="")
