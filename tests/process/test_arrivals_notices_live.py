# SPDX-License-Identifier: BSD-3-Clause
"""Raws that notices over ZeroMQ report."""

import asyncio
import errno
import json
import os
import socket
from pathlib import Path

import pytest
import zmq
from arrivalkit import (
    Exposure,
    Publisher,
    arriving,
    created,
    fits_file,
    source,
)

from ppdaemon.errors import ConfigError
from ppdaemon.node.arrivals import notices
from ppdaemon.node.arrivals.notices import NOTICE_LIMIT

DATA = Path(__file__).parent.parent / "data" / "notices"


@pytest.fixture
def publisher():
    publisher = Publisher()
    yield publisher
    publisher.close()


async def test_watch_and_notice_of_one_file_make_one_delivery(tmp_path, publisher):
    async with arriving(tmp_path, subscribe=[publisher.address], scan_s=0.1) as catcher:
        await publisher.subscribed()
        await catcher.watching()
        exposure = Exposure(tmp_path)
        path = exposure.put(94)
        for _ in range(3):
            publisher.send(created(str(path.relative_to(tmp_path)), str(path)[1:]))
            publisher.send({"path": str(path)})
        publisher.send({"path": str(exposure.put(95))})
        await catcher.until(lambda: len(catcher.raws) >= 2)
        assert catcher.detectors == [94, 95]


async def test_a_notice_finds_a_file_that_no_watch_can_see(tmp_path, publisher):
    old = Exposure(tmp_path, day=20200101)
    old.put(94)
    empty = tmp_path / "empty"
    empty.mkdir()
    async with arriving([empty, tmp_path], subscribe=[publisher.address], watch="poll") as catcher:
        await publisher.subscribed()
        os.utime(old.folder.parent, (0, 0))
        publisher.send(created(str(old.image(94).relative_to(tmp_path))))
        raw = await catcher.one()
        assert raw.path == str(old.image(94))


async def test_junk_notices_are_counted_and_the_good_ones_used(tmp_path, publisher):
    outside = tmp_path / "outside.fits"
    outside.write_bytes(fits_file())
    root = tmp_path / "raw"
    exposure = Exposure(root)
    inside = str(exposure.image(94).relative_to(root))
    junk = [
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"path": NaN}',
        {"Records": [{"eventName": "ObjectRemoved:Delete", "s3": {"object": {"key": inside}}}, 5]},
        {"path": f"../{outside.name}"},
        {"path": str(outside)},
        {"path": inside + "\n"},
        {"path": f"{exposure.folder}/../../../../{outside.name}"},
        {"uri": "http://example.org/a.fits"},
        created("/etc/passwd", "other/bucket/key"),
        {},
    ]
    async with arriving(root, subscribe=[publisher.address], watch="poll", scan_s=60.0) as catcher:
        await publisher.subscribed()
        for item in junk:
            publisher.send(item)
        exposure.put(94)
        publisher.send(created(inside))
        raw = await catcher.one()
        assert raw.path == str(exposure.image(94))
        assert source(catcher, "zmq").note == (
            "3 objects are below no configured root, the last one in s3://raws/other/"
        )
        assert catcher.arrivals.samples["notice.json"] == "{"
        counted = dict(catcher.arrivals.counters)
        assert counted == {
            "notice.encoding": 1,
            "notice.json": 2,
            "notice.depth": 1,
            "notice.record": 1,
            "notice.field": 1,
            "refused.escape": 2,
            "refused.outside": 1,
            "elsewhere": 3,
            "refused.control": 1,
            "delivered": 1,
        }


async def test_test_events_are_counted_and_not_logged(tmp_path, publisher, caplog):
    event = json.loads((DATA / "test_event.json").read_text())
    async with arriving(tmp_path, subscribe=[publisher.address], watch="poll") as catcher:
        await publisher.subscribed()
        publisher.send(event)
        publisher.send({"Type": "SubscriptionConfirmation", "Message": "You have chosen to subscribe"})
        await catcher.until(lambda: catcher.count("notice.test_event") == 2)
        assert set(catcher.arrivals.counters) == {"notice.test_event"}
    assert "notice" not in caplog.text


async def test_notices_go_on_after_a_message_above_the_limit(tmp_path, publisher, caplog):
    async with arriving(tmp_path, subscribe=[publisher.address], watch="poll", scan_s=60.0) as catcher:
        exposure = Exposure(tmp_path, day=20200101)
        exposure.put(94)
        exposure.put(95)
        await publisher.subscribed()
        publisher.send({"path": str(exposure.image(94))})
        publisher.send(b"x" * (NOTICE_LIMIT + 1))
        await catcher.until(lambda: catcher.count("notice.connection"))
        await publisher.subscribed()
        publisher.send({"path": str(exposure.image(95))})
        await catcher.until(lambda: 95 in catcher.detectors)
    (line,) = [record.message for record in caplog.records if "connecting again" in record.message]
    assert line.startswith(f"{publisher.address}: the connection was ended")


async def test_a_connection_that_cannot_be_made_again_is_tried_until_it_can(
    tmp_path, publisher, caplog, monkeypatch
):
    """The process may have too many open files for a while."""
    errors = [zmq.ZMQError(errno.EMFILE), ConfigError(["arrivals.subscribe: no such host"])]
    connect = notices.Subscription._connect

    def failing(subscription):
        if hasattr(subscription, "connected") and errors:
            raise errors.pop(0)
        return connect(subscription)

    monkeypatch.setattr(notices.Subscription, "_connect", failing)
    monkeypatch.setattr(notices, "FIRST_PAUSE_S", 0.01)
    async with arriving(tmp_path, subscribe=[publisher.address], watch="poll", scan_s=60.0) as catcher:
        exposure = Exposure(tmp_path, day=20200101)
        exposure.put(94)
        await publisher.subscribed()
        publisher.send(b"x" * (NOTICE_LIMIT + 1))
        await catcher.until(lambda: catcher.count("notice.connection_failed") == 2)
        await publisher.subscribed()
        publisher.send({"path": str(exposure.image(94))})
        await catcher.one()
        assert source(catcher, "zmq").live
    assert "Too many open files; next attempt in 0.01 s" in caplog.text


async def test_a_publisher_that_starts_again_costs_no_new_connection(tmp_path, caplog):
    first = Publisher()
    async with arriving(tmp_path, subscribe=[first.address], watch="poll", scan_s=60.0) as catcher:
        await first.subscribed()
        first.close()
        second = Publisher(first.address)
        await second.subscribed()
        second.send({"Event": "s3:TestEvent"})
        await catcher.until(lambda: catcher.count("notice.test_event"))
        second.close()
    assert "connecting again" not in caplog.text


async def test_an_address_without_a_publisher_is_shown(tmp_path):
    # Another program that accepts connections is no publisher.
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        async with arriving(tmp_path, subscribe=[address]) as catcher:
            accepted, _ = await asyncio.to_thread(other.accept)
            accepted.close()
            assert source(catcher, "zmq").note == "no publisher is connected"
            other.close()
            publisher = Publisher(address)
            await catcher.until(lambda: source(catcher, "zmq").note == "")
            publisher.close()
            await catcher.until(lambda: source(catcher, "zmq").note == "no publisher is connected")


async def test_a_notice_before_its_file_is_remembered(tmp_path, publisher):
    async with arriving(tmp_path, subscribe=[publisher.address], watch="poll") as catcher:
        await publisher.subscribed()
        exposure = Exposure(tmp_path)
        publisher.send({"path": str(exposure.image(94))})
        await catcher.until(lambda: any(source.files for source in catcher.arrivals.report()))
        exposure.put(94)
        await catcher.one()


async def test_an_address_that_cannot_be_connected_to_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"arrivals\.subscribe"):
        async with arriving(tmp_path, subscribe=["ipc:///" + 200 * "x"]):
            pass
