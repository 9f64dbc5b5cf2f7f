# SPDX-License-Identifier: BSD-3-Clause
"""A real pprelay that reads a Kafka cluster, the client library's own: nothing lost, nothing doubled."""

import json
import random
import time

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafkacluster import kafka_cluster

from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

VISITS, CANCELLATIONS = "nextVisit", "nextVisitCanceled"


@pytest.fixture
def cluster():
    with kafka_cluster() as cluster:
        cluster.write(CANCELLATIONS, [None])  # topics exist when the relay looks for them
        cluster.write(VISITS, [None])
        yield cluster


@pytest.fixture
def relay(cluster, socket_dir):
    kafka = {
        "brokers": cluster.brokers,
        "topics": [VISITS, CANCELLATIONS],
        "options": {"fetch.wait.max.ms": "10"},
    }
    with RelayProcess(socket_dir, kafka=kafka).start() as made:
        # The cluster of the tests does not find offsets by time: it is read from now on.
        wait_until(lambda: made.events("reading from Kafka"), TIMEOUT_S)
        yield made


def visit(group):
    return json.dumps(
        {"groupId": group, "instrument": "DemoCam", "private_sndStamp": time.time() + 37}
    ).encode()


def cancellation(group):
    return json.dumps({"groupId": group, "scriptSalIndex": 0}).encode()


def groups(relay):
    return sorted(row.group for row in RelayDaemon(relay.control).visits(10_000))


def outcomes(relay, group):
    return {row.outcome for row in RelayDaemon(relay.control).visit(group)}


def test_visits_and_cancellations_are_taken_in_any_order_and_bad_messages_skipped(cluster, relay):
    cluster.write(CANCELLATIONS, [cancellation("early")])
    wait_until(lambda: relay.events("cancellation without a visit"), TIMEOUT_S)
    bad = [None, b"", b"\0\0\0\0\7abc", b"\0", b"{", b"[]", b"\xff\xfe", visit("") + b"x"]
    cluster.write(VISITS, [*bad, visit("g1"), visit("early"), *bad, visit("g1")])
    wait_until(lambda: groups(relay) == ["early", "g1"], TIMEOUT_S)
    cluster.write(CANCELLATIONS, [cancellation("g1")])
    for group in ("g1", "early"):
        wait_until(lambda group=group: outcomes(relay, group) == {"cancelled"}, TIMEOUT_S)
    # They may be in another partition than the visits.
    counters = RelayDaemon(relay.control).status
    wait_until(lambda: counters().counters.get("kafka empty", 0) >= 4, TIMEOUT_S)
    wait_until(lambda: counters().counters.get("kafka schema") == 2, TIMEOUT_S)


def test_a_restarted_relay_continues_and_an_early_cancellation_is_not_lost(cluster, relay):
    cluster.write(CANCELLATIONS, [cancellation("early")])
    cluster.write(VISITS, [visit("g1")])
    wait_until(lambda: relay.events("cancellation without a visit") and groups(relay) == ["g1"], TIMEOUT_S)
    relay.kill()
    cluster.write(VISITS, [visit("early"), visit("g2")])
    relay.start()
    wait_until(lambda: groups(relay) == ["early", "g1", "g2"], TIMEOUT_S)
    wait_until(lambda: outcomes(relay, "early") == {"cancelled"}, TIMEOUT_S)


def test_a_cluster_that_is_away_is_a_problem_and_nothing_else_stops(socket_dir):
    kafka = {"brokers": "127.0.0.1:9"}
    with RelayProcess(socket_dir, kafka=kafka).start() as relay:
        wait_until(lambda: "Kafka" in str(RelayDaemon(relay.control).status().problem_texts), TIMEOUT_S)


def test_a_partition_that_cannot_be_read_is_a_problem(cluster, socket_dir):
    consumer = Consumer({"bootstrap.servers": cluster.brokers, "group.id": "ppdaemon-relay"})
    consumer.commit(offsets=[TopicPartition(VISITS, 0, 10**6)], asynchronous=False)  # there is no such offset
    consumer.close()
    options = {"fetch.wait.max.ms": "10", "auto.offset.reset": "error"}
    kafka = {"brokers": cluster.brokers, "topics": [VISITS], "options": options}
    with RelayProcess(socket_dir, kafka=kafka).start() as relay:
        wait_until(
            lambda: f"{VISITS} [0]" in str(RelayDaemon(relay.control).status().problem_texts), TIMEOUT_S
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_relay_that_is_killed_at_random_moments_loses_and_doubles_nothing(cluster, relay):
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    written = []
    for round_ in range(30):
        names = [f"g{round_:02d}-{number}" for number in range(moments.randrange(1, 30))]
        cluster.write(VISITS, map(visit, names))
        written += names
        time.sleep(moments.random() * 0.3)
        relay.kill()
        relay.start()
    wait_until(
        lambda: groups(relay) == sorted(written), TIMEOUT_S, lambda: (seed, set(written) ^ set(groups(relay)))
    )
    assert {len(RelayDaemon(relay.control).visit(group)) for group in written} == {9}, seed
