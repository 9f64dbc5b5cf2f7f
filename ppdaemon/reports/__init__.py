# SPDX-License-Identifier: BSD-3-Clause
"""Requests and answers of the control sockets of ``ppdaemon``, ``pprelay`` and ``ppbridge``.

One JSON object per line, one reply per request, in order.
"""

from ppdaemon.reports.bridge import BRIDGE_SOCKET, BridgeNodeRow, BridgeStatusReport
from ppdaemon.reports.common import CONTROL_LIMIT, SCHEMA, ControlModel, Problem, ProblemSource
from ppdaemon.reports.node import (
    FALLBACK,
    GIVEN_UP,
    JOURNAL_NAME,
    REQUEUED,
    ArrivalSource,
    AskerReport,
    DestinationReport,
    LateRow,
    RedisReport,
    RefusedRaw,
    RequeueRow,
    SpoolReport,
    StatusReport,
    UncompressedReport,
    VisitChange,
    VisitRow,
    VisitSummary,
    WorkerRow,
)
from ppdaemon.reports.relay import (
    RELAY_SOCKET,
    RelayDemandRow,
    RelayDetectorRow,
    RelayHostsReport,
    RelayNodeRow,
    RelayStatusReport,
    RelayVisitRow,
    RelayWaitRow,
)
from ppdaemon.reports.requests import (
    BRIDGE_REQUESTS,
    OPERATING,
    READING,
    RELAY_REQUESTS,
    REPLIES,
    REQUESTS,
    BridgeRequest,
    CatchupRequest,
    CatchupState,
    DrainNodeRequest,
    DrainRequest,
    ExportRequest,
    JournalFilter,
    KillRequest,
    LateRequest,
    NodesRequest,
    Ok,
    RelayRequest,
    ReloadRequest,
    Reply,
    Request,
    RequestFailed,
    RequeueRequest,
    RestartRequest,
    Resumed,
    ResumeNodeRequest,
    ResumeRequest,
    StatusRequest,
    VisitRequest,
    VisitsRequest,
    VisitSummariesRequest,
    Watch,
    WatchVisits,
    WorkersRequest,
)
