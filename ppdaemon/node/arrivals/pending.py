# SPDX-License-Identifier: BSD-3-Clause
"""Decides when the file of a pending raw is complete. Pure.

A writer either renames a finished file into place, or writes it in place and
closes it. inotify reports both, but not for writes by another host, nor for
writes before a folder was watched. A file that no event confirmed is evaluated
by its FITS structure and its time stamps. Where a marker is configured, only
the marker confirms a file.

Reading time stamps takes 0.05 ms, reading the structure of a gzipped raw of
20 MB takes 0.2 s: the structure is not read while the stamps change.
"""

import enum
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.roots import RawPath, Sighting
from ppdaemon.raws.path import RawName

__all__ = (
    "Abandon",
    "CompletenessCheck",
    "Decision",
    "Deliver",
    "ExposureFacts",
    "FileId",
    "FileState",
    "PendingRaw",
    "PendingState",
    "Recheck",
)

FIRST_PAUSE_S = 0.02
"""Pause before the second check."""
LONGEST_PAUSE_S = 0.25
"""With 60 slow writers at once the checks take 2 % of a core."""
PAUSE_GROWTH = 1.5
"""Of the pause after each check: most files are complete at the first ones."""

QUIET_INTACT_S = 0.5
"""For an intact file that no event confirmed: a slow writer may be compressing the
next HDU."""
QUIET_BROKEN_S = 2.0
"""For a confirmed file that is not intact: its worker will report the reason."""
QUIET_UNCONFIRMED_S = 10.0
"""For a file that is neither confirmed nor intact, or whose close event is still
expected: its writer may be stalled."""
MISSING_S = 10.0
"""For a file that is not visible yet when it is announced, or that was removed."""
LIMIT_S = 600.0
"""Time after which a raw that is still changing is abandoned; writing a raw takes seconds."""

MAX_FILES = 4
"""Paths at which the raw of one detector is checked."""


type FileId = tuple[int, int, int, int]
"""Device, inode, size in bytes, and time of the last write in ns: a file that was replaced has
another one, a file that was only renamed or linked has the same."""


@dataclass(frozen=True, slots=True)
class ExposureFacts:
    """Header values that all detectors of an exposure share."""

    group: str
    snap: int | None = None
    """``CURINDEX``, from 1."""
    snaps: int | None = None
    """``MAXINDEX``."""
    obsid: str | None = None


@dataclass(frozen=True, slots=True)
class FileState:
    """The result of one check of a file."""

    file: RawPath | None
    """`None` if the file is missing."""
    inode: int = 0
    size: int = 0
    modified_ns: int = 0
    """Time of the last write."""
    changed_ns: int = 0
    """Time of the last write or change of name, links or mode; in ns, as the one above."""
    written: bool | None = None
    """Whether a process has it open for writing; `None` if that is not known."""
    marked: bool = True
    """`False` if a marker is configured and missing."""
    read: bool = True
    """Whether the structure was read; if not, the fields below are not valid."""
    intact: bool = False
    """Whether the file has data and is as long as its headers require."""
    problem: str = ""
    """Why the file is not intact."""
    unusual: bool = False
    """Whether an intact file has bytes after its last HDU, or a last block that is too short."""
    has_sidecar: bool = False
    facts: ExposureFacts | None = None
    """Of the file's own header, else of its sidecar; `None` if neither has a group."""
    device: int = 0

    @property
    def file_id(self) -> FileId:
        """Identity of the file and its content."""
        return self.device, self.inode, self.size, self.modified_ns

    @property
    def seems_finished(self) -> bool:
        """Whether nobody has the file open for writing. Where that is not known, whether name, links or
        mode changed after the last write, as when a file is renamed or linked into place.
        """
        return self.changed_ns > self.modified_ns if self.written is None else not self.written

    def same_file(self, other: "FileState") -> bool:
        """Return whether the file was not written, replaced or renamed between two checks."""
        return _stamps(self) == _stamps(other)


_stamps = operator.attrgetter("file", "device", "inode", "size", "modified_ns", "changed_ns")


@dataclass(frozen=True, slots=True)
class Deliver:
    """Deliver the file: it is complete, or broken and no longer changing."""

    file: RawPath
    intact: bool
    has_sidecar: bool = False
    file_id: FileId = field(default=(0, 0, 0, 0), compare=False)
    facts: ExposureFacts | None = field(default=None, compare=False)
    """Of the file's own header, else of its sidecar; `None` if neither has a group."""


@dataclass(frozen=True, slots=True)
class Recheck:
    """Check again after a pause, or when a source reports the file as finished."""

    pause_s: float
    structure: bool = False
    """Whether the structure must be read then: everything else shows that the file is complete."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Drop the raw until a source reports it again."""

    kind: str
    """``vanished``, ``never_complete``, ``never_marked``, or ``refused.`` and the kind of error."""
    reason: str


type Decision = Deliver | Recheck | Abandon


@dataclass(slots=True)
class CompletenessCheck:
    """Decides after each check whether one file is complete."""

    since: float
    """When the file was sighted, monotonic seconds."""
    _pause_s: float = FIRST_PAUSE_S
    _last: FileState | None = None
    _last_change: float = 0.0
    _outdated: bool = False
    """Whether the file was written to after it was reported as finished."""

    def evaluate(
        self,
        state: FileState,
        now: float,
        *,
        confirmed: bool = False,
        reported: bool = False,
        close_expected: bool = False,
        age_s: float = 0.0,
    ) -> Decision:
        """Decide after a check.

        The structure was read only if `Recheck` requested it, or if a source has just reported the
        file as finished. `confirmed`: a source has ever done so; `reported`: it has since the previous
        check. `close_expected`: an event reported the creation of the file, so another one will report
        its close. `age_s`: seconds since the last change, 0 if the time stamps are not from this host.
        """
        last, fresh = self._last, state.read
        changed = last is not None and not state.same_file(last)
        # A writer may open its file twice: then the first close event does not mean that it is finished.
        self._outdated = not reported and (
            self._outdated or (changed and last is not None and last.file is not None)
        )
        confirmed = confirmed and not self._outdated
        if last is None:
            self._last_change = now - age_s
        elif changed or state.marked != last.marked:
            self._last_change = now
        elif last.read and not fresh:
            state = last  # the structure of this same file was read before
        self._last = state
        remaining_quiet_s = _required_quiet_s(state, confirmed, close_expected) - (now - self._last_change)
        if remaining_quiet_s <= 0.0 and state.file is None:
            return Abandon("vanished", f"not there for {MISSING_S:g} s")
        if remaining_quiet_s <= 0.0 and state.file is not None and state.marked:
            if fresh:
                return Deliver(state.file, state.intact, state.has_sidecar, state.file_id, state.facts)
            # Even if it was read before: stamps with a resolution of 1 s may hide the last write.
            return Recheck(0.0, structure=True)
        if now - self.since >= LIMIT_S:
            return _timed_out(state)
        pause_s = min(self._pause_s, remaining_quiet_s) if remaining_quiet_s > 0.0 else self._pause_s
        self._pause_s = min(self._pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)
        return Recheck(pause_s)

    @property
    def has_structure(self) -> bool:
        """Whether the structure was read at the last check."""
        return self._last is not None and self._last.read and self._last.file is not None

    @property
    def problem(self) -> str:
        """Why the file was not complete at the last check."""
        match self._last:
            case None:
                return "not read yet"
            case FileState(file=None):
                return "no longer there"
            case FileState(marked=False):
                return "not complete: its marker is missing"
            case FileState(problem=problem) if problem:
                return f"not complete: {problem}"
        return "not complete: it may still be written"


def _timed_out(state: FileState) -> Abandon:
    if not state.marked:
        return Abandon("never_marked", f"no marker after {LIMIT_S:g} s")
    problem = f": {state.problem}" if state.problem else ""
    return Abandon("never_complete", f"still changing after {LIMIT_S:g} s{problem}")


def _required_quiet_s(state: FileState, confirmed: bool, close_expected: bool) -> float:
    """Return for how many seconds a file must not change before it is delivered or abandoned."""
    if state.file is None:
        return MISSING_S
    if not state.marked:
        return LIMIT_S
    has_marker = state.file.marker is not None
    if not state.read or state.intact:
        if confirmed or state.seems_finished or has_marker:
            return 0.0
        if close_expected:
            return QUIET_UNCONFIRMED_S
        # Further HDUs may be written into space that was allocated before.
        return QUIET_BROKEN_S if state.unusual else QUIET_INTACT_S
    # A broken file that was renamed into place may still be written: it counts as unconfirmed.
    return QUIET_BROKEN_S if confirmed or has_marker else QUIET_UNCONFIRMED_S


class PendingState(enum.Enum):
    """The states of a pending raw."""

    QUEUED = enum.auto()
    """Its file is to be checked."""
    CHECKING = enum.auto()
    """Its file is being checked."""
    PAUSED = enum.auto()
    """The next check is due later, or when its file is reported as finished."""
    COMPLETE = enum.auto()
    """Its file is complete; its group is being read."""
    CONCLUDED = enum.auto()
    """It was delivered or abandoned."""


@dataclass(slots=True, eq=False)
class PendingRaw:
    """A raw that is not delivered yet, with all its sightings."""

    name: RawName
    source: str
    """The source that sighted it first."""
    files: list[RawPath]
    """Where it was sighted; the first is checked first."""
    sighted_unix: float
    """When a source last reported it as finished; before that, when it was first sighted."""
    _check: CompletenessCheck
    _confirmed: bool
    _close_expected: bool
    _reported: bool
    """Whether it was reported as finished since the last check began."""
    state: PendingState = PendingState.QUEUED
    changed_unix: float = 0.0
    """When the file changed last, by its time stamp."""
    complete: Deliver | None = None
    """The decision to deliver, executed when the group is known."""
    complete_mono: float = 0.0
    known: bool = False
    """Whether a file of this raw was delivered before: then this one is first compared with it."""
    redeliver: bool = False
    """Whether a file that was delivered before is delivered again."""
    end: list[Raw] | Abandon | None = None
    """The delivered raws, several of a file that holds all detectors, or why there is none; `None` before,
    and for a file that had been delivered before."""
    _reported_before_check: bool = False
    _structure: bool = False
    # Callbacks, not an asyncio.Event: it would need more memory than all other fields, for few raws.
    _when_concluded: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def of(cls, sighting: Sighting, mono: float, unix: float) -> "PendingRaw":
        """Return the pending raw for a first sighting."""
        confirmed, check = sighting.confirmed, CompletenessCheck(mono)
        return cls(
            sighting.name,
            sighting.source,
            [sighting.file],
            unix,
            check,
            confirmed,
            sighting.close_expected,
            confirmed,
        )

    def add_sighting(self, sighting: Sighting, unix: float) -> bool:
        """Add another sighting; return whether the file is to be checked now."""
        if sighting.file not in self.files and len(self.files) < MAX_FILES:
            self.files.append(sighting.file)
        self._close_expected = self._close_expected or sighting.close_expected
        if not sighting.confirmed:
            return False
        self._confirmed = self._reported = True
        self.sighted_unix = unix
        return self.state is PendingState.PAUSED

    def start_check(self) -> tuple[tuple[RawPath, ...], bool, bool]:
        """Start a check; return the paths, whether the structure is to be read, and whether writers are to
        be found: no source has just reported it as finished.
        """
        assert self.state is PendingState.QUEUED
        self.state = PendingState.CHECKING
        self._reported_before_check, self._reported = self._reported, False
        # Of a file that was delivered before only the stamps are read.
        reported = self._reported_before_check
        structure = self._structure or (reported and not self.known)
        # Not again for a file whose structure is known and did not suffice.
        writers = not (self.known or reported or self._check.has_structure)
        return tuple(self.files), structure, writers

    def evaluate(self, state: FileState, mono: float, age_s: float) -> Decision:
        """Decide after a check, and change the state accordingly."""
        assert self.state is PendingState.CHECKING
        self.changed_unix = state.changed_ns / 1e9
        decision = self._check.evaluate(
            state,
            mono,
            confirmed=self._confirmed,
            reported=self._reported_before_check,
            close_expected=self._close_expected,
            age_s=age_s,
        )
        self._structure = isinstance(decision, Recheck) and decision.structure
        if isinstance(decision, Deliver):
            self.state, self.complete, self.complete_mono = PendingState.COMPLETE, decision, mono
        elif isinstance(decision, Recheck):
            self.state = PendingState.PAUSED
            if self._reported:  # during this check, which may have been too early
                return Recheck(0.0)
        return decision

    def timed_out(self) -> None:
        """End a check without result because the filesystem hangs; the next one starts with another path."""
        assert self.state is PendingState.CHECKING
        self.state = PendingState.PAUSED
        self._reported = self._reported or self._reported_before_check
        self.files.append(self.files.pop(0))

    def recheck(self) -> None:
        """Change the state to QUEUED; the caller cancels the timer of a later check."""
        assert self.state in (PendingState.PAUSED, PendingState.COMPLETE)
        self.state = PendingState.QUEUED

    def expect_no_close(self) -> None:
        """Stop waiting for the close event of the file."""
        self._close_expected = False

    def conclude(self, *, delivered: bool, mono: float) -> bool:
        """End this raw; return `False` if it was not delivered and is queued again, because its file was
        reported during the check: it may have been replaced.
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
        """Call a function when the raw is delivered or abandoned, at once if it was."""
        if self.state is PendingState.CONCLUDED:
            call()
        else:
            self._when_concluded.append(call)

    @property
    def problem(self) -> str:
        """Why it is not delivered yet."""
        return "its group is being read" if self.state is PendingState.COMPLETE else self._check.problem

    @property
    def latency_s(self) -> float:
        """Seconds from the last change of the file to the sighting that reported it."""
        return max(0.0, self.sighted_unix - self.changed_unix)
