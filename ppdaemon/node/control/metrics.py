# SPDX-License-Identifier: BSD-3-Clause
"""The metrics of a node: a table, read from its status. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from ppdaemon.metrics import Histogram, Metric, by_source, one_hot
from ppdaemon.node.visits.outcometimes import OutcomeTimes
from ppdaemon.reports import StatusReport
from ppdaemon.states import Outcome, SlotState
from ppdaemon.timescales import TAI_MINUS_UTC_S

__all__ = ("NODE_METRICS", "NodeSource")

RECYCLED = "recycled."
"""Prefix of the counters of replaced workers."""
STATES: tuple[str, ...] = get_args(StatusReport.model_fields["state"].annotation)


@dataclass(frozen=True, slots=True)
class NodeSource:
    """What the metrics of a node are read from."""

    report: StatusReport
    times: OutcomeTimes
    export: Histogram
    asker: Histogram
    """How long questions had waited for the asker's answers, seconds."""
    instruments: tuple[str, ...]
    worker_bytes: tuple[int, ...]
    """Memory and RAM-disk repo of each worker."""


def _utc(tai: float) -> float:
    return tai - TAI_MINUS_UTC_S


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes * 1e6


def _lags(source: NodeSource) -> Mapping[tuple[str, ...], float]:
    return {
        (each.name, quantile): lag_ms / 1000
        for each in source.report.arrivals
        for quantile, lag_ms in (("0.5", each.lag_p50_ms), ("0.99", each.lag_p99_ms))
        if lag_ms is not None
    }


def _outcomes(source: NodeSource) -> Mapping[tuple[str, ...], float]:
    # All outcomes, also those that have not occurred: rate() needs a 0 before the first one.
    zeros = {(instrument, str(outcome)): 0.0 for instrument in source.instruments for outcome in Outcome}
    return zeros | source.times.outcomes


NODE_METRICS: tuple[Metric[NodeSource], ...] = (
    Metric(
        "ppdaemon_build_info",
        "gauge",
        "Always 1; the labels are the version of ppdaemon and the name of the node.",
        lambda s: {(s.report.version, s.report.node): 1.0},
        ("version", "node"),
    ),
    Metric(
        "ppdaemon_time_seconds",
        "gauge",
        "The clock of the node, UTC seconds since 1970.",
        lambda s: _utc(s.report.tai),
    ),
    Metric(
        "ppdaemon_start_time_seconds",
        "gauge",
        "When the daemon started, UTC seconds since 1970.",
        lambda s: _utc(s.report.started_tai),
    ),
    Metric(
        "ppdaemon_state",
        "gauge",
        "1 for the state of the daemon, 0 for all others.",
        lambda s: one_hot(s.report.state, STATES),
        ("state",),
    ),
    Metric(
        "ppdaemon_problems",
        "gauge",
        "Problems in ppctl status, by what they are about.",
        lambda s: by_source(s.report.problems),
        ("source",),
    ),
    Metric(
        "ppdaemon_relay_connected",
        "gauge",
        "1 if the relay answers, 0 if not; missing without a relay.",
        lambda s: s.report.relay_connected,
    ),
    Metric(
        "ppdaemon_redis_connected",
        "gauge",
        "1 if the Redis server answers, 0 if not; missing without streams.",
        lambda s: None if s.report.redis is None else s.report.redis.connected,
    ),
    Metric(
        "ppdaemon_redis_entries",
        "gauge",
        "Entries of the streams: held by this node, pending with all consumers, waiting for any.",
        lambda s: (
            {}
            if (redis := s.report.redis) is None
            else {"held": redis.held, "pending": redis.pending, "waiting": redis.waiting}
        ),
        ("state",),
    ),
    Metric(
        "ppdaemon_redis_last_entry_time_seconds",
        "gauge",
        "When the node took the last new entry, UTC seconds since 1970; missing before the first one.",
        lambda s: (
            None
            if s.report.redis is None or s.report.redis.last_tai is None
            else _utc(s.report.redis.last_tai)
        ),
    ),
    Metric(
        "ppdaemon_slots",
        "gauge",
        "Slots in each state.",
        lambda s: {state: s.report.slots.get(state, 0) for state in SlotState},
        ("state",),
    ),
    Metric(
        "ppdaemon_slots_max", "gauge", "workers.max of the configuration.", lambda s: s.report.workers_max
    ),
    Metric(
        "ppdaemon_capacity",
        "gauge",
        "Visit-detectors that the node offers the relay to have at once.",
        lambda s: s.report.capacity,
    ),
    Metric("ppdaemon_queued", "gauge", "Visit-detectors that wait for a worker.", lambda s: s.report.queued),
    Metric(
        "ppdaemon_open",
        "gauge",
        "Visit-detectors without an outcome in the journal.",
        lambda s: s.report.open_visits,
    ),
    Metric(
        "ppdaemon_outcomes_total",
        "counter",
        "Visit-detectors by outcome.",
        _outcomes,
        ("instrument", "outcome"),
    ),
    Metric(
        "ppdaemon_fallback_outcomes_total",
        "counter",
        "Visit-detectors that ran another than the first pipeline of their rule; ppctl visit has the reason.",
        lambda s: {(name,): 0.0 for name in s.instruments} | s.times.fallbacks,
        ("instrument",),
    ),
    Metric(
        "ppdaemon_detector_failures_total",
        "counter",
        "Outcomes that need daytime reprocessing, by detector; only detectors that have one.",
        lambda s: s.times.failures,
        ("instrument", "detector"),
    ),
    Metric(
        "ppdaemon_announce_to_prepared_seconds",
        "histogram",
        "From the announcement of a visit until a worker has prepared a detector of it.",
        lambda s: s.times.prepare,
        ("instrument",),
    ),
    Metric(
        "ppdaemon_raw_to_started_seconds",
        "histogram",
        "From a complete raw until the first task starts, or from the end of the preparation if that is"
        " later; visits of one exposure.",
        lambda s: s.times.start,
        ("instrument",),
    ),
    Metric(
        "ppdaemon_started_to_done_seconds",
        "histogram",
        "From the start of the first task to the end of the last one; successful visit-detectors.",
        lambda s: s.times.run,
        ("instrument", "pipeline"),
    ),
    Metric(
        "ppdaemon_shutter_to_alerts_seconds",
        "histogram",
        "From shutter close to the end of the last task, when alerts have been sent; successful"
        " visit-detectors of all pipelines, also of those that send no alerts.",
        lambda s: s.times.alerts,
        ("instrument", "pipeline"),
    ),
    Metric(
        "ppdaemon_export_seconds",
        "histogram",
        "From the outcome until the outputs are in the central repo, within one run of the daemon.",
        lambda s: s.export,
    ),
    Metric("ppdaemon_spooled", "gauge", "Visit-detectors that wait for export.", lambda s: s.report.spooled),
    Metric(
        "ppdaemon_spooled_oldest_seconds",
        "gauge",
        "For how long the first of them has waited in this run of the daemon; 0 if none waits.",
        lambda s: s.report.oldest_spool_s or 0.0,
    ),
    Metric(
        "ppdaemon_spooled_bytes",
        "gauge",
        "Size of what waits for export.",
        lambda s: _bytes(s.report.spooled_mb),
    ),
    Metric(
        "ppdaemon_spool_bytes",
        "gauge",
        "Size of what waits for export, by disk: ramdisk or spill.",
        lambda s: {each.name: each.mb * 1e6 for each in s.report.spools},
        ("disk",),
    ),
    Metric(
        "ppdaemon_spool_max_bytes",
        "gauge",
        "How much may wait there; missing without a limit.",
        lambda s: {each.name: each.max_mb * 1e6 for each in s.report.spools if each.max_mb is not None},
        ("disk",),
    ),
    Metric(
        "ppdaemon_uncompressed_images",
        "gauge",
        "Images that are spooled uncompressed and wait for packers.",
        lambda s: s.report.uncompressed.images,
    ),
    Metric(
        "ppdaemon_uncompressed_bytes",
        "gauge",
        "Their size.",
        lambda s: _bytes(s.report.uncompressed.mb),
    ),
    Metric(
        "ppdaemon_uncompressed_max_bytes",
        "gauge",
        "How much may wait; 0 if workers compress all images.",
        lambda s: _bytes(s.report.uncompressed.max_mb),
    ),
    Metric(
        "ppdaemon_uncompressed_declined_total",
        "counter",
        "Images that workers have compressed because there was no room.",
        lambda s: s.report.uncompressed.declined,
    ),
    Metric(
        "ppdaemon_images_given_up_total",
        "counter",
        "Visit-detectors whose images were deleted because too much waited for export.",
        lambda s: s.report.images_given_up,
    ),
    Metric(
        "ppdaemon_exported_bytes_total",
        "counter",
        "Size of the files that were exported.",
        lambda s: _bytes(s.report.exported_mb),
    ),
    Metric(
        "ppdaemon_published_total",
        "counter",
        "Records of metrics and telemetry that were accepted, by destination.",
        lambda s: {each.name: each.sent for each in s.report.publish},
        ("destination",),
    ),
    Metric(
        "ppdaemon_publish_dropped_total",
        "counter",
        "Records that were dropped because nobody took them, by destination.",
        lambda s: {each.name: each.dropped for each in s.report.publish},
        ("destination",),
    ),
    Metric(
        "ppdaemon_publish_waiting",
        "gauge",
        "Records that wait, by destination.",
        lambda s: {each.name: each.waiting for each in s.report.publish},
        ("destination",),
    ),
    Metric(
        "ppdaemon_late_raws_total",
        "counter",
        "Raws that arrived after the outcome of their visit-detector.",
        lambda s: s.report.counters.get("late_raws", 0),
    ),
    Metric(
        "ppdaemon_late_raws_unused",
        "gauge",
        "Those that no attempt has used: what ``ppctl late`` lists.",
        lambda s: s.report.late_raws,
    ),
    Metric(
        "ppdaemon_refused_raws_total",
        "counter",
        "Raws that were delivered to no visit, by category of the reason.",
        lambda s: s.report.refused_by_kind,
        ("kind",),
    ),
    Metric(
        "ppdaemon_arrivals_total",
        "counter",
        "Raws by the source that reported them first.",
        lambda s: {each.name: each.files for each in s.report.arrivals},
        ("source",),
    ),
    Metric(
        "ppdaemon_arrival_source_up",
        "gauge",
        "1 if the source of raws works, 0 if not.",
        lambda s: {each.name: each.live for each in s.report.arrivals},
        ("source",),
    ),
    Metric(
        "ppdaemon_arrival_last_notice_age_seconds",
        "gauge",
        "Time since a bridge received its last notice, as it has sent it.",
        lambda s: {
            each.name: each.last_notice_s for each in s.report.arrivals if each.last_notice_s is not None
        },
        ("source",),
    ),
    Metric(
        "ppdaemon_arrival_lag_seconds",
        "gauge",
        "Time from the last change of a file to the report of the source, recent raws.",
        _lags,
        ("source", "quantile"),
    ),
    Metric(
        "ppdaemon_messages_lost_total",
        "counter",
        "Messages of the relay that did not arrive; its state was requested again.",
        lambda s: s.report.counters.get("relay_messages_lost", 0),
    ),
    Metric(
        "ppdaemon_events_total",
        "counter",
        "Events by kind, as the counters of ppctl status: invalid messages, errors, arrivals.",
        lambda s: {kind: count for kind, count in s.report.counters.items() if not kind.startswith(RECYCLED)},
        ("kind",),
    ),
    Metric(
        "ppdaemon_workers_replaced_total",
        "counter",
        "Workers that were replaced, by cause.",
        lambda s: {
            kind.removeprefix(RECYCLED): count
            for kind, count in s.report.counters.items()
            if kind.startswith(RECYCLED)
        },
        ("cause",),
    ),
    Metric(
        "ppdaemon_pipelines_set_aside",
        "gauge",
        "Pipelines that are set aside because they end their workers.",
        lambda s: s.report.set_aside,
    ),
    Metric(
        "ppdaemon_asker_up",
        "gauge",
        "1 if one process asks the central repo for all workers, 0 if they ask by themselves; missing without"
        " a central repo.",
        lambda s: None if s.report.asker is None else s.report.asker.serving,
    ),
    Metric(
        "ppdaemon_asker_wait_seconds",
        "histogram",
        "From a question of a worker to the asker's answer.",
        lambda s: s.asker,
    ),
    Metric(
        "ppdaemon_asker_batches_total",
        "counter",
        "Groups of questions that the asker has answered together.",
        lambda s: None if s.report.asker is None else s.report.asker.batches,
    ),
    Metric(
        "ppdaemon_asker_replaced_total",
        "counter",
        "Askers that have ended or were killed.",
        lambda s: None if s.report.asker is None else s.report.asker.replaced,
    ),
    Metric(
        "ppdaemon_asker_memory_bytes",
        "gauge",
        "Memory of the asker; missing while there is none.",
        lambda s: None if s.report.asker is None else _bytes(s.report.asker.memory_mb),
    ),
    Metric("ppdaemon_workers", "gauge", "Workers that run.", lambda s: len(s.worker_bytes)),
    Metric(
        "ppdaemon_workers_memory_bytes",
        "gauge",
        "Memory and RAM-disk repos of all workers.",
        lambda s: sum(s.worker_bytes),
    ),
    Metric(
        "ppdaemon_worker_memory_max_bytes",
        "gauge",
        "Memory and RAM-disk repo of the largest worker.",
        lambda s: max(s.worker_bytes, default=0),
    ),
    Metric(
        "ppdaemon_supervisor_memory_bytes",
        "gauge",
        "Memory of the supervisor.",
        lambda s: _bytes(s.report.supervisor_mb),
    ),
    Metric(
        "ppdaemon_ramdisk_used_bytes",
        "gauge",
        "Used space of the whole RAM disk.",
        lambda s: _bytes(s.report.ramdisk_mb),
    ),
    Metric(
        "ppdaemon_ramdisk_size_bytes",
        "gauge",
        "Size of the RAM disk; missing if it has no limit.",
        lambda s: _bytes(s.report.ramdisk_size_mb),
    ),
    Metric(
        "ppdaemon_journal_backlog",
        "gauge",
        "Changes that are not yet written to the journal.",
        lambda s: s.report.journal_backlog,
    ),
    Metric(
        "ppdaemon_config_generation",
        "gauge",
        "Number of the configuration in use.",
        lambda s: s.report.generation,
    ),
    Metric(
        "ppdaemon_config_loaded_time_seconds",
        "gauge",
        "When it came into use and the template repo was made, UTC seconds since 1970.",
        lambda s: _utc(s.report.reloaded_tai or s.report.started_tai),
    ),
    Metric(
        "ppdaemon_config_reload_successful",
        "gauge",
        "0 if the last reload was refused.",
        lambda s: not s.report.reload_refused,
    ),
    Metric(
        "ppdaemon_template_seconds",
        "gauge",
        "How long it took to make the template repo.",
        lambda s: None if s.report.template_ms is None else s.report.template_ms / 1000,
    ),
)
"""In the order of the documents."""
