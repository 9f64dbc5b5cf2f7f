# SPDX-License-Identifier: BSD-3-Clause
"""Growing pauses."""

import pytest

from ppdaemon.backoff import Backoff


def test_pauses_double_up_to_the_longest():
    backoff = Backoff(1.0, 60.0)
    assert [backoff.failed(0.0) for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_a_success_begins_a_new_row():
    backoff = Backoff(1.0, 60.0, factor=3.0)
    assert [backoff.failed(0.0), backoff.failed(0.0), backoff.failures] == [1.0, 3.0, 2]
    backoff.succeeded()
    assert backoff.remaining_s(0.0) == 0.0
    assert [backoff.failed(0.0), backoff.failures] == [1.0, 1]


def test_the_next_try_is_due_when_the_pause_is_over():
    backoff = Backoff(2.0, 60.0)
    assert backoff.remaining_s(100.0) == 0.0
    backoff.failed(100.0)
    assert backoff.due == 102.0
    assert [backoff.remaining_s(101.5), backoff.remaining_s(103.0)] == [0.5, 0.0]


def test_jitter_adds_up_to_a_quarter_and_never_exceeds_the_longest_pause():
    backoff = Backoff(1.0, 2.2, jitter=lambda: 0.8)
    assert [backoff.failed(0.0) for _ in range(3)] == pytest.approx([1.2, 2.2, 2.2])


def test_a_failure_after_a_steady_time_begins_a_new_row():
    backoff = Backoff(1.0, 60.0, steady_s=60.0)
    assert [backoff.failed(0.0), backoff.failed(61.0), backoff.failed(123.1)] == [1.0, 2.0, 1.0]


def test_ten_thousand_failures_do_not_overflow():
    assert Backoff(0.5, 30.0).pause_s(10_000) == 30.0
