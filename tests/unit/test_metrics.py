# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of node and relay: the tables, the times between stages, and the text."""

import re
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_scheduler import an_assignment

from ppdaemon.bridge.metrics import BRIDGE_METRICS
from ppdaemon.metrics import LABELS_MAX, OTHER, Histogram, HistogramsByLabels, by_source
from ppdaemon.metricsserver import families, text_of
from ppdaemon.node.control.metrics import NODE_METRICS, NodeSource
from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.node.visits.outcometimes import OutcomeTimes
from ppdaemon.relay.metrics import RELAY_METRICS
from ppdaemon.reports import (
    FALLBACK,
    REQUEUED,
    ArrivalSource,
    BridgeNodeRow,
    BridgeStatusReport,
    Problem,
    RelayHostsReport,
    RelayStatusReport,
    RelayWaitRow,
    StatusReport,
)
from ppdaemon.states import BAD_OUTCOMES, Outcome, SlotState, Stage

TABLES = (*NODE_METRICS, *RELAY_METRICS, *BRIDGE_METRICS)
BOUNDED = {
    *(
        "answer",
        "bridge",
        "cause",
        "destination",
        "detector",
        "disk",
        "instrument",
        "kind",
        "node",
        "outcome",
        "pipeline",
    ),
    "quantile",
    *("reason", "relay", "source", "state", "version"),
}


def an_entry(**fields):
    """Return an attempt that succeeded: announced at 1000, done at 1045."""
    assignment = an_assignment()
    stages = {
        Stage.PREPARED: 1004.0,
        Stage.ARRIVED: 1033.0,
        Stage.FIRST_TASK: 1033.2,
        Stage.PROCESSED: 1045.0,
    }
    usual = {"stages": stages, "outcome": Outcome.SUCCEEDED, "final": True, "pipeline": "ApPipe"}
    usual |= {"exposures": (7,), "shutter_close_tai": 1030.0}
    return JournalEntry(assignment.key, assignment.visit, 1000.0, **(usual | fields))


def recorded(*entries):
    times = OutcomeTimes()
    times.record(entries)
    return times


def labels_with_times(times):
    return [*times.prepare, *times.start, *times.run, *times.alerts]


def a_report(**fields):
    usual = {
        **{"node": "n1", "version": "1.2", "pid": 1, "state": "running", "text": "", "relay": ""},
        **{"started_tai": 1037.0, "tai": 1137.0, "slots": {SlotState.IDLE: 3}, "workers_max": 6},
        **{"capacity": 6, "logs": ""},
        **{"queued": 4, "open_visits": 5, "outcomes": {}, "spooled": 0, "exporter": "", "arrivals": ()},
        "counters": {},
    }
    return StatusReport(**(usual | fields))


def a_relay_report(**fields):
    usual = {
        **{"relay": "r1", "version": "1.2", "pid": 1, "state": "running", "text": "", "nodes": {}},
        **{"started_tai": 1037.0, "tai": 1137.0, "open_visits": 1, "open_detectors": 9, "waits": ()},
        **{"unserved": {}, "switched_off": {}, "spares_suffice": {}, "ledger": "/l", "ledger_mb": None},
        **{"ledger_backlog": 0, "counters": {}},
        "hosts": RelayHostsReport(ready=2, slots=40, needed=None, instruments=()),
    }
    return RelayStatusReport(**(usual | fields))


def a_bridge_report(**fields):
    usual = {
        **{"bridge": "b1", "version": "1.2", "pid": 1, "state": "running", "text": "", "listening": ""},
        **{"started_tai": 1037.0, "tai": 1137.0, "connections": 2, "ring": "/r", "epoch": "e", "first": 11},
        **{"last": 30, "ring_mb": 0.5, "backlog": 3, "last_notice_s": 7.0, "sent": 9},
        "nodes": (BridgeNodeRow(node="n1", behind=4, asked_s=0.1),),
        "counters": {"http json": 2},
    }
    return BridgeStatusReport(**(usual | fields))


def scraped(table, source):
    """Return all samples as Prometheus reads them, by name and labels."""
    text = b"".join(map(text_of, families(table, source))).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def node_samples(report=None, times=None, worker_bytes=()):
    exports, waits = Histogram((1.0,)), Histogram((0.1, 1.0))
    waits.add(0.05)
    source = NodeSource(
        report or a_report(), times or OutcomeTimes(), exports, waits, ("DemoCam",), worker_bytes
    )
    return scraped(NODE_METRICS, source)


# --- the tables --------------------------------------------------------------


@pytest.mark.parametrize("metric", TABLES, ids=lambda metric: metric.name)
def test_names_and_labels_follow_the_rules(metric):
    assert re.fullmatch(r"ppdaemon(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_seconds") or metric.kind != "histogram"
    assert metric.help.endswith(".")
    assert set(metric.labels) <= BOUNDED


def test_names_are_unique_and_those_of_a_relay_have_a_prefix():
    assert max(Counter(metric.name for metric in TABLES).values()) == 1
    assert all(metric.name.startswith("ppdaemon_relay_") for metric in RELAY_METRICS)
    assert all(metric.name.startswith("ppdaemon_bridge_") for metric in BRIDGE_METRICS)
    others = [each.name for each in NODE_METRICS if each.name.startswith("ppdaemon_relay_")]
    assert others == ["ppdaemon_relay_connected"]


def test_the_streams_of_redis_have_metrics_only_where_there_are_some():
    redis = {"connected": True, "streams": ("s",), "group": "g", "held": 2, "pending": 3, "waiting": 4}
    samples = node_samples(a_report(redis=redis | {"last_tai": 1137.0}))
    assert samples["ppdaemon_redis_connected",] == 1
    states = {dict(key[1:])["state"]: n for key, n in samples.items() if key[0] == "ppdaemon_redis_entries"}
    assert states == {"held": 2, "pending": 3, "waiting": 4}
    assert samples["ppdaemon_redis_last_entry_time_seconds",] == 1100.0
    assert not any("redis" in name for name, *_ in node_samples())


def test_an_asker_has_metrics_only_where_there_is_a_central_repo():
    figures = {"questions": 7, "batches": 3, "wait_p50_ms": 20.0, "wait_p99_ms": 90.0, "late_s": None}
    asker = figures | {"serving": True, "memory_mb": 112.5, "replaced": 2}
    samples = node_samples(a_report(asker=asker))
    assert samples["ppdaemon_asker_up",] == 1
    assert samples["ppdaemon_asker_batches_total",] == 3
    assert samples["ppdaemon_asker_replaced_total",] == 2
    assert samples["ppdaemon_asker_memory_bytes",] == 112_500_000
    assert samples["ppdaemon_asker_wait_seconds_bucket", ("le", "0.1")] == 1
    away = node_samples(a_report(asker=asker | {"serving": False, "memory_mb": None}))
    assert away["ppdaemon_asker_up",] == 0
    assert ("ppdaemon_asker_memory_bytes",) not in away
    assert ("ppdaemon_asker_up",) not in node_samples()


def test_a_metric_yields_as_many_labels_as_it_declares():
    report = a_report(
        arrivals=(ArrivalSource(name="zmq", live=True, files=3, lag_p50_ms=2.0, lag_p99_ms=9.0),),
        counters={"recycled.memory": 2, "log_cut": 1},
    )
    waits = ({"instrument": "DemoCam", "detector": 1, "visits": 2, "oldest_group": "g", "since_tai": 1.0},)
    relay = a_relay_report(
        nodes={"ready": 1},
        unserved={"DemoCam": (1, 2)},
        spares_suffice={"DemoCam": False},
        permits={"granted": 3, "refused": 1},
        counters={"odd visit": 1},
        waits=tuple(RelayWaitRow(**wait, reason="no node serves it") for wait in waits),
    )
    times = recorded(an_entry(), an_entry(outcome=Outcome.FAILED))
    source = NodeSource(report, times, Histogram((1.0,)), Histogram((1.0,)), ("DemoCam",), (1,))
    for table, read_from in (
        (NODE_METRICS, source),
        (RELAY_METRICS, relay),
        (BRIDGE_METRICS, a_bridge_report()),
    ):
        for metric in table:
            found = list(metric.samples(read_from))
            assert all(len(labels) == len(metric.labels) for labels, _ in found), metric.name


# --- a node ------------------------------------------------------------------


def test_the_samples_are_those_of_the_status():
    found = node_samples(a_report(state="degraded", capacity=2, relay_connected=False))
    states = {key[1][1]: value for key, value in found.items() if key[0] == "ppdaemon_state"}
    assert states == {"starting": 0, "running": 0, "draining": 0, "stopping": 0, "degraded": 1}
    assert found["ppdaemon_slots", ("state", "idle")] == 3
    assert found["ppdaemon_slots", ("state", "processing")] == 0
    assert found["ppdaemon_time_seconds",] == 1100.0
    names = ("capacity", "queued", "open", "relay_connected")
    assert [found[f"ppdaemon_{name}",] for name in names] == [2, 4, 5, 0]


def test_what_is_unknown_has_no_sample():
    found = node_samples()
    missing = ("relay_connected", "ramdisk_size_bytes", "ramdisk_used_bytes", "template_seconds")
    assert not {(f"ppdaemon_{name}",) for name in missing} & found.keys()


def test_counters_of_causes_and_kinds_are_apart():
    found = node_samples(a_report(counters={"recycled.memory": 2, "arrivals.no_group": 4}))
    assert found["ppdaemon_workers_replaced_total", ("cause", "memory")] == 2
    assert found["ppdaemon_events_total", ("kind", "arrivals.no_group")] == 4
    assert ("ppdaemon_events_total", ("kind", "recycled.memory")) not in found
    assert found["ppdaemon_messages_lost_total",] == 0


def test_every_outcome_is_there_before_it_occurs():
    found = node_samples(times=recorded(an_entry()))
    values = {
        dict(key[1:])["outcome"]: value for key, value in found.items() if key[0] == "ppdaemon_outcomes_total"
    }
    assert values == {str(outcome): float(outcome is Outcome.SUCCEEDED) for outcome in Outcome}


def test_outcomes_of_fallback_pipelines_are_counted_and_0_before_the_first_one():
    name = ("ppdaemon_fallback_outcomes_total", ("instrument", "DemoCam"))
    assert node_samples()[name] == 0
    ran = an_entry(figures={FALLBACK: {"first": "ApPipe", "reason": "no APDB"}})
    assert node_samples(times=recorded(ran, an_entry(), ran))[name] == 2


def test_the_memory_of_workers_is_shown_as_sum_and_maximum():
    found = node_samples(worker_bytes=(5, 7, 6))
    names = ("workers", "workers_memory_bytes", "worker_memory_max_bytes")
    assert [found[f"ppdaemon_{name}",] for name in names] == [3, 18, 7]
    assert node_samples()["ppdaemon_worker_memory_max_bytes",] == 0


def test_a_late_raw_that_was_used_does_not_lower_a_counter():
    """Prometheus would take it for a restart, and count all of them as new."""
    found = node_samples(a_report(late_raws=2, counters={"late_raws": 7}))
    assert found["ppdaemon_late_raws_total",] == 7
    assert found["ppdaemon_late_raws_unused",] == 2


def test_labels_with_any_characters_can_be_read():
    name = 'zmq "tcp://host:1"\\\nx'
    found = node_samples(a_report(arrivals=(ArrivalSource(name=name, live=False, files=3),)))
    assert found["ppdaemon_arrival_source_up", ("source", name)] == 0


def test_problems_are_counted_by_what_they_are_about():
    sources = ("relay", "slots", "relay")
    problems = [Problem(source=source, text="any", since_tai=1.0, degrades=True) for source in sources]
    assert by_source(problems) == {"relay": 2, "slots": 1}


# --- times -------------------------------------------------------------------


def test_the_times_of_an_outcome_are_those_between_its_stages():
    times = recorded(an_entry())
    (instrument,) = {key[0] for key in times.outcomes}
    by_pipeline = (instrument, "ApPipe")
    assert times.prepare[instrument,].sum == 4.0
    assert times.start[instrument,].sum == pytest.approx(0.2)
    assert times.run[by_pipeline].sum == pytest.approx(11.8)
    assert times.alerts[by_pipeline].sum == 15.0
    assert not times.failures


def test_an_attempt_that_is_repeated_is_not_counted():
    assert not recorded(an_entry(outcome=Outcome.CRASHED, final=False)).outcomes


def test_a_requeued_one_counts_as_an_outcome_without_times():
    times = recorded(an_entry(figures={REQUEUED: True}))
    assert sum(times.outcomes.values()) == 1
    assert not labels_with_times(times)


@pytest.mark.parametrize("outcome", Outcome)
def test_failures_are_the_outcomes_that_need_daytime_reprocessing(outcome):
    assert bool(recorded(an_entry(outcome=outcome)).failures) == (outcome in BAD_OUTCOMES)


def test_only_a_success_has_sent_alerts():
    times = recorded(an_entry(outcome=Outcome.FAILED))
    assert times.prepare
    assert not times.alerts
    assert not times.run


def test_the_wait_for_a_second_exposure_is_not_measured():
    assert not recorded(an_entry(exposures=(7, 8))).start


def test_a_raw_before_the_preparation_waits_for_it():
    stages = {Stage.ARRIVED: 1001.0, Stage.PREPARED: 1004.0, Stage.FIRST_TASK: 1004.5}
    (times,) = recorded(an_entry(stages=stages)).start.values()
    assert times.sum == 0.5


def test_an_outcome_without_stages_is_counted():
    times = recorded(an_entry(outcome=Outcome.EXPIRED, stages={Stage.ACCEPTED: 1001.0}, exposures=()))
    assert sum(times.outcomes.values()) == 1
    assert not labels_with_times(times)


# --- histograms --------------------------------------------------------------


def test_buckets_are_cumulative_and_include_their_bound():
    histogram = Histogram((1, 2.5))
    for value in (0.5, 1.0, 2.0, 9.0):
        histogram.add(value)
    assert histogram.buckets() == [("1", 2.0), ("2.5", 3.0), ("+Inf", 4.0)]
    assert (histogram.count, histogram.sum) == (4, 12.5)


def test_a_clock_that_was_set_does_not_lower_the_sum():
    histogram = Histogram((1,))
    histogram.add(-3600.0)
    assert (histogram.buckets()[0], histogram.sum) == (("1", 1.0), 0.0)


def test_labels_are_limited():
    histograms = HistogramsByLabels((1.0,))
    for number in range(3 * LABELS_MAX):
        histograms.add(("DemoCam", f"pipeline{number}"), 0.5)
    histograms.add(("DemoCam", "pipeline0"), 0.5)
    assert len(histograms) == LABELS_MAX + 1
    assert histograms[OTHER, OTHER].count == 2 * LABELS_MAX
    assert histograms["DemoCam", "pipeline0"].count == 2


# --- a relay -----------------------------------------------------------------


def test_the_samples_of_a_bridge_are_those_of_its_status():
    found = scraped(BRIDGE_METRICS, a_bridge_report())
    assert found["ppdaemon_bridge_last_notice_age_seconds",] == 7
    assert found["ppdaemon_bridge_ring_notices",] == 20
    assert found["ppdaemon_bridge_ring_bytes",] == 5e5
    assert found["ppdaemon_bridge_notices_total",] == 30
    assert found["ppdaemon_bridge_node_behind", ("node", "n1")] == 4
    assert found["ppdaemon_bridge_events_total", ("kind", "http json")] == 2
    empty = scraped(BRIDGE_METRICS, a_bridge_report(last_notice_s=None))
    assert ("ppdaemon_bridge_last_notice_age_seconds",) not in empty


def test_the_samples_of_a_relay_are_those_of_its_status():
    row = {"instrument": "DemoCam", "oldest_group": "g", "since_tai": 1.0}
    waits = [(1, 2, "full"), (2, 3, "full"), (3, 1, "no node")]
    report = a_relay_report(
        nodes={"ready": 2, "full": 1},
        unserved={"DemoCam": (3, 4)},
        spares_suffice={"DemoCam": False},
        ledger_mb=2.5,
        permits={"granted": 9, "refused": 0},
        waits=tuple(
            RelayWaitRow(**row, detector=detector, visits=visits, reason=why)
            for detector, visits, why in waits
        ),
    )
    found = scraped(RELAY_METRICS, report)
    assert found["ppdaemon_relay_nodes", ("state", "ready")] == 2
    assert found["ppdaemon_relay_nodes", ("state", "disconnected")] == 0
    assert found["ppdaemon_relay_waiting", ("reason", "full")] == 5
    assert found["ppdaemon_relay_unserved_detectors", ("instrument", "DemoCam")] == 2
    assert found["ppdaemon_relay_spares_suffice", ("instrument", "DemoCam")] == 0
    assert found["ppdaemon_relay_permits_total", ("answer", "granted")] == 9
    assert found["ppdaemon_relay_ledger_bytes",] == 2.5e6
    assert found["ppdaemon_relay_state", ("state", "running")] == 1
