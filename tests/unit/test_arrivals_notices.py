# SPDX-License-Identifier: BSD-3-Clause
"""Arrival notices as object stores and storage layers write them."""

import json
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.notices import StoredObject, read_notice


def record(key: object, event: str = "ObjectCreated:Put", bucket: object = "raw") -> dict[str, object]:
    return {
        "eventName": event,
        "eventTime": "2025-11-22T03:25:50.1Z",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 5760, "eTag": "x"}},
    }


def notice(content: object, *topics: bytes) -> tuple[str | StoredObject, ...]:
    return read_notice([*topics, json.dumps(content).encode()]).files


def stored(*keys: str) -> tuple[StoredObject, ...]:
    return tuple(StoredObject("s3", "raw", key) for key in keys)


@given(st.lists(st.text(min_size=1, max_size=60), max_size=5))
def test_keys_are_unquoted(keys):
    assert notice({"Records": [record(quote_plus(key)) for key in keys]}) == stored(*keys)


def test_a_plus_is_a_space():
    assert notice({"Records": [record("a+b%3Ac%23d.fits")]}) == stored("a b:c#d.fits")


@pytest.mark.parametrize(
    ("event", "creates"),
    [
        ("ObjectCreated:Put", True),
        ("ObjectCreated:CompleteMultipartUpload", True),
        ("s3:ObjectCreated:Copy", True),
        ("ObjectRemoved:Delete", False),
        ("ObjectRemoved:DeleteMarkerCreated", False),
        ("TestEvent", False),
    ],
)
def test_only_creations_announce_files(event, creates):
    assert notice({"Records": [record("a.fits", event)]}) == (stored("a.fits") if creates else ())


def test_a_broken_record_does_not_spoil_the_others():
    """Fault 16: several records, one broken."""
    broken = [
        {},
        None,
        [],
        "x",
        5,
        {"eventName": "ObjectCreated:Put"},
        {"eventName": 3},
        record(""),
        record(7),
        record("c", bucket=None),
        record("c") | {"s3": {"object": {"key": "c"}}},
    ]
    got = read_notice([json.dumps({"Records": [record("a"), *broken, record("b")]}).encode()])
    assert got.files == stored("a", "b")
    assert {problem.kind for problem in got.problems} == {"record"}
    assert len(got.problems) == len(broken)


@pytest.mark.parametrize(
    ("content", "file"),
    [
        ({"path": "/raw/a.fits"}, "/raw/a.fits"),
        ({"path": "a.fits", "size": 5760, "time": "2025-11-22T03:25:50"}, "a.fits"),
        ({"uri": "file:///raw/a%20b%23.fits"}, "/raw/a b#.fits"),
        ({"uri": "file:///raw/2025-11-22T03:25:16.951#1/a.fits"}, "/raw/2025-11-22T03:25:16.951#1/a.fits"),
        ({"uri": "s3://bucket/LSSTCam/a%23.fits"}, StoredObject("s3", "bucket", "LSSTCam/a#.fits")),
        (
            {"uri": "s3://bucket/2025-11-22T03:25:16#1/a"},
            StoredObject("s3", "bucket", "2025-11-22T03:25:16#1/a"),
        ),
        ({"uri": "https://host:8443/raw/a.fits"}, StoredObject("https", "host:8443", "raw/a.fits")),
    ],
)
def test_plain_notices_name_one_file(content, file):
    assert notice(content) == (file,)


def test_topics_before_the_json_are_passed_over():
    assert notice({"path": "a"}, b"arrivals", b"LSSTCam") == ("a",)


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([], "frames"),
        ([b"x"] * 9, "frames"),
        ([b"{"], "json"),
        ([b"\xff"], "encoding"),
        ([b"{}" * 600_000], "size"),
        ([b"[" * 100_000], "depth"),
        ([b'{"path": "a", "path": "b"}'], "json"),
        ([b'{"path": NaN}'], "json"),
        ([b"[]"], "content"),
        ([b"{}"], "field"),
        ([b'{"path": 5}'], "field"),
        ([b'{"path": ""}'], "field"),
        ([b'{"Records": {}}'], "field"),
        ([b'{"uri": "/raw/a.fits"}'], "uri"),
        ([b'{"uri": "http:///a.fits"}'], "uri"),
        ([b'{"uri": "http://x/"}'], "uri"),
        ([b'{"uri": "file://otherhost/a.fits"}'], "uri"),
    ],
)
def test_junk_is_refused_by_kind(frames, kind):
    with pytest.raises(BadMessage) as caught:
        read_notice(frames)
    assert caught.value.kind == kind


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_frames_are_a_notice_or_refused(frames):
    try:
        files = read_notice(frames).files
    except BadMessage:
        return
    assert all(isinstance(file, str | StoredObject) for file in files)
