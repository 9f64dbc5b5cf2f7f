# SPDX-License-Identifier: BSD-3-Clause
"""Arrival notices as object stores and storage layers write them."""

import asyncio
import base64
import json
import time
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.notices import AT_ONCE, Elsewhere, StoredObject, listen, read_notice
from ppdaemon.ratelimit import TOKEN_BYTES, RateLimit

DATA = Path(__file__).parent.parent / "data" / "notices"


def record(key: object, event: str = "ObjectCreated:Put", bucket: object = "raw") -> dict[str, object]:
    return {
        "eventName": event,
        "eventTime": "2025-11-22T03:25:50.1Z",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 5760, "eTag": "x"}},
    }


def notice(content: object, *topics: bytes) -> tuple[str | StoredObject, ...]:
    return tuple(read_notice([*topics, json.dumps(content).encode()]).files)


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
        ("ObjectCreated:Post", True),
        ("ObjectSynced:Create", True),
        ("s3:ObjectSynced:Create", True),
        ("ObjectSynced:Delete", False),
        ("s3:ObjectCreated:PutRetention", False),
        ("s3:ObjectCreated:PutLegalHold", False),
        ("s3:ObjectCreated:PutTagging", False),
        ("s3:ObjectCreated:DeleteTagging", False),
        ("ObjectTagging:Put", False),
        ("ObjectAcl:Put", False),
        ("s3:ObjectAccessed:Get", False),
        ("ObjectLifecycle:Expiration:Current", False),
        ("ObjectRemoved:Delete", False),
        ("ObjectRemoved:DeleteMarkerCreated", False),
        ("TestEvent", False),
    ],
)
def test_only_creations_announce_files(event, creates):
    assert notice({"Records": [record("a.fits", event)]}) == (stored("a.fits") if creates else ())


IMAGE = "LSSTCam/20261128/MC_O_20261128_000156/MC_O_20261128_000156_R22_S11.fits"
CEPH_KEY = "DemoCam/1/2026-11-28T03:25:16.951#1/0/5/r_03/a+b%20c.fits"


@pytest.mark.parametrize(
    ("case", "files"),
    [
        ("record_without_wrapper", stored(IMAGE)),
        ("list_without_wrapper", stored(IMAGE)),
        ("sns_envelope", stored(IMAGE)),
        ("eventbridge", stored(IMAGE)),
        ("minio_key_encoded", stored(IMAGE)),
        (
            "ceph_replicated_key_not_encoded",
            stored("DemoCam/1/2026-11-28T03:25:16.951#1/0/5/r_03/a+b%20c.fits"),
        ),
        ("test_event", ()),
    ],
)
def test_notices_as_they_occur_are_read(case, files):
    got = read_notice([(DATA / f"{case}.json").read_bytes()])
    assert (tuple(got.files), got.problems) == (files, [])
    assert got.test_events == (case == "test_event")


def sns(content: object) -> dict[str, object]:
    return {"Type": "Notification", "Message": json.dumps(content)}


@pytest.mark.parametrize(
    "content",
    [
        {"Messages": [{"Body": json.dumps({"Records": [record("a")]})}]},
        {"Messages": [{"Body": json.dumps(sns({"Records": [record("a")]}))}]},
        {"Records": [{"eventSource": "aws:sqs", "body": json.dumps(sns({"Records": [record("a")]}))}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": sns({"Records": [record("a")]})}]},
        [{"Event": [record("a")], "EventTime": "2026-11-28T03:26:00Z"}],
        {"EventName": "s3:ObjectCreated:Put", "Key": "raw/a"},
        sns(record("a")),
        sns([record("a")]),
        {"Type": "Notification", "Message": {"Records": [record("a")]}},
        {"statusCode": 200, "body": record("a")},
        {"specversion": "1.0", "type": "com.amazonaws.s3.objectcreated", "data": {"Records": [record("a")]}},
        [{"specversion": "1.0", "type": "com.amazonaws.ObjectCreated:Put", "data": record("a")}],
        {"specversion": "1.0", "data_base64": base64.b64encode(json.dumps(record("a")).encode()).decode()},
        {"records": [{"key": None, "value": record("a")}]},
        {"schema": {"type": "string"}, "payload": json.dumps({"Records": [record("a")]})},
        {"EventName": "s3:ObjectCreated:Put", "Key": "raw/a", "Records": None},
    ],
    ids=lambda content: json.dumps(content)[:30],
)
def test_records_in_other_wrappers_are_read(content):
    assert notice(content) == stored("a")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"EventName": "s3:ObjectRemoved:Delete", "Key": "raw/a"}, None),
        (
            {"detail-type": "Object Deleted", "detail": {"bucket": {"name": "raw"}, "object": {"key": "a"}}},
            None,
        ),
        ({"Type": "SubscriptionConfirmation", "Message": "You have chosen to subscribe"}, None),
        ({"Type": "Notification", "Message": "hello"}, "json"),
        ({"specversion": "1.0", "data": "hello"}, "json"),
        ({"specversion": "1.0", "data": 5}, "content"),
        ({"specversion": "1.0", "data_base64": "{}"}, "encoding"),
        ({"specversion": "1.0", "type": "heartbeat", "data": None}, "field"),
        ({"detail-type": "Object Created", "detail": {"bucket": {"name": "raw"}, "object": {}}}, "record"),
        ({"detail-type": "Object Created", "detail": {"bucket": "raw", "object": "a"}}, "record"),
        (sns(sns(sns(sns(sns(sns(record("a"))))))), "content"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrappers_without_a_creation_name_no_file(content, kind):
    if kind is None:
        assert notice(content) == ()
        return
    with pytest.raises(BadMessage) as caught:
        notice(content)
    assert caught.value.kind == kind


def test_a_key_of_an_event_bridge_is_not_encoded():
    detail = {"bucket": {"name": "raw"}, "object": {"key": "a+b%20c", "size": 5, "etag": "x"}}
    [file] = notice({"detail-type": "Object Created", "detail": detail})
    assert (file.key, file.version) == ("a+b%20c", "x/5")


@pytest.mark.parametrize(
    ("arn", "tenant"),
    [
        ("arn:aws:s3::rubin:summit", "rubin"),
        ("arn:aws:s3:us-east-1::summit", ""),
        ("arn:aws:s3:::summit", ""),
        ("summit", None),
        (None, None),
        (5, None),
    ],
)
def test_the_tenant_is_in_the_arn(arn, tenant):
    named = record("a")
    named["s3"]["bucket"]["arn"] = arn
    assert notice(named)[0].tenant == tenant


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ({"eTag": '"x"', "size": "1024"}, "x/1024"),
        ({"eTag": "x", "size": 1024}, "x/1024"),
        ({"size": 0, "eTag": ""}, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_the_version_is_etag_and_size(version, text):
    named = record("a")
    named["s3"]["object"] = {"key": "a"} | version
    assert notice(named)[0].version == text


def test_the_last_object_elsewhere_is_noted_on_one_short_line():
    elsewhere = Elsewhere()
    assert elsewhere.note == ""
    elsewhere.add(StoredObject("s3", "bucket", "folder/a/b"))
    elsewhere.add(StoredObject("s3", "other", "f\n\x1b" + 1000 * "x"))
    assert elsewhere.note.startswith(
        "2 objects are below no configured root, the last one in s3://other/f ?xxx"
    )
    assert len(elsewhere.note) < 200


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
    assert tuple(got.files) == stored("a", "b")
    assert {problem.kind for problem in got.problems} == {"record"}
    assert len(got.problems) == len(broken)


@pytest.mark.parametrize(
    ("content", "file"),
    [
        ({"path": "/raw/a.fits"}, "/raw/a.fits"),
        ({"path": "a.fits", "size": 5760, "time": "2025-11-22T03:25:50"}, "a.fits"),
        ({"uri": "file:///raw/a%20b%23.fits"}, "/raw/a b#.fits"),
        ({"uri": "file:/raw/a%20b.fits"}, "/raw/a b.fits"),
        ({"uri": "FILE://localhost/raw/a.fits"}, "/raw/a.fits"),
        ({"uri": "S3://bucket/a.fits"}, StoredObject("s3", "bucket", "a.fits")),
        ({"path": "/raw/a.fits", "message": "closed", "data": None}, "/raw/a.fits"),
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
        ([b'{"uri": "file:a.fits"}'], "uri"),
        ([b'{"uri": "2025-11-22T03:25:16#1/a"}'], "uri"),
        ([b'{"uri": "http://x/"}'], "uri"),
        ([b'{"uri": "file://otherhost/a.fits"}'], "uri"),
    ],
)
def test_junk_is_refused_by_kind(frames, kind):
    with pytest.raises(BadMessage) as caught:
        read_notice(frames)
    assert caught.value.kind == kind


def assert_read_or_refused(frames):
    try:
        files = read_notice(frames).files
    except BadMessage:
        return
    assert all(isinstance(file, str | StoredObject) for file in files)


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_frames_are_a_notice_or_refused(frames):
    assert_read_or_refused(frames)


JUNK = st.sampled_from([None, True, 5, "", "a", "{}", [], ["a"], {}, {"key": "a"}, {"name": 5}])


@given(st.data(), st.sampled_from(sorted(DATA.glob("*.json"))), JUNK)
def test_a_notice_with_any_value_anywhere_is_read_or_refused(data, path, junk):
    part, key = {"": json.loads(path.read_text())}, ""
    whole = part
    while isinstance(part[key], dict | list) and part[key] and data.draw(st.integers(0, 4)):
        part = part[key]
        key = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
    part[key] = junk
    assert_read_or_refused([json.dumps(whole[""]).encode()])


class Queued:
    """A subscription with messages of a size that wait; others never come."""

    def __init__(self, count: int, size: int):
        self.left = count
        self.message = b'{"path": "/raw/a.fits"}'.ljust(size)

    async def receive(self, on_problem: object) -> list[bytes]:
        if not self.left:
            await asyncio.Event().wait()
        self.left -= 1
        return [self.message]


@pytest.mark.parametrize(
    ("size", "turn"), [(100, AT_ONCE), (4 * TOKEN_BYTES, AT_ONCE // 5), (AT_ONCE * TOKEN_BYTES, 1)]
)
def test_notices_that_wait_are_read_together_and_let_others_run_in_between(size: int, turn: int) -> None:
    async def run() -> list[int]:
        files: list[object] = []
        seen: list[int] = []
        reading = asyncio.create_task(
            listen(
                Queued(3 * turn, size), files.append, pytest.fail, pytest.fail, RateLimit(1e6, time.monotonic)
            )
        )
        while len(files) < 3 * turn:
            await asyncio.sleep(0)
            seen.append(len(files))
        reading.cancel()
        return seen

    assert asyncio.run(run()) == [turn, 2 * turn, 3 * turn]
