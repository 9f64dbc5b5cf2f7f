# SPDX-License-Identifier: BSD-3-Clause
"""The metrics of a relay: a table, read from its status. Pure."""

from collections import Counter
from typing import get_args

from ppdaemon.metrics import Metric, by_source, one_hot
from ppdaemon.reports import RelayNodeRow, RelayStatusReport
from ppdaemon.timescales import TAI_MINUS_UTC_S

__all__ = ("RELAY_METRICS",)

STATES: tuple[str, ...] = get_args(RelayStatusReport.model_fields["state"].annotation)
NODE_STATES: tuple[str, ...] = get_args(RelayNodeRow.model_fields["state"].annotation)


def _waiting(report: RelayStatusReport) -> Counter[str]:
    found = Counter[str]()
    for row in report.waits:
        found[row.reason] += row.visits
    return found


RELAY_METRICS: tuple[Metric[RelayStatusReport], ...] = (
    Metric(
        "ppdaemon_relay_build_info",
        "gauge",
        "Always 1; the labels are the version of ppdaemon and the name of the relay.",
        lambda r: {(r.version, r.relay): 1.0},
        ("version", "relay"),
    ),
    Metric(
        "ppdaemon_relay_time_seconds",
        "gauge",
        "The clock of the relay, UTC seconds since 1970.",
        lambda r: r.tai - TAI_MINUS_UTC_S,
    ),
    Metric(
        "ppdaemon_relay_start_time_seconds",
        "gauge",
        "When the relay started, UTC seconds since 1970.",
        lambda r: r.started_tai - TAI_MINUS_UTC_S,
    ),
    Metric(
        "ppdaemon_relay_state",
        "gauge",
        "1 for the state of the relay, 0 for all others.",
        lambda r: one_hot(r.state, STATES),
        ("state",),
    ),
    Metric(
        "ppdaemon_relay_problems",
        "gauge",
        "Problems in ppctl --relay status, by what they are about.",
        lambda r: by_source(r.problems),
        ("source",),
    ),
    Metric(
        "ppdaemon_relay_nodes",
        "gauge",
        "Nodes in each state.",
        lambda r: {state: r.nodes.get(state, 0) for state in NODE_STATES},
        ("state",),
    ),
    Metric(
        "ppdaemon_relay_hosts_needed",
        "gauge",
        "Nodes of the average size of those that are ready, that the cadence of the latest visits needs;"
        " missing if it is not known.",
        lambda r: r.hosts.needed,
    ),
    Metric(
        "ppdaemon_relay_hosts_ready",
        "gauge",
        "Nodes that are connected, not drained, and offer to take visit-detectors.",
        lambda r: r.hosts.ready,
    ),
    Metric(
        "ppdaemon_relay_slots_needed",
        "gauge",
        "Visit-detectors that the nodes must be able to have at once, by instrument; only instruments whose"
        " visits come now.",
        lambda r: {row.instrument: row.slots for row in r.hosts.instruments},
        ("instrument",),
    ),
    Metric(
        "ppdaemon_relay_slots_offered",
        "gauge",
        "Visit-detectors that the nodes that are ready offer to have at once.",
        lambda r: r.hosts.slots,
    ),
    Metric(
        "ppdaemon_relay_open_visits",
        "gauge",
        "Visits with a detector that has no outcome.",
        lambda r: r.open_visits,
    ),
    Metric(
        "ppdaemon_relay_open_detectors",
        "gauge",
        "Visit-detectors without an outcome.",
        lambda r: r.open_detectors,
    ),
    Metric(
        "ppdaemon_relay_waiting",
        "gauge",
        "Visit-detectors that wait for a node, by reason.",
        _waiting,
        ("reason",),
    ),
    Metric(
        "ppdaemon_relay_unserved_detectors",
        "gauge",
        "Detectors in use that no connected node serves, by instrument; only instruments with some.",
        lambda r: {name: len(detectors) for name, detectors in r.unserved.items()},
        ("instrument",),
    ),
    Metric(
        "ppdaemon_relay_spares_suffice",
        "gauge",
        "1 if the idle places of spare nodes are enough for one whole visit, 0 if not; missing without"
        " a spare node.",
        lambda r: r.spares_suffice,
        ("instrument",),
    ),
    Metric(
        "ppdaemon_relay_permits_total",
        "counter",
        "Answers to nodes that asked for the permit to write permanently, by answer; one for each"
        " visit-detector and request.",
        lambda r: r.permits,
        ("answer",),
    ),
    Metric(
        "ppdaemon_relay_messages_lost_total",
        "counter",
        "Messages of nodes that did not arrive.",
        lambda r: r.messages_lost,
    ),
    Metric(
        "ppdaemon_relay_events_total",
        "counter",
        "Events by kind, as the counters of ppctl --relay status: invalid and refused messages.",
        lambda r: r.counters,
        ("kind",),
    ),
    Metric(
        "ppdaemon_relay_ledger_bytes",
        "gauge",
        "Size of the ledger.",
        lambda r: None if r.ledger_mb is None else r.ledger_mb * 1e6,
    ),
    Metric(
        "ppdaemon_relay_ledger_backlog",
        "gauge",
        "Changes that are not yet written to the ledger.",
        lambda r: r.ledger_backlog,
    ),
    Metric(
        "ppdaemon_relay_config_loaded_time_seconds",
        "gauge",
        "When the configuration in use was read, UTC seconds since 1970.",
        lambda r: (r.reloaded_tai or r.started_tai) - TAI_MINUS_UTC_S,
    ),
    Metric(
        "ppdaemon_relay_config_reload_successful",
        "gauge",
        "0 if the last reload by a signal was refused.",
        lambda r: not r.reload_refused,
    ),
)
"""In the order of the documents."""
