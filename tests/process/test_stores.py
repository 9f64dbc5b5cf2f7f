# SPDX-License-Identifier: BSD-3-Clause
"""Raws in object stores: real notices, a real reader process, a store on this host."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from arrivalkit import GROUP, Catcher, Exposure, Publisher, fits_file
from node import make_node, running
from storeserver import Store, serving

from ppdaemon.clock import Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.states import Outcome
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.processes import alive, descendants, title
from ppdaemon.testing.waiting import wait_until


@pytest.fixture
def store():
    with serving() as store:
        yield store


@pytest.fixture
def publisher():
    publisher = Publisher()
    yield publisher
    publisher.close()


class RemoteCatcher(Catcher):
    """Takes what comes from a store."""

    reader: ReaderProcess
    answer_s = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[ExpectedSensors] = []

    @asynccontextmanager
    async def catching(
        self, tmp_path: Path, publisher: Publisher, store: Store, *remote: str, **config: object
    ) -> AsyncIterator["RemoteCatcher"]:
        lifeline = Lifeline()
        hurry = {"LSST_HTTP_BACKOFF_MIN": "0.01", "LSST_HTTP_BACKOFF_MAX": "0.02"}
        environment = {**os.environ, **store.s3_environment, **hurry}
        self.reader = ReaderProcess(lifeline, environment, tmp_path / "reader.log", self.answer_s)
        settings = {"roots": (), "remote": [{"uri": uri} for uri in remote], "sidecar_wait_s": 0.2}
        self.arrivals = Arrivals(
            ArrivalsConfig.model_validate(settings | {"subscribe": [publisher.address]} | config),
            {"LSSTCam": range(189)},
            Clock(),
            self.deliver,
            self.expected.append,
            reader=self.reader,
        )
        await self.arrivals.start()
        try:
            await publisher.subscribed()
            yield self
        finally:
            pid = self.reader.pid
            await self.arrivals.stop()
            lifeline.close()
            if pid is not None:
                await asyncio.to_thread(os.waitpid, pid, 0)  # as the supervisor's sweep does

    async def watching(self) -> None:
        await self.until(lambda: self.reader.live)


class StoredExposure(Exposure):
    """An exposure whose files are objects."""

    def __init__(self, store: Store, prefix: str = "/raw", sequence: int = 156):
        super().__init__(Path(prefix), sequence)
        self.store = store

    def key(self, detector: int = 94, suffix: str = ".fits") -> str:
        return str(self.image(detector, suffix))

    def put_object(self, detector: int = 94, *, sidecar: bool = True, content: bytes | None = None) -> str:
        if sidecar:
            header = {"GROUPID": GROUP, "CURINDEX": 1, "MAXINDEX": 2, "OBSID": self.obsid, "RA": None}
            self.store.objects[self.key(detector, ".json")] = json.dumps(header).encode()
        self.store.objects[self.key(detector)] = fits_file() if content is None else content
        return self.key(detector)


def created(bucket: str, *keys: str, event: str = "ObjectCreated:Put") -> dict[str, object]:
    return {
        "Records": [
            {"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": quote_plus(key)}}}
            for key in keys
        ]
    }


async def test_one_sidecar_is_read_for_all_detectors_of_an_exposure(tmp_path, publisher, store):
    root = f"{store.uri}/raw"
    async with RemoteCatcher().catching(tmp_path, publisher, store, root) as catcher:
        exposure = StoredExposure(store)
        for detector in range(20):
            publisher.send({"uri": store.uri + exposure.put_object(detector)})
        await catcher.until(lambda: len(catcher.raws) >= 20)
        assert catcher.detectors == list(range(20))
        raw = catcher.raws[0]
        assert (raw.group, raw.snap, raw.snaps, raw.sidecar) == (GROUP, 1, 2, None)
        assert raw.path == store.uri + exposure.key(raw.detector)
        assert (store.reads(".json"), store.reads(".fits")) == (1, 0)
        *_, reader = catcher.arrivals.report()
        assert (reader.name, reader.live, reader.note) == ("reader", True, "1 objects read, 0 failed")


async def test_without_a_sidecar_the_begin_of_one_image_is_read(tmp_path, publisher, store):
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        exposure = StoredExposure(store)
        large = fits_file() + bytes(5_000_000)
        for detector in (94, 95, 96):
            key = exposure.put_object(detector, sidecar=False, content=large)
            publisher.send({"uri": store.uri + key})
        await catcher.until(lambda: len(catcher.raws) >= 3)
        assert {raw.group for raw in catcher.raws} == {GROUP}
        assert store.reads(".fits") == 1
        assert sum(store.sent.values()) < 100_000


async def test_a_late_sidecar_is_waited_for(tmp_path, publisher, store):
    remote = f"{store.uri}/raw"
    async with RemoteCatcher().catching(tmp_path, publisher, store, remote, sidecar_wait_s=30.0) as catcher:
        exposure = StoredExposure(store)
        publisher.send({"uri": store.uri + exposure.put_object(sidecar=False)})
        await catcher.until(lambda: store.reads(".json"))
        exposure.put_object()
        publisher.send({"uri": store.uri + exposure.key(suffix=".json")})
        assert (await catcher.one()).snaps == 2
        assert store.reads(".fits") == 0


async def test_the_list_of_an_exposure_s_detectors_is_read(tmp_path, publisher, store):
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        exposure = StoredExposure(store)
        key = f"{exposure.folder}/{exposure.obsid}_expectedSensors.json"
        store.objects[key] = json.dumps({"expectedSensors": {"R22_S11": "science"}}).encode()
        publisher.send({"uri": store.uri + key})
        publisher.send({"uri": store.uri + exposure.put_object(94)})
        await catcher.until(lambda: catcher.expected)
        assert catcher.expected == [ExpectedSensors("LSSTCam", GROUP, exposure.id, frozenset({94}))]


async def test_fault_16_of_many_records_the_good_ones_below_a_root_are_used(tmp_path, publisher, store):
    """Fault 16: escapes, several records, removals, sidecars, other buckets, a broken one.

    Here boto3 reads what it takes for S3.
    """
    pytest.importorskip("boto3")
    group = "2026-11-22T03:25:16.951#1"
    remote = "s3://lsst-raw/embargo"
    async with RemoteCatcher().catching(
        tmp_path, publisher, store, remote, layout="generic", subscribe=[publisher.address]
    ) as catcher:
        good = f"embargo/LSSTCam/94/{group}/0/2026112200156/r_57/a b.fits"
        store.objects[f"/lsst-raw/{good}"] = fits_file(group)
        sidecar = good.removesuffix(".fits") + ".json"
        store.objects[f"/lsst-raw/{sidecar}"] = json.dumps({"GROUPID": group, "CURINDEX": 1}).encode()
        records = created("lsst-raw", sidecar, good, good.replace("embargo/", "other/"))["Records"]
        records += created("other-bucket", good)["Records"]
        records += created("lsst-raw", good.replace("/94/", "/95/"), event="ObjectRemoved:Delete")["Records"]
        records += [{"eventName": "ObjectCreated:Put"}, None]
        multipart = good.replace("/94/", "/96/")
        store.objects[f"/lsst-raw/{multipart}"] = fits_file(group)
        records += created("lsst-raw", multipart, event="s3:ObjectCreated:CompleteMultipartUpload")["Records"]
        publisher.send({"Records": records})
        await catcher.until(lambda: len(catcher.raws) >= 2)
        assert catcher.detectors == [94, 96]
        assert {raw.group for raw in catcher.raws} == {group}
        (raw,) = (raw for raw in catcher.raws if raw.detector == 94)
        assert raw.path == "s3://lsst-raw/" + good.replace("#", "%23").replace(":", "%3A").replace(" ", "%20")
        assert catcher.count("notice.record") == 2
        assert catcher.count("elsewhere") == 2
        assert not any("other" in path or "/95/" in path for _, path in store.asked)


async def test_a_store_may_be_named_by_a_profile(tmp_path, publisher, store, monkeypatch):
    pytest.importorskip("boto3")
    endpoint = store.uri.replace("http://", "http://user:nothing@")
    monkeypatch.setenv("LSST_RESOURCES_S3_PROFILE_summit", endpoint)
    root = "s3://summit@lsst-raw/embargo"
    async with RemoteCatcher().catching(tmp_path, publisher, store, root) as catcher:
        exposure = StoredExposure(store, "/lsst-raw/embargo")
        key = exposure.put_object().removeprefix("/lsst-raw/")
        publisher.send(created("lsst-raw", key))
        raw = await catcher.one()
        assert raw.path == f"s3://summit@lsst-raw/{key}"
        assert store.reads(".json") == 1


async def test_fault_17_nothing_outside_of_the_configured_prefixes_is_asked_for(tmp_path, publisher, store):
    """Fault 17, in stores."""
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        exposure = StoredExposure(store)
        image = exposure.key().removeprefix("/raw/")
        host = store.uri.removeprefix("http://")
        for uri in (
            f"{store.uri}/rawer/{image}",
            f"{store.uri}/raw/../secret/{image}",
            f"{store.uri}/raw/%2e%2e/secret/{image}",
            f"{store.uri}/raw/{image}%0a",
            f"http://example.org/raw/{image}",
            f"https://{host}/raw/{image}",
            f"http://me@{host}/raw/{image}",
            f"ftp://{host}/raw/{image}",
            f"{store.uri}/raw/{image}?token=x",
        ):
            publisher.send({"uri": uri})
        publisher.send({"uri": store.uri + exposure.put_object(95)})
        assert (await catcher.one()).detector == 95
        refused = {kind: n for kind, n in catcher.arrivals.counters.items() if "refused" in kind}
        assert refused == {"refused.escape": 2, "refused.control": 1}
        assert catcher.count("elsewhere") == 5
        assert {path for method, path in store.asked if method == "GET"} == {exposure.key(95, ".json")}


async def test_a_root_of_a_tenant_is_read_by_its_own_spelling(tmp_path, publisher, store, monkeypatch):
    pytest.importorskip("boto3")
    # boto3 refuses the colon of Ceph's tenants unless lsst.resources tells it not to.
    monkeypatch.setenv("LSST_DISABLE_BUCKET_VALIDATION", "1")
    async with RemoteCatcher().catching(tmp_path, publisher, store, "s3://rubin:summit/raw") as catcher:
        exposure = StoredExposure(store, "/rubin:summit/raw")
        key = exposure.put_object().removeprefix("/rubin:summit/")
        publisher.send(created("summit", key))
        assert (await catcher.one()).path == f"s3://rubin:summit/{key}"
        assert store.reads(".json") == 1


async def test_an_upload_that_was_cut_and_is_replaced_is_delivered_again(tmp_path, publisher, store):
    pytest.importorskip("boto3")
    async with RemoteCatcher().catching(tmp_path, publisher, store, "s3://lsst-raw/raw") as catcher:
        key = StoredExposure(store, "/lsst-raw/raw").put_object().removeprefix("/lsst-raw/")

        def notify(etag: str, size: int) -> None:
            notice = created("lsst-raw", key)
            notice["Records"][0]["s3"]["object"] |= {"eTag": etag, "size": size}
            publisher.send(notice)

        notify("a", 100)
        await catcher.one()
        for etag, size, count in (("a", 200, 2), ("b", 200, 3)):
            for _ in range(3):
                notify(etag, size)
            await catcher.until(lambda: len(catcher.raws) >= count)  # noqa: B023
        publisher.send(created("lsst-raw", key))  # without a version: not known to be another one
        publisher.send(created("elsewhere", "a/b"))
        await catcher.until(lambda: catcher.count("elsewhere"))
        assert [raw.detector for raw in catcher.raws] == [94] * 3
        assert [raw.file_id for raw in catcher.raws] == ["a/100", "a/200", "b/200"]


async def test_an_image_that_has_no_group_does_not_block_the_next(tmp_path, publisher, store):
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        exposure = StoredExposure(store)
        bad = exposure.put_object(94, sidecar=False, content=b"not FITS")
        publisher.send({"uri": store.uri + bad})
        publisher.send({"uri": store.uri + exposure.put_object(95, sidecar=False)})
        assert (await catcher.one()).detector == 95
        assert (catcher.count("no_group"), catcher.count("bad_header")) == (1, 1)
        assert [raw.path for raw in catcher.arrivals.refused] == [store.uri + bad]
        exposure.put_object(94, sidecar=False)
        publisher.send({"uri": store.uri + bad})
        await catcher.until(lambda: catcher.detectors == [94, 95])


@pytest.mark.slow
async def test_a_reader_that_is_killed_is_started_again_and_nothing_is_lost(tmp_path, publisher, store):
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        await catcher.watching()
        store.holding = True
        exposure = StoredExposure(store)
        publisher.send({"uri": store.uri + exposure.put_object()})
        await catcher.until(lambda: store.asked)
        first = catcher.reader.pid
        os.kill(first, signal.SIGKILL)
        await catcher.until(lambda: not catcher.reader.live)
        *_, report = catcher.arrivals.report()
        assert (report.live, "ended by signal 9 (SIGKILL)" in report.note) == (False, True)
        store.holding = False
        raw = await catcher.one()
        assert raw.group == GROUP
        assert catcher.reader.pid != first
        assert catcher.arrivals.report()[-1].live


@pytest.mark.slow
async def test_a_reader_that_owes_an_answer_for_too_long_is_replaced(tmp_path, publisher, store):
    hurried = RemoteCatcher()
    hurried.answer_s = 1.0
    async with hurried.catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        await catcher.watching()
        store.holding = True
        first = catcher.reader.pid
        publisher.send({"uri": store.uri + StoredExposure(store).put_object()})
        await catcher.until(lambda: "has not answered for 1 s; the next one" in catcher.reader.note)
        assert not alive(first)
        # The first answer of a process includes its imports, which take longer on a busy machine.
        catcher.reader.lifecycle._answer_s = RemoteCatcher.answer_s
        store.holding = False
        assert (await catcher.one()).group == GROUP


@pytest.mark.slow
async def test_a_store_that_does_not_serve_is_asked_again(tmp_path, publisher, store):
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        store.fails_with = 503
        publisher.send({"uri": store.uri + StoredExposure(store).put_object()})
        await catcher.until(lambda: catcher.count("store_unavailable"))
        store.fails_with = None
        assert (await catcher.one()).group == GROUP
        assert catcher.reader.live


async def test_a_reader_that_cannot_start_is_reported_and_tried_again(
    tmp_path, publisher, store, monkeypatch
):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    async with RemoteCatcher().catching(tmp_path, publisher, store, f"{store.uri}/raw") as catcher:
        assert "cannot be started" in catcher.arrivals.report()[-1].note
        monkeypatch.undo()
        await catcher.watching()


def remote_node(store: Store, publisher: Publisher) -> dict[str, object]:
    arrivals = {"remote": [{"uri": f"{store.uri}/raw"}], "subscribe": [publisher.address]}
    return {"arrivals": arrivals, "min": 1, "spare": 0, "max": 2}


def readers(node: NodeProcess) -> list[int]:
    return [pid for pid in descendants(node.process.pid) if title(pid) == "ppdaemon reader"]


def test_a_visit_whose_raw_is_in_a_store_runs_and_status_shows_the_reader(
    tmp_path, socket_dir, publisher, store
):
    with running(tmp_path, socket_dir, **remote_node(store, publisher)) as node:
        node.relay.reserve("g1")
        publisher.socket.recv()
        key = f"/raw/{node.raws.path(1).relative_to(node.raw_root)}"
        store.objects[key] = fits_file("g1")
        publisher.send({"uri": store.uri + key})
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        (first,) = readers(node)
        source = node.status().arrivals[-1]
        assert (source.name, source.live, source.note) == ("reader", True, "1 objects read, 0 failed")
        os.kill(first, signal.SIGKILL)
        node.wait(lambda: [pid for pid in readers(node) if pid != first])
        node.wait(lambda: node.status().arrivals[-1].live)
        # The tick sweeps orphans every second: the reader is none.
        (second,) = readers(node)
        swept = node.status().tai + 2.0
        node.wait(lambda: node.status().tai > swept)
        assert readers(node) == [second]


def test_the_reader_dies_with_the_supervisor(tmp_path, socket_dir, publisher, store):
    """Fault 51, of the reader."""
    with make_node(tmp_path, socket_dir, None, **remote_node(store, publisher)).start() as node:
        node.wait(lambda: node.status().arrivals[-1].live)
        (reader,) = readers(node)
        node.kill()
        wait_until(lambda: not alive(reader), story="the reader outlives its supervisor")
