# SPDX-License-Identifier: BSD-3-Clause
"""Arrival notices as object stores and storage layers write them."""

import json
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.notices import read_notice


def record(key: str, event: str = "ObjectCreated:Put") -> dict[str, object]:
    return {
        "eventName": event,
        "eventTime": "2025-11-22T03:25:50.1Z",
        "s3": {"bucket": {"name": "raw"}, "object": {"key": key, "size": 5760, "eTag": "x"}},
    }


def notice(content: object, *topics: bytes) -> tuple[str, ...]:
    return read_notice([*topics, json.dumps(content).encode()]).paths


@given(st.lists(st.text(min_size=1, max_size=60), max_size=5))
def test_keys_are_unquoted(keys):
    assert notice({"Records": [record(quote_plus(key)) for key in keys]}) == tuple(keys)


def test_a_plus_is_a_space():
    assert notice({"Records": [record("a+b%3Ac%23d.fits")]}) == ("a b:c#d.fits",)


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
    assert notice({"Records": [record("a.fits", event)]}) == (("a.fits",) if creates else ())


def test_a_broken_record_does_not_spoil_the_others():
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
    ]
    got = read_notice([json.dumps({"Records": [record("a"), *broken, record("b")]}).encode()])
    assert got.paths == ("a", "b")
    assert {problem.kind for problem in got.problems} == {"record"}
    assert len(got.problems) == len(broken)


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"path": "/raw/a.fits"}, "/raw/a.fits"),
        ({"path": "a.fits", "size": 5760, "time": "2025-11-22T03:25:50"}, "a.fits"),
        ({"uri": "file:///raw/a%20b%23.fits"}, "/raw/a b#.fits"),
        ({"uri": "file:///raw/2025-11-22T03:25:16.951#1/a.fits"}, "/raw/2025-11-22T03:25:16.951#1/a.fits"),
        ({"uri": "s3://bucket/LSSTCam/a.fits"}, "LSSTCam/a.fits"),
    ],
)
def test_plain_notices_name_one_file(content, path):
    assert notice(content) == (path,)


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
        ([b'{"uri": "http://x/a.fits"}'], "uri"),
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
        paths = read_notice(frames).paths
    except BadMessage:
        return
    assert all(isinstance(path, str) for path in paths)
