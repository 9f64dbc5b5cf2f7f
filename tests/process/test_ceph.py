# SPDX-License-Identifier: BSD-3-Clause
"""Visits whose raws lie in a real Ceph, and what its notices do while the bridge is away."""

import itertools
import json
import random
import signal
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest
from arrivalkit import fits_file
from bridgekit import Asker, bridging
from cephgateway import CephGateway, ceph_gateway
from node import make_node
from ports import free_ports

from ppdaemon.states import Outcome
from ppdaemon.testing.bridge import BridgeProcess
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VISITS = 8
OBJECTS = 20
NUMBERS = itertools.count()
FIRST_S = 90.0
"""Ceph 16.2.15 looks for new persistent topics every 30 s."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, module_leaves_nothing) -> Iterator[CephGateway]:
    with ceph_gateway(tmp_path_factory.mktemp("ceph")) as running:
        yield running


class Notified:
    """A bucket whose notices a bridge gets; all that it has got is in `taken`."""

    def __init__(self, gateway: CephGateway, bridge: BridgeProcess, asker: Asker, name: str):
        self.gateway, self.bridge, self.asker, self.name = gateway, bridge, asker, name
        gateway.make_bucket(name)

    def topic(self, name: str, *, persistent: bool = True) -> str:
        """Make a topic of the bridge."""
        endpoint = f"http://127.0.0.1:{self.bridge.port}/"
        return self.gateway.make_topic(f"{name}-{self.name}", endpoint, persistent=persistent)

    def put(self, *keys: str) -> None:
        for key in keys:
            self.gateway.put(self.name, key, b"x")

    def told(self, topic: str = "") -> set[str]:
        """Ask the bridge; return the keys of which it has told so far, perhaps those of one topic."""
        self.asker.ask()
        records = [record for body in self.asker.taken.values() for record in json.loads(body)["Records"]]
        return {
            record["s3"]["object"]["key"]
            for record in records
            if topic.rpartition(":")[2] in ("", record["s3"]["configurationId"])
        }

    def wait_for_the_first(self, *topics: str) -> None:
        """Wait until notices of topics that were just made arrive."""
        self.asker.ask()
        self.put("first")
        wait_until(lambda: all("first" in self.told(each) for each in topics), FIRST_S, self.gateway.story)


@pytest.fixture
def notified(gateway, socket_dir) -> Iterator[Notified]:
    with bridging(socket_dir) as bridge, Asker(bridge) as asker:
        yield Notified(gateway, bridge, asker, f"bucket-{next(NUMBERS)}")
    gateway.close()


def test_visits_of_a_bucket_alone_while_bridge_and_node_are_killed(tmp_path, socket_dir, notified):
    """Only the store tells that there is a raw, and only once."""
    moments, bucket = random.Random(16), notified.name
    topic = notified.topic("kept")
    notified.gateway.notify(bucket, topic)
    notified.wait_for_the_first(topic)
    with PlayedRelay() as relay:
        arrivals = {"remote": [{"uri": f"s3://{bucket}/raw"}], "bridges": [notified.bridge.nodes]}
        folder = socket_dir / "n"
        folder.mkdir()
        variables = notified.gateway.environment
        with make_node(
            tmp_path,
            folder,
            relay,
            variables=variables,
            arrivals=arrivals,
            image_timeout_s=120,  # a node starts twice meanwhile
            min=1,
            spare=0,
            max=2,
        ) as node:
            node.start()
            for number in range(1, VISITS + 1):
                group = f"g{number}"
                relay.reserve(group)
                node.wait(lambda group=group: (group, 0) in relay.acked)
                if number % 2:
                    notified.bridge.stop(signal.SIGKILL)
                key = f"raw/{node.raws.path(number).relative_to(node.raw_root)}"
                notified.gateway.put(bucket, key, fits_file(group))
                if number % 2:
                    notified.bridge.start()
                if number % 3 == 0:
                    relay.listen_for(moments.random() * 0.5)
                    node.kill()
                    node.start()
                assert relay.outcome(group).outcome == Outcome.SUCCEEDED, node.story()
            assert node.marks() == {f"g{number}~0": 1 for number in range(1, VISITS + 1)}


def test_visits_of_a_bucket_whose_topic_tells_nothing_are_found_by_listing(tmp_path, socket_dir, gateway):
    bucket = f"bucket-{next(NUMBERS)}"
    gateway.make_bucket(bucket)
    arrivals = {"remote": [{"uri": f"s3://{bucket}/raw"}], "list_s": 0.5}
    with PlayedRelay() as relay:
        node = make_node(tmp_path, socket_dir, relay, variables=gateway.environment, arrivals=arrivals)
        with closing(gateway), node.start():
            for number in (1, 2):
                group = f"g{number}"
                relay.reserve(group)
                node.wait(lambda group=group: (group, 0) in relay.acked)
                key = f"raw/{node.raws.path(number).relative_to(node.raw_root)}"
                gateway.put(bucket, key, fits_file(group))
                assert relay.outcome(group).outcome == Outcome.SUCCEEDED, node.story()


def test_a_persistent_topic_lets_uploads_go_on_while_the_bridge_is_stopped(notified):
    topic = notified.topic("kept")
    notified.gateway.notify(notified.name, topic)
    notified.wait_for_the_first(topic)
    expected = {f"object-{number}" for number in range(OBJECTS)}
    notified.bridge.stop()  # systemd keeps the socket open
    notified.put(*expected)  # would fail after a time-out of boto3 if the gateway waited
    notified.bridge.start()
    wait_until(lambda: expected <= notified.told(), story=notified.gateway.story)


def test_an_upload_waits_for_the_bridge_if_the_topic_is_synchronous(notified):
    topic = notified.topic("now", persistent=False)
    notified.gateway.notify(notified.name, topic)
    notified.wait_for_the_first(topic)
    notified.bridge.stop()
    upload = Thread(target=notified.put, args=["late"])
    upload.start()
    upload.join(2.0)
    assert upload.is_alive()
    notified.bridge.start()
    upload.join()
    wait_until(lambda: "late" in notified.told())


def test_a_synchronous_topic_that_fails_silences_those_behind_it(notified):
    (nobody,) = free_ports(1)
    before, behind = notified.topic("a"), notified.topic("c")
    failing = notified.gateway.make_topic(
        f"b-{notified.name}", f"http://127.0.0.1:{nobody}/", persistent=False
    )
    notified.gateway.notify(notified.name, before, behind)
    notified.wait_for_the_first(before, behind)
    notified.gateway.notify(notified.name, failing)  # adds, and does not replace
    assert notified.gateway.notified(notified.name) == {
        each.rpartition(":")[2] for each in (before, failing, behind)
    }
    keys = {f"object-{number}" for number in range(OBJECTS)}
    notified.put(*keys)  # nobody who uploads is told
    wait_until(lambda: keys <= notified.told(before))
    assert not keys & notified.told(behind)


def test_notices_that_could_not_be_posted_come_when_the_bridge_s_host_is_back(notified):
    topic = notified.topic("kept")
    notified.gateway.notify(notified.name, topic)
    notified.wait_for_the_first(topic)
    expected = {f"object-{number}" for number in range(OBJECTS)}
    with notified.bridge.unreachable():
        notified.put(*expected)
    wait_until(lambda: expected <= notified.told(), FIRST_S, notified.gateway.story)
