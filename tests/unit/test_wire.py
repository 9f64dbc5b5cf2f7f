# SPDX-License-Identifier: BSD-3-Clause
"""Strict JSON: what is refused, and why; and that messages survive the wire."""

import json
import tracemalloc
from contextlib import suppress

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import BadMessage
from ppdaemon.messages import (
    FACTS,
    Accepted,
    Done,
    FromNode,
    FromRelay,
    Hello,
    HelloRefused,
    ReserveVisit,
    ResultEntry,
    Results,
)
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import MAX_DEPTH, Model, decode, encode, explain, parse_json

LIMIT = 65_536


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "json", "not JSON"),
        (b"{", "json", "not JSON"),
        (b"{} {}", "json", "Extra data"),
        (b"{'a': 1}", "json", "not JSON"),
        (b"\xff\xfe{}", "encoding", "not UTF-8 at byte 0"),
        (b'{"a": "\xc3"}', "encoding", "not UTF-8 at byte 7"),
        (b"\xef\xbb\xbf{}", "json", "not JSON"),
        (b'{"a": NaN}', "json", "NaN"),
        (b'{"a": Infinity}', "json", "Infinity"),
        (b'{"a": -Infinity}', "json", "-Infinity"),
        (b'{"a": 1, "a": 2}', "json", "'a' occurs twice"),
        (b'{"x": {"a": 1, "a": 1}}', "json", "'a' occurs twice"),
        (b"1" * 5000, "json", "not JSON"),
        (b"[" * 30_000 + b"]" * 30_000, "depth", "nested"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "depth", "nested"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "depth", "nested"),
        (b'"' + b"x" * LIMIT + b'"', "size", "65538 bytes"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_not_strict_json_is_refused_with_a_kind_and_a_reason(data, kind, words):
    with pytest.raises(BadMessage, match=words) as caught:
        parse_json(data, limit=LIMIT)
    assert caught.value.kind == kind


def test_nesting_up_to_the_limit_and_brackets_in_strings_are_accepted():
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, limit=LIMIT)
    assert parse_json(b'["' + b"[{" * 100 + b'"]', limit=LIMIT) == ["[{" * 100]
    assert parse_json(b"[" + b",".join([b"[]"] * 100) + b"]", limit=LIMIT) == [[]] * 100


def test_refusing_an_oversized_message_takes_no_memory_worth_mentioning():
    data = b'"' + b"x" * 10_000_000 + b'"'
    tracemalloc.start()
    try:
        with pytest.raises(BadMessage, match="10000002 bytes"):
            parse_json(data, limit=LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_json_values_are_read_back(value):
    assert parse_json(json.dumps(value).encode(), limit=10**6) == value


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_bad_message(data):
    with suppress(BadMessage):
        parse_json(data, limit=100)


class Pair(Model):
    left: int
    right: str = ""


def test_a_wrong_field_is_named_with_what_was_got():
    adapter = pydantic.TypeAdapter(Pair)
    with pytest.raises(BadMessage, match=r"left: .*valid integer.*\(got 'two'\)"):
        decode(b'{"left": "two"}', adapter, limit=100)
    with pytest.raises(BadMessage, match="left: Field required"):
        decode(b"{}", adapter, limit=100)
    with pytest.raises(BadMessage, match="middle: Extra"):
        decode(b'{"left": 1, "middle": 2}', adapter, limit=100)
    with pytest.raises(BadMessage, match="message: "):
        decode(b"[]", adapter, limit=100)


def test_only_the_first_wrong_fields_are_named():
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(list[int]).validate_python(["a"] * 10)
    assert explain(caught.value, most=2).endswith("; and 8 more")


def test_messages_of_a_node_survive_the_wire():
    hello = Hello(
        origin="n1", sent_tai=1.5, sequence=1, life="x", instruments={"DemoCam": (0, 1)}, capacity=9
    )
    entry = ResultEntry(instrument="DemoCam", group="g#1", detector=3, outcome=Outcome.SUCCEEDED)
    results = Results(origin="n1", sent_tai=2.0, sequence=2, entries=(entry,))
    for message in (hello, results):
        assert decode(encode(message), FromNode, limit=10_000) == message
    assert json.loads(encode(hello))["schema"] == 2


def test_a_visit_keeps_its_sal_names_and_unknown_fields_on_the_wire():
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "novelty": [1]})
    reserve = ReserveVisit(
        origin="relay", sent_tai=1.0, sequence=1, visit=visit, detectors=(1,), received_tai=1.0
    )
    assert json.loads(encode(reserve))["visit"]["groupId"] == "g"
    received = decode(encode(reserve), FromRelay, limit=10_000)
    assert received.visit.to_sal()["novelty"] == [1]
    assert received.visit.group == "g"


def test_whether_a_request_may_be_accepted_later_is_not_on_the_wire():
    answer = Accepted(status="rejected", group="g", again=True)
    assert json.loads(encode(answer)) == {"status": "rejected", "groupId": "g", "detectors": 0, "reason": ""}


def test_a_message_of_another_schema_or_of_an_unknown_type_is_refused():
    refusal = json.loads(encode(HelloRefused(origin="r", sent_tai=1.0, sequence=1, code="taken", reason="x")))
    with pytest.raises(BadMessage, match="schema"):
        decode(json.dumps(refusal | {"schema": 1}).encode(), FromRelay, limit=1000)
    with pytest.raises(BadMessage, match="farewell"):
        decode(json.dumps(refusal | {"type": "farewell"}).encode(), FromRelay, limit=1000)


def test_bytes_of_a_name_that_are_no_text_are_escaped_in_a_message():
    done = Done(outcome=Outcome.FAILED, reason="no file /a\udc80\U0001f600", datasets=2)
    sent = decode(encode(done), pydantic.TypeAdapter(Done), limit=1000)
    assert sent == done.model_copy(update={"reason": "no file /a\\udc80\U0001f600"})


def test_a_message_with_half_of_a_surrogate_pair_is_refused():
    """No database takes it: it would end a node that writes it into its journal."""
    refusal = json.loads(encode(HelloRefused(origin="r", sent_tai=1.0, sequence=1, code="taken", reason="x")))
    with pytest.raises(BadMessage, match="half of a surrogate pair"):
        decode(json.dumps(refusal | {"reason": "\udce4"}).encode(), FromRelay, limit=1000)
    whole = json.dumps(refusal | {"reason": "\U0001f52d"}).encode()
    assert decode(whole, FromRelay, limit=1000).reason == "\U0001f52d"


def test_numbers_that_no_database_takes_are_refused():
    done = {"type": "done", "visit_number": 1, "outcome": "succeeded", "datasets": 1 << 63}
    with pytest.raises(BadMessage, match="datasets"):
        decode(json.dumps(done).encode(), FACTS, limit=1000)
    seen = {"type": "results_seen", "origin": "r", "sent_tai": 1.0, "sequence": 1}
    with pytest.raises(BadMessage, match="entries"):
        decode(json.dumps(seen | {"entries": [["C", "g", 0, 1 << 63]]}).encode(), FromRelay, limit=1000)


@pytest.mark.parametrize("adapter", [FromNode, FromRelay])
def test_every_number_on_the_link_has_64_bits(adapter):
    """One that SQLite does not take would end the relay or the node that writes it."""
    schema = adapter.json_schema()
    # A field with a validator has the names of pydantic in its schema.
    without = [
        name
        for model in schema["$defs"].values()
        for name, field in model.get("properties", {}).items()
        for number in integers(field)
        if not ({"minimum", "ge"} & set(number) and {"maximum", "exclusiveMaximum", "lt"} & set(number))
    ]
    assert without == []


def integers(field):
    """Return the integers in the schema of a field."""
    if isinstance(field, list):
        return [found for each in field for found in integers(each)]
    if not isinstance(field, dict):
        return []
    free = field.get("type") == "integer" and not {"const", "enum"} & set(field)
    return [field] * free + integers(list(field.values()))


def test_a_newer_peer_may_add_fields():
    refusal = json.loads(encode(HelloRefused(origin="r", sent_tai=1.0, sequence=1, code="taken", reason="x")))
    assert decode(json.dumps(refusal | {"mood": "good"}).encode(), FromRelay, limit=1000).code == "taken"


@pytest.mark.parametrize("name", ["holds", "ended"])
def test_the_number_of_an_attempt_leaves_room_for_the_next_ones(name):
    """The relay counts on from it, and SQLite raises an error for an integer above 64 bits."""
    listed = {"instrument": "DemoCam", "group": "g", "attempt": (1 << 63) - 1, "detectors": [0]}
    listed |= {"state": "held"} if name == "holds" else {"outcome": "failed", "reported": True}
    hello = {
        **{"schema": 2, "type": "hello", "origin": "n", "sent_tai": 0.0, "sequence": 1, "life": "x"},
        **{"instruments": {}, "capacity": 1, name: [listed]},
    }
    with pytest.raises(BadMessage, match="attempt"):
        decode(json.dumps(hello).encode(), FromNode, limit=10_000)
    listed["attempt"] = 7
    assert decode(json.dumps(hello).encode(), FromNode, limit=10_000).type == "hello"
