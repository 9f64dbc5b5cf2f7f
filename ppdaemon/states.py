# SPDX-License-Identifier: BSD-3-Clause
"""Names of states, stages, outcomes and exit codes, and their groups. Nothing else."""

from enum import IntEnum, StrEnum


class SlotState(StrEnum):
    """The states of a worker's slot."""

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
"""States in which a slot holds a visit-detector."""


class Stage(StrEnum):
    """What a visit-detector reached, in the order in which it is reached."""

    ACCEPTED = "accepted"
    """Journaled by the node."""
    ASSIGNED = "assigned"
    """A worker was told to prepare."""
    PREPARED = "prepared"
    """Everything that needs no pixels is done; the worker waits."""
    ARRIVED = "arrived"
    """The first raw was seen, complete."""
    INGESTED = "ingested"
    """The last raw is in the worker's repo."""
    FIRST_TASK = "first_task"
    """The pipeline's first task was called."""
    PROCESSED = "processed"
    """The pipeline's last task has returned."""
    SPOOLED = "spooled"
    """Outputs and manifest are on the node's disk."""
    CENTRAL = "central"
    """Outputs are registered in the central repo."""


class Outcome(StrEnum):
    """How an accepted visit-detector ended."""

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
    INTERRUPTED = "interrupted"


NEUTRAL_OUTCOMES = frozenset({Outcome.NO_IMAGE, Outcome.CANCELLED, Outcome.IGNORED})
"""Nothing was processed and nothing went wrong on this side."""

BAD_OUTCOMES = frozenset(Outcome) - NEUTRAL_OUTCOMES - {Outcome.SUCCEEDED}
"""What daytime catch-up has to look at."""


class ExitCode(IntEnum):
    """Exit statuses of the programs: sysexits.h, and LSB for ``ppctl status``."""

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
