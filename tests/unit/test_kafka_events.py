# SPDX-License-Identifier: BSD-3-Clause
"""Events of Kafka topics become JSON; no content of a message stops the reading; offsets and commits."""

import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fastavro
import pytest
from certificates import Authority
from confluent_kafka import KafkaError, TopicPartition
from registryserver import registry as tls_registry

from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.relay.config import KafkaConfig
from ppdaemon.relay.kafkaevents import Offsets, SchemaRegistry, UnknownSchema, event_json
from ppdaemon.relay.kafkasource import KafkaSource
from ppdaemon.relay.requests import read_request
from ppdaemon.visit import NextVisit, VisitCanceled

SCHEMA = {
    "type": "record",
    "name": "logevent_nextVisit",
    "fields": [
        {"name": "groupId", "type": "string"},
        {"name": "instrument", "type": "string"},
        {"name": "position", "type": {"type": "array", "items": "double"}},
        {"name": "private_sndStamp", "type": "double"},
    ],
}
EVENT = {"groupId": "g1", "instrument": "DemoCam", "position": [10.5, -30.0], "private_sndStamp": 1.5}


def avro(number, record, schema=SCHEMA):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return b"\0" + number.to_bytes(4) + stream.getvalue()


def known(number):
    if number != 7:
        raise BadMessage(f"no schema {number}", "kafka schema")
    return fastavro.parse_schema(SCHEMA)


@pytest.mark.parametrize("value", [avro(7, EVENT), json.dumps(EVENT).encode()], ids=["avro", "json"])
def test_an_event_is_the_same_in_both_forms(value):
    request = read_request([event_json(value, known)])
    assert isinstance(request, NextVisit)
    assert (request.group, request.instrument, request.position) == ("g1", "DemoCam", (10.5, -30.0))


def test_a_position_that_is_not_set_and_a_cancellation_are_read():
    event = EVENT | {"position": [math.nan, math.nan]}
    assert read_request([event_json(avro(7, event), known)]).position == (0.0, 0.0)
    assert isinstance(
        read_request([event_json(b'{"groupId": "g", "scriptSalIndex": 1}', known)]), VisitCanceled
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "kafka empty"),
        (b"", "kafka empty"),
        (b"\0\0", "kafka avro"),
        (avro(7, EVENT)[:-3], "kafka avro"),
        (avro(7, EVENT) + b"more", "kafka avro"),
        (b"\0\0\0\0\7" + b"\xff" * 40, "kafka avro"),
        (avro(8, EVENT), "kafka schema"),
    ],
)
def test_what_is_no_event_is_named(value, kind):
    with pytest.raises(BadMessage) as raised:
        event_json(value, known)
    assert raised.value.kind == kind


@pytest.fixture
def registry():
    """A schema registry over HTTP; yields its address, and the paths that were asked for."""
    asked = []
    answers = {
        "/schemas/ids/7": (200, {"schema": json.dumps(SCHEMA)}),
        "/schemas/ids/8": (200, {"schema": "{"}),
        "/schemas/ids/9": (503, {}),
        "/schemas/ids/12": (200, []),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/schemas/ids/11":
                self.wfile.write(b"no HTTP\r\n\r\n")
                return
            code, content = answers.get(self.path, (404, {"error_code": 40403}))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_schema_is_read_once_and_each_failure_is_told_apart(registry):
    url, asked = registry
    schemas = SchemaRegistry(f"{url}/")
    for _ in range(3):
        assert json.loads(event_json(avro(7, EVENT), schemas.schema)) == EVENT
    assert asked == ["/schemas/ids/7"]
    with pytest.raises(BadMessage):
        schemas.schema(8)
    with pytest.raises(BadMessage, match="registry is not set"):
        SchemaRegistry(None).schema(7)


def test_a_schema_that_one_server_of_the_registry_does_not_have_yet_is_asked_for_again(registry):
    url, asked = registry
    times = iter([0.0, 0.5, 2.0, 2.0])
    schemas = SchemaRegistry(url, clock=lambda: next(times))
    for _ in range(3):
        with pytest.raises(UnknownSchema, match="no schema 10"):
            schemas.schema(10)
    assert asked == ["/schemas/ids/10"] * 2
    assert schemas.problem == ""


@pytest.mark.parametrize("number", [9, 11, 12], ids=["status", "no HTTP", "another answer"])
def test_a_registry_that_does_not_answer_is_a_problem_and_not_asked_for_each_message(registry, number):
    url, asked = registry
    times = iter([0.0, 0.5, 2.0])
    schemas = SchemaRegistry(url, clock=lambda: next(times))
    for _ in range(2):
        with pytest.raises(Unavailable):
            schemas.schema(number)
    assert f"{url}/schemas/ids/{number}" in schemas.problem
    assert asked == [f"/schemas/ids/{number}"]
    assert schemas.schema(7)
    assert schemas.problem == ""


def test_a_registry_that_is_away_is_asked_again(registry):
    url, _ = registry
    times = iter([0.0, 2.0])
    # The discard port: nothing listens.
    away = SchemaRegistry("http://127.0.0.1:9", clock=lambda: next(times))
    with pytest.raises(Unavailable):
        away.schema(7)
    away._url = url
    assert away.schema(7)


def test_a_registry_gets_its_password_and_the_server_to_which_it_redirects_does_not(tmp_path):
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            sent.append((self.server.server_port, self.headers["Authorization"]))
            if self.server is first:
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{second.server_port}{self.path}")
                self.end_headers()
            else:
                body = json.dumps({"schema": json.dumps(SCHEMA)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    with HTTPServer(("127.0.0.1", 0), Handler) as first, HTTPServer(("127.0.0.1", 0), Handler) as second:
        for server in (first, second):
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            schemas = SchemaRegistry(f"http://127.0.0.1:{first.server_port}", "reader", password)
            assert schemas.schema(7)
        finally:
            first.shutdown()
            second.shutdown()
    assert sent == [(first.server_port, "Basic cmVhZGVyOnNlY3JldA=="), (second.server_port, None)]


def test_what_is_wrong_with_a_connection_to_a_registry_is_named_and_ends(tmp_path):
    good, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    password, trusted = tmp_path / "password", tmp_path / "trusted.pem"
    password.write_text("old\n")
    password.chmod(0o600)
    now = [0.0]

    def refused(words):
        now[0] += 10.0
        with pytest.raises(Unavailable, match=words):
            schemas.schema(7)
        assert schemas.problem
        assert "old" not in schemas.problem

    with tls_registry(good.server("localhost"), ("reader", "new"), {7: SCHEMA}) as server:
        address = f"https://localhost:{server.port}"
        schemas = SchemaRegistry(address, "reader", password, trusted, lambda: now[0])
        refused(f"kafka.registry_ca: {trusted}: .*No such file")
        trusted.write_bytes(stranger.file.read_bytes())
        refused("is not accepted: unable to get local issuer certificate; check kafka.registry and")
        trusted.write_bytes(good.file.read_bytes())
        server.present(good.server("localhost", expired=True))
        refused("is not accepted: certificate has expired")
        server.present(good.server("elsewhere"))
        refused("Hostname mismatch, certificate is not valid for 'localhost'")
        server.present(good.server("localhost"))
        refused("HTTP Error 401: Unauthorized; check kafka.registry_user and the file registry_password")
        password.chmod(0o644)
        refused("other users can read the password")
        password.chmod(0o600)
        password.write_text("new\n")
        now[0] += 10.0
        assert schemas.schema(7)
        assert schemas.problem == ""
        schemas = SchemaRegistry(f"http://localhost:{server.port}")
        refused("if it expects TLS, write https:// in kafka.registry")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as plain:
        threading.Thread(target=plain.serve_forever, args=(0.01,)).start()
        try:
            schemas = SchemaRegistry(f"https://127.0.0.1:{plain.server_port}", clock=lambda: now[0])
            refused("if it has no TLS, write http:// in kafka.registry")
        finally:
            plain.shutdown()


def test_a_next_run_reads_from_the_first_message_that_is_not_done_with():
    offsets, place, other = Offsets(60.0), ("visits", 0), ("visits", 1)
    for offset in (5, 6, 9):  # offsets may have gaps
        offsets.take(place, offset, 0.0)
    offsets.take(other, 3, 0.0)
    assert (offsets.open, offsets.settle(0.0)) == (4, {})
    offsets.finish(place, 6, 1.0)
    offsets.finish(other, 3, 1.0)
    assert offsets.settle(100.0) == {}  # 5 and 9 are not done with, and 3 may cancel one of them
    offsets.finish(place, 9, 2.0)
    offsets.finish(place, 5, 2.0)
    offsets.take(place, 10, 62.5)
    assert offsets.settle(60.5) == {}  # a cancellation without its visit may be among them
    assert offsets.settle(61.0) == {other: 4}
    assert offsets.settle(1000.0) == {place: 10}
    assert (offsets.open, offsets.settle(1000.0)) == (1, {})


def source(**options):
    """Return a source of a cluster that does not exist."""
    return KafkaSource(KafkaConfig(brokers="127.0.0.1:9", options=options), "relay", None, None, None)


@pytest.mark.parametrize("option", ["no.such", "oauth_cb", "default.topic.config"])
def test_an_option_that_the_library_refuses_is_named(option):
    with pytest.raises(Unavailable, match="Kafka"):
        source(**{option: "x"})


def test_an_offset_is_committed_until_the_cluster_confirms_it():
    made = source()._client
    made._to_commit[("visits", 0)] = 6
    made._committed(KafkaError(KafkaError._WAIT_COORD), [TopicPartition("visits", 0, 6)])
    assert "offsets are not committed" in made.problem
    made._committed(None, [TopicPartition("visits", 0, 5)])  # an older one
    assert made._to_commit == {("visits", 0): 6}
    made._committed(None, [TopicPartition("visits", 0, 6)])
    assert (made._to_commit, made.problem) == ({}, "")
    made.consumer.close()
