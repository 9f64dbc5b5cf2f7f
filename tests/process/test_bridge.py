# SPDX-License-Identifier: BSD-3-Clause
"""A real bridge: stores that send by HTTP, and nodes that take its notices, both after crashes, too."""

import http.client
import json
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from arrivalkit import Catcher, fits_file
from bridgekit import Asker, bridging
from certificates import Authority
from kafkacluster import kafka_cluster
from node import running
from storeserver import serving

from ppdaemon.bridge.http import BODY_MAX, MAX_REFUSED
from ppdaemon.clock import Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.ctl import cli
from ppdaemon.curve import ClientKeys, new_key_pair
from ppdaemon.errors import ConfigError
from ppdaemon.keyfiles import write_key_pair
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.bridges import BridgeUse, Position, Positions
from ppdaemon.reports import ReloadRequest
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.testing.bridge import BridgeProcess
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

NOTICE = b'{"uri": "s3://bucket/key"}'


@pytest.fixture
def bridge(socket_dir):
    with bridging(socket_dir) as bridge:
        yield bridge


@pytest.fixture
def asker(bridge):
    with Asker(bridge) as asker:
        yield asker


def test_a_notice_is_stored_numbered_and_passed_on_as_it_came(bridge, asker):
    first = asker.ask(age_s=60.0)
    assert (first.first, first.lost, first.is_other, first.newest_age_s) == (1, 0, False, None)
    notices = [NOTICE, b'[ {"eventName": "x"}]', b'{"Records":\n[]}']
    for notice in notices:
        assert bridge.post(notice) == 200
    asker.ask_for(3)
    assert asker.taken == dict(enumerate(notices, 1))
    status = bridge.daemon.status()
    assert (status.first, status.last, status.depth, status.sent) == (1, 3, 3, 3)
    assert status.last_notice_s is not None
    assert [row.node for row in status.nodes] == ["n1"]
    # A question without notices is answered all the same: so a node knows that it is connected.
    quiet = asker.ask()
    assert (quiet.first, asker.number) == (4, 3)
    assert [row.behind for row in bridge.daemon.status().nodes] == [0]


def test_after_restarts_a_node_gets_what_it_lacks_and_a_store_needs_no_second_try(bridge, asker):
    asker.ask()
    bridge.post(NOTICE)
    asker.ask_for(1)
    assert bridge.stop() == 0
    # The socket is open: the store waits for its answer.
    with ThreadPoolExecutor(1) as threads:
        status = threads.submit(bridge.post, b'{"uri": "s3://bucket/meanwhile"}')
        bridge.start()
        assert status.result(TIMEOUT_S) == 200
    asker.ask_for(2)
    assert asker.taken[2] == b'{"uri": "s3://bucket/meanwhile"}'
    # A new run of a node takes recent ones again.
    asker.taken.clear()
    again = asker.ask(age_s=3600.0)
    assert (again.first, sorted(asker.taken)) == (1, [1, 2])


def test_a_node_learns_what_the_ring_no_longer_has(socket_dir):
    with bridging(socket_dir, ring={"max_notices": 2}) as bridge, Asker(bridge) as asker:
        asker.ask()
        for number in range(5):
            bridge.post(b'{"path": "%d"}' % number)
        answer = asker.ask(number=1)
        assert (answer.first, answer.lost, sorted(asker.taken)) == (4, 2, [4, 5])
        bridge.stop()
        for file in bridge.state_dir.glob("ring.sqlite*"):
            file.unlink()
        bridge.start()
        answer = asker.ask()
        assert answer.is_other
        assert asker.number == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_a_bridge_whose_ring_is_removed_or_replaced_ends_and_the_next_one_makes_another(
    bridge, asker, replaced
):
    asker.ask()
    bridge.post(NOTICE)
    path = bridge.state_dir / "ring.sqlite"
    shutil.copy(path, bridge.state_dir / "other")
    for file in bridge.state_dir.glob("ring.sqlite*"):
        file.unlink()
    if replaced:
        (bridge.state_dir / "other").rename(path)
    assert bridge.process.wait(TIMEOUT_S) == ExitCode.CANNOT_CREATE
    assert "ring.sqlite was removed or replaced" in bridge.log.read_text()
    path.unlink(missing_ok=True)
    bridge.start()
    assert bridge.post(NOTICE) == 200
    assert asker.ask().is_other


def test_a_wrong_option_of_kafka_is_named(socket_dir):
    kafka = {"brokers": "127.0.0.1:1", "topics": ["t"], "options": {"nonsense": "1"}}
    bridge = BridgeProcess(socket_dir, kafka=kafka)
    try:
        bridge.start(wait=False)
        assert bridge.process.wait(TIMEOUT_S) == ExitCode.UNAVAILABLE
        log = bridge.log.read_text()
        assert 'No such configuration property: "nonsense"' in log
        assert "internal error" not in log
    finally:
        bridge.close()


BAD = {
    b"": 400,
    b"no JSON": 400,
    b'"text"': 400,
    b'{"a": NaN}': 400,
    b"\xff{}": 400,
    b"[" * 50 + b"]" * 50: 400,
    b'{"a": "' + b"x" * BODY_MAX + b'"}': 413,
    b'{"a": "' + b"x" * 2 * BODY_MAX + b'"}': 413,
}


def test_a_bad_body_gets_a_4xx_and_is_taken_off_a_store_that_repeats_it(bridge):
    for body, status in BAD.items():
        statuses = [bridge.post(body) for _ in range(MAX_REFUSED + 2)]
        assert statuses == [status] * MAX_REFUSED + [200, 200], body[:20]
    counters = bridge.daemon.status().counters
    assert counters["http given_up"] == 2 * len(BAD)
    assert sum(counters.values()) == len(BAD) * (MAX_REFUSED + 2)
    assert bridge.daemon.status().last == 0
    assert bridge.post(NOTICE) == 200
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=TIMEOUT_S)
    for method in ("GET", "PUT", "DELETE"):
        connection.request(method, "/", NOTICE)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (405, b"send notices by POST\n")
    connection.close()


def test_with_a_token_only_those_are_served_that_know_it(socket_dir, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(0o600)
    with bridging(socket_dir, http={"token": str(token)}) as bridge:
        assert bridge.post(NOTICE) == 401
        assert bridge.post(NOTICE, headers={"Authorization": "Bearer wrong"}) == 401
        assert bridge.post(NOTICE, "/012345") == 401
        good = token.read_text().strip()
        assert bridge.post(NOTICE, headers={"Authorization": f"Bearer {good}"}) == 200
        assert bridge.post(NOTICE, f"/{good}") == 200
        assert bridge.daemon.status().counters == {"http token": 3}


def test_https_is_served_with_a_certificate(socket_dir, tmp_path):
    made = tmp_path / "both.pem"
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", tmp_path / "key.pem", "-out", made]
    subprocess.run([*new.split(), *files], check=True, capture_output=True)
    keys = {"certificate": str(made), "certificate_key": str(tmp_path / "key.pem")}
    with bridging(socket_dir, http=keys) as bridge:
        trusted = ssl.create_default_context(cafile=str(made))
        connection = http.client.HTTPSConnection("127.0.0.1", bridge.port, timeout=TIMEOUT_S, context=trusted)
        connection.request("POST", "/", NOTICE)
        assert connection.getresponse().status == 200
        connection.close()


def test_a_reload_takes_new_tokens_certificates_and_limits_and_refuses_what_needs_a_restart(
    socket_dir, tmp_path
):
    authority, token = Authority(tmp_path), tmp_path / "token"
    served, other = tmp_path / "served.pem", authority.server("elsewhere")
    served.write_bytes(authority.server("localhost").read_bytes())
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(0o600)
    http = {"token": str(token), "certificate": str(served)}
    with bridging(socket_dir, http=http) as bridge:

        def post(text: str, host: str = "localhost") -> int:
            with socket.create_connection(("127.0.0.1", bridge.port), TIMEOUT_S) as plain:
                context = ssl.create_default_context(cafile=str(authority.file))
                with context.wrap_socket(plain, server_hostname=host) as connection:
                    size = len(NOTICE)
                    head = f"POST /{text} HTTP/1.0\r\nContent-Length: {size}\r\n\r\n"
                    connection.sendall(head.encode() + NOTICE)
                    return int(connection.recv(100).split()[1])

        assert post("0123456789abcdef0123456789abcdef") == 200
        served.write_bytes(other.read_bytes())
        token.write_text("fedcba9876543210fedcba9876543210\n")
        bridge.configure(ring={"max_notices": 2})
        bridge.process.send_signal(signal.SIGHUP)
        wait_until(lambda: bridge.daemon.status().reloaded_tai is not None, story=bridge.log.read_text)
        assert post("0123456789abcdef0123456789abcdef", "elsewhere") == 401
        for _ in range(4):
            assert post("fedcba9876543210fedcba9876543210", "elsewhere") == 200
        assert bridge.daemon.status().depth == 2
        # What cannot be used changes nothing, also not a part of it.
        served.write_bytes(b"nonsense")
        token.write_text("short")
        for words in ("a token has at least 20", "http.certificate: "):
            bridge.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda words=words: words in str(bridge.daemon.status().problem_texts),
                story=bridge.log.read_text,
            )
            token.write_text("0123456789abcdef0123456789abcdef\n")
        assert bridge.daemon.status().healthy
        assert post("fedcba9876543210fedcba9876543210", "elsewhere") == 200
        bridge.configure(nodes="ipc:///elsewhere")
        with pytest.raises(ConfigError, match="nodes: cannot change while the daemon runs; restart it"):
            bridge.daemon.ask(ReloadRequest())
        assert bridge.process.poll() is None


def test_a_burst_of_an_exposure_is_one_group_of_writes(bridge, asker):
    asker.ask()
    with ThreadPoolExecutor(50) as threads:
        bodies = [b'{"path": "%d"}' % number for number in range(205)]
        assert set(threads.map(bridge.post, bodies)) == {200}
    asker.ask_for(205)
    assert sorted(asker.taken.values()) == sorted(bodies)
    assert sorted(asker.taken) == [*range(1, 206)]


def test_a_disk_that_is_full_makes_the_store_repeat(socket_dir):
    with bridging(socket_dir) as bridge:
        locker = sqlite3.connect(bridge.state_dir / "ring.sqlite", autocommit=True)
        locker.execute("BEGIN IMMEDIATE")
        assert bridge.post(NOTICE) == 503
        wait_until(lambda: not bridge.daemon.status().healthy)
        assert "cannot be written" in bridge.daemon.status().problems[0].text
        locker.execute("ROLLBACK")
        locker.close()
        wait_until(lambda: bridge.post(NOTICE) == 200)
        wait_until(lambda: bridge.daemon.status().healthy)


def test_nodes_need_their_key_and_nonsense_stops_nothing(socket_dir):
    keys = socket_dir / "keys"
    keys.mkdir()
    for name in ("bridge", "n1", "stranger"):
        write_key_pair(keys, name, new_key_pair())
    admitted = socket_dir / "admitted"
    admitted.mkdir()
    shutil.copy(keys / "n1.key", admitted)
    security = {"key": str(keys / "bridge.key_secret"), "nodes": str(admitted)}
    with bridging(socket_dir, security=security) as bridge:
        bridge.post(NOTICE)

        def keys_of(name: str) -> ClientKeys:
            return ClientKeys.read(keys / f"{name}.key_secret", keys / "bridge.key")

        with Asker(bridge, keys_of("stranger")) as stranger:
            stranger.send()
            assert not stranger.socket.poll(500)
        with Asker(bridge, keys_of("n1")) as asker:
            for nonsense in ([b""], [b"{}"], [b"x" * 5000], [b"{}", b"{}"], [b'{"type": "ask_notices"}']):
                asker.socket.send_multipart(nonsense)
            # What is too large has ended the connection: the node makes another one.
        with Asker(bridge, keys_of("n1")) as asker:
            asker.ask(age_s=3600.0)
            assert asker.taken == {1: NOTICE}
            assert [row.node for row in bridge.daemon.status().nodes] == ["n1"]
            (admitted / "n1.key").unlink()
            shutil.copy(keys / "stranger.key", admitted)
            bridge.daemon.ask(ReloadRequest())
            assert "keys were revoked" in bridge.log.read_text()
            assert bridge.daemon.status().nodes == ()
        with Asker(bridge, keys_of("stranger")) as stranger:
            stranger.ask(age_s=3600.0)


def test_ppctl_shows_a_bridge(bridge, asker, capsys):
    def ppctl(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--bridge", "--config", str(bridge.config), *arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out + err

    bridge.post(NOTICE)
    bridge.post(b"nonsense")
    asker.ask(age_s=60.0)
    code, out = ppctl("status", "--check")
    assert code == 0
    for words in ("ppbridge bridge  running", "1 notice in the ring", "number 1", "n1", "1 http json"):
        assert words in out
    assert json.loads(ppctl("status", "--json")[1])["last"] == 1
    code, out = ppctl("visits")
    assert (code, "ppctl visits is for a node, not for --bridge" in out) == (64, True)
    bridge.stop()
    assert ppctl("status")[0] == 3


@pytest.mark.slow
def test_notices_of_kafka_are_taken_and_what_is_none_is_skipped(socket_dir):
    with kafka_cluster() as cluster:
        cluster.write("buckets", [NOTICE])
        kafka = {
            "brokers": cluster.brokers,
            "topics": ["buckets"],
            "options": {"fetch.wait.max.ms": "10"},
        }
        with bridging(socket_dir, kafka=kafka) as bridge, Asker(bridge) as asker:
            asker.ask(age_s=3600.0)
            asker.ask_for(1)
            cluster.write("buckets", [None, b"no JSON", b"7", b'{"path": "b"}'])
            asker.ask_for(2)
            bridge.stop()
            cluster.write("buckets", [b'{"path": "c"}'])
            bridge.start()
            asker.ask_for(3)
            assert sorted(asker.taken.values()) == sorted([NOTICE, b'{"path": "b"}', b'{"path": "c"}'])


@pytest.mark.parametrize(
    ("epoch", "words"),
    [("same", "its ring no longer had 2 notices"), ("another", "its ring is another one than before")],
)
async def test_a_node_reports_what_is_lost_and_takes_the_rest(tmp_path, socket_dir, epoch, words):
    with bridging(socket_dir, ring={"max_notices": 2}) as bridge:
        for number in range(5):
            assert bridge.post(b'{"uri": "s3://elsewhere/%d"}' % number) == 200
        positions = Positions(tmp_path / "bridges.json")
        known = bridge.daemon.status().epoch if epoch == "same" else epoch
        positions.of[bridge.nodes] = Position(known, 1, Clock().tai())
        positions.save()
        config = {"roots": (), "remote": [{"uri": "s3://b/raw"}], "bridges": [bridge.nodes]}
        catcher = Catcher()
        catcher.arrivals = arrivals = Arrivals(
            ArrivalsConfig.model_validate(config),
            {"LSSTCam": range(189)},
            Clock(),
            catcher.deliver,
            bridges=BridgeUse("n1", tmp_path / "bridges.json", lambda: None),
        )
        await arrivals.start()
        try:
            await catcher.until(lambda: catcher.count("elsewhere") >= 2)
            (source,) = arrivals.report()
            assert (source.live, words in source.note) == (False, True)
            assert "last one in s3://elsewhere/" in source.note
            assert arrivals.counters["bridge.lost"] == 1
        finally:
            await arrivals.stop()
        (position,) = Positions(tmp_path / "bridges.json").of.values()
        assert (position.epoch, position.number) == (bridge.daemon.status().epoch, 5)


def created(key: str) -> bytes:
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": key}}}
    return json.dumps({"Records": [record]}).encode()


def bridge_node(bridge: BridgeProcess, uri: str) -> dict[str, object]:
    arrivals = {"remote": [{"uri": f"{uri}/raw"}], "bridges": [bridge.nodes]}
    return {"arrivals": arrivals, "min": 1, "spare": 0, "max": 2}


@pytest.mark.slow
def test_a_notice_that_came_while_the_node_was_down_gives_its_visit_the_raw(tmp_path, socket_dir):
    folder = socket_dir / "b"
    folder.mkdir()
    with (
        serving() as store,
        bridging(folder) as bridge,
        running(tmp_path, socket_dir, **bridge_node(bridge, store.uri)) as node,
    ):

        def put(group: str, number: int) -> bytes:
            key = f"/raw/{node.raws.path(number).relative_to(node.raw_root)}"
            store.objects[key] = fits_file(group)
            return json.dumps({"uri": store.uri + key}).encode()

        def source() -> Any:
            return next(each for each in node.status().arrivals if each.name.startswith("bridge"))

        node.wait(lambda: source().live and not source().note)
        node.relay.reserve("g1")
        assert bridge.post(put("g1", 1)) == 200
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert source().last_notice_s < TIMEOUT_S
        # Accepted, its notice comes while the node is away.
        node.relay.reserve("g2")
        node.wait(lambda: ("g2", 0) in node.relay.acked)
        node.kill()
        assert bridge.post(put("g2", 2)) == 200
        node.start()
        assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
        # Taken before the crash, and needed again: only the notice has the raw.
        node.relay.reserve("g3", survey="process:gate")
        bridge.post(put("g3", 3))
        node.wait(lambda: node.at_gate("g3"))
        positions = node.state / "bridges.json"
        node.wait(lambda: positions.exists() and '"number": 3' in positions.read_text())
        node.kill()
        node.open_gate("g3")
        node.start()
        assert node.relay.outcome("g3").outcome == Outcome.SUCCEEDED
        assert set(node.marks().values()) == {1}
        bridge.stop()
        node.wait(lambda: not source().live)
        assert any("bridge" in problem.text for problem in node.status().problems)
        bridge.start()
        node.wait(lambda: source().live)
