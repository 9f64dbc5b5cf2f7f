# SPDX-License-Identifier: BSD-3-Clause
"""Requests and answers of the control sockets of ``ppdaemon`` and ``pprelay``.

One JSON object per line, one reply per request, in order. Only `Watch` and `WatchVisits` are
answered by a stream, until the client closes the connection.
"""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.states import Outcome, SlotState, Stage
from ppdaemon.visit import Name
from ppdaemon.wire import Model

RELAY_SOCKET = "control.sock"
"""Default name of a relay's control socket in its state directory."""
BRIDGE_SOCKET = "control.sock"
"""Default name of a bridge's control socket in its state directory."""
JOURNAL_NAME = "journal.sqlite"
"""The journal in a node's state directory."""

SCHEMA = 1
"""Version of the output of ``ppctl --json``; incremented when a field is removed or its meaning changes."""

GIVEN_UP = "given_up"
"""Key in the figures of attempts whose images were deleted because too much waited for export."""
REQUEUED = "requeued"
"""Key in `VisitRow.figures` of attempts that an operator has requested. It is in journals on disk."""
FALLBACK = "fallback"
"""Key in `VisitRow.figures` of attempts that have run another than the first pipeline of their rule: its
value has ``first`` and ``reason``. It is in journals on disk."""

CONTROL_LIMIT = 65_536
"""Largest request in bytes; replies may be larger."""


DEFERRED = pydantic.ConfigDict(defer_build=True)
"""Models and adapters are built when they are first used: a command of ``ppctl`` needs few of them, and
all take 30 ms of its start.
"""


class ControlModel(Model):
    """Base of requests and answers."""

    model_config = DEFERRED


class StatusRequest(ControlModel):
    """Answered with a `StatusReport`, by a relay with a `RelayStatusReport`."""

    type: Literal["status"] = "status"


class WorkersRequest(ControlModel):
    """Answered with a list of `WorkerRow`."""

    type: Literal["workers"] = "workers"


class JournalFilter(ControlModel):
    """Selects rows of a journal; a relay ignores all but `limit`."""

    limit: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 100
    """Maximum number of rows."""
    since_tai: float | None = None
    """Only what was accepted (late raws: found) at or after this time, TAI seconds since 1970."""
    until_tai: float | None = None
    """Only what was accepted (late raws: found) before this time."""
    instrument: Name | None = None
    group: Name | None = None
    group_prefix: Name | None = None
    """The beginning of the name of the group."""
    detectors: tuple[int, ...] | None = None
    survey: str | None = None
    outcomes: tuple[Outcome, ...] = ()
    """Only attempts with one of these; empty for all, also those under way."""


class VisitsRequest(JournalFilter):
    """Answered with a list of `VisitRow`, by a relay of `RelayVisitRow`, the newest first."""

    type: Literal["visits"] = "visits"
    failed: bool = False
    """Only those with an outcome in `~ppdaemon.states.BAD_OUTCOMES`."""


class VisitRequest(ControlModel):
    """Answered with the list of `VisitRow` of one group, by a relay of `RelayDetectorRow`."""

    type: Literal["visit"] = "visit"
    group: Name


class VisitSummariesRequest(JournalFilter):
    """Answered with a list of `VisitSummary`, the newest first."""

    limit: Annotated[int, pydantic.Field(ge=1, le=1000)] = 100
    """Maximum number of visits."""

    type: Literal["visit_summaries"] = "visit_summaries"


class LateRequest(JournalFilter):
    """Answered with a list of `LateRow`, the newest first."""

    type: Literal["late"] = "late"


class RequeueRequest(ControlModel):
    """Process detectors of a visit again that have an outcome; answered with a
    list of `RequeueRow`.
    """

    type: Literal["requeue"] = "requeue"
    group: Name
    detectors: tuple[int, ...] | None = None
    """Detector ids; `None` means all that the journal has of the group."""
    force: bool = False
    """Also those that may have written something permanent, or that the relay has
    sent to another node."""


type CatchupState = Literal["running", "done", "released"]
"""What the catch-up does with a visit-detector, or has done; ``released``: it has it no longer."""


class CatchupRequest(ControlModel):
    """The daytime catch-up processes detectors of a visit, has processed them, or processes them no longer:
    the daemon refuses to retry the first two. Answered with a list of `RequeueRow`.
    """

    type: Literal["catchup"] = "catchup"
    instrument: Name
    group: Name
    detectors: tuple[int, ...]
    state: CatchupState
    run: str
    """Output run of the catch-up."""
    force: bool = False
    """Also those that may have written something permanent."""


class DrainRequest(ControlModel):
    """Accept no more visits, also after a restart, until a `ResumeRequest`; the running ones are finished."""

    type: Literal["drain"] = "drain"


class ResumeRequest(ControlModel):
    """Accept visits again."""

    type: Literal["resume"] = "resume"


class ReloadRequest(ControlModel):
    """Read the configuration again; answered when it is in use, or when it was
    rejected.
    """

    type: Literal["reload"] = "reload"


class ExportRequest(ControlModel):
    """Export what is pending now, or first mark the datastore of the central repo as its own; answered
    with a text that tells what is done.
    """

    type: Literal["export"] = "export"
    action: Literal["now", "init"]


class RestartRequest(ControlModel):
    """Replace the worker of a slot, after its visit if it has one; also ends a quarantine. Answered with
    a text that says which of the two is done.
    """

    type: Literal["restart"] = "restart"
    slot: int
    now: bool = False
    """Whether to interrupt the visit that it has."""


class KillRequest(ControlModel):
    """Kill the worker of a slot at once."""

    type: Literal["kill"] = "kill"
    slot: int


class Watch(ControlModel):
    """Answered by a stream of status reports: one at once and one after each change."""

    type: Literal["watch"] = "watch"


class WatchVisits(ControlModel):
    """Answered by a stream of lists of `VisitChange`: what has changed since the last list.

    The first one is sent at once and is empty. Stages are sent when they are reached, outcomes when they
    are in the journal.
    """

    type: Literal["watch_visits"] = "watch_visits"


type Request = Annotated[
    StatusRequest
    | WorkersRequest
    | VisitsRequest
    | VisitSummariesRequest
    | VisitRequest
    | LateRequest
    | RequeueRequest
    | CatchupRequest
    | DrainRequest
    | ResumeRequest
    | ReloadRequest
    | ExportRequest
    | RestartRequest
    | KillRequest
    | Watch
    | WatchVisits,
    pydantic.Field(discriminator="type"),
]
REQUESTS = pydantic.TypeAdapter[Request](Request, config=DEFERRED)


class NodesRequest(ControlModel):
    """To a relay; answered with a list of `RelayNodeRow`."""

    type: Literal["nodes"] = "nodes"


class DrainNodeRequest(ControlModel):
    """To a relay: send nothing new to a node until it is resumed."""

    type: Literal["drain_node"] = "drain_node"
    node: Name


class ResumeNodeRequest(ControlModel):
    """To a relay: send visits to a node again."""

    type: Literal["resume_node"] = "resume_node"
    node: Name


type RelayRequest = Annotated[
    StatusRequest
    | VisitsRequest
    | VisitRequest
    | NodesRequest
    | DrainNodeRequest
    | ResumeNodeRequest
    | ReloadRequest
    | Watch,
    pydantic.Field(discriminator="type"),
]
RELAY_REQUESTS = pydantic.TypeAdapter[RelayRequest](RelayRequest, config=DEFERRED)

type BridgeRequest = Annotated[StatusRequest | ReloadRequest | Watch, pydantic.Field(discriminator="type")]
BRIDGE_REQUESTS = pydantic.TypeAdapter[BridgeRequest](BridgeRequest, config=DEFERRED)

READING: frozenset[type[ControlModel]] = frozenset(
    {
        StatusRequest,
        WorkersRequest,
        VisitsRequest,
        VisitSummariesRequest,
        VisitRequest,
        LateRequest,
        NodesRequest,
        Watch,
        WatchVisits,
    }
)
"""Requests that change nothing: readers may send them."""
OPERATING: frozenset[type[ControlModel]] = frozenset(
    {
        RequeueRequest,
        CatchupRequest,
        DrainRequest,
        ResumeRequest,
        ReloadRequest,
        ExportRequest,
        RestartRequest,
        KillRequest,
        DrainNodeRequest,
        ResumeNodeRequest,
    }
)
"""Requests that only operators may send."""


class Ok(ControlModel):
    """The request was done; `data` is its answer."""

    type: Literal["ok"] = "ok"
    data: Any = None


class RequestFailed(ControlModel):
    """The request was not done; `text` is the reason."""

    type: Literal["failed"] = "failed"
    code: Literal["bad_request", "not_found", "denied", "refused", "config", "internal"]
    text: str


type Reply = Annotated[Ok | RequestFailed, pydantic.Field(discriminator="type")]
REPLIES = pydantic.TypeAdapter[Reply](Reply, config=DEFERRED)


class DestinationReport(ControlModel):
    """What has become of the records for one destination."""

    name: str
    """What is published, and where."""
    sent: int = 0
    """Records that were accepted there."""
    dropped: int = 0
    """Records that nobody took in time, or that are never accepted."""
    waiting: int = 0
    """Records that wait to be sent."""
    problem: str = ""
    """Why they wait; empty if they do not."""


class ArrivalSource(ControlModel):
    """One source of raw arrivals."""

    name: str
    """Such as ``inotify /data/raw`` or ``zmq tcp://host:5580``."""
    live: bool
    """Whether it works."""
    files: int
    """Raws first seen through this source."""
    lag_p50_ms: float | None = None
    """Median time from the last change of a file to the report of the source, for
    recent raws, milliseconds; `None` if there are none."""
    lag_p99_ms: float | None = None
    """The same time, within which 99 % of the raws were reported."""
    note: str = ""
    """Why it does not work, or what else to know."""
    last_notice_s: float | None = None
    """Of a bridge: seconds since it received its last notice; `None` if it is not known."""


class RefusedRaw(ControlModel):
    """A raw that was found and delivered to no visit."""

    path: str
    """Its path, or its URI in an object store."""
    kind: str
    """Category of the reason, one word, as in `StatusReport.counters`."""
    reason: str
    """Why no visit used it, in one sentence."""
    seen_tai: float
    """When it was refused, TAI seconds since 1970."""


type ProblemSource = Literal[
    "zygote",
    "central_repo",
    "capacity",
    "journal",
    "ledger",
    "ring",
    "relay",
    "redis",
    "nodes",
    "detectors",
    "arrivals",
    "pipelines",
    "slots",
    "export",
    "ramdisk",
    "resources",
    "limits",
    "configuration",
    "metrics",
    "publish",
    "kafka",
    "traces",
    "leftovers",
]
"""The part of the program, or the dependency, that a problem is about; the worst first."""


class Problem(ControlModel):
    """Something that does not work now."""

    source: ProblemSource
    """The part of the program, or the dependency, that it is about."""
    text: str
    """What does not work, and what the program does about it."""
    since_tai: float
    """When it began, TAI seconds since 1970."""
    degrades: bool
    """Whether it limits the program now; otherwise it should be checked by day."""


class SpoolReport(ControlModel):
    """What waits for export on one disk."""

    name: Literal["ramdisk", "spill"]
    """``ramdisk``: of `export.ramdisk_max`. ``spill``: on disks."""
    folder: str
    """Where the next outputs go."""
    spooled: int
    """Number of visit-detectors."""
    mb: float
    """Their size, a second ago."""
    max_mb: float | None
    """Limit of the configuration; `None`: that of the disk."""


class RedisReport(ControlModel):
    """The streams of Redis from which a node takes visits."""

    connected: bool
    """Whether the server answers."""
    streams: tuple[str, ...]
    """Those that this node reads."""
    group: str
    """The consumer group that shares the entries."""
    held: int
    """Visit-detectors that this node has, and has not acknowledged."""
    pending: int
    """Entries that consumers of the group have, and have not acknowledged, a moment ago."""
    waiting: int
    """Entries that no consumer of the group has taken, a moment ago, as far as the server knows."""
    last_tai: float | None
    """When this node took the last new entry, TAI seconds since 1970; `None` before the first one."""


class StatusReport(ControlModel):
    """The state of the daemon."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    node: str
    version: str
    pid: int
    state: Literal["starting", "running", "draining", "stopping", "degraded"]
    """``degraded``: running, with a problem that limits it."""
    stage: str = ""
    """While it starts: what it does now, such as ``making the template repo``."""
    shadow: bool = False
    """Whether it runs in shadow mode, beside the present service."""
    text: str
    """The state in one line for an operator, with the worst problem."""
    started_tai: float
    """When the daemon started."""
    tai: float
    """When this report was made."""
    relay: str
    """State of the connection to the relay, or to Redis, such as ``connected to relay``."""
    relay_connected: bool | None = None
    """Whether the relay answers; `None` without a relay, and from an older daemon."""
    redis: RedisReport | None = None
    """The streams that bring visits instead of a relay; `None` without any, and from an older daemon."""
    slots: dict[SlotState, int]
    """Number of slots in each state."""
    workers_max: int
    """``workers.max`` of the configuration."""
    capacity: int | None = None
    """Visit-detectors that the node offers the relay to have at once, unless it drains;
    `None` from an older daemon."""
    takes_until_tai: float | None = None
    """When the node takes no more visits, because its host is given back (``ppdaemon run --until``), TAI
    seconds since 1970; `None` without that option."""
    queued: int
    """Visit-detectors that wait for a worker."""
    open_visits: int
    """Visit-detectors that have no outcome in the journal."""
    outcomes: dict[Outcome, int]
    """Number of visit-detectors with each outcome since the daemon started."""
    late_raws: int = 0
    """Raws that arrived after the outcome of their visit-detector and are not used: those that
    ``ppctl late`` lists, a second ago."""
    refused_raws: tuple[RefusedRaw, ...] = ()
    """The latest raws that were delivered to no visit."""
    refused_by_kind: dict[str, int] = {}
    """All such raws since the daemon started, by category of the reason."""
    spooled: int
    """Number of visit-detectors that wait for export."""
    oldest_spool_s: float | None = None
    """Seconds for which the first of them has waited in this run of the daemon; `None` if none waits."""
    spooled_mb: float = 0.0
    """Size of what waits for export, a second ago."""
    exported_per_min: float = 0.0
    """Number of visit-detectors that were exported in the last minute."""
    exported_mb: float = 0.0
    """Size of what was exported since the daemon started."""
    spools: tuple[SpoolReport, ...] = ()
    """What waits for export, by disk: first the RAM disk, if outputs go there."""
    images_given_up: int = 0
    """Number of visit-detectors whose images were deleted because too much waited for export, since the
    daemon started."""
    images_given_up_mb: float = 0.0
    """Size of these images."""
    journal_backlog: int = 0
    """Changes that are not yet written to the journal."""
    exporter: str
    """What the exporter does, or why it cannot."""
    publish: tuple[DestinationReport, ...] = ()
    """What has become of the metrics and telemetry for each destination, since the daemon started."""
    logs: str = ""
    """Folder of the logs of workers, zygote, exporter, reader and publisher."""
    arrivals: tuple[ArrivalSource, ...]
    """All sources of raws."""
    counters: dict[str, int]
    """Events by kind since the start, such as ``bad_message.json``."""
    samples: dict[str, str] = {}
    """For some of these kinds: the beginning of one message, without control characters."""
    problems: tuple[Problem, ...] = ()
    """What does not work now, the worst first."""
    leftovers_removed: int = 0
    """RAM-disk folders of previous runs that were removed at the start."""
    template_ms: float | None = None
    """Time to make the template repo, milliseconds."""
    generation: int = 1
    """Number of the configuration in use, counted from 1 over all that were read since
    the start."""
    reloaded_tai: float | None = None
    """When it came into use, TAI seconds since 1970; `None` for the first one."""
    limits: dict[str, str] = {}
    """How each limit is enforced, such as ``memory``: ``supervisor every 1 s;
    kernel (cgroup)``."""
    supervisor_mb: float | None = None
    """Memory of the supervisor."""
    ramdisk_mb: float | None = None
    """What is used of the whole RAM disk."""
    ramdisk_size_mb: float | None = None
    """The size of the whole RAM disk; `None` if it has no limit."""
    set_aside: int = 0
    """Number of pipelines that are set aside because they end their workers."""
    reload_refused: bool = False
    """Whether the last reload was refused."""

    @property
    def problem_texts(self) -> tuple[str, ...]:
        """The texts of the problems."""
        return tuple(problem.text for problem in self.problems)

    @property
    def healthy(self) -> bool:
        """Whether it takes visits, and nothing limits it."""
        return self.state == "running" and not any(problem.degrades for problem in self.problems)


class WorkerRow(ControlModel):
    """One slot."""

    slot: int
    state: SlotState
    """State of the slot."""
    epoch: int
    """Counts the workers of the slot."""
    pid: int | None = None
    """Process id of the worker; `None` if the slot has none."""
    since_s: float
    """Seconds in this state."""
    instrument: str | None = None
    group: str | None = None
    """Group of the visit that the worker has; without one, all four names of it are `None`."""
    detector: int | None = None
    attempt: int | None = None
    memory_mb: float | None = None
    """Private memory plus the repo on the RAM disk, 10^6 bytes."""
    visits: int = 0
    """Number of visits of the current worker."""
    deadline_s: float | None = None
    """Seconds until the deadline of the current state; `None` if it has none."""
    note: str = ""
    """Why the worker was stopped last, or why the slot is quarantined."""


class VisitRow(ControlModel):
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
    """Slot whose worker had it last; `None` if none had it."""
    pid: int | None = None
    """Process id of that worker."""
    exposures: tuple[int, ...] = ()
    """Ids of the exposures of which raws were ingested."""
    partial: bool = False
    """Whether images were missing."""
    retriable: bool = False
    """Whether another try could succeed."""
    datasets: int = 0
    """Number of datasets spooled for export."""
    stages: dict[Stage, float] = {}
    """When each stage was reached, TAI seconds since 1970."""
    figures: dict[str, Any] = {}
    """Times (``..._ms``) and counts of its steps, as the worker reported them. ``not_exported``
    has the datasets that the central repo has from another visit-detector, and from which; ``given_up``
    has the types of images that were deleted because too much waited for export;
    ``catchup`` has ``state``, ``run`` and ``tai`` of the daytime catch-up. ``fallback`` has ``first``, the
    first pipeline of the rule if another one ran, and ``reason``."""
    no_return: str = ""
    """What an attempt at this visit-detector did that cannot be repeated, or a blank."""
    shutter_close_tai: float | None = None
    """End of the last exposure from its header, TAI seconds since 1970."""
    ended_tai: float | None = None
    """When the attempt had its outcome, TAI seconds since 1970."""


class VisitChange(ControlModel):
    """The new state of one visit-detector."""

    instrument: str
    group: str
    detector: int
    attempt: int
    survey: str = ""
    received_tai: float
    """When the node accepted this attempt, TAI seconds since 1970."""
    state: str
    """Its outcome, ``partial``, or the last stage that it has reached."""
    since_tai: float
    """When that was reached."""
    reason: str = ""
    """Of the outcome: one sentence for the operator."""
    slot: int | None = None
    shutter_close_tai: float | None = None
    latency_s: float | None = None
    """From shutter close to the end of the last task, if it succeeded."""


class VisitSummary(ControlModel):
    """One visit on one node, with the last attempt at each of its detectors there."""

    instrument: str
    group: str
    survey: str = ""
    received_tai: float
    """When the node accepted it, TAI seconds since 1970."""
    detectors: dict[int, str]
    """By detector: its outcome, ``partial`` if it succeeded although images were missing, or the last
    stage that it has reached."""
    slowest_s: float | None = None
    """Longest time from shutter close to the end of the last task, of detectors that succeeded."""
    failed_detector: int | None = None
    """The first detector with a bad outcome."""
    reason: str = ""
    """Its reason."""
    fallbacks: int = 0
    """Number of detectors of which another than the first pipeline of the rule ran."""


class LateRow(ControlModel):
    """A raw that arrived after the outcome of its visit-detector and is not used yet."""

    instrument: str
    group: str
    """Group of the visit."""
    detector: int
    exposure: int
    path: str
    """Its path, or its URI in an object store."""
    seen_tai: float
    """When it was found to be complete, TAI seconds since 1970."""
    attempt: int
    """The latest attempt of the visit-detector."""
    outcome: Outcome | None
    """Of that attempt; `None` while it is under way."""


class RequeueRow(ControlModel):
    """Result of a `RequeueRequest` or a `CatchupRequest` for one detector."""

    instrument: str
    detector: int
    attempt: int | None = None
    """Number of the new attempt, or of the one that the catch-up has; `None` if it was refused."""
    text: str = ""
    """Reason of the refusal, or a remark on the new attempt."""


class RelayWaitRow(ControlModel):
    """A detector that waits for a node."""

    instrument: Name
    detector: int
    visits: int
    """Number of visits of which it waits."""
    oldest_group: str
    """Group of the visit that waits longest."""
    since_tai: float
    """When the relay received that visit, TAI seconds since 1970."""
    reason: str
    """Why it waits, such as ``no node serves it``."""


class _ServerStatus(ControlModel):
    """What a relay and a bridge report alike."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    version: str
    pid: int
    state: Literal["running", "degraded", "stopping"]
    """``degraded``: running, with a problem that an operator should check."""
    text: str
    """The state in one line for an operator."""
    started_tai: float
    """When the program started."""
    tai: float
    """When this report was made."""
    counters: dict[str, int]
    """Events by kind since the start, such as ``node field`` for invalid messages of nodes, or ``http json``
    for bodies that are no JSON."""
    reloaded_tai: float | None = None
    """When the configuration was read again; `None` if it was not."""
    reload_refused: bool = False
    """Whether the last reload by a signal was refused."""
    problems: tuple[Problem, ...] = ()
    """What does not work now, the worst first."""

    @property
    def problem_texts(self) -> tuple[str, ...]:
        """The texts of the problems."""
        return tuple(problem.text for problem in self.problems)

    @property
    def healthy(self) -> bool:
        """Whether nothing limits it."""
        return self.state == "running"


class RelayStatusReport(_ServerStatus):
    """The state of a relay."""

    relay: str
    """Name of the relay."""
    nodes: dict[str, int]
    """Number of nodes in each state; see `RelayNodeRow.state`."""
    open_visits: int
    """Visits with a detector that has no outcome."""
    open_detectors: int
    """Visit-detectors without an outcome."""
    waits: tuple[RelayWaitRow, ...]
    """The detectors that wait for a node."""
    unserved: dict[str, tuple[int, ...]]
    """By instrument: detectors in use that no connected node serves now."""
    switched_off: dict[str, tuple[str, ...]]
    """What ``switched_off`` of the configuration has, by its key."""
    spares_suffice: dict[str, bool]
    """By instrument: whether the idle places of spare nodes are enough for one whole visit;
    empty if there is no spare node."""
    ledger: str
    """Path of the ledger."""
    ledger_mb: float | None
    """Size of the ledger; `None` if it cannot be read."""
    ledger_backlog: int
    """Changes that are not yet written."""
    permits: dict[Literal["granted", "refused"], int] = {}
    """Answers to nodes that asked for a permit, since the start; one for each visit-detector and request."""
    messages_lost: int = 0
    """Messages of nodes that did not arrive, by their sequence numbers."""
    hosts: "RelayHostsReport | None" = None
    """How many nodes the cadence needs; `None` from an older relay."""


class BridgeNodeRow(ControlModel):
    """A node that has asked a bridge for notices within the last hour."""

    node: str
    behind: int
    """Notices that it does not have yet."""
    asked_s: float
    """Seconds since its last question; connected nodes ask every second."""


class BridgeStatusReport(_ServerStatus):
    """The state of a bridge of object stores."""

    bridge: str
    """Name of the bridge."""
    listening: str
    """Address of HTTP; blank if none is served."""
    connections: int
    """Open connections of stores."""
    nodes: tuple[BridgeNodeRow, ...]
    """Those that have asked within the last hour."""
    ring: str
    """Path of the ring."""
    epoch: str
    """Random name of the ring; it changes when the ring is lost."""
    first: int
    """Number of the oldest notice in the ring."""
    last: int
    """Number of the newest notice."""
    ring_mb: float
    """Size of the notices in the ring."""
    backlog: int
    """Notices that are not yet written."""
    last_notice_s: float | None
    """Seconds since the last notice; `None` if the ring is empty."""
    sent: int
    """Notices sent to nodes since the start, to each one counted."""

    @property
    def depth(self) -> int:
        """Notices in the ring."""
        return self.last - self.first + 1


class RelayDemandRow(ControlModel):
    """What one instrument needs, by its latest visits."""

    instrument: str
    cadence_s: float
    """Median time between two visits, seconds."""
    detectors: int
    """Detectors of the largest visit."""
    visit_s: float
    """For how long a node has a visit-detector, seconds; 95 % of those that succeeded take no longer."""
    slots: int
    """Visit-detectors that the nodes must be able to have at once."""


class RelayHostsReport(ControlModel):
    """How many nodes the cadence needs."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    ready: int
    """Nodes that are connected, not drained, and offer to take visit-detectors."""
    slots: int
    """Visit-detectors that they offer to have at once, together."""
    needed: int | None
    """Nodes such as these, or as those that were ready last, that are needed; `None` if it is not known: no
    visits come, or too few have ended since the relay started."""
    instruments: tuple[RelayDemandRow, ...]
    """By instrument; only those whose visits come now."""

    @property
    def missing(self) -> int:
        """Nodes to add; negative: to release."""
        return 0 if self.needed is None else self.needed - self.ready


class RelayNodeRow(ControlModel):
    """A node that is, or was, connected to the relay, or is drained."""

    node: str
    state: Literal["ready", "full", "draining", "closed", "disconnected"]
    """``full``: it has as many visit-detectors as it offers to have. ``draining``: an operator
    has drained it. ``closed``: it offers to take none."""
    connected: bool
    """Whether it is connected now."""
    drained: bool
    """Whether an operator has drained it at the relay."""
    spare: bool
    """Whether it gets only what no other node can get."""
    capacity: int
    """Visit-detectors that it offers to have at once."""
    open: int
    """Visit-detectors that were sent to it and have no outcome."""
    detectors: dict[str, str]
    """By instrument: the detectors that it serves, such as ``0-62``."""
    last_message_s: float | None = None
    """Seconds since its last message; `None` if it sent none since the relay started."""
    messages_lost: int = 0
    """Messages of it that did not arrive, by their sequence numbers."""
    version: str = ""
    """Its version of ppdaemon; blank from an older one."""
    own_state: str = ""
    """The state that it reports of itself, as in `StatusReport.state`; blank if it is not connected."""
    problem: str = ""
    """The worst problem that it reports, or blank."""


class RelayVisitRow(ControlModel):
    """One visit in the ledger."""

    instrument: str
    group: str
    survey: str = ""
    received_tai: float
    """When the relay received it, TAI seconds since 1970."""
    cancelled: bool
    """Whether it was canceled."""
    ended_tai: float | None
    """When its last detector had an outcome; `None` while it is open."""
    detectors: int
    """Number of its detectors."""
    open: dict[str, int]
    """Number of detectors without an outcome in each state: ``waiting`` for a node, ``sent`` to
    one, ``acknowledged`` by it, ``permitted`` to write permanently."""
    outcomes: dict[Outcome, int]
    """Number of detectors with each outcome."""


class RelayDetectorRow(ControlModel):
    """One detector of a visit in the ledger."""

    instrument: str
    group: str
    detector: int
    state: str
    """``waiting``, ``sent``, ``acknowledged``, ``permitted``, or ``ended``."""
    node: str | None
    """The node that has it or had it last."""
    attempt: int
    """Number of the last attempt, from 1."""
    received_tai: float
    """When the relay received the visit."""
    acknowledged_tai: float | None
    """When the node acknowledged it; `None` if it did not."""
    outcome: Outcome | None
    """Its outcome; `None` while it is under way."""
    reason: str
    """Why it has this outcome or waits, or blank."""
