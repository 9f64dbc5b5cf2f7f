# SPDX-License-Identifier: BSD-3-Clause
"""When a raw file is complete: what was seen of it, and what to do next. Pure.

A writer either renames a finished file into place, or writes it in place and
closes it. inotify tells of both, but not for what another host writes, nor
for what happened before a folder was watched. What no event confirmed is
judged by its structure and by its time stamps.
"""

from dataclasses import dataclass

from ppdaemon.node.arrivals.tree import Place

__all__ = ("GiveUp", "Look", "LookAgain", "Patience", "Take", "Verdict")

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25
"""A look costs 0.3 ms: 60 slow writers at once cost 7 % of a core."""
PAUSE_GROWTH = 1.5

QUIET_WHOLE_S = 0.5
"""A whole file that nobody confirmed: a slow writer could be between two
HDUs, which takes it the time of compressing one."""
QUIET_BROKEN_S = 2.0
"""A file that was confirmed and is not whole: its reader will say why."""
QUIET_UNCONFIRMED_S = 10.0
"""A file that is neither confirmed nor whole: its writer may be stalled."""
MISSING_S = 10.0
"""A file that was announced before it can be seen, or was taken away."""
LIMIT_S = 600.0
"""No raw takes so long to write."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a file showed."""

    place: Place | None
    """Where the file is; `None` if it is missing."""
    size: int = 0
    modified_ns: int = 0
    """Time of the last write."""
    changed_ns: int = 0
    """Time of the last write or change of name, links or mode."""
    whole: bool = False
    """Whether there are data and all that the headers promise."""
    problem: str = ""
    """Why it is not whole."""

    @property
    def placed(self) -> bool:
        """Whether name, links or mode changed after the last write: so it is
        with a file that was renamed or linked into place (`bool`).
        """
        return self.changed_ns > self.modified_ns


@dataclass(frozen=True, slots=True)
class Take:
    """Deliver the file."""

    place: Place
    whole: bool


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look again after a pause, or when there is news of the file."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Forget the file until there is news of it."""

    kind: str
    """``vanished`` or ``never_complete``."""
    reason: str


type Verdict = Take | LookAgain | GiveUp


class Patience:
    """Decides on one file, look by look.

    Parameters
    ----------
    now : `float`
        Monotonic seconds at which the file was first heard of.
    """

    def __init__(self, now: float):
        self._since = now
        self._pause_s = FIRST_PAUSE_S
        self._last: Look | None = None
        self._last_change = now

    def judge(self, look: Look, confirmed: bool, now: float) -> Verdict:
        """Decide after a look.

        Parameters
        ----------
        look : `Look`
            What was seen.
        confirmed : `bool`
            Whether an event or a notice said that the file is finished.
        now : `float`
            Monotonic seconds.

        Returns
        -------
        verdict : `Take` or `LookAgain` or `GiveUp`
            What to do.
        """
        if look != self._last:
            self._last, self._last_change = look, now
        missing_quiet_s = self._needed_quiet_s(look, confirmed) - (now - self._last_change)
        if missing_quiet_s <= 0.0:
            if look.place is None:
                return GiveUp("vanished", f"not there for {MISSING_S:g} s")
            return Take(look.place, look.whole)
        if now - self._since >= LIMIT_S:
            return GiveUp("never_complete", f"still changing after {LIMIT_S:g} s: {look.problem}")
        pause_s = min(self._pause_s, missing_quiet_s)
        self._pause_s = min(self._pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)
        return LookAgain(pause_s)

    @staticmethod
    def _needed_quiet_s(look: Look, confirmed: bool) -> float:
        """Return for how long what was seen must stay so to be believed."""
        if look.place is None:
            return MISSING_S
        if look.whole:
            return 0.0 if confirmed or look.placed else QUIET_WHOLE_S
        return QUIET_BROKEN_S if confirmed else QUIET_UNCONFIRMED_S
