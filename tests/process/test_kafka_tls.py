# SPDX-License-Identifier: BSD-3-Clause
"""Kafka over TLS with a password, and a registry over HTTPS, with the real programs: what is wrong stops
nothing else, is named in status and log, and nothing but the file has the password.
"""

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import pytest
from bridgekit import Asker, bridging
from certificates import Authority
from kafkacluster import KafkaCluster, kafka_cluster
from kafkafront import HOST, KafkaFront
from node import running
from registryserver import registry

from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.testing.played import ClientSockets
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

VISITS = "nextVisit"
USER, PASSWORD, OTHER = "prompt", "correct-horse-7", "stale-battery-9"
SCHEMA = {
    "type": "record",
    "name": "logevent_nextVisit",
    "fields": [
        {"name": "groupId", "type": "string"},
        {"name": "instrument", "type": "string"},
        {"name": "private_sndStamp", "type": "double"},
    ],
}


@dataclass
class Site:
    """A cluster with its front, the files of a client, and its options."""

    cluster: KafkaCluster
    front: KafkaFront
    authority: Authority
    stranger: Authority
    password: Path
    options: dict[str, str]

    @property
    def kafka(self) -> dict[str, Any]:
        found = {"brokers": self.front.brokers, "options": self.options}
        has_user = self.options["security.protocol"].startswith("SASL")
        return found | ({"password": str(self.password)} if has_user else {})

    @property
    def visits(self) -> dict[str, Any]:
        return {"topics": [VISITS]} | self.kafka


def write_password(path: Path, password: str) -> None:
    path.write_text(f"{password}\n")
    path.chmod(0o600)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    authority, stranger = Authority(folder), Authority(folder, "stranger")
    write_password(folder / "password", PASSWORD)
    options = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": USER,
        "ssl.ca.location": str(authority.file),
        "fetch.wait.max.ms": "10",
        "reconnect.backoff.max.ms": "500",
    }
    with kafka_cluster() as cluster:
        cluster.write(VISITS, [None])
        with KafkaFront(cluster.brokers, authority.server(HOST), {USER: PASSWORD}) as front:
            yield Site(cluster, front, authority, stranger, folder / "password", options)


def visit(group: str) -> dict[str, Any]:
    return {"groupId": group, "instrument": "DemoCam", "private_sndStamp": time.time() + 37}


def text_of(group: str) -> bytes:
    return json.dumps(visit(group)).encode()


def avro(number: int, group: str) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(SCHEMA), visit(group))
    return b"\0" + number.to_bytes(4) + stream.getvalue()


def groups(relay: RelayProcess) -> list[str]:
    return sorted(row.group for row in RelayDaemon(relay.control).visits(100))


def problems(relay: RelayProcess) -> str:
    return "\n".join(RelayDaemon(relay.control).status().problem_texts)


def read_by(relay: RelayProcess, group: str) -> None:
    """Wait until the relay has a visit, and reports no problem of Kafka any more."""
    wait_until(lambda: group in groups(relay), TIMEOUT_S, relay.log.read_text)
    wait_until(lambda: "afka" not in problems(relay), TIMEOUT_S, lambda: problems(relay))


def assert_secret(folder: Path) -> None:
    """No file below a folder has a password."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(each.encode() in content for each in (PASSWORD, OTHER)), path


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_visits_come_over_tls_with_a_password(site: Site, socket_dir: Path, mechanism: str) -> None:
    site.options["sasl.mechanism"] = mechanism
    # As systemd passes a credential.
    site.password.chmod(0o440)
    kafka = site.visits | {"password": f"${{CREDENTIALS_DIRECTORY}}/{site.password.name}"}
    credentials = str(site.password.parent)
    with RelayProcess(socket_dir, kafka=kafka).start(CREDENTIALS_DIRECTORY=credentials) as relay:
        wait_until(lambda: relay.events("reading from Kafka"), TIMEOUT_S, relay.log.read_text)
        site.cluster.write(VISITS, [text_of("g1")])
        read_by(relay, "g1")
        assert (mechanism, USER) in site.front.logins
        assert site.front.refused == 0
    assert_secret(socket_dir)


def wrong_password(site: Site) -> Callable[[RelayProcess], object]:
    write_password(site.password, OTHER)
    return lambda _: write_password(site.password, PASSWORD)


def unknown_user(site: Site) -> Callable[[RelayProcess], object]:
    del site.front.users[USER]
    return lambda _: site.front.users.update({USER: PASSWORD})


def expired(site: Site) -> Callable[[RelayProcess], object]:
    site.front.present(site.authority.server(HOST, expired=True))
    return lambda _: site.front.present(site.authority.server(HOST))


def another_host(site: Site) -> Callable[[RelayProcess], object]:
    site.front.present(site.authority.server("elsewhere"))
    return lambda _: site.front.present(site.authority.server(HOST))


def with_options(key: str, value: str) -> Callable[[Site], Callable[[RelayProcess], object]]:
    def make(site: Site) -> Callable[[RelayProcess], object]:
        good = site.visits
        site.options = {**site.options, key: value}

        def mend(relay: RelayProcess) -> None:
            assert relay.stop() == 0
            relay.configure(kafka=good)
            relay.start()

        return mend

    return make


def unknown_authority(site: Site) -> Callable[[RelayProcess], object]:
    return with_options("ssl.ca.location", str(site.stranger.file))(site)


FAULTS = {
    "password": (wrong_password, f"refuses user '{USER}': SASL authentication error: Authentication failed"),
    "user": (unknown_user, f"refuses user '{USER}': SASL authentication error: Authentication failed"),
    "mechanism": (with_options("sasl.mechanism", "SCRAM-SHA-256"), "mechanisms: PLAIN,SCRAM-SHA-512"),
    "authority": (unknown_authority, "is not accepted: unable to get local issuer certificate; check ssl.ca"),
    "expired": (expired, "is not accepted: certificate has expired; "),
    "host": (another_host, f"Hostname mismatch, certificate is not valid for '{HOST}'."),
    "plaintext": (with_options("security.protocol", "SASL_PLAINTEXT"), "it may expect TLS; then set "),
    "no-user": (with_options("security.protocol", "SSL"), "if it expects a user, set security.protocol to"),
}
FAST = {"password"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(*each, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, each in FAULTS.items()
    ],
)
def test_a_fault_of_the_connection_is_named_stops_nothing_else_and_ends(
    site: Site, socket_dir: Path, fault: Any, words: str
) -> None:
    mend = fault(site)
    with RelayProcess(socket_dir, kafka=site.visits).start() as relay, ClientSockets() as sockets:
        wait_until(lambda: words in problems(relay), TIMEOUT_S, lambda: problems(relay))
        wait_until(lambda: relay.events(words), TIMEOUT_S, relay.log.read_text)
        assert OTHER not in RelayDaemon(relay.control).status().model_dump_json()
        # The submit socket serves.
        assert SubmitClient(sockets, relay.submit).announce("g0")["status"] == "accepted"
        mend(relay)
        # This cluster does not find offsets by time: it is read from then on.
        wait_until(lambda: relay.events("reading from Kafka"), TIMEOUT_S, relay.log.read_text)
        site.cluster.write(VISITS, [text_of("g1")])
        read_by(relay, "g1")
        assert groups(relay) == ["g0", "g1"]
    assert_secret(socket_dir)


@pytest.mark.slow
def test_a_password_that_changes_while_the_relay_runs_loses_no_visit(site: Site, socket_dir: Path) -> None:
    with RelayProcess(socket_dir, kafka=site.visits).start() as relay:
        wait_until(lambda: relay.events("reading from Kafka"), TIMEOUT_S, relay.log.read_text)
        site.cluster.write(VISITS, [text_of("g1")])
        read_by(relay, "g1")
        site.front.users[USER] = OTHER
        site.front.drop()
        wait_until(lambda: f"refuses user '{USER}'" in problems(relay), TIMEOUT_S, lambda: problems(relay))
        site.cluster.write(VISITS, [text_of("g2")])
        site.password.unlink()
        wait_until(lambda: "No such file" in problems(relay), TIMEOUT_S, lambda: problems(relay))
        write_password(site.password, OTHER)
        read_by(relay, "g2")
        assert groups(relay) == ["g1", "g2"]
        assert relay.events("a new password is used for Kafka")
    assert_secret(socket_dir)


@pytest.mark.slow
def test_a_bridge_names_a_fault_and_takes_notices_when_it_is_mended(site: Site, socket_dir: Path) -> None:
    write_password(site.password, OTHER)
    site.cluster.write("buckets", [b'{"path": "a"}'])
    with bridging(socket_dir, kafka={"topics": ["buckets"]} | site.kafka) as bridge, Asker(bridge) as asker:

        def texts() -> str:
            return "\n".join(each.text for each in bridge.daemon.status().problems)

        asker.ask(age_s=3600.0)
        wait_until(lambda: f"refuses user '{USER}'" in texts(), TIMEOUT_S, texts)
        assert bridge.post(b'{"path": "b"}') == 200
        asker.ask_for(1)
        write_password(site.password, PASSWORD)
        asker.ask_for(2)
        wait_until(lambda: not texts(), TIMEOUT_S, texts)
        site.front.present(site.authority.server(HOST, expired=True))
        site.front.drop()
        wait_until(lambda: "is not accepted: certificate has expired" in texts(), TIMEOUT_S, texts)
        site.front.present(site.authority.server(HOST))
        # Without a notice, which would prove it.
        wait_until(lambda: not texts(), TIMEOUT_S, texts)
        site.cluster.write("buckets", [b'{"path": "c"}'])
        asker.ask_for(3)
        assert sorted(asker.taken.values()) == [b'{"path": "%s"}' % each for each in (b"a", b"b", b"c")]
        for words in (f"refuses user '{USER}'", "certificate has expired"):
            assert words in bridge.log.read_text()
    assert_secret(socket_dir)


@pytest.mark.slow
def test_telemetry_is_published_over_tls_and_waits_while_a_fault_lasts(
    site: Site, tmp_path: Path, socket_dir: Path
) -> None:
    authority = site.password.parent / "trusted.pem"
    authority.write_bytes(site.stranger.file.read_bytes())
    write_password(site.password, OTHER)
    del site.options["fetch.wait.max.ms"]
    to = {
        "what": "telemetry",
        "to": f"kafka://{site.front.brokers}/outcomes",
        "options": site.options | {"ssl.ca.location": str(authority)},
        "password": str(site.password),
        "timeout_s": 1.0,
    }
    folder = tmp_path / "node"
    folder.mkdir()
    with running(folder, socket_dir, publish=[to]) as node:

        def text() -> str:
            return node.status().publish[0].problem

        node.succeed("g1")
        node.wait(lambda: "is not accepted: unable to get local issuer certificate" in text())
        assert node.status().state == "running"
        authority.write_bytes(site.authority.file.read_bytes())
        node.wait(lambda: f"refuses user '{USER}'" in text())
        write_password(site.password, PASSWORD)
        node.succeed("g2")
        node.wait(lambda: node.status().publish[0].sent == 2)
        assert not text()
        found = [json.loads(value)["group"] for _, value in site.cluster.read("outcomes", 2)]
        assert found == ["g1", "g2"]
        log = (node.state / "logs" / "publisher.log").read_text()
        for words in ("unable to get local issuer certificate", f"refuses user '{USER}'"):
            assert words in log
    assert_secret(folder)
    assert_secret(socket_dir)


@pytest.mark.slow
def test_a_fault_of_the_registry_is_named_and_its_visits_wait(site: Site, socket_dir: Path) -> None:
    login, trusted = site.password.parent / "registry", site.password.parent / "trusted.pem"
    write_password(login, OTHER)
    trusted.write_bytes(site.stranger.file.read_bytes())
    good, elsewhere = site.authority.server(HOST), site.authority.server("elsewhere")
    late = site.authority.server(HOST, expired=True)
    with registry(good, ("reader", PASSWORD), {7: SCHEMA}) as server:
        kafka = site.visits | {
            "registry": f"https://{HOST}:{server.port}",
            "registry_user": "reader",
            "registry_password": str(login),
            "registry_ca": str(trusted),
        }
        with RelayProcess(socket_dir, kafka=kafka).start() as relay:
            wait_until(lambda: relay.events("reading from Kafka"), TIMEOUT_S, relay.log.read_text)

            def shown(words: str) -> None:
                wait_until(lambda: words in problems(relay), TIMEOUT_S, lambda: problems(relay))

            site.cluster.write(VISITS, [avro(7, "g1"), text_of("g2")])
            # What needs no schema does not wait.
            wait_until(lambda: groups(relay) == ["g2"], TIMEOUT_S, relay.log.read_text)
            shown("is not accepted: unable to get local issuer certificate; check kafka.registry")
            trusted.write_bytes(site.authority.file.read_bytes())
            shown("HTTP Error 401: Unauthorized; check kafka.registry_user")
            server.present(late)
            shown("is not accepted: certificate has expired; ")
            server.present(elsewhere)
            shown(f"Hostname mismatch, certificate is not valid for '{HOST}'.")
            server.present(good)
            login.unlink()
            shown("No such file")
            write_password(login, PASSWORD)
            read_by(relay, "g1")
            assert groups(relay) == ["g1", "g2"]
            assert "unable to get local issuer certificate" in relay.log.read_text()
            plain = {"registry": f"http://{HOST}:{server.port}"}
            assert relay.stop() == 0
            relay.configure(kafka=site.visits | plain)
            relay.start()
            shown("if it expects TLS, write https:// in kafka.registry")
    assert_secret(socket_dir)
