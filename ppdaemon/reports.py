# SPDX-License-Identifier: BSD-3-Clause
"""The control socket: what may be asked of a daemon, and what it answers.

One JSON object per line, one reply per request, in order. `Watch` alone is
answered by a stream: a `StatusReport` at once and after every change, until
the client closes.
"""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.states import Outcome, SlotState, Stage
from ppdaemon.visit import Name
from ppdaemon.wire import Model

CONTROL_LIMIT = 65_536
"""Largest request, bytes; replies may be larger."""


class StatusRequest(Model):
    """How is the daemon? Answered with a `StatusReport`."""

    type: Literal["status"] = "status"


class WorkersRequest(Model):
    """Answered with a list of `WorkerRow`."""

    type: Literal["workers"] = "workers"


class VisitsRequest(Model):
    """Answered with a list of `VisitRow`, the newest first."""

    type: Literal["visits"] = "visits"
    limit: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 100
    failed: bool = False
    """Only those whose outcome is a bad one."""


class VisitRequest(Model):
    """Answered with the list of `VisitRow` of one group."""

    type: Literal["visit"] = "visit"
    group: Name


class LateRequest(Model):
    """Answered with a list of `LateRow`, the newest first."""

    type: Literal["late"] = "late"
    limit: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 100


class RequeueRequest(Model):
    """Try detectors of a visit again that had their outcome; answered with a
    list of `RequeueRow`.
    """

    type: Literal["requeue"] = "requeue"
    group: Name
    detectors: tuple[int, ...] | None = None
    """All that the journal has, if not given."""
    force: bool = False
    """Also what may have done something permanent, or is another node's."""


class DrainRequest(Model):
    """Take no more visits; end those that run."""

    type: Literal["drain"] = "drain"


class ResumeRequest(Model):
    """Take visits again."""

    type: Literal["resume"] = "resume"


class ReloadRequest(Model):
    """Read the configuration again; answered when it is in force, or when it
    is clear that it will not be.
    """

    type: Literal["reload"] = "reload"


class RestartRequest(Model):
    """Replace a slot's worker, in any state; a quarantined slot starts anew."""

    type: Literal["restart"] = "restart"
    slot: int


class KillRequest(Model):
    """Kill a slot's worker now."""

    type: Literal["kill"] = "kill"
    slot: int


class Watch(Model):
    """Stream status reports until the connection closes."""

    type: Literal["watch"] = "watch"


type Request = Annotated[
    StatusRequest
    | WorkersRequest
    | VisitsRequest
    | VisitRequest
    | LateRequest
    | RequeueRequest
    | DrainRequest
    | ResumeRequest
    | ReloadRequest
    | RestartRequest
    | KillRequest
    | Watch,
    pydantic.Field(discriminator="type"),
]
REQUESTS = pydantic.TypeAdapter[Request](Request)


class Ok(Model):
    """The answer."""

    type: Literal["ok"] = "ok"
    data: Any = None


class Failed(Model):
    """Why there is no answer."""

    type: Literal["failed"] = "failed"
    code: Literal["bad_request", "not_found", "refused", "config", "internal"]
    text: str


type Reply = Annotated[Ok | Failed, pydantic.Field(discriminator="type")]
REPLIES = pydantic.TypeAdapter[Reply](Reply)


class ArrivalSource(Model):
    """One source of raw arrivals."""

    name: str
    """Such as ``inotify /data/raw`` or ``zmq tcp://host:5580``."""
    live: bool
    """Whether it works."""
    files: int
    """Raws first seen through this source."""
    lag_p50_ms: float | None = None
    """From the last change of a file to when the source told of it, of raws
    of lately; `None` if there are none."""
    lag_p99_ms: float | None = None
    """The same, of 99 of 100 raws."""
    note: str = ""
    """Why it does not work, or what else to know."""


class RefusedRaw(Model):
    """A file that was found and not delivered to any visit."""

    path: str
    kind: str
    """One word, as it is counted."""
    reason: str
    seen_tai: float
    """When it was given up, TAI seconds since 1970."""


class StatusReport(Model):
    """The daemon in one screen."""

    node: str
    version: str
    pid: int
    state: Literal["starting", "running", "draining", "stopping", "degraded"]
    """``degraded``: running, with a problem that limits it."""
    text: str
    """One line for people."""
    started_tai: float
    """When the daemon started."""
    tai: float
    """When this report was made."""
    relay: str
    """State of the connection to the relay, such as ``connected relay``."""
    slots: dict[SlotState, int]
    """How many slots are in each state."""
    workers_max: int
    """``workers.max`` of the configuration."""
    queued: int
    """Visit-detectors that wait for a worker."""
    open_visits: int
    """Visit-detectors without an outcome that is in the journal."""
    outcomes: dict[Outcome, int]
    """Since the daemon started."""
    late_raws: int = 0
    """Raws since the daemon started that came after the outcome of their
    visit-detector."""
    refused_raws: tuple[RefusedRaw, ...] = ()
    """The last files of raws that no visit got."""
    spooled: int
    """Visit-detectors that wait for export."""
    exporter: str
    """What the exporter does, or why it cannot."""
    arrivals: tuple[ArrivalSource, ...]
    """All sources of raws."""
    counters: dict[str, int]
    """Events by kind since the start, such as ``bad_message.json``."""
    problems: tuple[str, ...] = ()
    """What an operator should look at, one line each."""
    leftovers_removed: int = 0
    """RAM-disk folders of previous runs removed at start."""
    template_ms: float | None = None
    """How long the template repo took to make."""
    generation: int = 1
    """Counts the configurations tried since the start; this one is in
    force."""
    reloaded_tai: float | None = None
    """When it came into force, if it is not the first."""
    limits: dict[str, str] = {}
    """What is limited, and by whom: such as ``memory``: ``supervisor every
    1 s; kernel (cgroup)``."""
    supervisor_mb: float | None = None
    """Memory of the supervisor."""
    ramdisk_mb: float | None = None
    """What is used of the whole RAM disk."""


class WorkerRow(Model):
    """One slot."""

    slot: int
    state: SlotState
    epoch: int
    """Counts the workers of the slot."""
    pid: int | None = None
    since_s: float
    """How long it has been in this state."""
    instrument: str | None = None
    group: str | None = None
    detector: int | None = None
    attempt: int | None = None
    memory_mb: float | None = None
    """Private bytes plus RAM-disk repo."""
    visits: int = 0
    """Visits of the present worker."""
    deadline_s: float | None = None
    """Seconds until the present state's deadline."""
    note: str = ""
    """Why it was last stopped, or is quarantined."""


class VisitRow(Model):
    """One journal row: a visit-detector's attempt."""

    instrument: str
    group: str
    detector: int
    attempt: int
    """Counts the tries of this visit-detector from 1."""
    survey: str = ""
    outcome: Outcome | None = None
    """`None` while it is under way."""
    reason: str = ""
    """One sentence for the operator."""
    pipeline: str = ""
    """Name of the pipeline that ran."""
    engine: str = ""
    """Name of the engine that ran it."""
    slot: int | None = None
    pid: int | None = None
    exposures: tuple[int, ...] = ()
    partial: bool = False
    """Whether images were missing."""
    retriable: bool = False
    """Whether another try could succeed."""
    datasets: int = 0
    """Datasets spooled for export."""
    stages: dict[Stage, float] = {}
    """When each stage was reached, TAI seconds since 1970."""
    figures: dict[str, Any] = {}
    """What its steps took (``..._ms``) and brought, as its worker says."""
    shutter_close_tai: float | None = None
    """End of the last exposure, by its header."""
    ended_tai: float | None = None


class LateRow(Model):
    """A raw that came after the outcome of its visit-detector, not used yet."""

    instrument: str
    group: str
    """The visit's."""
    detector: int
    exposure: int
    path: str
    seen_tai: float
    """When it was known to be complete, TAI seconds since 1970."""
    attempt: int
    """The last one at the visit-detector."""
    outcome: Outcome | None
    """Of that attempt; `None` while it is under way."""


class RequeueRow(Model):
    """What became of the wish to try a visit-detector again."""

    instrument: str
    detector: int
    attempt: int | None = None
    """The new one; `None` if it was refused."""
    text: str = ""
    """Why it was refused, or what to know about the new attempt."""
