# SPDX-License-Identifier: BSD-3-Clause
"""The metrics of a bridge: a table, read from its status. Pure."""

from typing import get_args

from ppdaemon.metrics import Metric, by_source, one_hot
from ppdaemon.reports import BridgeStatusReport
from ppdaemon.timescales import TAI_MINUS_UTC_S

__all__ = ("BRIDGE_METRICS",)

STATES: tuple[str, ...] = get_args(BridgeStatusReport.model_fields["state"].annotation)

BRIDGE_METRICS: tuple[Metric[BridgeStatusReport], ...] = (
    Metric(
        "ppdaemon_bridge_build_info",
        "gauge",
        "Always 1; the labels are the version of ppdaemon and the name of the bridge.",
        lambda r: {(r.version, r.bridge): 1.0},
        ("version", "bridge"),
    ),
    Metric(
        "ppdaemon_bridge_start_time_seconds",
        "gauge",
        "When the bridge started, UTC seconds since 1970.",
        lambda r: r.started_tai - TAI_MINUS_UTC_S,
    ),
    Metric(
        "ppdaemon_bridge_state",
        "gauge",
        "1 for the state of the bridge, 0 for all others.",
        lambda r: one_hot(r.state, STATES),
        ("state",),
    ),
    Metric(
        "ppdaemon_bridge_config_reload_successful",
        "gauge",
        "0 if the last reload by a signal was refused.",
        lambda r: not r.reload_refused,
    ),
    Metric(
        "ppdaemon_bridge_problems",
        "gauge",
        "Problems in ppctl --bridge status, by what they are about.",
        lambda r: by_source(r.problems),
        ("source",),
    ),
    Metric(
        "ppdaemon_bridge_last_notice_age_seconds",
        "gauge",
        "Time since the last notice; missing if the ring is empty.",
        lambda r: r.last_notice_s,
    ),
    Metric(
        "ppdaemon_bridge_notices_total",
        "counter",
        "Number of the newest notice: notices that were stored since the ring was made.",
        lambda r: r.last,
    ),
    Metric(
        "ppdaemon_bridge_ring_notices",
        "gauge",
        "Notices in the ring.",
        lambda r: r.depth,
    ),
    Metric(
        "ppdaemon_bridge_ring_bytes",
        "gauge",
        "Size of the notices in the ring.",
        lambda r: r.ring_mb * 1e6,
    ),
    Metric(
        "ppdaemon_bridge_backlog",
        "gauge",
        "Notices that are not yet written.",
        lambda r: r.backlog,
    ),
    Metric(
        "ppdaemon_bridge_sent_total",
        "counter",
        "Notices sent to nodes, to each one counted.",
        lambda r: r.sent,
    ),
    Metric(
        "ppdaemon_bridge_node_behind",
        "gauge",
        "Notices that a node does not have yet, by node.",
        lambda r: {row.node: row.behind for row in r.nodes},
        ("node",),
    ),
    Metric(
        "ppdaemon_bridge_events_total",
        "counter",
        "Events by kind, as the counters of ppctl --bridge status: refused requests and messages.",
        lambda r: r.counters,
        ("kind",),
    ),
)
"""In the order of the documents."""
