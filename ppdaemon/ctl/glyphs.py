# SPDX-License-Identifier: BSD-3-Clause
"""One letter for the state of a visit-detector."""

import sys

from rich.text import Text

from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome, Stage

__all__ = ("LEGEND", "glyph", "legend")

_BAD = ("✗", "x", "bold red")
_GLYPHS: dict[str, tuple[str, str, str]] = {
    Stage.ACCEPTED: ("·", ".", "dim"),
    Stage.ASSIGNED: ("▁", "_", "blue"),
    Stage.PREPARED: ("▂", "w", "blue"),
    Stage.ARRIVED: ("▃", "i", "yellow"),
    Stage.INGESTED: ("▄", "i", "yellow"),
    Stage.FIRST_TASK: ("▅", "t", "cyan"),
    Stage.PROCESSED: ("▆", "t", "cyan"),
    Stage.SPOOLED: ("▇", "s", "green"),
    Stage.CENTRAL: ("█", "#", "green"),
    Outcome.SUCCEEDED: ("█", "#", "green"),
    PARTIAL: ("▓", "%", "yellow"),
    Outcome.NO_IMAGE: ("○", "o", "dim"),
    Outcome.CANCELLED: ("-", "-", "dim"),
    Outcome.IGNORED: ("-", "-", "dim"),
    **dict.fromkeys(BAD_OUTCOMES, _BAD),
}
"""By state: the letter, the one for terminals without it, and the style."""

LEGEND = (
    (Stage.ACCEPTED, "accepted"),
    (Stage.ASSIGNED, "preloading"),
    (Stage.PREPARED, "ready"),
    (Stage.ARRIVED, "raw in"),
    (Stage.FIRST_TASK, "tasks run"),
    (Stage.SPOOLED, "outputs"),
    (Outcome.SUCCEEDED, "succeeded"),
    (PARTIAL, "partial"),
    (Outcome.FAILED, "failed"),
    (Outcome.NO_IMAGE, "no image"),
    (Outcome.CANCELLED, "canceled, ignored"),
)


def _has_letters() -> bool:
    # While a live table is shown, rich has put an object without an encoding in the place of stdout.
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    try:
        "█▁✗○".encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def glyph(state: str) -> Text:
    """Return the letter of a stage, of an outcome, or of `PARTIAL`; a blank for another text."""
    letter, ascii_letter, style = _GLYPHS.get(state, (" ", " ", ""))
    return Text(letter if _has_letters() else ascii_letter, style)


def legend() -> Text:
    """Return the meaning of the letters in one line."""
    return Text("  ").join(Text.assemble(glyph(state), (f" {text}", "dim")) for state, text in LEGEND)
