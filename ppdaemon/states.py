# SPDX-License-Identifier: BSD-3-Clause
"""Names of states, stages, outcomes and exit codes, and groups of them."""

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class SlotState(StrEnum):
    """The states of a slot."""

    STARTING = "starting"
    IDLE = "idle"
    PREPARING = "preparing"
    WAITING = "waiting"
    RESCANNING = "rescanning"
    PROCESSING = "processing"
    EXPORTING = "exporting"
    STOPPING = "stopping"
    KILLING = "killing"
    UNKILLABLE = "unkillable"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


BUSY_STATES = frozenset(
    {
        SlotState.PREPARING,
        SlotState.WAITING,
        SlotState.RESCANNING,
        SlotState.PROCESSING,
        SlotState.EXPORTING,
    }
)
"""States in which a slot has a visit-detector."""


class Stage(StrEnum):
    """The stages of a visit-detector, in the order of processing."""

    ACCEPTED = "accepted"
    """The node has written it into its journal."""
    ASSIGNED = "assigned"
    """The order to prepare was sent to a worker."""
    PREPARED = "prepared"
    """Everything that needs no pixels is done; the worker waits for raws."""
    ARRIVED = "arrived"
    """The first complete raw was found."""
    INGESTED = "ingested"
    """The last raw is in the worker's repo."""
    FIRST_TASK = "first_task"
    """The pipeline's first task has started."""
    PROCESSED = "processed"
    """The pipeline's last task has ended."""
    SPOOLED = "spooled"
    """Outputs and manifest are on the node's disk."""
    CENTRAL = "central"
    """Outputs are registered in the central repo."""


class Outcome(StrEnum):
    """The result of an accepted visit-detector."""

    SUCCEEDED = "succeeded"
    NO_IMAGE = "no_image"
    CANCELLED = "cancelled"
    IGNORED = "ignored"
    EXPIRED = "expired"
    NO_PIPELINE = "no_pipeline"
    PRELOAD_FAILED = "preload_failed"
    BAD_RAW = "bad_raw"
    RAW_UNREADABLE = "raw_unreadable"
    FAILED = "failed"
    CRASHED = "crashed"
    PREPARE_TIMEOUT = "prepare_timeout"
    RUN_TIMEOUT = "run_timeout"
    EXPORT_TIMEOUT = "export_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    RAMDISK_FULL = "ramdisk_full"
    STATE_FULL = "state_full"
    INTERRUPTED = "interrupted"


NEUTRAL_OUTCOMES = frozenset({Outcome.NO_IMAGE, Outcome.CANCELLED, Outcome.IGNORED})
"""Nothing was processed, and nothing failed in ppdaemon."""

BAD_OUTCOMES = frozenset(Outcome) - NEUTRAL_OUTCOMES - {Outcome.SUCCEEDED}
"""Outcomes that need daytime reprocessing."""

PARTIAL = "partial"
"""State of a visit-detector that succeeded although images were missing."""


def state_of(outcome: Outcome | None, stages: Iterable[Stage], *, partial: bool) -> str:
    """Return the state of a visit-detector in one word: its outcome, `PARTIAL`, or its last stage."""
    if outcome == Outcome.SUCCEEDED and partial:
        return PARTIAL
    return outcome or max(stages, key=list(Stage).index, default=Stage.ACCEPTED)


class ExitCode(IntEnum):
    """Exit codes of the programs: those of sysexits.h, and of LSB for ``ppctl status``."""

    OK = 0
    FAILED = 1
    LSB_NOT_RUNNING = 3
    LSB_UNKNOWN = 4
    USAGE = 64
    DATA = 65
    UNAVAILABLE = 69
    SOFTWARE = 70
    OS = 71
    CANNOT_CREATE = 73
    TRY_LATER = 75
    PERMISSION = 77
    CONFIG = 78
