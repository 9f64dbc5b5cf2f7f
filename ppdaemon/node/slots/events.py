# SPDX-License-Identifier: BSD-3-Clause
"""What a slot is told (facts, past tense) and what it asks for (orders).

The facts a worker says come as they are, from `ppdaemon.messages`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppdaemon.messages import GiveUp, Ingest, Prepare, Process, Quit, Raw
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.states import Outcome, SlotState, Stage

# --- events ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerForked:
    """The zygote forked a process for this slot."""

    pid: int


@dataclass(frozen=True, slots=True)
class WorkerNotForked:
    """The zygote could not fork."""

    reason: str


@dataclass(frozen=True, slots=True)
class VisitAssigned:
    """The scheduler gave this slot a visit-detector."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class SlotAssigned:
    """The scheduler has matched a queued visit-detector and an idle slot."""

    assignment: Assignment
    slot: int
    pid: int | None


@dataclass(frozen=True, slots=True)
class RawArrived:
    """A raw of the slot's visit-detector is complete."""

    raw: Raw


@dataclass(frozen=True, slots=True)
class ExposureListed:
    """An exposure of the slot's visit was taken, and a list of its detectors
    came.
    """

    exposure: int
    included: bool
    """Whether the slot's detector is on the list."""


@dataclass(frozen=True, slots=True)
class RescanDone:
    """The last look at the expected names is over; what it found was told."""


@dataclass(frozen=True, slots=True)
class CancelReceived:
    """The slot's visit will not be taken, or not by this node."""

    reason: str = "cancelled by the telescope"


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The present state lasted too long."""


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """The meters read what this slot's worker uses."""

    used_bytes: int
    """Private bytes plus RAM-disk repo."""
    repo_bytes: int = 0
    """RAM-disk repo alone."""
    cpu_s: float = 0.0
    """CPU time of the process since its fork."""


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """The worker said something that nobody could understand."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The process is gone; everything it said has been heard."""

    status: int | None
    """Exit status, minus the signal's number, or `None` if unknown."""
    out_of_memory: bool = False
    """The kernel killed it for its memory."""


@dataclass(frozen=True, slots=True)
class RetireAsked:
    """This slot is not needed any more."""


@dataclass(frozen=True, slots=True)
class RecycleAsked:
    """This worker is of an old configuration: a new one after its visit."""


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """An operator wants a new worker here."""


@dataclass(frozen=True, slots=True)
class KillAsked:
    """An operator wants this worker dead."""

    reason: str = "killed by an operator"


# --- actions -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    """Ask the zygote for a worker, once the repo is wiped."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Send:
    """Give the worker an order."""

    order: Prepare | Ingest | Process | GiveUp | Quit


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal the worker by its pidfd."""

    number: int


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """Wake this slot at a monotonic time; replaces the one before."""

    at: float


@dataclass(frozen=True, slots=True)
class ClearDeadline:
    """This state may last as long as it likes."""


@dataclass(frozen=True, slots=True)
class WipeRepo:
    """Close the dead worker's channel, kill what it left, delete its repo."""


@dataclass(frozen=True, slots=True)
class RescanRaws:
    """Look at the expected names of a visit-detector, whatever was seen."""

    key: Key


@dataclass(frozen=True, slots=True)
class NoteStage:
    """Write a stage into the journal."""

    key: Key
    stage: Stage
    tai: float | None = None
    """When; `None` means when the pool performs this."""


@dataclass(frozen=True, slots=True)
class NoteMeasurements:
    """Write into the journal what a step took, and what it brought."""

    key: Key
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NoteRaw:
    """Write into the journal which exposures are in."""

    key: Key
    exposures: tuple[int, ...]
    shutter_close_tai: float | None


@dataclass(frozen=True, slots=True)
class Finish:
    """This attempt at the visit-detector ended."""

    assignment: Assignment
    outcome: Outcome
    reason: str = ""
    retriable: bool = False
    pipeline: str = ""
    engine: str = ""
    spool: str | None = None
    datasets: int = 0
    may_have_left: bool = False
    """Whether a mark or a spool may lie on disk that its worker sent no word of:
    it died, or failed on the way.
    """


@dataclass(frozen=True, slots=True)
class SlotChanged:
    """The state changed: the scheduler and the watchers want to know."""

    before: SlotState
    after: SlotState


Action = (
    Fork
    | Send
    | Signal
    | SetDeadline
    | ClearDeadline
    | WipeRepo
    | RescanRaws
    | NoteStage
    | NoteMeasurements
    | NoteRaw
    | Finish
    | SlotChanged
)
