# SPDX-License-Identifier: BSD-3-Clause
"""Answers of ``ppdaemon``: its state, its slots, and the visit-detectors in its journal."""

from typing import Any, Literal

import pydantic

from ppdaemon.reports.common import SCHEMA, ControlModel, Problem
from ppdaemon.states import Outcome, SlotState, Stage

JOURNAL_NAME = "journal.sqlite"
"""The journal in a node's state directory."""

GIVEN_UP = "given_up"
"""Key in the figures of attempts whose images were deleted because too much waited for export."""
REQUEUED = "requeued"
"""Key in `VisitRow.figures` of attempts that an operator has requested. It is in journals on disk."""
FALLBACK = "fallback"
"""Key in `VisitRow.figures` of attempts that have run another than the first pipeline of their rule: its
value has ``first`` and ``reason``. It is in journals on disk."""


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


class UncompressedReport(ControlModel):
    """Images that wait for packers."""

    images: int = 0
    """Their number, a second ago."""
    mb: float = 0.0
    """Their size."""
    max_mb: float = 0.0
    """How much may wait; 0 if workers compress all images."""
    declined: int = 0
    """Images that workers have compressed because there was no room, since the daemon started."""
    declining: bool = False
    """Whether that has happened in the last minute."""


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


class AskerReport(ControlModel):
    """The process that asks the central repo for all workers; counts are since the daemon started."""

    serving: bool
    """Whether it works; if not, workers ask by themselves."""
    questions: int
    """Questions of workers that it has answered."""
    batches: int
    """Groups of questions that it has answered together."""
    wait_p50_ms: float | None
    """Median time from a question to its answer, of recent ones, milliseconds; `None` if there are none."""
    wait_p99_ms: float | None
    """The same time, within which 99 % were answered."""
    memory_mb: float | None
    """Its private memory; `None` if there is no process."""
    replaced: int
    """How many of these processes have ended or were killed."""
    late_s: float | None
    """Seconds since its last report; `None` if it is not late."""


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
    """Whether the relay answers; `None` without a relay."""
    redis: RedisReport | None = None
    """The streams that bring visits instead of a relay; `None` without any."""
    slots: dict[SlotState, int]
    """Number of slots in each state."""
    workers_max: int
    """``workers.max`` of the configuration."""
    capacity: int
    """Visit-detectors that the node offers the relay to have at once, unless it drains."""
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
    uncompressed: UncompressedReport = pydantic.Field(default_factory=UncompressedReport)
    """Images that are spooled uncompressed."""
    images_given_up: int = 0
    """Number of visit-detectors whose images were deleted because too much waited for export, since the
    daemon started."""
    images_given_up_mb: float = 0.0
    """Size of these images."""
    journal_backlog: int = 0
    """Changes that are not yet written to the journal."""
    exporter: str
    """What the exporter does, or why it cannot."""
    asker: AskerReport | None = None
    """The asker; `None` without a ``butler`` section."""
    publish: tuple[DestinationReport, ...] = ()
    """What has become of the metrics and telemetry for each destination, since the daemon started."""
    logs: str
    """Folder of the logs of workers, zygote, exporter, asker, reader and publisher."""
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
