# SPDX-License-Identifier: BSD-3-Clause
"""How soon sources tell of raws."""

from ppdaemon.node.arrivals.counts import LATELY, Latencies, SourceFigures


def test_a_source_that_saw_nothing_has_no_lag():
    assert Latencies().of("scan /raw") == SourceFigures(0, None, None)


def test_the_median_and_the_slowest_are_of_each_source():
    lags = Latencies()
    for number in range(100):
        lags.sighted("inotify /raw")
        lags.delivered("inotify /raw", number / 1000.0)
    lags.sighted("scan /raw")
    assert lags.of("inotify /raw") == SourceFigures(100, 50.0, 99.0)
    assert lags.of("scan /raw") == SourceFigures(1, None, None)


def test_what_was_long_ago_is_forgotten():
    lags = Latencies()
    lags.delivered("poll /raw", 60.0)
    for _ in range(LATELY):
        lags.delivered("poll /raw", 0.001)
    assert lags.of("poll /raw").lag_p99_ms == 1.0
