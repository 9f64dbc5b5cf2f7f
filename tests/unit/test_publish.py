# SPDX-License-Identifier: BSD-3-Clause
"""Records of metrics and telemetry, and the queues that send them to Kafka and to REST proxies."""

import json
import math
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pydantic
import pytest
from kafkacluster import KafkaCluster, kafka_cluster
from kafkafront import KafkaFront
from restproxyserver import RestProxyServer, rest_proxy

from ppdaemon.errors import BadMessage
from ppdaemon.messages import PACKET_LIMIT
from ppdaemon.publish.config import Publication
from ppdaemon.publish.destination import Destination, open_sink
from ppdaemon.publish.kafka import KafkaMessage, KafkaProducer
from ppdaemon.publish.messages import (
    BUNDLES,
    PUBLISHER_FACTS,
    Bundle,
    PublisherSettings,
    PublishReport,
    Telemetry,
)
from ppdaemon.publish.records import Record, bundle_records, telemetry_records
from ppdaemon.worker import publisher as publishing
from ppdaemon.worker.publisher import Publisher

WITHIN_S = 20.0
SASQUATCH = Publication(what=("promptPreload_metrics",), to="https://sasquatch/proxy", format="avro")
SUMMIT = Publication(what=("telemetry",), to="kafka://broker:9092/lsst.prompt.outcomes")
MEASURED = {"identifier": "1f", "unit": "s", "blob_refs": []}
BUNDLE = Bundle(
    id=uuid.UUID(int=7),
    run="LSSTCam/prompt/output-2026-11-22/NoPipeline/abc",
    dataset_type="promptPreload_metrics",
    data_id={"instrument": "LSSTCam", "group": "2026-11-22T03:25:16.951", "detector": 94},
    utc=1_795_000_000.5,
    content={
        "prepButlerTimeMetric": [
            {"metric": "prep_butlerTotalTime", "value": 2.5, **MEASURED},
            {"metric": "prep_butlerSearchTime", "value": None, **MEASURED},
            {"metric": "prep_butlerOddTime", "value": float("nan"), **MEASURED},
            {"metric": "prep_butlerEndless", "value": float("inf"), **MEASURED},
        ],
        "__dataset_identifier": "Live",
        "__metricNamePrefix": "",
    },
)
TELEMETRY = Telemetry(
    timestamp=1_795_000_000.5,
    node="node1",
    instrument="LSSTCam",
    group="2026-11-22T03:25:16.951",
    detector=94,
    attempt=1,
    survey="BLOCK-365",
    outcome="succeeded",
    reason="",
    pipeline="ApPipe",
    exposures=1,
    datasets=12,
    prepare_s=1.5,
    alerts_s=41.25,
    total_s=None,
)


@pytest.fixture
def proxy() -> Iterator[RestProxyServer]:
    with rest_proxy() as server:
        yield server


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    with kafka_cluster() as cluster:
        yield cluster


def wait_until(condition: Any, destination: Destination) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until, destination.report()
        time.sleep(0.01)


# --- records ---------------------------------------------------------------


def test_metrics_are_the_records_of_the_dispatcher_of_the_field() -> None:
    """Compared with the fields of its source; the order is that of the schema there."""
    (record,) = bundle_records(BUNDLE, SASQUATCH)
    assert record.topic == "lsst.prompt.prepButlerTimeMetric"
    assert record.value == {
        "id": str(uuid.UUID(int=7)),
        "run": BUNDLE.run,
        "dataset_type": "promptPreload_metrics",
        "reference_package": "",
        "reference_package_version": "",
        "reference_package_timestamp": 0.0,
        "run_timestamp": BUNDLE.utc,
        "timestamp": BUNDLE.utc,
        "dataset_tag": "Live",
        "detector": "94",
        "instrument": "LSSTCam",
        "group": "2026-11-22T03:25:16.951",
        **dict.fromkeys(["patch", "skymap", "visit", "tract", "physical_filter", "band", "exposure"], ""),
        "day_obs": "",
        "tags": [],
        "prep_butlerTotalTime": 2.5,
        "prep_butlerSearchTime": 0.0,
    }
    schema = json.loads(record.schema or "")
    assert (schema["name"], schema["namespace"]) == ("prepButlerTimeMetric", "lsst.prompt")
    types = {each["name"]: each["type"] for each in schema["fields"]}
    assert types.keys() == record.value.keys() - {"tags"}
    assert (types["timestamp"], types["prep_butlerTotalTime"], types["detector"]) == (
        "double",
        "float",
        "string",
    )


def test_values_that_are_no_numbers_are_left_out_after_the_file_of_the_worker() -> None:
    (bundle,) = BUNDLES.validate_json(BUNDLES.dump_json((BUNDLE,)))
    (record,) = bundle_records(bundle, SASQUATCH)
    assert {name for name in record.value if name.startswith("prep_")} == {
        "prep_butlerTotalTime",
        "prep_butlerSearchTime",
    }


@pytest.mark.parametrize("content", [[{"metric": "m"}], [{"metric": "m", "value": "x"}], [7], 7, {"m": 7}])
def test_what_is_no_bundle_of_metrics_is_refused(content: Any) -> None:
    bundle = BUNDLE.model_copy(update={"content": {"action": content}})
    with pytest.raises(BadMessage, match="promptPreload_metrics has no metrics in action"):
        list(bundle_records(bundle, SASQUATCH))


@pytest.mark.parametrize("source", [BUNDLE, TELEMETRY])
def test_a_record_fits_its_schema(source: Bundle | Telemetry) -> None:
    to = SASQUATCH.model_copy(update={"what": (".*", "telemetry")})
    (record,) = bundle_records(source, to) if isinstance(source, Bundle) else telemetry_records(source, to)
    schema = fastavro.parse_schema(json.loads(record.schema or ""))
    assert fastavro.validate(dict(record.value), schema)


def test_only_what_is_configured_is_published() -> None:
    assert not list(bundle_records(BUNDLE, SUMMIT))
    assert not list(telemetry_records(TELEMETRY, SASQUATCH))
    assert not list(bundle_records(BUNDLE.model_copy(update={"dataset_type": "other_metrics"}), SASQUATCH))
    assert not Publication(what=("tele.*",), to=SUMMIT.to).includes("x")
    (record,) = telemetry_records(TELEMETRY, SUMMIT)
    assert (record.topic, record.key, record.schema) == ("lsst.prompt.outcomes", "LSSTCam 94", None)
    assert record.value["alerts_s"] == 41.25
    assert record.value["total_s"] is None


SASL = {"security.protocol": "SASL_SSL", "sasl.username": "u", "sasl.password": "p"}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"to": "ftp://host"}, "is not an address"),
        ({"to": "https://user:secret@host/proxy"}, "must not have a password"),
        ({"to": "kafka://broker/topic"}, "is not a topic: write kafka://BROKER:PORT,BROKER:PORT/TOPIC"),
        ({"to": "kafka://broker:9092/topic", "format": "avro"}, "by a REST proxy only"),
        ({"to": "kafka://broker:9092/topic", "token": "/secret"}, "only a REST proxy takes a token"),
        ({"to": "https://host/proxy", "options": {"a": "b"}}, "only Kafka has options"),
        ({"to": "https://host/proxy", "password": "/p"}, "only Kafka has password"),
        ({"to": "kafka://broker:9092/topic", "password": "/p", "options": SASL}, "have sasl.password, too"),
        ({"to": "kafka://broker:9092/topic", "password": "/p"}, "missing sasl.username"),
        ({"to": "kafka://broker:9092/topic", "password": "/p"}, "with security.protocol SASL_SSL or SASL_PL"),
        ({"to": "https://host/proxy", "what": "("}, "is not a regular expression"),
        ({"to": "https://host/proxy", "what": []}, "at least 1 item"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=text):
        Publication.model_validate({"what": "telemetry", **keys})


# --- REST proxy ------------------------------------------------------------


def to_proxy(proxy: RestProxyServer, **keys: Any) -> Publication:
    return Publication.model_validate(
        {"what": [".*", "telemetry"], "to": proxy.url, "timeout_s": 5.0, **keys}
    )


def records(config: Publication, count: int = 1) -> list[Record]:
    one = TELEMETRY.model_copy
    return [
        each
        for detector in range(count)
        for each in telemetry_records(one(update={"detector": detector}), config)
    ]


def test_a_rest_proxy_gets_topics_and_batches_of_records(proxy: RestProxyServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    config = to_proxy(proxy, format="avro", token=token)
    destination = Destination(config, open_sink)
    destination.add([*records(config, 3), *bundle_records(BUNDLE, config), *records(config, 2)])
    destination.send_some()
    assert destination.report().sent == 6
    assert proxy.topics == {
        name: {"partitions_count": 1, "replication_factor": 3}
        for name in ("lsst.prompt.visitDetector", "lsst.prompt.prepButlerTimeMetric")
    }
    assert len(proxy.posts) == 2, "one request for all records of a topic and schema"
    assert {kind for _, kind, _ in proxy.posts} == {"application/vnd.kafka.avro.v2+json"}
    assert [each["detector"] for each in proxy.records("lsst.prompt.visitDetector")] == [0, 1, 2, 0, 1]
    (metrics,) = proxy.records("lsst.prompt.prepButlerTimeMetric")
    assert metrics["prep_butlerTotalTime"] == 2.5
    assert proxy.tokens == {"Bearer secret"}


def test_a_topic_that_exists_is_used(proxy: RestProxyServer) -> None:
    proxy.topics["lsst.prompt.visitDetector"] = {}
    config = to_proxy(proxy)
    destination = Destination(config, open_sink)
    destination.add(records(config))
    destination.send_some()
    assert destination.report().sent == 1
    ((_, kind, body),) = proxy.posts
    assert (kind, list(body)) == ("application/vnd.kafka.json.v2+json", ["records"])


@pytest.mark.parametrize(("status", "sent_again"), [(503, True), (401, True), (422, False)])
def test_what_may_be_taken_later_waits_and_what_never_will_is_dropped(
    proxy: RestProxyServer, status: int, sent_again: bool
) -> None:
    config = to_proxy(proxy)
    pauses: list[float] = []
    destination = Destination(config, open_sink, pauses.append)
    proxy.status = status
    destination.add(records(config, 2))
    destination.send_some()
    destination.send_some()
    report = destination.report()
    assert (report.sent, report.dropped, report.waiting) == ((0, 0, 2) if sent_again else (0, 2, 0))
    assert pauses == ([1.0, 2.0] if sent_again else [])
    assert (f"HTTP {status}" in report.problem) == sent_again
    proxy.status = 200
    destination.send_some()
    assert len(proxy.records("lsst.prompt.visitDetector")) == (2 if sent_again else 0)
    assert destination.report().problem == ""


def test_a_request_that_is_too_large_is_divided(proxy: RestProxyServer) -> None:
    config = to_proxy(proxy)
    sink = open_sink(config)
    proxy.most_bytes = 1500
    assert sink.send(records(config, 20)) == ((), 0, "")
    assert [each["detector"] for each in proxy.records("lsst.prompt.visitDetector")] == list(range(20))
    proxy.most_bytes = 10
    later, refused, reason = sink.send(records(config, 3))
    assert (later, refused) == ((), 3)
    assert "HTTP 413" in reason


@pytest.mark.parametrize("answer", [[], None, "text", {"offsets": None}])
def test_an_answer_of_another_form_does_not_end_the_publication(proxy: RestProxyServer, answer: Any) -> None:
    config = to_proxy(proxy)
    destination = Destination(config, open_sink, lambda pause_s: None)
    proxy.answer = answer
    destination.add(records(config))
    destination.send_some()
    assert destination.report().waiting == (0 if isinstance(answer, dict) else 1)


def test_a_full_queue_drops_the_oldest_and_counts_them(proxy: RestProxyServer) -> None:
    config = to_proxy(proxy, queue=3)
    destination = Destination(config, open_sink)
    destination.add(records(config, 5))
    assert (destination.report().dropped, destination.report().waiting) == (2, 3)
    destination.send_some()
    assert [each["detector"] for each in proxy.records("lsst.prompt.visitDetector")] == [2, 3, 4]


def test_a_proxy_that_does_not_answer_delays_no_other_place(
    proxy: RestProxyServer, cluster: KafkaCluster
) -> None:
    stuck = to_proxy(proxy, timeout_s=60.0)
    summit = Publication.model_validate(
        {"what": "telemetry", "to": f"kafka://{cluster.brokers}/outcomes", "timeout_s": 10.0}
    )
    proxy.hanging.clear()
    places = []
    for config in (stuck, summit):
        place = Destination(config, open_sink)
        place.start()
        place.add(records(config, 2))
        places.append(place)
    assert len(cluster.read("outcomes", 2)) == 2
    wait_until(lambda: places[1].report().sent == 2, places[1])
    assert (places[0].report().waiting, places[0].report().sent) == (2, 0)
    proxy.hanging.set()
    wait_until(lambda: places[0].report().sent == 2, places[0])
    for place in places:
        place.stop()


def test_what_waits_is_sent_with_new_options(proxy: RestProxyServer, tmp_path: Path) -> None:
    """Such as a token whose file had another name."""
    config = to_proxy(proxy, token=tmp_path / "missing")
    destination = Destination(config, open_sink, lambda _: None)
    destination.add(records(config, 2))
    destination.send_some()
    assert destination.report().waiting == 2
    (tmp_path / "token").write_text("secret")
    destination.config = to_proxy(proxy, token=tmp_path / "token")
    destination.send_some()
    assert (destination.report().sent, destination.report().waiting) == (2, 0)
    assert proxy.tokens == {"Bearer secret"}


def test_a_place_that_is_left_gets_what_waits_for_a_while(
    tmp_path: Path, proxy: RestProxyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.status = 503
    refusing = to_proxy(proxy)
    other = Publication.model_validate({"what": "telemetry", "to": f"{proxy.url}/other"})
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = PublisherSettings(
        publish=(refusing,), folder=str(tmp_path), log_level="INFO", log_format="json"
    )
    with ours, theirs:
        publisher = Publisher(theirs, settings)
        left = publisher._places[refusing.name]
        left.add(records(refusing, 2))
        publisher._configure([other])
        publisher._leave()
        assert list(publisher._places) == [other.name]
        publisher._report()
        report = PUBLISHER_FACTS.validate_json(ours.recv(PACKET_LIMIT))
        assert isinstance(report, PublishReport)
        assert [(each.name, each.waiting) for each in report.places] == [(other.name, 0), (refusing.name, 2)]
        publisher._configure([refusing.model_copy(update={"queue": 7})])  # an operator has changed his mind
        assert publisher._places == {refusing.name: left}
        assert left.config.queue == 7
        publisher._leave()  # nothing waits for the other one
        assert not publisher._leaving
        monkeypatch.setattr(publishing, "LEAVE_S", 0.0)
        publisher._configure([])
        publisher._leave()
        assert not publisher._leaving
        assert f"2 records are dropped, {refusing.name} is no longer configured" in caplog.text


def test_a_publisher_reports_while_it_reads_what_another_one_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "REPORT_S", 0.0)
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file in files:
        file.write_bytes(b"[]")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = PublisherSettings(publish=(), folder=str(tmp_path), log_level="INFO", log_format="json")
    with ours, theirs:
        ours.shutdown(socket.SHUT_WR)
        Publisher(theirs, settings).serve()
        theirs.close()
        facts = [
            PUBLISHER_FACTS.validate_json(packet) for packet in iter(lambda: ours.recv(PACKET_LIMIT), b"")
        ]
    assert not any(file.exists() for file in files)
    assert facts[1:] == [PublishReport(orders=0, places=())] * len(files)


# --- Kafka -----------------------------------------------------------------


def test_a_topic_gets_each_record_in_order(cluster: KafkaCluster) -> None:
    config = Publication.model_validate(
        {"what": ["telemetry", ".*_metrics"], "to": f"kafka://{cluster.brokers}/outcomes"}
    )
    destination = Destination(config, open_sink)
    twice = [*(records(config, 2) * 2), *bundle_records(BUNDLE, config), *bundle_records(BUNDLE, config)]
    destination.add(twice)
    destination.send_some()
    assert destination.report().sent == 6
    found = cluster.read("outcomes", 6)
    assert sorted(found) == sorted((each.key, json.dumps(each.value).encode()) for each in twice)


def test_without_a_cluster_records_wait() -> None:
    config = Publication.model_validate(
        {"what": "telemetry", "to": "kafka://127.0.0.1:1/outcomes", "timeout_s": 1.0}
    )
    destination = Destination(config, open_sink, lambda _: None)
    destination.add(records(config, 3))
    destination.send_some()
    report = destination.report()
    assert (report.sent, report.dropped, report.waiting) == (0, 0, 3)
    assert "127.0.0.1:1 failed: Connection refused" in report.problem


def test_a_refused_producer_reads_the_password_again_however_late_the_next_try_is(
    cluster: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "password"
    password.write_text("old\n")
    password.chmod(0o600)
    options = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "prompt",
        "reconnect.backoff.max.ms": "200",
    }
    message = KafkaMessage("a", b"x")
    with KafkaFront(cluster.brokers, None, {"prompt": "new"}) as front:
        producer = KafkaProducer(front.brokers, options, 2.0, password)
        unsent = producer.send("events", [message])
        assert (unsent.later, unsent.refused) == ((message,), ())
        assert "refuses user 'prompt'" in unsent.reason
        # Longer than a refusal is remembered.
        monkeypatch.setattr(producer._brokers, "_clock", lambda: math.inf)
        password.write_text("new\n")
        for _ in range(10):  # a new connection may need longer than the time limit
            if not producer.send("events", [message]).later:
                break
        producer.close()
        assert set(front.logins) == {("PLAIN", "prompt")}
    assert cluster.read("events", 1) == [("a", b"x")]


def test_a_message_that_is_too_large_is_refused(cluster: KafkaCluster) -> None:
    producer = KafkaProducer(cluster.brokers, {"message.max.bytes": "2000"}, WITHIN_S)
    small, large = KafkaMessage("a", b"x"), KafkaMessage("a", b"x" * 5000)
    unsent = producer.send("events", [large, small])
    producer.close()
    assert (unsent.later, unsent.refused) == ((), (large,))
    assert [value for _, value in cluster.read("events", 1)] == [b"x"]


def test_an_unknown_option_is_named() -> None:
    config = Publication.model_validate(
        {"what": "telemetry", "to": "kafka://127.0.0.1:1/outcomes", "options": {"nonsense": "1"}}
    )
    destination = Destination(config, open_sink, lambda _: None)
    destination.add(records(config))
    destination.send_some()
    assert "nonsense" in destination.report().problem
