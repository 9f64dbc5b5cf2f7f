# SPDX-License-Identifier: BSD-3-Clause
"""A raw that was sighted and is not delivered yet, and when its file is complete. Pure.

A writer either renames a finished file into place, or writes it in place and
closes it. inotify reports both, but not for what another host writes, nor for
what happened before a folder was watched. What no event confirmed is judged
by its structure and by its time stamps. Where a marker is configured, nothing
else confirms.

Time stamps cost 0.05 ms, the structure of a gzipped raw of 20 MB 0.2 s: while
stamps change, the structure is not read.
"""

import enum
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

from ppdaemon.node.arrivals.roots import RawPath, Sighting
from ppdaemon.raws.path import RawName

__all__ = (
    "Abandon",
    "CompletenessCheck",
    "Decision",
    "Deliver",
    "FileState",
    "PendingRaw",
    "PendingState",
    "Recheck",
)

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25
"""60 slow writers at once cost 2 % of a core."""
PAUSE_GROWTH = 1.5

QUIET_WHOLE_S = 0.5
"""A whole file that nobody confirmed: a slow writer could be between two
HDUs, which takes it the time of compressing one."""
QUIET_BROKEN_S = 2.0
"""A file that was confirmed and is not whole: the worker will report why."""
QUIET_UNCONFIRMED_S = 10.0
"""A file that is neither confirmed nor whole, or that was seen to appear and
not to be closed: its writer may be stalled."""
MISSING_S = 10.0
"""A file that was announced before it can be seen, or was taken away."""
LIMIT_S = 600.0
"""No raw takes so long to write."""

MOST_FILES = 4
"""Paths under which the raw of one detector is looked for."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What one look at a file found."""

    file: RawPath | None
    """Where the file is; `None` if it is missing."""
    inode: int = 0
    size: int = 0
    modified_ns: int = 0
    """Time of the last write."""
    changed_ns: int = 0
    """Time of the last write or change of name, links or mode."""
    marked: bool = True
    """`False` if its marker is missing, where there is to be one."""
    read: bool = True
    """Whether its structure was read; if not, the next ones mean nothing."""
    whole: bool = False
    """Whether there are data and all that the headers promise."""
    problem: str = ""
    """Why it is not whole."""
    has_sidecar: bool = False

    @property
    def placed(self) -> bool:
        """Whether name, links or mode changed after the last write: so it is
        with a file that was renamed or linked into place.
        """
        return self.changed_ns > self.modified_ns

    def same_file(self, other: "FileState") -> bool:
        """Return whether nothing was written, replaced or renamed in between."""
        return _stamps(self) == _stamps(other)


_stamps = operator.attrgetter("file", "inode", "size", "modified_ns", "changed_ns")


@dataclass(frozen=True, slots=True)
class Deliver:
    """The file is complete, or as complete as it will be."""

    file: RawPath
    whole: bool
    has_sidecar: bool = False


@dataclass(frozen=True, slots=True)
class Recheck:
    """Look again after a pause, or when a source reports the file as finished."""

    pause_s: float
    structure: bool = False
    """Whether the structure must be read then, because all else shows that it is complete."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Forget the file until a source reports it again."""

    kind: str
    """``vanished``, ``never_complete``, ``never_marked``, or ``refused.`` and why."""
    reason: str


type Decision = Deliver | Recheck | Abandon


@dataclass(slots=True)
class CompletenessCheck:
    """Decides whether one file is complete, from one look at it to the next."""

    since: float
    """When it was sighted, monotonic seconds."""
    _pause_s: float = FIRST_PAUSE_S
    _last: FileState | None = None
    _last_change: float = 0.0
    _outdated: bool = False
    """Whether it was written to after it was reported as finished."""

    def judge(
        self,
        state: FileState,
        now: float,
        *,
        confirmed: bool = False,
        reported: bool = False,
        begun: bool = False,
        age_s: float = 0.0,
    ) -> Decision:
        """Decide after a look.

        The structure is read only if `Recheck` asked for it, or if a source has just reported the
        file as finished. `confirmed` is whether one ever did, `reported` whether one did since the look
        before this one. `begun` is whether an event reported that the file appeared, so that
        another one will report that it is closed. `age_s` is how long ago the last change was,
        where the time stamps show it: those of a file server do not.
        """
        last, fresh = self._last, state.read
        changed = last is not None and not state.same_file(last)
        # A writer that opens its file twice is reported to close it twice.
        self._outdated = not reported and (
            self._outdated or (changed and last is not None and last.file is not None)
        )
        confirmed = confirmed and not self._outdated
        if last is None:
            self._last_change = now - age_s
        elif changed or state.marked != last.marked:
            self._last_change = now
        elif last.read and not fresh:
            state = last  # its structure is known
        self._last = state
        missing_quiet_s = _needed_quiet_s(state, confirmed, begun) - (now - self._last_change)
        if missing_quiet_s <= 0.0 and state.file is None:
            return Abandon("vanished", f"not there for {MISSING_S:g} s")
        if missing_quiet_s <= 0.0 and state.file is not None and state.marked:
            if fresh:
                return Deliver(state.file, state.whole, state.has_sidecar)
            # Even if it was read before: stamps as coarse as 1 s may hide the last write.
            return Recheck(0.0, structure=True)
        if now - self.since >= LIMIT_S:
            return _out_of_time(state)
        pause_s = min(self._pause_s, missing_quiet_s) if missing_quiet_s > 0.0 else self._pause_s
        self._pause_s = min(self._pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)
        return Recheck(pause_s)


def _out_of_time(state: FileState) -> Abandon:
    if not state.marked:
        return Abandon("never_marked", f"no marker after {LIMIT_S:g} s")
    problem = f": {state.problem}" if state.problem else ""
    return Abandon("never_complete", f"still changing after {LIMIT_S:g} s{problem}")


def _needed_quiet_s(state: FileState, confirmed: bool, begun: bool) -> float:
    """Return for how long what was seen must stay so to be believed."""
    if state.file is None:
        return MISSING_S
    if not state.marked:
        return LIMIT_S
    has_marker = state.file.marker is not None
    if not state.read or state.whole:
        if confirmed or state.placed or has_marker:
            return 0.0
        return QUIET_UNCONFIRMED_S if begun else QUIET_WHOLE_S
    # What was renamed into place while half written is still being written.
    return QUIET_BROKEN_S if confirmed or has_marker else QUIET_UNCONFIRMED_S


class PendingState(enum.Enum):
    """Where a pending raw is."""

    QUEUED = enum.auto()
    """It waits for a look at its file."""
    CHECKING = enum.auto()
    """The look is under way."""
    PAUSED = enum.auto()
    """The next look is due later, or when its file is reported as finished."""
    COMPLETE = enum.auto()
    """Its file is complete; its group is being found out."""
    CONCLUDED = enum.auto()
    """It was delivered or abandoned."""


@dataclass(slots=True, eq=False)
class PendingRaw:
    """A raw that is not delivered yet, whichever sources sighted it and wherever."""

    name: RawName
    source: str
    """Which source sighted it first."""
    files: list[RawPath]
    """Where it was sighted; the first is looked at first."""
    sighted_unix: float
    """When a source last reported it as finished, or else sighted it first."""
    _check: CompletenessCheck
    _confirmed: bool
    _begun: bool
    _reported: bool
    """Whether it was reported as finished since the last look began."""
    state: PendingState = PendingState.QUEUED
    changed_unix: float = 0.0
    """When the file was last seen to change."""
    complete: Deliver | None = None
    """What is to be delivered once the group is known."""
    complete_mono: float = 0.0
    _reported_before_look: bool = False
    _structure: bool = False
    # Few are waited for, and an event takes more than all the rest.
    _when_concluded: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def of(cls, sighting: Sighting, mono: float, unix: float) -> "PendingRaw":
        """Return what the first sighting begins."""
        confirmed, check = sighting.confirmed, CompletenessCheck(mono)
        return cls(
            sighting.name, sighting.source, [sighting.file], unix, check, confirmed, sighting.begun, confirmed
        )

    def sighted_again(self, sighting: Sighting, unix: float) -> bool:
        """Take another sighting; return whether the file is to be looked at now."""
        if sighting.file not in self.files and len(self.files) < MOST_FILES:
            self.files.append(sighting.file)
        self._begun = self._begun or sighting.begun
        if not sighting.confirmed:
            return False
        self._confirmed = self._reported = True
        self.sighted_unix = unix
        return self.state is PendingState.PAUSED

    def order(self) -> tuple[tuple[RawPath, ...], bool]:
        """Begin a look; return where, and whether the structure is to be read."""
        assert self.state is PendingState.QUEUED
        self.state = PendingState.CHECKING
        self._reported_before_look, self._reported = self._reported, False
        return tuple(self.files), self._structure or self._reported_before_look

    def judge(self, state: FileState, mono: float, age_s: float) -> Decision:
        """Decide after a look."""
        assert self.state is PendingState.CHECKING
        self.changed_unix = state.changed_ns / 1e9
        decision = self._check.judge(
            state,
            mono,
            confirmed=self._confirmed,
            reported=self._reported_before_look,
            begun=self._begun,
            age_s=age_s,
        )
        self._structure = isinstance(decision, Recheck) and decision.structure
        if isinstance(decision, Deliver):
            self.state, self.complete, self.complete_mono = PendingState.COMPLETE, decision, mono
        elif isinstance(decision, Recheck):
            self.state = PendingState.PAUSED
            if self._reported:
                return Recheck(0.0)
        return decision

    def not_answered(self) -> None:
        """End a look without result: where it is first looked for does not answer."""
        assert self.state is PendingState.CHECKING
        self.state = PendingState.PAUSED
        self._reported = self._reported or self._reported_before_look
        self.files.append(self.files.pop(0))

    def look_again(self) -> None:
        """Queue it for a look; a later one is not waited for."""
        assert self.state in (PendingState.PAUSED, PendingState.COMPLETE)
        self.state = PendingState.QUEUED

    def expect_no_end(self) -> None:
        """Wait for no event that reports that it is closed."""
        self._begun = False

    def conclude(self, *, delivered: bool, mono: float) -> bool:
        """End it; return `False` if it was not delivered and begins again, because its file
        was reported while it was looked at: it may be another one by now.
        """
        if not delivered and self._reported:
            self._check = CompletenessCheck(mono)
            self.state = PendingState.QUEUED
            return False
        self.state = PendingState.CONCLUDED
        for call in self._when_concluded:
            call()
        return True

    def when_concluded(self, call: Callable[[], None]) -> None:
        """Call a function when it is delivered or abandoned, at once if it is."""
        if self.state is PendingState.CONCLUDED:
            call()
        else:
            self._when_concluded.append(call)

    @property
    def lag_s(self) -> float:
        """Seconds from the last change of the file to the sighting that reported it."""
        return max(0.0, self.sighted_unix - self.changed_unix)
