# SPDX-License-Identifier: BSD-3-Clause
"""Notices of object stores survive what kills the bridge, or the node: none is lost, none is used twice."""

import json
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from arrivalkit import fits_file
from bridgekit import Asker, bridging
from kafkacluster import kafka_cluster
from motoserver import moto_bucket
from node import make_node

from ppdaemon.states import Outcome
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each start of a node takes seconds

KILLS = 30
STORES = 8
BURST = 100
NOTICES = Path(__file__).parent.parent / "data/notices"


def test_a_bridge_that_is_killed_at_random_moments_loses_no_notice(socket_dir):
    moments, number, unanswered = random.Random(18), 0, 0
    lock, ended = threading.Lock(), threading.Event()
    sent: list[bytes] = []

    with bridging(socket_dir) as bridge, Asker(bridge) as asker:

        def store() -> None:
            """Send notices one after the other, each until it is answered, as a store does."""
            nonlocal number, unanswered
            while not ended.is_set():
                with lock:
                    number += 1
                    body = b'{"path": "%d"}' % number
                    sent.append(body)
                while True:
                    try:
                        if bridge.post(body) == 200:
                            break
                    except OSError:
                        with lock:
                            unanswered += 1

        asker.ask(age_s=3600.0)
        with ThreadPoolExecutor(STORES) as threads:
            stores = [threads.submit(store) for _ in range(STORES)]
            try:
                for _ in range(KILLS):
                    until = time.monotonic() + moments.random() * 0.3
                    while time.monotonic() < until:
                        asker.ask()
                    bridge.stop(signal.SIGKILL)
                    bridge.start()
            finally:
                ended.set()
            for each in stores:
                each.result(TIMEOUT_S)
        last = bridge.daemon.status().last
        while asker.number < last:
            asker.ask()
        taken = [asker.taken[number] for number in sorted(asker.taken)]
        assert sorted(asker.taken) == [*range(1, last + 1)]
    assert set(taken) == set(sent)
    assert len(sent) > KILLS
    twice = sum(count - 1 for count in Counter(taken).values())
    assert twice <= unanswered  # stored, and killed before the answer


def test_a_bridge_that_reads_from_kafka_is_killed_while_it_takes_notices(socket_dir):
    """After each death the group waits some seconds for the dead member."""
    moments, written = random.Random(18), 0
    with kafka_cluster() as cluster:
        cluster.write("buckets", [b'{"path": "0"}'])
        options = {"fetch.wait.max.ms": "10"}
        kafka = {"brokers": cluster.brokers, "topics": ["buckets"], "options": options}
        with bridging(socket_dir, kafka=kafka) as bridge, Asker(bridge) as asker:
            asker.ask(age_s=3600.0)
            last = 0
            for _ in range(KILLS):
                # It reads again: what comes now is taken at once.
                wait_until(lambda last=last: bridge.daemon.status().last > last)
                cluster.write("buckets", [b'{"path": "%d"}' % (written + n) for n in range(1, BURST + 1)])
                written += BURST + 1
                time.sleep(moments.random() * 0.05)
                bridge.stop(signal.SIGKILL)
                bridge.start()
                last = bridge.daemon.status().last
                cluster.write("buckets", [b'{"path": "%d"}' % written])
            expected = {b'{"path": "%d"}' % number for number in range(written + 1)}

            def complete() -> bool:
                asker.ask()
                return set(asker.taken.values()) >= expected

            wait_until(complete, story=lambda: sorted(expected - set(asker.taken.values())))
            assert set(asker.taken.values()) == expected
            # Each of a batch that was stored and not yet committed comes twice.
            twice = len(asker.taken) - len(expected)
            assert twice <= KILLS * BURST


def test_visits_of_a_bucket_alone_while_bridge_and_node_are_killed_at_random_moments(tmp_path, socket_dir):
    """Each visit has one raw, an object of a real server, and only its notice names it."""
    template = json.loads((NOTICES / "ceph_bucket_of_a_tenant.json").read_text())
    moments, folder = random.Random(18), socket_dir / "b"
    folder.mkdir()
    with moto_bucket("lsst-raw") as bucket, bridging(folder) as bridge, PlayedRelay() as relay:
        arrivals = {"remote": [{"uri": "s3://lsst-raw/raw"}], "bridges": [bridge.nodes]}
        with make_node(
            tmp_path,
            socket_dir,
            relay,
            variables=bucket.environment,
            arrivals=arrivals,
            min=1,
            spare=0,
            max=2,
        ) as node:
            node.start()
            for number in range(1, KILLS + 1):
                group = f"g{number}"
                relay.reserve(group)
                node.wait(lambda group=group: (group, 0) in relay.acked)
                key = f"raw/{node.raws.path(number).relative_to(node.raw_root)}"
                record = template["Records"][0] | {"s3": bucket.put(key, fits_file(group))}
                notice = json.dumps({"Records": [record]}).encode()
                if number % 3 == 0:  # the bridge, too
                    bridge.stop(signal.SIGKILL)
                    bridge.start()
                assert bridge.post(notice) == 200
                relay.listen_for(moments.random() * 0.5)
                node.kill()
                if number % 5 == 0:
                    assert bridge.post(notice) == 200  # the store repeats it
                node.start()
                assert relay.outcome(group).outcome == Outcome.SUCCEEDED, node.story()
            assert node.marks() == {f"g{number}~0": 1 for number in range(1, KILLS + 1)}
            names = node.exported()
            assert len(names) == len(set(names)) == KILLS
            wait_until(lambda: not bridge.daemon.status().nodes[0].behind)
