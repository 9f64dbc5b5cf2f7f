#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The slot's table as the README shows it: ``tools/slottable.py``."""

import re

from ppdaemon.node.slots.slot import ANY_STATE, TABLE, Slot
from ppdaemon.states import SlotState

__all__ = ("slot_table",)


def _rule_text(name: str) -> str:
    """Return the name of a rule as words: ``_kill_slow_start``."""
    return name.strip("_").replace("_", " ")


def _event_text(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def slot_table() -> str:
    """Return the table in reStructuredText: a ``list-table`` with the rules of each state, as
    ``event: rule``.
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
        rules = [(event, rule) for (of, event), rule in TABLE.items() if of == state]
        texts = [
            f"{_event_text(event)}: *{_rule_text(rule.__name__)}*"
            for event, rule in rules
            if rule is not Slot._ignore
        ]
        lines += [f"   * - {state}", f"     - {'; '.join(texts)}"]
    any_state = [
        f"{_event_text(event)}: *{_rule_text(rule.__name__)}*"
        for event, rule in ANY_STATE.items()
        if rule is not Slot._ignore
    ]
    lines += ["   * - in any other case", f"     - {'; '.join(any_state)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(slot_table(), end="")
