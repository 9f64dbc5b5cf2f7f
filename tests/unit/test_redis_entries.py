# SPDX-License-Identifier: BSD-3-Clause
"""What becomes of the entries of Redis streams, without a server."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import BadMessage
from ppdaemon.messages import RELAY_LIMIT, SUBMIT_LIMIT, FromRelay, ResultEntry
from ppdaemon.node.visits.redisentries import (
    LEFT_IDLE_MS,
    DetectorKey,
    Entry,
    HeldEntries,
    Pending,
    Place,
    ServerClock,
    can_claim,
    claim_idle_ms,
    dead_consumers,
    permit_key,
    read_entry,
    refusal_reason,
    reservations,
    settle,
)
from ppdaemon.states import Outcome
from ppdaemon.wire import decode, encode

MESSAGES = Path(__file__).parents[1] / "data" / "messages"
FANNED_OUT = json.loads((MESSAGES / "fanned_out_detector_42_strings.json").read_text())
PUBLISHED_TAI = float(FANNED_OUT["private_sndStamp"])
STREAM = "instrument:lsstcam"


def fields(**changes):
    """Return the fields of an entry as a server gives them; those that are `None` are missing."""
    chosen = {name: value for name, value in (FANNED_OUT | changes).items() if value is not None}
    return {name.encode(): value.encode() for name, value in chosen.items()}


def entry(number=0, attempt=1, **changes) -> Entry:
    return read_entry(Place(STREAM, f"{1000 * number}-0"), fields(**changes), attempt)


def result(of: Entry, *, returned=False) -> ResultEntry:
    outcome = Outcome.CANCELLED if returned else Outcome.SUCCEEDED
    return ResultEntry(**of.key._asdict(), outcome=outcome, returned=returned or None)


def test_an_entry_of_the_fan_out_is_one_detector_of_a_visit():
    found = entry()
    assert found.key == DetectorKey("LSSTCam", "2026-11-28T03:25:16.951", 42)
    assert found.visit.position == (150.1, 2.2)
    assert found.visit.detector is None  # others of the group are the same visit
    assert found.visit == entry(detector="43").visit


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({}, "field"),
        (fields(detector=None), "redis_detector"),
        (fields(detector="R22_S11"), "field"),
        (fields(detector="-1"), "field"),
        (fields(detector=str(1 << 63)), "field"),
        (fields(groupId=""), "field"),
        (fields(groupId=None), "field"),
        (fields(instrument=None), "field"),
        ({b"groupId": b"\xff"}, "redis_text"),
        (fields(survey="x" * SUBMIT_LIMIT), "redis_size"),
    ],
)
def test_garbage_is_no_entry(content, kind):
    with pytest.raises(BadMessage) as caught:
        read_entry(Place(STREAM, "1-0"), content)
    assert caught.value.kind == kind


@given(st.dictionaries(st.sampled_from([*fields(), b"other"]), st.binary(max_size=30)))
def test_any_content_is_an_entry_or_a_bad_message(changes):
    try:
        found = read_entry(Place(STREAM, "1-0"), fields() | changes)
    except BadMessage:
        return
    (message,) = reservations([found], {found.place: 1.0}, 1e9)
    assert message.detectors == (found.detector,)
    assert decode(encode(message), FromRelay, limit=RELAY_LIMIT).visit.group == found.visit.group


@pytest.mark.parametrize(
    ("changes", "age_s", "since_s", "reason"),
    [
        ({}, 3600.0, 3600.0, ""),
        ({}, 3601.0, 0.0, "expired: announced 3601 s ago"),
        ({}, 0.0, 3601.0, "expired: announced 3601 s ago"),  # the fan-out was late itself
        ({"instrument": ""}, 0.0, 0.0, "the visit takes no image"),
    ],
)
def test_no_node_needs_an_entry(changes, age_s, since_s, reason):
    found = refusal_reason(entry(**changes), age_s, PUBLISHED_TAI + since_s, 3600.0)
    assert found == reason


def test_ages_are_those_of_the_server_s_clock():
    clock = ServerClock(server_ms=5_000_000.0, mono=100.0)
    assert clock.age_s(Place(STREAM, "4990000-7"), 103.0) == 13.0
    assert clock.age_s(Place(STREAM, "6000000-0"), 103.0) == 0.0  # it was set back
    assert clock.now_tai(103.0) == 5003.0 + 37


def test_detectors_that_were_read_together_are_reserved_together():
    entries = [
        entry(1, detector="42"),
        entry(2, detector="43"),
        entry(3, detector="42"),  # written twice
        entry(4, detector="44", survey="other"),
        entry(5, detector="45", attempt=3),
    ]
    ages_s = {each.place: float(number) for number, each in enumerate(entries)}
    found = reservations(entries, ages_s, 1000.0)
    assert [(each.detectors, each.attempt, each.received_tai) for each in found] == [
        ((42, 43), 1, 998.0),
        ((44,), 1, 997.0),
        ((45,), 3, 996.0),
    ]


def test_only_its_own_entries_are_renewed_and_unknown_ones_read():
    held = HeldEntries()
    mine, lost, left, given = (entry(number, detector=str(number)) for number in range(1, 5))
    elsewhere = read_entry(Place("other", "1-0"), fields(detector="9"))
    for each in (mine, lost, elsewhere):
        held.take(each, 0.0)
    held.leave([left.place])
    pending = [Pending(each.place, "n1", 1) for each in (mine, left, given)]
    assert held.sort(STREAM, pending) == ([mine.place], [])  # its reply may be on its way
    assert held.sort(STREAM, pending) == ([mine.place], [given.place])
    # Another node has taken it, and gives it back later.
    assert held.sort(STREAM, pending[:1]) == ([mine.place], [])
    assert held.sort(STREAM, pending) == ([mine.place], [])
    assert held.sort(STREAM, pending) == ([mine.place], [left.place, given.place])


def test_an_entry_that_was_written_twice_is_one_visit_detector():
    held, first, second = HeldEntries(), entry(1), entry(2)
    held.take(first, 0.0)
    held.take(second, 0.0)
    assert len(held) == 1
    assert held.of(first.key) == (first.place, second.place)
    held.end([first.place])
    assert held.of(first.key) == (second.place,)
    held.end([second.place])
    assert len(held) == 0


@pytest.mark.parametrize(
    ("owner", "detectors", "expected"),
    [("", {42}, True), ("n1", {42}, True), ("n2", {42}, False), ("", {43}, False)],
)
def test_another_s_entry_is_taken_only_without_a_permit_of_another(owner, detectors, expected):
    assert can_claim(entry(), {"LSSTCam": detectors}, owner, "n1") is expected


@pytest.mark.parametrize(
    ("owner", "returned", "expected"),
    [
        ("n1", False, "acknowledged"),
        ("n1", True, "left released"),
        ("", True, "left"),
        ("n2", False, "given moved"),
        ("n2", True, "given"),
    ],
)
def test_an_entry_is_acknowledged_left_or_given_to_the_owner_of_its_permit(owner, returned, expected):
    held, ended = HeldEntries(), entry(1)
    held.take(ended, 0.0)
    chosen = settle([result(ended, returned=returned)], {ended.key: owner}, held, "n1")
    found = [name for name in chosen.__slots__ if getattr(chosen, name)]
    assert " ".join(found) == expected
    assert dict(chosen.given) == ({"n2": (ended.place,)} if owner == "n2" else {})


def test_entries_that_were_left_are_taken_at_once_and_others_after_a_time_for_renewals():
    assert claim_idle_ms(60.0, 0.0) == 60_000
    assert 60_000 < claim_idle_ms(60.0, 0.1) < LEFT_IDLE_MS


def test_an_outcome_whose_entry_is_gone_needs_no_acknowledgment():
    ended = entry(1)
    chosen = settle([result(ended)], {ended.key: "n1"}, HeldEntries(), "n1")
    assert not any(getattr(chosen, name) for name in chosen.__slots__)


def test_what_was_returned_before_a_later_attempt_costs_this_one_nothing():
    held, ended = HeldEntries(), entry(1)
    held.take(ended, 0.0)
    returned, done = result(ended, returned=True), result(ended).model_copy(update={"attempt": 2})
    chosen = settle([returned, done], {ended.key: "n1"}, held, "n1")
    assert (chosen.acknowledged, chosen.left, chosen.released) == ((ended.place,), (), ())
    held.take(entry(1, attempt=2), 0.0)  # taken again, and perhaps permitted
    chosen = settle([returned], {ended.key: "n1"}, held, "n1")
    assert not any(getattr(chosen, name) for name in chosen.__slots__)


def test_a_reservation_without_an_answer_is_found():
    held, first, second = HeldEntries(), entry(1, detector="1"), entry(2, attempt=3, detector="2")
    held.take(first, 10.0)
    held.take(second, 11.0)
    assert held.unanswered(STREAM, 10.5) == {first.place: 1}
    held.answered(first.key)
    assert held.unanswered(STREAM, 99.0) == {second.place: 3}
    assert held.unanswered("other", 99.0) == {}
    held.leave([second.place])
    assert held.unanswered(STREAM, 99.0) == {}


def test_a_consumer_is_dead_only_if_nothing_of_it_is_pending():
    consumers = [
        {"name": b"n1", "pending": 0, "idle": 10**9},
        {"name": b"old", "pending": 0, "idle": 10**9},
        {"name": b"young", "pending": 0, "idle": 1000},
        {"name": b"busy", "pending": 1, "idle": 10**9},
    ]
    assert list(dead_consumers(consumers, "n1", 86_400.0)) == ["old"]


def test_permits_of_shadow_mode_are_none_of_the_present_service():
    key = DetectorKey("LSSTCam", "2026-11-28T03:25:16.951", 42)
    assert permit_key(key) == "ppdaemon:permit:LSSTCam:2026-11-28T03:25:16.951:42"
    assert permit_key(key, "mine") == "ppdaemon:shadow-permit:mine:LSSTCam:2026-11-28T03:25:16.951:42"
