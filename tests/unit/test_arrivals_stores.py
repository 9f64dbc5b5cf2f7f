# SPDX-License-Identifier: BSD-3-Clause
"""Which notices of objects are of raws here, and how their URIs are written."""

import asyncio
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.messages import ReaderReady
from ppdaemon.node.arrivals import stores
from ppdaemon.node.arrivals.notices import StoredObject, read_notice
from ppdaemon.node.arrivals.roots import RawRoots
from ppdaemon.node.arrivals.storelisting import prefixes_of
from ppdaemon.node.arrivals.stores import StoreArrivals
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.raws.layout import CustomLayout, make_layout
from ppdaemon.raws.path import ExpectedRaws
from ppdaemon.raws.roots import escaped
from ppdaemon.testing.waiting import TIMEOUT_S

DAY = "LSSTCam/20251121/MC_O_20251121_000156"
IMAGE = f"{DAY}/MC_O_20251121_000156_R22_S11.fits"
REMOTE = [
    {"uri": "s3://lsst-raw/embargo/"},
    {"uri": "s3://lsst-raw/embargo/test", "layout": "generic"},
    {"uri": "https://host:8443/raw"},
    {"uri": "s3://whole-bucket"},
    {"uri": "s3://summit@own-bucket/raw"},
]


@pytest.fixture(scope="module")
def tree() -> RawRoots:
    config = ArrivalsConfig.model_validate({"roots": ["/raw"], "remote": REMOTE})
    return RawRoots(config, {"LSSTCam": range(94, 95)}, stores=True)


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        (f"s3://lsst-raw/embargo/{IMAGE}", "s3://lsst-raw/embargo"),
        ("s3://lsst-raw/embargo/test/LSSTCam/94/g#1/0/2025112100156/r/a.fits", "s3://lsst-raw/embargo/test"),
        (f"https://host:8443/raw/{IMAGE}", "https://host:8443/raw"),
        (f"s3://whole-bucket/{IMAGE}", "s3://whole-bucket"),
    ],
)
def test_an_object_belongs_to_the_innermost_root(tree, uri, root):
    located = tree.locate(uri)
    assert located is not None
    name, place = located
    assert (name.exposure, name.detector, place.root, place.path) == (2025112100156, 94, root, uri)


def test_an_object_is_read_with_the_profile_of_its_root(tree):
    name, place = tree.locate(f"s3://own-bucket/raw/{IMAGE}")
    assert name.detector == 94
    assert (place.root, place.path) == (
        "s3://summit@own-bucket/raw",
        f"s3://summit@own-bucket/raw/{IMAGE}",
    )


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        (f"s3://own-bucket/{IMAGE}", "outside"),
        (f"s3://summit/raw/{IMAGE}", "outside"),
        (f"s3://lsst-raw/{IMAGE}", "outside"),
        (f"s3://lsst-raw/embargoed/{IMAGE}", "outside"),
        (f"s3://other/embargo/{IMAGE}", "outside"),
        (f"gs://lsst-raw/embargo/{IMAGE}", "outside"),
        (f"http://host:8443/raw/{IMAGE}", "outside"),
        (f"https://host/raw/{IMAGE}", "outside"),
        (f"https://host:8443/raw/../{IMAGE}", "escape"),
        (f"https://host:8443/raw//{IMAGE}", "absolute"),
        (f"s3://whole-bucket/{IMAGE}\n", "control"),
        (f"/raw/{IMAGE}", "outside"),
    ],
)
def test_what_is_below_no_root_is_refused(tree, uri, kind):
    with pytest.raises(BadMessage) as caught:
        tree.locate(uri)
    assert caught.value.kind == kind


def uri_of(roots, bucket, key=IMAGE, tenant=None):
    """Return the URI that a notice's object is read by; `None` if it is below no root."""
    remote = [{"uri": f"s3://{root}"} for root in roots]
    config = ArrivalsConfig.model_validate({"roots": (), "remote": remote})
    tree = RawRoots(config, {"LSSTCam": range(94, 95)}, stores=True)
    made = StoreArrivals(tree, *[Mock()] * 4, 1.0, Mock(), Mock())
    object_ = StoredObject("s3", bucket, key, tenant)
    uri = made._uri(object_)
    assert made.serves(object_) or uri == object_.uri
    located = tree.locate(uri) if tree.depth(uri) else None
    return None if located is None else located[1].path


@pytest.mark.parametrize(
    ("roots", "bucket", "tenant", "host"),
    [
        (["rubin:summit/raw"], "summit", "rubin", "rubin:summit"),
        (["rubin:summit/raw"], "summit", None, "rubin:summit"),
        (["rubin:summit/raw"], "rubin:summit", None, "rubin:summit"),
        (["summit/raw"], "summit", "rubin", "summit"),
        (["me@summit/raw"], "summit", None, "me@summit"),
        (["me@rubin:summit/raw"], "summit", "rubin", "me@rubin:summit"),
        (["rubin:summit/raw", "other:summit/raw"], "summit", "other", "other:summit"),
        (["rubin:summit/raw", "summit/raw"], "summit", "", "summit"),
        (["rubin:summit/raw", "summit/raw"], "summit", None, "summit"),
        (["summit/raw", "rubin:summit/raw"], "summit", "rubin", "rubin:summit"),
        (["summit/raw", "rubin:summit/raw"], "rubin:summit", None, "rubin:summit"),
        (["rubin:summit/other", "a@other:summit/raw"], "summit", "rubin", "a@other:summit"),
        (["a@summit", "b@summit/raw"], "summit", None, "b@summit"),
        (["summit/other"], "summit", None, None),
        (["summit/raw"], "summit2", None, None),
    ],
)
def test_the_bucket_of_a_notice_finds_its_root(roots, bucket, tenant, host):
    found = uri_of(roots, bucket, f"raw/{IMAGE}", tenant)
    assert found == (None if host is None else f"s3://{host}/raw/{IMAGE}")


def test_the_case_of_a_bucket_of_a_tenant():
    text = (Path(__file__).parent.parent / "data/notices/ceph_bucket_of_a_tenant.json").read_bytes()
    [file] = read_notice([text]).files
    assert uri_of(["rubin:summit/raw"], file.host, file.key, file.tenant) == f"s3://rubin:summit/{file.key}"


async def test_a_backlog_of_notices_waits_while_many_exposures_are_being_read(monkeypatch):
    """More than MAX_EXPOSURES at once would be dropped."""
    monkeypatch.setattr(stores, "FULL_EXPOSURES", 2)
    config = ArrivalsConfig.model_validate({"roots": (), "remote": [{"uri": "s3://b"}]})
    roots = RawRoots(config, {"LSSTCam": range(94, 95)}, stores=True)
    facts, reading = Mock(), asyncio.Event()
    facts.cached.return_value = None

    async def unknown(*_: object) -> None:
        await reading.wait()
        raise TimeoutError

    facts.facts = unknown
    tasks: list[asyncio.Task[None]] = []
    completion = Mock(**{"delivered.return_value": False})
    made = StoreArrivals(
        roots,
        facts,
        completion,
        Mock(),
        lambda: 0.0,
        0.0,
        lambda work: tasks.append(asyncio.create_task(work)),
        Mock(),
    )
    for number in (156, 157):
        await asyncio.wait_for(made.room(), TIMEOUT_S)
        made.on_notice("bridge", StoredObject("s3", "b", IMAGE.replace("000156", f"000{number}")))
    room = asyncio.create_task(made.room())
    await asyncio.sleep(0)
    assert not room.done()
    reading.set()
    await asyncio.gather(*tasks)
    await asyncio.wait_for(room, TIMEOUT_S)


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("s3://profile@bucket/raw", True),
        ("s3://my-profile.1@tenant:bucket", True),
        ("s3://key:secret@bucket", False),
        ("s3://@bucket", False),
        ("https://user@host/raw", False),
        ("https://user:password@host/raw", False),
    ],
)
def test_a_root_may_name_a_profile_but_no_credentials(uri, accepted):
    if accepted:
        assert ArrivalsConfig.model_validate({"roots": (), "remote": [{"uri": uri}]}).remote[0].uri == uri
        return
    with pytest.raises(ValueError, match="credentials"):
        ArrivalsConfig.model_validate({"roots": (), "remote": [{"uri": uri}]})


@pytest.mark.parametrize("file", ["_R22_S12.fits", "_R22_S11.txt", "_R22_S11.fits?x=y", "_R22_S11.fits.part"])
def test_other_files_below_a_root_are_passed_over(tree, file):
    assert tree.locate(f"s3://whole-bucket/{DAY}/MC_O_20251121_000156{file}") is None


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60))
def test_an_escaped_uri_is_read_back_by_uri_parsers(key):
    named = StoredObject("s3", "bucket", key.lstrip("/") or "a")
    parts = urlsplit(escaped(named.uri))
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("s3", "bucket", "", "")
    assert unquote(parts.path) == f"/{named.key}"


async def test_a_reader_that_dies_when_it_is_ready_is_one_that_does_not_serve_now(tmp_path):
    reader = ReaderProcess(Mock(), {}, tmp_path / "reader.log")
    asking = asyncio.create_task(reader.ask("json", "s3://bucket/key"))
    await asyncio.sleep(0)
    # Both are seen in one turn of the loop.
    reader.lifecycle.started(0.0)
    reader._ready()
    assert reader._serving.is_set()
    reader._give_up("ended by signal 9 (SIGKILL)", [])
    with pytest.raises(TimeoutError):
        await asking


async def test_a_reader_that_was_killed_before_it_said_that_it_is_ready_serves_nobody(tmp_path):
    reader = ReaderProcess(Mock(), {}, tmp_path / "reader.log")
    reader.lifecycle.started(0.0)
    reader._child = Mock()
    reader._kill("uses 9 GB")
    reader._received(ReaderReady(pid=1), [])
    assert not reader._serving.is_set(), "callers wait for the next one"


@pytest.mark.parametrize(
    ("layout", "folders"),
    [
        ("lsst", {("LSSTCam/20251121", 1)}),
        ("imsim", {("LSSTCam/20251121", 1)}),
        ("generic", set()),  # a folder for each detector
        (CustomLayout(path="{day_obs}/{exposure}_{detector}"), set()),  # all exposures of a day in one folder
        (CustomLayout(path="{day_obs}/{raft}/{exposure}/{slot}"), set()),
        (CustomLayout(path="{exposure}/{exposure}_{detector}"), set()),  # all exposures ever in one folder
    ],
)
def test_a_store_is_listed_only_where_few_folders_have_the_exposures_of_a_visit(layout, folders):
    expected = ExpectedRaws("LSSTCam", frozenset(range(189)), "g", frozenset({20251121}))
    found = prefixes_of(make_layout(layout, ["LSSTCam"]), expected)
    assert {(each.path, each.below) for each in found} == folders
