# SPDX-License-Identifier: BSD-3-Clause
"""Counts of what went wrong, and how soon sources report raws."""

import logging

from ppdaemon.node.arrivals.counts import LATENCY_SAMPLES, ErrorCounts, Latencies


def figures(latencies: Latencies, source: str) -> tuple[int, float | None, float | None]:
    report = latencies.report(source, live=True, note="")
    return report.files, report.lag_p50_ms, report.lag_p99_ms


def test_a_source_that_saw_nothing_has_no_lag():
    assert figures(Latencies(), "scan /raw") == (0, None, None)


def test_the_median_and_the_slowest_are_of_each_source():
    latencies = Latencies()
    for number in range(100):
        latencies.sighted("inotify /raw")
        latencies.delivered("inotify /raw", number / 1000.0)
    latencies.sighted("scan /raw")
    assert figures(latencies, "inotify /raw") == (100, 50.0, 99.0)
    assert figures(latencies, "scan /raw") == (1, None, None)


def test_what_was_long_ago_is_forgotten():
    latencies = Latencies()
    latencies.delivered("poll /raw", 60.0)
    for _ in range(LATENCY_SAMPLES):
        latencies.delivered("poll /raw", 0.001)
    assert figures(latencies, "poll /raw")[2] == 1.0


def test_a_complaint_is_logged_once_in_a_while_and_always_counted(clock, caplog):
    counts = ErrorCounts(clock.mono)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            counts.warn("notice.json", "a notice is no JSON")
        counts.warn("notice.size", "a notice is too large")
        clock.advance(10.0)
        counts.warn("notice.json", "a notice is no JSON")
    assert [record.kind for record in caplog.records] == ["notice.json", "notice.size", "notice.json"]
    assert counts.by_kind == {"notice.json": 1001, "notice.size": 1}
