# SPDX-License-Identifier: BSD-3-Clause
"""The submit socket's messages: envelopes, kinds of requests, checks."""

import json
import math

import pytest

from ppdaemon.errors import BadMessage
from ppdaemon.messages import VisitStatus
from ppdaemon.relay.config import RelayConfig, SwitchedOff
from ppdaemon.relay.requests import (
    check_visit,
    chosen_detectors,
    differences,
    read_request,
    split_envelope,
    visit_json,
    visit_warnings,
)
from ppdaemon.throttle import Throttle, sample_of
from ppdaemon.visit import NextVisit, VisitCanceled, read_next_visit

NOW_TAI = 1_763_781_916.0
VISIT = {"groupId": "g", "instrument": "DemoCam", "private_sndStamp": NOW_TAI}


@pytest.fixture
def config(tmp_path):
    instruments = {"DemoCam": {"detectors": "0-8"}, "LATISS": {"detectors": 0, "sal_indexes": [2]}}
    return RelayConfig.model_validate({"state_dir": tmp_path, "instruments": instruments})


def read(fields):
    return read_request([json.dumps(fields).encode()])


@pytest.mark.parametrize(
    ("frames", "envelope", "body"),
    [
        ([b"id", b"", b"{}"], [b"id", b""], [b"{}"]),
        ([b"id", b"{}"], [b"id"], [b"{}"]),
        ([b"id", b"corr", b"", b"{}"], [b"id", b"corr", b""], [b"{}"]),
        ([b"id", b"", b""], [b"id", b""], [b""]),
        ([b"id", b""], [b"id"], [b""]),
        ([b"id"], [b"id"], []),
        ([b"id", b"", b"{}", b"{}"], [b"id", b""], [b"{}", b"{}"]),
        ([b"id", b"{}", b"{}"], [b"id"], [b"{}", b"{}"]),
    ],
    ids=["REQ", "DEALER", "correlated", "REQ-empty", "DEALER-empty", "nothing", "REQ-extra", "DEALER-extra"],
)
def test_the_way_back_is_parted_from_the_body(frames, envelope, body):
    assert split_envelope(frames) == (envelope, body)


def test_what_is_sent_is_recognized_by_its_fields():
    assert isinstance(read(VISIT), NextVisit)
    assert isinstance(read({"groupId": "g", "scriptSalIndex": 3}), VisitCanceled)
    assert isinstance(read({"groupId": "g", "position": [0, 0], "instrument": ""}), NextVisit)
    assert isinstance(read({"type": "visit_status", "groupId": "g"}), VisitStatus)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ([], "frames", "0 frames"),
        ([b"{}", b"{}"], "frames", "2 frames"),
        ([b""], "empty", "empty message"),
        ([b"hello"], "json", "not JSON"),
        ([b"[]"], "json", "expected a JSON object, got list"),
        ([b"{}"], "field", "groupId: Field required"),
        ([b'{"type": "visit_status"}'], "field", "groupId: Field required"),
        ([b'{"type": "visit_status", "groupId": "g", "more": 1}'], "field", "more"),
        ([b'{"groupId": "g", "position": [0, 0]}'], "field", "instrument: Field required"),
        ([b'{"groupId": "\\ud800", "instrument": "I"}'], "field", "groupId: Input should be a valid string"),
        ([b"\xff"], "encoding", "not UTF-8"),
        ([b"{" + b" " * 70_000 + b"}"], "size", "70002 bytes"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_junk_is_refused_with_a_kind_and_a_reason(body, kind, words):
    with pytest.raises(BadMessage, match=words) as caught:
        read_request(body)
    assert caught.value.kind == kind


def test_a_visit_of_a_configured_instrument_passes(config):
    assert check_visit(read(VISIT), config, NOW_TAI) is None


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"instrument": ""}, "ignored", "blank instrument"),
        ({"instrument": "  "}, "ignored", "blank instrument"),
        ({"instrument": "HSC"}, "rejected", "'HSC' is not one of DemoCam, LATISS"),
        ({"instrument": "LATISS", "salIndex": 1}, "ignored", "salIndex 1 is not configured"),
        ({"private_sndStamp": NOW_TAI - 3601}, "rejected", "stale: published 3601 s ago"),
    ],
    ids=str,
)
def test_a_visit_that_cannot_be_served_is_answered_with_a_reason(config, changes, status, words):
    answer = check_visit(read(VISIT | changes), config, NOW_TAI)
    assert (answer.status, answer.group) == (status, "g")
    assert words in answer.reason


def test_the_edge_of_the_expiry_is_still_accepted(config):
    assert check_visit(read(VISIT | {"private_sndStamp": NOW_TAI - 3600}), config, NOW_TAI) is None
    assert check_visit(read(VISIT | {"instrument": "LATISS", "salIndex": 2}), config, NOW_TAI) is None


def test_a_stamp_in_utc_instead_of_tai_is_not_odd_but_one_in_the_future_is(config):
    assert visit_warnings(read(VISIT | {"private_sndStamp": NOW_TAI - 37}), NOW_TAI) == []
    assert visit_warnings(read(VISIT | {"private_sndStamp": NOW_TAI + 4}), NOW_TAI) == []
    assert visit_warnings(read(VISIT | {"private_sndStamp": NOW_TAI + 37}), NOW_TAI) == [
        "published 37 s in the future"
    ]
    assert check_visit(read(VISIT | {"private_sndStamp": NOW_TAI + 37}), config, NOW_TAI) is None


@pytest.mark.parametrize(
    "wrapped",
    [
        {"message": VISIT},
        {"message": json.dumps(VISIT)},
        {"value": {"schema": 5, "payload": VISIT}, "key": None},
        {"specversion": "1.0", "id": "7", "data": VISIT, "note": "{broken"},
        ["1700000000000-0", {"message": json.dumps(VISIT)}],
        json.dumps(VISIT),
        {"value": json.dumps(json.dumps(VISIT))},
        {"groupId": VISIT["groupId"], "event": VISIT},
        {"groupId": VISIT["groupId"], "event": json.dumps(VISIT)},
        {"topic": "nextVisit", "key": {"groupId": VISIT["groupId"]}, "value": VISIT},
    ],
    ids=lambda wrapped: json.dumps(wrapped)[:30],
)
def test_an_envelope_is_opened(wrapped):
    assert read(wrapped).to_sal() == VISIT


@pytest.mark.parametrize(
    "wrapped",
    [
        {"message": {"groupId": "g", "scriptSalIndex": "3"}},
        {"key": {"groupId": "g"}, "value": {"groupId": "g", "scriptSalIndex": 3}},
    ],
)
def test_cancellations_come_in_envelopes_too(wrapped):
    assert read(wrapped).script_sal_index == 3


@pytest.mark.parametrize(
    ("wrapped", "kind"),
    [
        ({"message": VISIT, "before": VISIT}, "envelope"),
        ([VISIT, VISIT], "envelope"),
        ({"a": {"b": {"c": {"d": VISIT}}}}, "field"),
        ({"message": "{"}, "field"),
        ({"instrument": "DemoCam", "before": {"groupId": "h"}}, "field"),
        ({"message": "\ud800"}, "field"),
        ({"key": {"groupId": "another"}, "value": VISIT}, "envelope"),
        ("text", "json"),
    ],
    ids=lambda wrapped: json.dumps(wrapped)[:30],
)
def test_an_envelope_without_one_event_is_refused(wrapped, kind):
    with pytest.raises(BadMessage) as caught:
        read(wrapped)
    assert caught.value.kind == kind


def test_nan_in_json_costs_its_field_only():
    visit = read_request([json.dumps(VISIT | {"cameraAngle": math.nan, "novelty": math.inf}).encode()])
    assert visit.without_meaning == ()
    assert visit.to_sal() == VISIT | {"novelty": None}
    visit = read_request([json.dumps(VISIT | {"rotationSystem": 2, "cameraAngle": math.nan}).encode()])
    assert visit_warnings(visit, NOW_TAI) == [
        "accepted without cameraAngle: the values sent are unset or invalid; nothing is preloaded by position"
    ]


@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b'"\\ud800"'])
def test_a_value_that_json_cannot_encode_again_costs_its_field_only(value):
    whole = json.dumps(VISIT | {"duration": 0, "novelty": 0}).encode()
    visit = read_request([whole.replace(b'"novelty": 0', b'"novelty": ' + value)])
    assert visit.to_sal() == VISIT | {"duration": 0, "novelty": None}
    visit = read_request([whole.replace(b'"duration": 0', b'"duration": ' + value)])
    assert (visit.duration_s, visit.without_meaning) == (0.0, ("duration",))
    assert json.loads(visit_json(visit))["novelty"] == 0


def test_an_unset_sal_index_costs_no_visit(config):
    assert check_visit(read(VISIT | {"instrument": "LATISS", "salIndex": None}), config, NOW_TAI) is None


def test_a_detector_that_is_not_configured_is_ignored(config):
    assert chosen_detectors(read(VISIT | {"detector": "8"}), config) == (8,)
    answer = check_visit(read(VISIT | {"detector": 9}), config, NOW_TAI)
    assert (answer.status, answer.reason) == ("ignored", "detector 9 is not configured for DemoCam")


@pytest.mark.parametrize(
    ("data", "sample"),
    [
        (b"junk", "junk"),
        (b'{\n "a":\t1}', '{ "a": 1}'),
        (b"\x00\x1b[31m\xff\xe2\x80\xae", "??[31m\N{REPLACEMENT CHARACTER}?"),
        (b"x" * 10_000, "x" * 300),
    ],
    ids=["text", "lines", "control", "long"],
)
def test_a_sample_is_short_and_without_control_characters(data, sample):
    assert sample_of(data) == sample


def test_a_visit_without_a_stamp_is_accepted_with_a_warning(config):
    visit = read({"groupId": "g", "instrument": "DemoCam"})
    assert check_visit(visit, config, NOW_TAI) is None
    assert "unknown" in visit_warnings(visit, NOW_TAI)[0]


def test_the_kept_content_is_the_event_with_its_unknown_fields():
    fields = VISIT | {"novelty": {"a": [1, None]}}
    assert json.loads(visit_json(read_next_visit(fields))) == fields


def test_differences_name_fields_but_not_the_private_ones():
    other = VISIT | {"private_sndStamp": 0.0, "survey": "other", "nimages": 2}
    assert differences(VISIT | {"nimages": 1}, other) == ["nimages", "survey"]
    assert differences(VISIT, VISIT | {"private_rcvStamp": 1.0}) == []


def test_a_flood_is_counted_and_logged_once_per_interval(clock):
    throttle = Throttle(10.0, clock.mono)
    assert [throttle.passes("json") for _ in range(100)] == [True] + [False] * 99
    assert throttle.passes("size")
    clock.advance(9.9)
    assert not throttle.passes("json")
    clock.advance(0.2)
    assert throttle.passes("json")
    assert throttle.by_kind == {"json": 102, "size": 1}


@pytest.mark.parametrize(
    ("off", "visit", "reason"),
    [
        ({"instruments": ["DemoCam"]}, {}, "DemoCam is switched off (switched_off.instruments)"),
        ({"surveys": ["BLOCK-1"]}, {}, None),
        ({"surveys": ["BLOCK-1"]}, {"survey": "BLOCK-1"}, "survey 'BLOCK-1' is switched off"),
        ({"detectors": {"DemoCam": "0-8"}}, {}, "all its detectors are switched off"),
        ({"detectors": {"DemoCam": "4"}}, {"detector": 4}, "all its detectors are switched off"),
        ({"detectors": {"DemoCam": "4"}}, {"detector": 5}, None),
    ],
)
def test_what_is_switched_off_is_ignored_with_the_key_that_does_it(config, off, visit, reason):
    config = config.model_copy(update={"switched_off": SwitchedOff.model_validate(off)})
    answer = check_visit(read_next_visit({"groupId": "g", "instrument": "DemoCam", **visit}), config, NOW_TAI)
    if reason is None:
        assert answer is None
    else:
        assert answer.status == "ignored"
        assert reason in answer.reason
