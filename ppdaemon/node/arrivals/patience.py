# SPDX-License-Identifier: BSD-3-Clause
"""When a raw file is complete: what was seen of it, and what to do next. Pure.

A writer either renames a finished file into place, or writes it in place and
closes it. inotify tells of both, but not for what another host writes, nor
for what happened before a folder was watched. What no event confirmed is
judged by its structure and by its time stamps. Where a marker is configured,
nothing else confirms.

Time stamps cost 0.05 ms, the structure of a gzipped raw of 20 MB 0.2 s: while
stamps change, the structure is not looked at.
"""

from dataclasses import dataclass

from ppdaemon.node.arrivals.roots import RawPath

__all__ = ("GiveUp", "Look", "LookAgain", "Patience", "Take", "Verdict")

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25
"""60 slow writers at once cost 2 % of a core."""
PAUSE_GROWTH = 1.5

QUIET_WHOLE_S = 0.5
"""A whole file that nobody confirmed: a slow writer could be between two
HDUs, which takes it the time of compressing one."""
QUIET_BROKEN_S = 2.0
"""A file that was confirmed and is not whole: its reader will say why."""
QUIET_UNCONFIRMED_S = 10.0
"""A file that is neither confirmed nor whole, or that was seen to appear and
not to be closed: its writer may be stalled."""
MISSING_S = 10.0
"""A file that was announced before it can be seen, or was taken away."""
LIMIT_S = 600.0
"""No raw takes so long to write."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a file showed."""

    place: RawPath | None
    """Where the file is; `None` if it is missing."""
    inode: int = 0
    size: int = 0
    modified_ns: int = 0
    """Time of the last write."""
    changed_ns: int = 0
    """Time of the last write or change of name, links or mode."""
    age_s: float = 0.0
    """How long ago the last change was, where the time stamps tell: those of
    a file server do not."""
    marked: bool = True
    """`False` if its marker is missing, where there is to be one."""
    read: bool = True
    """Whether its structure was looked at; if not, the next two say nothing."""
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

    def same_file(self, other: "Look") -> bool:
        """Tell whether nothing was written, replaced or renamed in between."""
        return (self.place, self.inode, self.size, self.modified_ns, self.changed_ns) == (
            other.place,
            other.inode,
            other.size,
            other.modified_ns,
            other.changed_ns,
        )


@dataclass(frozen=True, slots=True)
class Take:
    """Deliver the file."""

    place: RawPath
    whole: bool


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look again after a pause, or when there is news of the file."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Forget the file until there is news of it."""

    kind: str
    """``vanished``, ``never_complete`` or ``never_marked``."""
    reason: str


type Verdict = Take | LookAgain | GiveUp


class Patience:
    """Decides on one file, look by look.

    Parameters
    ----------
    now : `float`
        Monotonic seconds at which the file was first heard of.
    """

    __slots__ = ("_last", "_last_change", "_outdated", "_pause_s", "_read_again", "_recalled", "_since")

    def __init__(self, now: float):
        self._since = now
        self._pause_s = FIRST_PAUSE_S
        self._last: Look | None = None
        self._last_change = now
        self._recalled = self._read_again = False
        self._outdated = False
        """Whether it was written to after it was said to be finished."""

    def recall(self, stamps: Look, confirmed: bool, news: bool) -> Look | None:
        """Decide whether the structure is worth its price now.

        Parameters
        ----------
        stamps : `Look`
            What the file's time stamps say; its structure was not looked at.
        confirmed : `bool`
            Whether an event or a notice said that the file is finished.
        news : `bool`
            Whether there was one since the last look.

        Returns
        -------
        look : `Look` or `None`
            What is to be judged by, or `None` if the structure must be looked
            at.
        """
        # A writer that opens its file twice is heard to close it twice.
        self._outdated = not news and (self._outdated or self._is_rewritten(stamps))
        confirmed = confirmed and not self._outdated
        again, self._read_again = self._read_again, False
        quiet = self._last is None and stamps.age_s >= QUIET_WHOLE_S
        look = self._known(stamps, quiet or _finished(stamps, confirmed), news, again)
        self._recalled = look is not None
        return look

    def judge(self, look: Look, confirmed: bool, now: float, *, begun: bool = False) -> Verdict:
        """Decide after a look.

        Parameters
        ----------
        look : `Look`
            What was seen, or what `recall` returned.
        confirmed : `bool`
            Whether an event or a notice said that the file is finished.
        now : `float`
            Monotonic seconds.
        begun : `bool`, optional
            Whether an event said that the file appeared: another one will say
            that it is closed.

        Returns
        -------
        verdict : `Take` or `LookAgain` or `GiveUp`
            What to do.
        """
        confirmed = confirmed and not self._outdated
        recalled, self._recalled = self._recalled, False
        if self._last is None:
            self._last_change = now - look.age_s
        elif not look.same_file(self._last) or look.marked != self._last.marked:
            self._last_change = now
        self._last = look
        missing_quiet_s = _needed_quiet_s(look, confirmed, begun) - (now - self._last_change)
        if missing_quiet_s <= 0.0:
            if look.place is None:
                return GiveUp("vanished", f"not there for {MISSING_S:g} s")
            if not recalled:
                return Take(look.place, look.whole)
            # Stamps as coarse as 1 s may hide the last write.
            self._read_again = True
        if now - self._since >= LIMIT_S:
            return self._given_up(look)
        pause_s = min(self._pause_s, missing_quiet_s) if missing_quiet_s > 0.0 else FIRST_PAUSE_S
        self._pause_s = min(self._pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)
        return LookAgain(pause_s)

    def _known(self, stamps: Look, finished: bool, news: bool, again: bool) -> Look | None:
        last = self._last
        if not stamps.marked:
            return stamps
        if last is None or not last.marked or news:
            return None if finished else stamps
        if not stamps.same_file(last):
            return stamps  # it is being written
        if last.read:
            return None if again else last
        return None if again or finished else stamps

    def _is_rewritten(self, stamps: Look) -> bool:
        last = self._last
        return last is not None and last.place is not None and not stamps.same_file(last)

    @staticmethod
    def _given_up(look: Look) -> GiveUp:
        if not look.marked:
            return GiveUp("never_marked", f"no marker after {LIMIT_S:g} s")
        problem = f": {look.problem}" if look.problem else ""
        return GiveUp("never_complete", f"still changing after {LIMIT_S:g} s{problem}")


def _finished(look: Look, confirmed: bool) -> bool:
    """Tell whether something says that the writer is done."""
    marked = look.place is not None and look.place.marker is not None and look.marked
    return confirmed or look.placed or marked


def _needed_quiet_s(look: Look, confirmed: bool, begun: bool) -> float:
    """Return for how long what was seen must stay so to be believed."""
    if look.place is None:
        return MISSING_S
    if not look.marked:
        return LIMIT_S
    if not look.read or look.whole:
        if _finished(look, confirmed):
            return 0.0
        return QUIET_UNCONFIRMED_S if begun else QUIET_WHOLE_S
    # What was renamed into place while half written is still being written.
    sure = confirmed or look.place.marker is not None
    return QUIET_BROKEN_S if sure else QUIET_UNCONFIRMED_S
