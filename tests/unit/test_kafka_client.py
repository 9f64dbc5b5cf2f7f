# SPDX-License-Identifier: BSD-3-Clause
"""What the log of Kafka's client library says about brokers, and files with passwords."""

import pytest
from certificates import Authority
from kafkafront import HOST, KafkaFront

from ppdaemon import kafkaconsumer
from ppdaemon.errors import Unavailable
from ppdaemon.kafkaclient import Brokers, certificate_fault, client_options
from ppdaemon.kafkaconsumer import KafkaConsumer
from ppdaemon.passwordfile import read_password
from ppdaemon.publish.kafka import KafkaMessage, KafkaProducer

OPTIONS = {"sasl.username": "prompt", "sasl.password": "secret-7", "ssl.ca.location": "/missing"}
AWAY = "127.0.0.1:9"
"""The discard port: nothing listens."""


def told(line: str, level: int = 40) -> tuple[str, str]:
    """Return the reason and the refusal after a line of the log, as the library writes it."""
    brokers = Brokers(OPTIONS, lambda: 0.0)
    brokers.log(level, "%s [%s] %s", "FAIL", "rdkafka#consumer-1", line)
    return brokers.reason, brokers.refusal


def line(protocol: str, text: str, state: str, broker: str = AWAY) -> str:
    name = f"{protocol}://{broker}" if protocol else broker
    return f"[thrd:{name}/bootstrap]: {name}/bootstrap: {text} (after 57ms in state {state})"


@pytest.mark.parametrize(
    ("protocol", "text", "state", "words"),
    [
        (
            "sasl_ssl",
            "SASL authentication error: Authentication failed during authentication",
            "AUTH_REQ",
            f"{AWAY} refuses user 'prompt': SASL authentication error: Authentication failed during"
            " authentication; check sasl.username, its password, ",
        ),
        (
            "sasl_ssl",
            "SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism:"
            " broker's supported mechanisms: PLAIN,SCRAM-SHA-512",
            "AUTH_HANDSHAKE",
            "supported mechanisms: PLAIN,SCRAM-SHA-512; check ",
        ),
        (
            "sasl_ssl",
            "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker"
            " certificate could not be verified, verify that ssl.ca.location is correctly configured or"
            " root CA certificates are installed (install ca-certificates package)",
            "SSL_HANDSHAKE",
            f"the certificate of {AWAY} is not accepted: it is signed by an unknown authority, has expired, "
            "or is for another host name; check ssl.ca.location and the broker's address, ",
        ),
    ],
)
def test_what_waiting_does_not_mend_is_a_refusal(protocol: str, text: str, state: str, words: str) -> None:
    reason, refusal = told(line(protocol, text, state))
    assert words in refusal
    assert reason == refusal


@pytest.mark.parametrize(
    ("protocol", "text", "state", "words"),
    [
        (
            "",
            "Disconnected: connection closed by peer: receive 0 after POLLIN",
            "APIVERSION_QUERY",
            f"{AWAY} closed the connection: it may expect TLS; then set security.protocol to SASL_SSL or SSL",
        ),
        ("sasl_plaintext", "Disconnected", "APIVERSION_QUERY", "it may expect TLS; then set "),
        (
            "ssl",
            "Disconnected: SSL connection closed by peer",
            "UP",
            "if it expects a user, set security.protocol to SASL_SSL",
        ),
        (
            "ssl",
            "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
            "SSL_HANDSHAKE",
            "if this listener has no TLS, change security.protocol",
        ),
        (
            "sasl_ssl",
            f"Connect to ipv4#{AWAY} failed: Connection refused",
            "CONNECT",
            f"{AWAY}: Connect to ipv4#{AWAY} failed: Connection refused",
        ),
        ("sasl_ssl", "Disconnected: SSL connection closed by peer", "UP", f"{AWAY}: Disconnected: SSL"),
    ],
)
def test_what_may_end_by_itself_is_a_reason_only(protocol: str, text: str, state: str, words: str) -> None:
    reason, refusal = told(line(protocol, text, state), 20)
    assert words in reason
    assert refusal == ""


def test_suppressed_repetitions_are_read_and_other_lines_are_not() -> None:
    known = f"ssl://{AWAY}/1: SSL handshake failed: x (after 1ms in state SSL_HANDSHAKE"
    assert told(f"[thrd:ssl://{AWAY}/1]: {known}, 12 identical error(s) suppressed)")[0]
    assert told("[thrd:app]: Configuration property `sasl.mechanism` set") == ("", "")
    brokers = Brokers(OPTIONS)
    brokers.log(40, "%s", "FAIL")
    brokers.log(40, "%s [%s] %s", "CONFWARN", "rdkafka#consumer-1", line("", "x", "UP"))
    assert brokers.reason == ""


def test_a_refusal_is_remembered_until_the_broker_was_tried_again_and_a_reason_until_an_answer() -> None:
    now = [0.0]
    brokers = Brokers(OPTIONS | {"reconnect.backoff.max.ms": "3000"}, lambda: now[0])
    brokers.log(40, "%s [%s] %s", "FAIL", "", line("sasl_ssl", "no", "AUTH_REQ", "a:1"))
    brokers.log(40, "%s [%s] %s", "FAIL", "", line("sasl_ssl", "down", "CONNECT", "b:1"))
    brokers.forget()
    assert (brokers.reason, brokers.refusal[:3]) == ("", "a:1")
    now[0] = 5.9
    assert brokers.refusal
    now[0] = 6.1
    assert brokers.refusal == ""


def test_no_fault_of_a_certificate_is_made_up() -> None:
    for address in (AWAY, "[::1]:9", "no..host:1", ".host:1"):
        assert certificate_fault(address, {}) == ""
    assert certificate_fault("no-such-host.invalid:1", OPTIONS) == ""


def test_a_certificate_is_judged_as_the_library_does(tmp_path) -> None:
    """An authority that Python's default refuses, a name that is not checked, an authority as text."""
    authority = Authority(tmp_path, strict=False)
    expired, elsewhere = authority.server(HOST, expired=True), authority.server("elsewhere", expired=True)
    with KafkaFront(AWAY, expired, {}) as front:
        file, text = {"ssl.ca.location": str(authority.file)}, {"ssl.ca.pem": authority.file.read_text()}
        for options in (file, text):
            assert certificate_fault(front.brokers, options) == "certificate has expired"
        front.present(elsewhere)
        assert "Hostname mismatch" in certificate_fault(front.brokers, file)
        unnamed = file | {"ssl.endpoint.identification.algorithm": "none"}
        assert certificate_fault(front.brokers, unnamed) == "certificate has expired"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reconnect.backoff.max.ms": "soon"}, "reconnect.backoff.max.ms"),
        ({"reconnect.backoff.max.ms": ""}, "reconnect.backoff.max.ms"),
        ({"throttle_cb": "x"}, "throttle_cb"),
        ({"stats_cb": "x"}, "stats_cb"),
        ({"nonsense": "secret-7"}, "nonsense"),
    ],
)
def test_an_option_that_is_refused_is_named_by_consumer_and_producer(options, words: str) -> None:
    for make in (
        lambda: KafkaConsumer("group", AWAY, options),
        lambda: KafkaProducer(AWAY, options, 1.0),
    ):
        with pytest.raises(Unavailable, match=words) as caught:
            make()
        assert "secret" not in str(caught.value)


def test_options_do_not_replace_the_log_and_the_brokers() -> None:
    producer = KafkaProducer(AWAY, {"logger": "x", "bootstrap.servers": "elsewhere.invalid:9"}, 0.5)
    unsent = producer.send("topic", [KafkaMessage("key", b"value")])
    assert AWAY in unsent.reason


def test_a_password_of_a_file_is_an_option_and_bad_files_are_refused(tmp_path) -> None:
    file = tmp_path / "password"

    def write(content: bytes, mode: int = 0o600) -> None:
        file.write_bytes(content)
        file.chmod(mode)

    for content in (b" with blanks ", b" with blanks \n", b" with blanks \r\n"):
        write(content)
        assert client_options({"a": "b"}, file) == {"a": "b", "sasl.password": " with blanks "}
    assert client_options({"a": "b"}, None) == {"a": "b"}
    write(b"secret", 0o640)  # as a credential of systemd
    assert read_password(file) == "secret"
    for content, mode, words in (
        (b"secret", 0o644, "other users can read the password: chmod o= "),
        (b"", 0o600, "has one line"),
        (b"\n", 0o600, "has one line"),
        (b"secret\nother\n", 0o600, "has one line"),
        (b"\xff", 0o600, "not UTF-8"),
    ):
        write(content, mode)
        with pytest.raises(Unavailable, match=words) as caught:
            client_options({}, file)
        assert "secret" not in str(caught.value)
    file.unlink()
    with pytest.raises(Unavailable, match="No such file"):
        client_options({}, file)


def test_a_password_that_cannot_be_read_is_named_before_the_refusal_of_the_former_one(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(kafkaconsumer, "CLUSTER_S", 0.01)
    file = tmp_path / "password"
    file.write_text("secret-7")
    file.chmod(0o600)
    options = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "prompt"}
    consumer = KafkaConsumer("group", AWAY, options, file)
    consumer._brokers.log(40, "%s [%s] %s", "FAIL", "", line("sasl_plaintext", "no", "AUTH_REQ"))
    assert consumer.problem.startswith(f"Kafka: {AWAY} refuses user 'prompt'")
    file.unlink()
    with pytest.raises(consumer.library.KafkaException):
        consumer.topics()
    assert consumer.problem == f"Kafka: {file}: No such file or directory"
    consumer.consumer.close()
