# SPDX-License-Identifier: BSD-3-Clause
"""Each peer has its own share, and what one uses costs no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon import ratelimit
from ppdaemon.ratelimit import BURST_S, RateLimit, tokens_of


class Time:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


def test_a_burst_is_admitted_and_then_the_rate(time):
    limit = RateLimit(10.0, time)
    assert [limit.take("a") for _ in range(50)] == [0.0] * 50
    assert limit.take("a") == pytest.approx(0.1)
    assert limit.take("b") == 0.0
    time.now += 0.11
    assert limit.take("a") == 0.0
    assert limit.take("a") > 0.0
    time.now += 1000.0
    assert [limit.take("a") for _ in range(50)] == [0.0] * 50
    assert limit.take("a") > 0.0


def test_a_large_message_costs_more_and_passes_in_the_end(time):
    limit = RateLimit(10.0, time)
    assert tokens_of(0) == tokens_of(4095) == 1.0
    assert tokens_of(1 << 20) == 257.0
    assert limit.take("a", 257.0) == 0.0
    wait_s = limit.take("a")
    assert wait_s == pytest.approx(20.8)
    time.now += wait_s + 1e-6
    assert limit.take("a") == 0.0


def test_another_rate_counts_at_once(time):
    limit = RateLimit(10.0, time)
    for _ in range(50):
        limit.take("a")
    limit.per_s = 100.0
    assert limit.take("a") == 0.0


def test_the_memory_is_bounded_and_the_one_that_waited_longest_is_forgotten(time, monkeypatch):
    monkeypatch.setattr(ratelimit, "MAX_PEERS", 3)
    limit = RateLimit(1.0, time)
    for peer in "abcd":
        limit.take(peer, 5.0)
    assert len(limit._buckets) == 3
    assert limit.take("d") > 0.0
    assert limit.take("a") == 0.0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 3.0), st.integers(1, 20)), max_size=60))
def test_no_peer_gets_more_than_its_share_and_a_modest_one_is_never_refused(steps):
    time = Time()
    limit = RateLimit(10.0, time)
    admitted = 0.0
    modest = 0.0
    for peer, pause_s, tokens in steps:
        time.now += pause_s
        if limit.take(peer, tokens) == 0.0 and peer == "a":
            admitted += tokens
        if time.now - modest > 1.0:
            modest = time.now
            assert limit.take("modest", 5.0) == 0.0
    assert admitted <= 10.0 * (BURST_S + time.now - 100.0) + 1e-6
