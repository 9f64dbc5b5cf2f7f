# SPDX-License-Identifier: BSD-3-Clause
"""Lost messages are counted, and the state is requested, but not for each of them."""

from ppdaemon.sequence import REQUEST_S, SequenceCheck


def test_numbers_in_order_twice_or_uncounted_are_no_gap():
    check = SequenceCheck()
    assert not any(check.received(number, 0.0) for number in (1, 2, 2, 0, 3, 1, 4))
    assert check.lost == 0


def test_after_a_gap_the_state_is_requested_until_it_arrives_at_a_limited_rate():
    check = SequenceCheck()
    check.restart(4)
    assert check.received(7, 0.0)
    assert not check.received(8, 1.0)
    assert check.received(9, REQUEST_S)
    check.restart(12)
    assert not check.received(13, 3 * REQUEST_S)
    assert check.lost == 2


def test_a_new_gap_soon_after_the_repair_waits_for_the_limit():
    check = SequenceCheck()
    assert check.received(3, 0.0)
    check.restart(4)
    assert not check.received(6, 1.0)
    assert check.received(7, REQUEST_S)
