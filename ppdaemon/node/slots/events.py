# SPDX-License-Identifier: BSD-3-Clause
"""Events that a slot handles (facts, past tense) and actions that it returns (orders).

The facts that a worker sends are handled as they are, from `ppdaemon.messages`.
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppdaemon.messages import Cross, GiveUp, Ingest, Prepare, Process, Quit, Raw
from ppdaemon.node.slots.assignment import Assignment, Key
from ppdaemon.processes import GROUP_SIGNALS, STOP_SIGNAL
from ppdaemon.states import Outcome, SlotState, Stage

_SENT_BY_OTHERS = frozenset((signal.SIGKILL, STOP_SIGNAL, *GROUP_SIGNALS))
"""Signals that a process does not get because of an error of its own."""

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
    """The scheduler assigned a visit-detector to this slot."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class SlotAssigned:
    """The scheduler matched a queued visit-detector with an idle slot."""

    assignment: Assignment
    slot: int
    pid: int | None


@dataclass(frozen=True, slots=True)
class RawArrived:
    """A raw of the slot's visit-detector is complete."""

    raw: Raw


@dataclass(frozen=True, slots=True)
class ExposureListed:
    """An exposure of the slot's visit was taken, and its list of detectors arrived."""

    exposure: int
    included: bool
    """Whether the slot's detector is on the list."""


@dataclass(frozen=True, slots=True)
class RescanDone:
    """The final rescan for expected raws is over; the raws that it found were delivered before."""

    not_taken: int = 0
    """Number of files in the expected folders that are not used for this visit-detector."""
    text: str = ""
    """Some of these files with the reasons."""


@dataclass(frozen=True, slots=True)
class CancelReceived:
    """The slot's visit will not be taken, or not by this node."""

    reason: str = "canceled by the telescope"


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The relay has ended the slot's visit-detector, or given it to another node."""

    reason: str


@dataclass(frozen=True, slots=True)
class CrossingAllowed:
    """The worker may do the step that it waits for."""

    what: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The time limit of the present state passed."""


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """The resource use of this slot's worker was measured."""

    used_bytes: int
    """Private memory plus RAM-disk repo."""
    repo_bytes: int = 0
    """RAM-disk repo alone."""
    cpu_s: float = 0.0
    """CPU time of the process since its fork."""


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """The worker sent a message that is invalid, or invalid in this state."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The process ended; all its messages were handled before."""

    status: int | None
    """Exit status, minus the number of the signal, or `None` if unknown."""
    out_of_memory: bool = False
    """Whether the kernel killed it because of its memory limit."""

    @property
    def by_others(self) -> bool:
        """Whether it did not end by itself, as far as is known: a signal of an operator, of a batch
        system, or of a kernel without memory.
        """
        return not self.out_of_memory and (self.status is None or -self.status in _SENT_BY_OTHERS)


@dataclass(frozen=True, slots=True)
class RetireRequested:
    """The slot is no longer needed."""


@dataclass(frozen=True, slots=True)
class RecycleRequested:
    """This worker is replaced, after its visit if it has one."""

    cause: str = "configuration"
    """As in `NoteRecycled`."""
    note: str = "recycled: the configuration was reloaded"


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """An operator asked for a new worker."""


@dataclass(frozen=True, slots=True)
class KillRequested:
    """An operator asked to kill the worker, or the daemon stops."""

    reason: str = "killed by an operator"


# --- actions -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    """Ask the zygote for a worker, once the repo is wiped."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send the worker an order."""

    order: Prepare | Ingest | Process | Cross | GiveUp | Quit


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal the worker by its pidfd."""

    number: int


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """Set the slot's deadline, in monotonic seconds; replaces the previous one."""

    at: float


@dataclass(frozen=True, slots=True)
class ClearDeadline:
    """Remove the slot's deadline: this state has no time limit."""


@dataclass(frozen=True, slots=True)
class WipeRepo:
    """Close the dead worker's channel, kill its remaining descendants, delete its repo."""


@dataclass(frozen=True, slots=True)
class AskToCross:
    """Ask whether the worker may do a step that must be done on one node only."""

    key: Key
    what: str
    """A task, or a blank: the completion of the spool."""


@dataclass(frozen=True, slots=True)
class RescanRaws:
    """Search the raw roots once more for the expected raws of a visit-detector."""

    key: Key


@dataclass(frozen=True, slots=True)
class NoteStage:
    """Write a stage into the journal."""

    key: Key
    stage: Stage
    tai: float | None = None
    """Time of the stage; `None` means the time at which the pool performs this."""


@dataclass(frozen=True, slots=True)
class NoteMeasurements:
    """Write measurements of a step into the journal, such as its duration and amounts of data."""

    key: Key
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NoteRaw:
    """Write the ingested exposures into the journal."""

    key: Key
    exposures: tuple[int, ...]
    shutter_close_tai: float | None


@dataclass(frozen=True, slots=True)
class Finish:
    """End this attempt at the visit-detector with an outcome."""

    assignment: Assignment
    outcome: Outcome
    reason: str = ""
    retriable: bool = False
    pipeline: str = ""
    engine: str = ""
    spool: str | None = None
    datasets: int = 0
    fallback: str = ""
    """Why the pipeline is not the first one that the worker was to run."""
    may_have_leftovers: bool = False
    """Whether a mark or a spool may be on disk that the worker did not report: it died or failed."""
    worker_died: bool | None = None
    """Whether the worker has ended by itself, or has outlived its pipeline; `None` if neither."""


@dataclass(frozen=True, slots=True)
class NoteRecycled:
    """Count a worker that is replaced, by cause: ``leftovers``, ``memory``, ``visits``, ``age``,
    ``configuration`` or ``operator``.
    """

    cause: str
    note: str


@dataclass(frozen=True, slots=True)
class NoteImports:
    """Log what a worker has imported by itself."""

    modules: tuple[str, ...]
    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class SlotChanged:
    """Notify the scheduler and other observers of a change of the slot's state."""

    before: SlotState
    after: SlotState


Action = (
    Fork
    | Send
    | Signal
    | SetDeadline
    | ClearDeadline
    | WipeRepo
    | AskToCross
    | RescanRaws
    | NoteStage
    | NoteMeasurements
    | NoteRecycled
    | NoteImports
    | NoteRaw
    | Finish
    | SlotChanged
)
