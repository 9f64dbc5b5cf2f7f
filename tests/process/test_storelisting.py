# SPDX-License-Identifier: BSD-3-Clause
"""Late raws in a store whose notices do not come: found by listing, with a real server of S3."""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from arrivalkit import GROUP, Catcher, Exposure, fits_file
from motoserver import moto_bucket
from node import make_node

from ppdaemon.clock import Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.node.arrivals import storelisting
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.notices import StoredObject
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.raws.path import ExpectedRaws
from ppdaemon.states import Outcome
from ppdaemon.testing.played import PlayedRelay

BUCKET = "lsst-raw"
ROOT = f"s3://{BUCKET}/embargo"
DETECTORS = range(30, 36)


@pytest.fixture(scope="module")
def server():
    with moto_bucket(BUCKET) as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(storelisting, "LOOK_S", 0.05)
    monkeypatch.setattr(storelisting, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(storelisting, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(storelisting, "NOTICE_WAIT_S", 0.2)


class ListingCatcher(Catcher):
    """Takes what is found in the store; `late` are the visits whose raws are late."""

    def __init__(self):
        super().__init__()
        self.late = []
        self.after_s = []

    @asynccontextmanager
    async def catching(self, tmp_path, server, **config):
        lifeline = Lifeline()
        log = tmp_path / "reader.log"
        self.reader = ReaderProcess(lifeline, {**os.environ, **server.environment}, log, 30.0)
        self.listed = []
        ask = self.reader.ask

        async def asked(what, uri):
            if what == "list":
                self.listed.append(uri.removeprefix(ROOT))
            return await ask(what, uri)

        self.reader.ask = asked
        settings = {"roots": (), "remote": [{"uri": ROOT}], "sidecar_wait_s": 0.2} | config
        self.arrivals = Arrivals(
            ArrivalsConfig.model_validate(settings),
            {"LSSTCam": DETECTORS},
            Clock(),
            self.deliver,
            reader=self.reader,
            late=self.late_raws,
        )
        await self.arrivals.start()
        try:
            await self.until(lambda: self.reader.live)
            yield self
        finally:
            pid = self.reader.pid
            await self.arrivals.stop()
            lifeline.close()
            await asyncio.to_thread(os.waitpid, pid, 0)

    def late_raws(self, after_s):
        self.after_s.append(after_s)
        return self.late

    def wait_for(self, group=GROUP, detectors=DETECTORS):
        self.late = [ExpectedRaws("LSSTCam", frozenset(detectors), group)]

    @property
    def listing(self):
        (source,) = [each for each in self.arrivals.report() if each.name == f"list {ROOT}"]
        return source


def put(server, sequence, group=GROUP, detectors=DETECTORS):
    """Write the objects of an exposure; return its folder below the root."""
    exposure = Exposure(Path(), sequence)
    for detector in detectors:
        header = {"GROUPID": group, "CURINDEX": 1, "MAXINDEX": 1, "OBSID": exposure.obsid}
        server.put(f"embargo/{exposure.image(detector, '.json')}", json.dumps(header).encode())
        server.put(f"embargo/{exposure.image(detector)}", fits_file())
    return f"/{exposure.folder}/"


async def test_raws_without_notices_are_found_by_one_list_for_all_detectors(tmp_path, server):
    async with ListingCatcher().catching(tmp_path, server, list_s=33.0) as catcher:
        folder = put(server, 201)
        await catcher.until(lambda: len(catcher.after_s) > 3)
        assert (set(catcher.after_s), catcher.listed, catcher.listing.live) == ({33.0}, [], True)
        catcher.wait_for()
        await catcher.until(lambda: len(catcher.raws) >= len(DETECTORS))
        catcher.late = []
        assert catcher.detectors == list(DETECTORS)
        assert {raw.group for raw in catcher.raws} == {GROUP}
        assert catcher.listed.count(folder) == 1
        source = catcher.listing
        assert (source.live, source.files) == (False, len(DETECTORS))
        text = f"{len(DETECTORS)} raws were found by listing, and no notice of them has come: look at the"
        assert source.note.startswith(text)
        assert catcher.count("listed") == 1
        looks = len(catcher.after_s)
        await catcher.until(lambda: len(catcher.after_s) > looks + 3)
        assert catcher.listed.count(folder) == 1


async def test_folders_of_other_visits_are_listed_once_and_the_pauses_grow(tmp_path, server):
    async with ListingCatcher().catching(tmp_path, server) as catcher:
        others = [put(server, sequence, "another") for sequence in (301, 302)]
        catcher.wait_for("missing")
        days = [f"/LSSTCam/{others[0].split('/')[2]}/"]
        await catcher.until(lambda: all(catcher.listed.count(day) >= 3 for day in days))
        assert [catcher.listed.count(folder) for folder in others] == [1, 1]
        # Their notices may have come before this node was started.
        assert (catcher.raws, catcher.listing.live) == ([], True)
        folder = put(server, 303, "missing", [31])
        await catcher.until(lambda: any(raw.group == "missing" for raw in catcher.raws))
        assert [catcher.listed.count(each) for each in (*others, folder)] == [1, 1, 1]


async def test_a_raw_whose_notice_comes_is_not_found_by_listing(tmp_path, server, monkeypatch):
    monkeypatch.setattr(storelisting, "NOTICE_WAIT_S", 3600.0)
    async with ListingCatcher().catching(tmp_path, server) as catcher:
        folder = put(server, 401, "told")
        catcher.wait_for("told")
        await catcher.until(lambda: folder in catcher.listed)
        assert (catcher.raws, catcher.listing.live) == ([], True)


async def test_a_raw_whose_group_is_still_being_read_is_not_found_by_listing(tmp_path, server):
    async with ListingCatcher().catching(tmp_path, server) as catcher:
        folder, ask, ended = put(server, 411, "slow", [30]), catcher.reader.ask, asyncio.Event()

        async def slow(what, uri):
            if what != "list" and folder in uri:
                await ended.wait()
            return await ask(what, uri)

        catcher.reader.ask = slow
        key = f"embargo/{Exposure(Path(), 411).image(30)}"
        catcher.arrivals._stores.on_notice("bridge", StoredObject("s3", BUCKET, key))
        catcher.wait_for("slow", [30])
        await catcher.until(lambda: folder in catcher.listed)
        looks = len(catcher.after_s)
        await catcher.until(lambda: len(catcher.after_s) > looks + 1)
        ended.set()
        await catcher.until(lambda: catcher.raws)
        assert (catcher.listing.live, catcher.count("listed")) == (True, 0)


@pytest.mark.parametrize("config", [{"list_s": None}, {"layout": "generic"}])
async def test_where_it_is_off_nothing_is_listed(tmp_path, server, config):
    async with ListingCatcher().catching(tmp_path, server, **config) as catcher:
        catcher.wait_for()
        if "layout" in config:
            await catcher.until(lambda: len(catcher.after_s) > 3)
            assert (catcher.listing.live, catcher.listing.note[:4]) == (True, "off:")
        else:
            await asyncio.sleep(0.3)
            assert not [each for each in catcher.arrivals.report() if each.name.startswith("list")]
        assert catcher.listed == []


async def test_a_store_that_cannot_be_listed_is_named(tmp_path, server):
    async with ListingCatcher().catching(tmp_path, server) as catcher:

        async def away(what, uri):
            raise TimeoutError("no answer")

        catcher.reader.ask = away
        catcher.wait_for()
        await catcher.until(lambda: catcher.listing.note == "cannot be listed: no answer")
        assert catcher.count("listing")


async def test_an_error_that_ends_the_listing_is_seen(tmp_path, server):
    async with ListingCatcher().catching(tmp_path, server) as catcher:
        catcher.late = [None]
        await catcher.until(lambda: catcher.count("internal"))
        assert (catcher.listing.live, catcher.listing.note) == (False, "ended by an error, see the log")
        assert catcher.count("internal") == 1


def test_a_visit_whose_notice_never_comes_is_processed_and_the_status_says_why(tmp_path, socket_dir, server):
    arrivals = {"remote": [{"uri": f"s3://{BUCKET}/raw"}], "list_s": 0.5}
    with PlayedRelay() as relay:
        node = make_node(tmp_path, socket_dir, relay, variables=server.environment, arrivals=arrivals)
        with node.start():
            relay.reserve("g1", nimages=2)
            node.wait(lambda: ("g1", 0) in relay.acked)
            for snap in (1, 2):
                key = f"raw/{node.raws.path(snap).relative_to(node.raw_root)}"
                server.put(key, fits_file("g1", snap, 2))
                # The second one when the first one has been ingested.
                node.wait(lambda snap=snap: len(node.visit("g1")[0].exposures) == snap)
            assert relay.outcome("g1").outcome == Outcome.SUCCEEDED, node.story()
            text = "arrivals: list s3://lsst-raw/raw: 2 raws were found by listing"
            assert any(problem.startswith(text) for problem in node.status().problem_texts)
