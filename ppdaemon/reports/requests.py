# SPDX-License-Identifier: BSD-3-Clause
"""What may be asked of a node, a relay and a bridge on their control sockets, and how each request ends.

Only `Watch` and `WatchVisits` are answered by a stream, until the client closes the connection.
"""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.reports.common import DEFERRED, ControlModel
from ppdaemon.states import Outcome
from ppdaemon.visit import Name
from ppdaemon.wire import BY_TYPE


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


class Resumed(ControlModel):
    """What keeps visits away after a `ResumeRequest` or a `ResumeNodeRequest`."""

    closed: tuple[str, ...] = ()
    """Why the node takes no visits all the same; empty if it does."""
    problems: tuple[str, ...] = ()
    """What else is wrong with it, such as why nothing can be exported."""


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
    BY_TYPE,
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
    BY_TYPE,
]
RELAY_REQUESTS = pydantic.TypeAdapter[RelayRequest](RelayRequest, config=DEFERRED)

type BridgeRequest = Annotated[StatusRequest | ReloadRequest | Watch, BY_TYPE]
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


type Reply = Annotated[Ok | RequestFailed, BY_TYPE]
REPLIES = pydantic.TypeAdapter[Reply](Reply, config=DEFERRED)
