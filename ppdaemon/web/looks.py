# SPDX-License-Identifier: BSD-3-Clause
"""How the page shows the state of a visit-detector: a letter, a class of the style sheet, a word.

The colors of the classes are those of Okabe and Ito, "Color Universal Design" (2008), which people
with any color vision can tell apart; the letter shows the same.
"""

from typing import NamedTuple

from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome, Stage

__all__ = ("LEGEND", "LOOKS", "Look")


class Look(NamedTuple):
    """How a state is shown."""

    letter: str
    style: str
    word: str


_BAD = Look("✗", "bad", "failed")
LOOKS: dict[str, Look] = {
    Stage.ACCEPTED: Look("·", "queued", "accepted"),
    Stage.ASSIGNED: Look("p", "prepare", "preloading"),
    Stage.PREPARED: Look("w", "ready", "ready, waits for the raw"),
    Stage.ARRIVED: Look("r", "raw", "raw in"),
    Stage.INGESTED: Look("r", "raw", "raw in"),
    Stage.FIRST_TASK: Look("t", "tasks", "tasks run"),
    Stage.PROCESSED: Look("t", "tasks", "tasks run"),
    Stage.SPOOLED: Look("s", "spooled", "outputs"),
    Stage.CENTRAL: Look("✓", "good", "succeeded"),
    Outcome.SUCCEEDED: Look("✓", "good", "succeeded"),
    PARTIAL: Look("%", "partial", "partial: images were missing"),
    **dict.fromkeys(BAD_OUTCOMES, _BAD),
    Outcome.NO_IMAGE: Look("o", "none", "no image"),
    Outcome.CANCELLED: Look("-", "none", "canceled"),
    Outcome.IGNORED: Look("i", "none", "ignored"),
}
"""By state."""

LEGEND: dict[Look, list[str]] = {}
for _state, _look in LOOKS.items():
    LEGEND.setdefault(_look, []).append(str(_state))
