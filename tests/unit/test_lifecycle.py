# SPDX-License-Identifier: BSD-3-Clause
"""When one child process is started, is late, and is started again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.node.processes.lifecycle import Kill, Lifecycle, ProcessState, Serve, Start

BOOT_S, ANSWER_S = 60.0, 30.0
ENDED = "ended by signal 9 (SIGKILL)"


def a_lifecycle(**changes):
    limits = {"boot_s": BOOT_S, "answer_s": ANSWER_S, "first_pause_s": 1.0, "longest_pause_s": 60.0}
    return Lifecycle(**limits | changes)


def serving(**changes):
    lifecycle = a_lifecycle(**changes)
    lifecycle.started(0.0)
    lifecycle.ready()
    return lifecycle


def restart(lifecycle):
    """Start the next one when its pause is over; return the pause's end."""
    now = lifecycle.deadline
    assert lifecycle.due(now) == Start()
    lifecycle.started(now)
    lifecycle.ready()
    return now


def test_a_process_that_does_not_boot_in_time_is_killed():
    lifecycle = a_lifecycle()
    lifecycle.started(10.0)
    assert lifecycle.deadline == 10.0 + BOOT_S
    assert lifecycle.due(69.9) is None
    assert lifecycle.due(70.0) == Kill("was not ready in 60 s")


def test_a_start_after_late_ones_has_more_time_until_one_is_ready():
    lifecycle, now, limits = a_lifecycle(), 0.0, []
    for _ in range(5):
        lifecycle.started(now)
        limits.append(lifecycle.deadline - now)
        kill = lifecycle.due(lifecycle.deadline)
        assert kill == Kill(f"was not ready in {limits[-1]:g} s")
        lifecycle.killed(kill.reason)
        lifecycle.ended(ENDED, now)
        now = lifecycle.deadline
    assert limits == [60.0, 120.0, 240.0, 240.0, 240.0]
    lifecycle.started(now)
    lifecycle.ready()
    lifecycle.ended(ENDED, now)
    restarted = lifecycle.deadline
    lifecycle.started(restarted)
    assert lifecycle.deadline == restarted + BOOT_S


def test_a_process_that_dies_while_it_boots_gets_no_more_time():
    lifecycle = a_lifecycle()
    lifecycle.started(0.0)
    lifecycle.ended(ENDED, 1.0)
    now = lifecycle.deadline
    lifecycle.started(now)
    assert lifecycle.deadline == now + BOOT_S


def test_a_process_without_unanswered_orders_has_no_deadline():
    lifecycle = serving()
    assert (lifecycle.state, lifecycle.deadline, lifecycle.due(1e9)) == (ProcessState.SERVING, None, None)


def test_the_oldest_order_without_an_answer_decides():
    lifecycle = serving()
    lifecycle.ordered("a", 0.0)
    lifecycle.ordered("b", 5.0)
    assert lifecycle.deadline == 30.0
    lifecycle.answered("a", 10.0)
    assert lifecycle.deadline == 35.0
    assert lifecycle.due(34.0) is None
    assert lifecycle.due(35.0) == Kill("has not answered for 30 s")
    lifecycle.answered("b", 35.0)
    assert lifecycle.deadline is None


def test_a_process_that_was_killed_is_killed_once_and_its_reason_stays():
    lifecycle = serving()
    lifecycle.ordered("a", 0.0)
    lifecycle.killed("has not answered for 30 s")
    assert (lifecycle.state, lifecycle.due(1e9)) == (ProcessState.KILLED, None)
    assert list(lifecycle.unanswered) == ["a"]  # its last messages may answer it
    assert lifecycle.problem(30.0) == "has not answered for 30 s; it is killed"
    lifecycle.ended(ENDED, 31.0)
    assert lifecycle.unanswered == {}
    assert lifecycle.problem(31.0) == "has not answered for 30 s; the next one starts in 1 s"


def test_the_pauses_between_deaths_grow_to_a_minute():
    lifecycle = serving()
    now, pauses = 0.0, []
    for _ in range(9):
        lifecycle.ended(ENDED, now)
        pauses.append(lifecycle.deadline - now)
        now = restart(lifecycle)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_deaths_in_a_row_are_reported_until_the_process_is_steady():
    lifecycle = serving(steady_s=60.0)
    lifecycle.ended(ENDED, 1.0)
    lifecycle.started(2.0)
    assert lifecycle.problem(2.0) == "ended by signal 9 (SIGKILL); the next one is starting"
    lifecycle.ready()
    assert lifecycle.problem(3.0) == ""
    lifecycle.ended("ended with status 1", 3.0)
    assert lifecycle.problem(4.2) == "ended with status 1, 2 deaths in a row; the next one starts in 1 s"
    now = restart(lifecycle)
    assert lifecycle.problem(now + 59.0) == "ended with status 1, 2 deaths in a row"
    assert lifecycle.problem(now + 60.0) == ""
    lifecycle.ended(ENDED, now + 61.0)
    assert lifecycle.deadline == now + 62.0  # the first in a row


def test_after_a_success_the_next_death_is_the_first():
    lifecycle = serving()
    for now in (0.0, 10.0, 20.0):
        lifecycle.ended(ENDED, now)
        restart(lifecycle)
    lifecycle.succeeded()
    lifecycle.ended(ENDED, 100.0)
    assert lifecycle.deadline == 101.0


def test_a_process_that_could_not_carry_out_an_order_pauses_and_then_serves():
    lifecycle = serving()
    lifecycle.failed(0.0)
    assert (lifecycle.state, lifecycle.deadline) == (ProcessState.RETRYING, 1.0)
    assert lifecycle.due(1.0) == Serve()
    assert lifecycle.state == ProcessState.SERVING
    lifecycle.failed(1.0)
    assert lifecycle.deadline == 2.0, "what the order needs may be back: the pause does not grow"
    lifecycle.hurry()
    assert lifecycle.state == ProcessState.SERVING
    assert lifecycle.problem(2.0) == "", "no process has died"


def test_a_process_that_is_replaced_may_answer_first_and_another_one_follows_at_once():
    lifecycle = serving()
    lifecycle.ordered("last", 0.0)
    lifecycle.replace(1.0)
    assert lifecycle.deadline == 30.0
    lifecycle.answered("last", 20.0)
    assert lifecycle.deadline == 20.0 + BOOT_S
    lifecycle.ended("ended", 21.0)
    assert (lifecycle.due(21.0), lifecycle.problem(21.0)) == (Start(), "")


def test_a_process_that_is_replaced_and_does_not_end_is_killed():
    lifecycle = serving()
    lifecycle.replace(1.0)
    assert lifecycle.due(61.0) == Kill("has not ended in 60 s")


def test_a_process_that_boots_while_it_is_replaced_gets_no_orders():
    lifecycle = a_lifecycle()
    lifecycle.started(0.0)
    lifecycle.replace(1.0)
    lifecycle.ready()
    assert lifecycle.state == ProcessState.REPLACING


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_follows_a_retired_process(killed):
    lifecycle = serving()
    lifecycle.retire()
    if killed:
        lifecycle.ordered("a", 0.0)
        assert lifecycle.due(30.0) == Kill("has not answered for 30 s")
        lifecycle.killed("has not answered for 30 s")
    lifecycle.ended(ENDED, 31.0)
    assert (lifecycle.state, lifecycle.deadline) == (ProcessState.CLOSED, None)


EVENTS = {
    "ready": lambda lifecycle, now: lifecycle.ready(),
    "ordered": lambda lifecycle, now: lifecycle.ordered(now, now),
    "answered": lambda lifecycle, now: lifecycle.answered(next(iter(lifecycle.unanswered), None), now),
    "succeeded": lambda lifecycle, now: lifecycle.succeeded(),
    "failed": lambda lifecycle, now: lifecycle.failed(now),
    "hurry": lambda lifecycle, now: lifecycle.hurry(),
    "replace": lambda lifecycle, now: lifecycle.replace(now),
    "retire": lambda lifecycle, now: lifecycle.retire(),
    "ended": lambda lifecycle, now: lifecycle.ended(ENDED, now),
    "close": lambda lifecycle, now: lifecycle.close(),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0.0, 100.0))))
def test_after_random_events_an_expected_process_has_a_deadline(events):
    lifecycle, now = a_lifecycle(), 0.0
    lifecycle.started(now)
    closed = False
    for name, pause_s in events:
        EVENTS[name](lifecycle, now)
        closed = closed or name == "close"
        now += pause_s
        match lifecycle.due(now):
            case Start():
                assert lifecycle.state == ProcessState.PAUSING
                lifecycle.started(now)
            case Kill(reason=reason):
                lifecycle.killed(reason)
        if closed:
            assert (lifecycle.state, lifecycle.deadline) == (ProcessState.CLOSED, None)
        idle = lifecycle.state in (ProcessState.SERVING, ProcessState.RETIRED) and not lifecycle.unanswered
        if lifecycle.state not in (ProcessState.KILLED, ProcessState.CLOSED) and not idle:
            assert lifecycle.deadline is not None
            assert lifecycle.deadline < math.inf


def late_start(lifecycle, now):
    """Let a start be late; return its limit."""
    lifecycle.started(now)
    limit_s = lifecycle.deadline - now
    kill = lifecycle.due(now + limit_s)
    lifecycle.killed(kill.reason)
    lifecycle.ended(ENDED, now + limit_s)
    return limit_s


@pytest.mark.parametrize("end", ["ready", "reopened", "closed and reopened"])
def test_a_start_has_the_configured_limit_again_after_a_success_or_a_reopening(end):
    lifecycle = serving()
    configured = late_start(lifecycle, 0.0)
    assert [late_start(lifecycle, 0.0) for _ in range(3)] == [2 * configured, 4 * configured, 4 * configured]
    if end == "ready":
        lifecycle.started(0.0)
        lifecycle.ready()
    else:
        if end != "reopened":
            lifecycle.close()
        lifecycle.reopen()
    assert late_start(lifecycle, 0.0) == configured


def test_a_start_that_is_killed_for_another_reason_leaves_the_limit_of_the_next_one():
    lifecycle = serving()
    configured = late_start(lifecycle, 0.0)
    for reason in ("sent an invalid message", "uses 5 GB"):
        lifecycle.started(0.0)
        lifecycle.killed(reason)
        lifecycle.ended(ENDED, 1.0)
    assert late_start(lifecycle, 0.0) == 2 * configured
