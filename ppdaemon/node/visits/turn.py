# SPDX-License-Identifier: BSD-3-Clause
"""An attempt at a visit-detector, what happens to visits (facts), and what the
node does about it (orders).

Decisions are made in `ppdaemon.node.visits.core`. Of each `Turn` the writes
are committed to the journal first, the actions performed afterwards: no relay,
worker or exporter learns what the journal could forget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ppdaemon.messages import Raw, ReserveVisit, ResultEntry
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.reports import RequeueRow
from ppdaemon.selection import Chosen
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit

type VisitKey = tuple[str, str]
"""Instrument and group."""


@dataclass(slots=True)
class Entry:
    """One open row as the supervisor holds it; written when it changes."""

    key: Key
    visit: NextVisit
    received_tai: float
    stages: dict[Stage, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    """What its steps took and brought, as its worker says."""
    outcome: Outcome | None = None
    reason: str = ""
    retriable: bool = False
    final: bool = False
    """Whether this attempt's outcome is the visit-detector's."""
    pipeline: str = ""
    engine: str = ""
    slot: int | None = None
    pid: int | None = None
    exposures: tuple[int, ...] = ()
    partial: bool = False
    datasets: int = 0
    shutter_close_tai: float | None = None
    ended_tai: float | None = None
    no_return: str = ""
    seen: tuple[int, ...] = ()
    """Exposures whose raws had come when it ended, used or not."""
    asked: int = 1
    """The attempt that the relay has asked for last; it counts its own."""


# --- facts -------------------------------------------------------------------
# Besides these: `CancelVisit`, `ResultsSeen`, `Welcome` and `Exported` of
# `ppdaemon.messages`, `ExpectedSensors` of the arrivals, `Drop` of the
# scheduler, and what slots ask for their visit (`ppdaemon.node.slots.events`).


@dataclass(frozen=True, slots=True)
class Reserved:
    """The relay gives this node detectors of a visit."""

    order: ReserveVisit
    chosen: Mapping[int, Chosen]
    """By detector, of those that the node serves."""


@dataclass(frozen=True, slots=True)
class AssignmentRefused:
    """The slot was not idle any more when the assignment reached it."""

    key: Key


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What an attempt left on the state disk."""

    no_return: str = ""
    """What its mark says; blank if there is no mark."""
    spool: str | None = None
    """A complete spool."""
    why_partial: str = ""
    """Why the spool holds partial outputs only; blank if it is complete."""


@dataclass(frozen=True, slots=True)
class LeftoversRead:
    """The disk was read after a worker's death."""

    key: Key
    remains: Leftovers


@dataclass(frozen=True, slots=True)
class AttemptRecovered:
    """The previous run left this attempt without an outcome."""

    entry: Entry
    remains: Leftovers
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class RequeueAsked:
    """An operator wants detectors of a visit tried again."""

    request: int
    before: tuple[Entry, ...]
    """The last attempts in the journal."""
    chosen: Mapping[Key, Chosen]
    spools: Mapping[Key, str]
    """Outputs of those attempts that wait for export, withdrawn from the
    exporter."""
    exporting: frozenset[Key]
    """Attempts whose outputs are being exported at this moment."""
    force: bool


@dataclass(frozen=True, slots=True)
class RescanDue:
    """The turn of the event loop in which a rescan was wanted is over."""

    visit: VisitKey


@dataclass(frozen=True, slots=True)
class RescanEnded:
    """The expected names were looked at; what was found has been delivered."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class AcceptanceChanged:
    """The node takes new visits from now on, or none."""

    taking: bool


@dataclass(frozen=True, slots=True)
class StopBegun:
    """The daemon is stopping: nothing is tried again."""


@dataclass(frozen=True, slots=True)
class WriteDue:
    """Changes that nobody waits for have gathered long enough."""


@dataclass(frozen=True, slots=True)
class FlushAsked:
    """Somebody waits until everything before this is in the journal."""

    request: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """A write whose result matters is committed."""

    write: "Accept | Requeue | NoteRaws"
    result: object


@dataclass(frozen=True, slots=True)
class NotRecorded:
    """A write that may fail has failed; nothing of it is in the journal."""

    write: "Accept | Requeue"
    reason: str


# --- writes ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept:
    """Insert attempts; the result is which of them are new (`list` [`bool`])."""

    reserved: Reserved
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """Write what has changed in existing rows."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """End an attempt and insert the next one."""

    before: Entry
    entry: Entry


@dataclass(frozen=True, slots=True)
class Requeue:
    """Insert one more attempt after outcomes that were final, unless another
    attempt has been accepted meanwhile.
    """

    request: int
    before: tuple[Entry, ...]
    entries: tuple[Entry, ...]
    spools: tuple[str, ...]
    """Outputs that the next attempts make again."""
    rows: tuple[RequeueRow, ...]
    """What the operator is told if it succeeds."""


@dataclass(frozen=True, slots=True)
class NoteRaws:
    """List those raws as late whose visit-detector ended without them; the
    result is how many were late and how many unmatched.
    """

    raws: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class NoteReported:
    """The relay has these outcomes: instrument, group, detector, attempt."""

    keys: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Unreport:
    """The relay has asked again for what has ended."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class NoteExported:
    """Outputs of these attempts are in the central repo."""

    keys: tuple[Key, ...]
    tai: float


type Write = Accept | Update | Retry | Requeue | NoteRaws | NoteReported | Unreport | NoteExported


# --- actions -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the relay that the journal has these detectors."""

    order: ReserveVisit
    detectors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the relay that these detectors are not taken."""

    order: ReserveVisit
    detectors: tuple[int, ...]
    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Send outcomes to the relay."""

    entries: tuple[ResultEntry, ...]


@dataclass(frozen=True, slots=True)
class ReportAgain:
    """Send all outcomes that the relay has not confirmed."""


@dataclass(frozen=True, slots=True)
class ToSlot:
    """Give a slot an event of its visit, if it still has that attempt."""

    slot: int
    key: Key
    event: object


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Give a visit-detector to the scheduler."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Dequeue:
    """Take a visit-detector from the scheduler, if it still waits there."""

    key: Key


@dataclass(frozen=True, slots=True)
class LeaveIdle:
    """The slot gets no visit after all."""

    slot: int


@dataclass(frozen=True, slots=True)
class Export:
    """Give the exporter a spool."""

    spool: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete folders, beside the event loop."""

    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class RemoveMark:
    """Delete the mark of an attempt whose outcome is final."""

    key: Key


@dataclass(frozen=True, slots=True)
class ReadLeftovers:
    """Read what an attempt left on disk; `LeftoversRead` follows."""

    key: Key


@dataclass(frozen=True, slots=True)
class BeginRescan:
    """Post `RescanDue` in the next turn of the event loop."""

    visit: VisitKey


@dataclass(frozen=True, slots=True)
class Rescan:
    """Look for raws at the expected names; `RescanEnded` follows."""

    visit: NextVisit
    since_tai: float
    """When the visit was announced."""
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request."""

    request: int
    rows: tuple[RequeueRow, ...] = ()
    refused: str = ""


type Action = (
    Acknowledge
    | Refuse
    | Report
    | ReportAgain
    | ToSlot
    | Enqueue
    | Dequeue
    | LeaveIdle
    | Export
    | Discard
    | RemoveMark
    | ReadLeftovers
    | BeginRescan
    | Rescan
    | Answer
)


@dataclass(slots=True)
class Turn:
    """What follows from one event."""

    writes: list[Write] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    write_soon: bool = False
    """Whether rows have changed that may be written with others later."""


class Now(NamedTuple):
    """One moment on both clocks."""

    mono: float
    """Monotonic seconds: deadlines."""
    tai: float
    """TAI seconds since 1970: what is written down."""
