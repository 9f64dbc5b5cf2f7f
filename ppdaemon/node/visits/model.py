# SPDX-License-Identifier: BSD-3-Clause
"""The data classes that `Visits` and the pump exchange.

A `JournalEntry` is one attempt at a visit-detector. Events (past tense) go
into `Visits.handle`; the `Effects` that it returns consist of journal writes
and actions (imperatives). The pump commits the writes first and performs the
actions afterwards: no relay, worker or exporter learns what a crash could
undo.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ppdaemon.messages import (
    CancelVisit,
    DetectorsOfVisit,
    PermitRefused,
    Permitted,
    Raw,
    ReserveVisit,
    ResultEntry,
    ResultsSeen,
    Welcome,
)
from ppdaemon.node.arrivals.nottaken import FileNotTaken
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.reports import CatchupState, RequeueRow
from ppdaemon.selection import PipelineChoice
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import NextVisit

type VisitKey = tuple[str, str]
"""Instrument and group."""


@dataclass(slots=True)
class JournalEntry:
    """One row of the journal in memory: an attempt at a visit-detector.

    Its fields have the names of the columns.
    """

    key: Key
    visit: NextVisit
    received_tai: float
    stages: dict[Stage, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    """Durations and counts that the worker has measured."""
    outcome: Outcome | None = None
    reason: str = ""
    retriable: bool = False
    final: bool = False
    """Whether this attempt's outcome is the outcome of the visit-detector."""
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
    """Exposures whose raws had arrived when the attempt ended, used or not."""
    asked: int = 1
    """The last attempt number of the relay, which counts attempts on its own."""
    reported: bool = False
    """Whether the relay has confirmed the outcome."""
    received_mono: float = 0.0
    """When the visit was received as far as is known, monotonic seconds of this boot of the host."""


# --- events ------------------------------------------------------------------
# Besides these: `CancelVisit`, `ResultsSeen`, `Welcome`, `Permitted`, `PermitRefused`, `Exported` and
# `ImagesGivenUp` of `ppdaemon.messages`, `ExpectedSensors` of the arrivals, `Drop` of the scheduler, and
# the actions of slots that concern their visit (`ppdaemon.node.slots.events`).


@dataclass(frozen=True, slots=True)
class Reserved:
    """The relay has reserved detectors of a visit on this node."""

    message: ReserveVisit
    chosen: Mapping[int, PipelineChoice]
    """By detector, only those that the node serves."""


@dataclass(frozen=True, slots=True)
class AssignmentRefused:
    """The slot was no longer idle when the assignment reached it."""

    key: Key


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The files of an attempt on the state disk after its worker's death."""

    no_return: str = ""
    """Text of the point-of-no-return mark; blank if there is no mark."""
    spool: str | None = None
    """Path of a complete spool folder."""
    why_partial: str = ""
    """Why the spool has partial outputs only; blank if it has all."""


@dataclass(frozen=True, slots=True)
class LeftoversRead:
    """The leftovers of a dead worker have been read."""

    key: Key
    leftovers: Leftovers


@dataclass(frozen=True, slots=True)
class AttemptRecovered:
    """The previous run ended before this attempt had an outcome."""

    entry: JournalEntry
    leftovers: Leftovers
    chosen: PipelineChoice


@dataclass(frozen=True, slots=True)
class RequeueRequested:
    """An operator has requested another attempt at detectors of a visit."""

    request: int
    before: tuple[JournalEntry, ...]
    """The last attempts in the journal."""
    chosen: Mapping[Key, PipelineChoice]
    spools: Mapping[Key, str]
    """Spools of those attempts that were withdrawn from the exporter."""
    exporting: frozenset[Key]
    """Attempts whose outputs are being exported now."""
    force: bool
    lost: frozenset[Key] = frozenset()
    """Attempts whose outputs are neither in the central repo nor on their way to it."""


@dataclass(frozen=True, slots=True)
class RescanDue:
    """A rescan of this visit was requested in the last step of the event loop."""

    visit: VisitKey


@dataclass(frozen=True, slots=True)
class RescanFinished:
    """The expected paths were checked; the raws found have been delivered."""

    keys: tuple[Key, ...]
    not_taken: tuple[FileNotTaken, ...] = ()


@dataclass(frozen=True, slots=True)
class AcceptanceChanged:
    """The node accepts new visits from now on, or stops accepting them."""

    accepting: bool


@dataclass(frozen=True, slots=True)
class StopStarted:
    """The daemon is stopping: nothing is retried."""

    hand_back: bool
    """Whether a relay takes back what is not processed yet."""


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """Some slot can take a visit-detector again, or none can any more."""

    problem: str
    """Why none can, or blank."""
    hand_back: bool
    """Whether the relay takes back what is queued."""


@dataclass(frozen=True, slots=True)
class PermitsDue:
    """Permits that were not answered are asked for again."""


@dataclass(frozen=True, slots=True)
class RelayLost:
    """The relay does not answer any more."""


type FromLink = ReserveVisit | CancelVisit | Permitted | PermitRefused | ResultsSeen | Welcome | RelayLost
"""Messages of the relay about visits, and its loss."""


@dataclass(frozen=True, slots=True)
class WriteDue:
    """Changes that need no immediate commit were collected long enough."""


@dataclass(frozen=True, slots=True)
class FlushRequested:
    """A request waits until all previous events are in the journal."""

    request: int


@dataclass(frozen=True, slots=True)
class WriteCommitted:
    """A write whose result matters is committed."""

    write: "Accept | Requeue | RecordLateRaws"
    result: object


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """A write that may fail has failed; nothing of it is in the journal."""

    write: "Accept | Requeue"
    reason: str


# --- writes ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept:
    """Insert attempts; the result is the number of each new one (`list` [`int` or `None`])."""

    reserved: Reserved
    entries: tuple[JournalEntry, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """Write the changes of existing rows."""

    entries: tuple[JournalEntry, ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """Write the end of an attempt and insert the next one."""

    before: JournalEntry
    entry: JournalEntry


@dataclass(frozen=True, slots=True)
class Requeue:
    """Insert one more attempt after final outcomes, unless another attempt
    has been accepted in the meantime.
    """

    request: int
    before: tuple[JournalEntry, ...]
    entries: tuple[JournalEntry, ...]
    spools: tuple[str, ...]
    """Outputs that the next attempts produce again."""
    rows: tuple[RequeueRow, ...]
    """The reply to the operator if the write succeeds."""


@dataclass(frozen=True, slots=True)
class RecordLateRaws:
    """List those raws as late whose visit-detector ended without them; the
    result is the number of late raws and of unmatched raws.
    """

    raws: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class MarkReported:
    """Mark outcomes that the relay has: instrument, group, detector, attempt."""

    keys: tuple[tuple[str, str, int, int], ...]
    moved: tuple[tuple[str, str, int, int], ...] = ()
    """Those that do not count there: another node has the detector."""


@dataclass(frozen=True, slots=True)
class MarkUnreported:
    """Mark outcomes to be sent again: the relay has requested these attempts."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class MarkExported:
    """Mark attempts whose outputs are in the central repo."""

    keys: tuple[Key, ...]
    tai: float
    skipped: Mapping[Key, str] = field(default_factory=dict)
    """Which of their datasets are not, and whose are instead."""


@dataclass(frozen=True, slots=True)
class MarkGivenUp:
    """Note the types of images of attempts that were deleted, because too much waited for export."""

    types: Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class MarkQuarantined:
    """Note attempts whose outputs cannot be exported, until they are."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class MarkCatchup:
    """Mark attempts that the catch-up processes or has processed."""

    keys: tuple[Key, ...]
    state: CatchupState
    """``released`` removes the mark."""
    run: str
    """Output run of the catch-up."""
    tai: float


@dataclass(frozen=True, slots=True)
class MarkLost:
    """Mark attempts whose outputs are gone, and were not exported as far as is known, as interrupted."""

    keys: tuple[Key, ...]
    reason: str = ""
    """A blank: it is marked only if the host has booted since. Otherwise the outputs may have been exported,
    and the daemon has ended before it noted that."""


@dataclass(frozen=True, slots=True)
class CountRecycled:
    """Count a worker that was replaced, for the report of the night."""

    cause: str
    tai: float


type Write = (
    Accept
    | Update
    | Retry
    | Requeue
    | RecordLateRaws
    | MarkReported
    | MarkUnreported
    | MarkExported
    | MarkGivenUp
    | MarkQuarantined
    | MarkLost
    | MarkCatchup
    | CountRecycled
)


# --- actions -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Send the relay that the journal has these detectors."""

    message: ReserveVisit
    detectors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Send the relay that these detectors are not accepted."""

    message: ReserveVisit
    detectors: tuple[int, ...]
    reason: str
    final: bool
    """Whether sending them again is useless."""


@dataclass(frozen=True, slots=True)
class SendResults:
    """Send outcomes to the relay."""

    entries: tuple[ResultEntry, ...]


@dataclass(frozen=True, slots=True)
class ResendResults:
    """Send all outcomes that the relay has not confirmed."""


@dataclass(frozen=True, slots=True)
class AskPermits:
    """Ask the relay for permits; `Permitted` or `PermitRefused` follows."""

    visits: tuple[DetectorsOfVisit, ...]
    at_once: bool = False
    """Whether they, and those that are still collected for one message, are asked for now."""


@dataclass(frozen=True, slots=True)
class SendToSlot:
    """Send a slot an event of its visit, if it still has that attempt."""

    slot: int
    key: Key
    event: object


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Add a visit-detector to the scheduler's queue."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Dequeue:
    """Remove a visit-detector from the scheduler's queue, if it is there."""

    key: Key


@dataclass(frozen=True, slots=True)
class LeaveIdle:
    """Free the slot that the scheduler has matched: it gets no visit."""

    slot: int


@dataclass(frozen=True, slots=True)
class Export:
    """Add a spool to the exporter's queue."""

    spool: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete folders in a thread."""

    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class RemoveMark:
    """Delete the point-of-no-return mark of an attempt whose outcome is final."""

    key: Key


@dataclass(frozen=True, slots=True)
class ReadLeftovers:
    """Read the leftovers of an attempt; `LeftoversRead` follows."""

    key: Key


@dataclass(frozen=True, slots=True)
class BeginRescan:
    """Post `RescanDue` in the next step of the event loop."""

    visit: VisitKey


@dataclass(frozen=True, slots=True)
class Rescan:
    """Search for raws at the expected paths; `RescanFinished` follows."""

    visit: NextVisit
    since_tai: float
    """When the visit was announced."""
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Reply to a request."""

    request: int
    rows: tuple[RequeueRow, ...] = ()
    refused: str = ""


type Action = (
    Acknowledge
    | Refuse
    | SendResults
    | ResendResults
    | AskPermits
    | SendToSlot
    | Enqueue
    | Dequeue
    | LeaveIdle
    | Export
    | Discard
    | RemoveMark
    | ReadLeftovers
    | BeginRescan
    | Rescan
    | Reply
)


@dataclass(slots=True)
class Effects:
    """The result of one event: writes to commit, then actions to perform."""

    writes: list[Write] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    write_soon: bool = False
    """Whether rows have changed that may be committed later with others."""
    ask_again: bool = False
    """Whether permits were asked for that have no answer."""


class Now(NamedTuple):
    """The current time on both clocks."""

    mono: float
    """Monotonic seconds: deadlines."""
    tai: float
    """TAI seconds since 1970: recorded times."""
