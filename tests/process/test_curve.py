# SPDX-License-Identifier: BSD-3-Clause
"""Who can connect to which socket: encrypted connections to a real pprelay, and notices.

The matrix (known key, unknown key, no key, wrong server key) x (submit, nodes, notices); for the
control socket see test_control_access.
"""

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from ramdisk import TEMPORARY
from securekit import CELLS, SecureRelay, keys_of

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig, NodePart, RelayLink, SecurityConfig
from ppdaemon.ctl import nodechecks
from ppdaemon.ctl.nodechecks import check_relay
from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.curve import Gatekeeper
from ppdaemon.errors import Unavailable
from ppdaemon.keyfiles import read_allow_list, read_key_pair
from ppdaemon.node.arrivals.notices import Subscription
from ppdaemon.node.visits.relayclient import RelayClient
from ppdaemon.reports import ReloadRequest
from ppdaemon.testing.node import NodeProcess, node_config
from ppdaemon.testing.played import PlayedNode
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

ROOT = Path(__file__).parents[2]
REFUSED_S = 1.5
"""Enough for several handshakes, which take milliseconds."""
NO_SUCH_GROUP = {"type": "visit_status", "groupId": "none"}


@pytest.fixture
def relay(socket_dir):
    yield from running(socket_dir)


@pytest.fixture(scope="module")
def steady_relay(module_leaves_nothing):
    """Return the relay of tests that change neither its keys nor its state."""
    with tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY) as folder:
        yield from running(Path(folder))


def running(folder):
    made = SecureRelay(folder).start()
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait(TIMEOUT_S)


@pytest.fixture
def submitter(relay):
    with VisitSubmitter(relay.submit, TIMEOUT_S, relay.client_keys("client")) as made:
        yield made


def a_node(wires, relay, name="node1", key=None):
    return PlayedNode(wires, relay.nodes, name, keys=relay.client_keys(key or name))


def announce(submitter, group):
    return submitter.ask(
        {"groupId": group, "instrument": "DemoCam", "private_sndStamp": Clock().tai()}
    ).status


def outcomes(submitter, group):
    answer = submitter.ask({"type": "visit_status", "groupId": group})
    return {found.outcome for found in answer.outcomes or ()}


# --- the matrix ------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_submit(relay, cell):
    """Faults 65 and 66."""
    refusal = "its key is not in the folder security.submit"
    limit_s = TIMEOUT_S if cell == "known key" else REFUSED_S
    with VisitSubmitter(relay.submit, limit_s, keys_of(relay, cell, "client")) as client:
        if cell == "known key":
            assert client.ask(NO_SUCH_GROUP).reason == "no such group"
        else:
            with pytest.raises(Unavailable, match="no answer"):
                client.ask(NO_SUCH_GROUP)
    if cell == "unknown key":
        wait_until(lambda: relay.events(refusal), TIMEOUT_S, relay.log.read_text)
    else:
        assert not relay.events(refusal)


@contextlib.asynccontextmanager
async def connecting(relay, keys, name="node1"):
    context = zmq.asyncio.Context()
    client = RelayClient(
        link=RelayLink(address=relay.nodes, heartbeat_s=0.1, silence_s=0.5),
        name=name,
        incarnation="run1",
        instruments={"DemoCam": (0, 1)},
        capacity=2,
        clock=Clock(),
        context=context,
        on_message=lambda message: None,
        count=Counter(),
        keys=keys,
    )
    running = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.destroy(linger=0)


async def until(condition, limit_s=TIMEOUT_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("cell", CELLS)
def test_nodes(steady_relay, cell):
    """Faults 65 and 66."""
    said = {
        "unknown key": "the server does not admit this key",
        "no key": "only one of the two ends has keys",
        "wrong server key": "this end has its public key",
    }
    before = len(steady_relay.events("node connected"))

    async def body():
        async with connecting(steady_relay, keys_of(steady_relay, cell, "node1")) as client:
            if cell == "known key":
                await until(lambda: client.connected)
                return
            await until(lambda: said[cell] in client.text)
            assert not client.connected

    asyncio.run(body())
    if cell == "known key":
        wait_until(lambda: len(steady_relay.events("node connected")) > before, TIMEOUT_S)
    else:
        assert len(steady_relay.events("node connected")) == before


@pytest.mark.parametrize(
    ("key", "server", "level", "text", "action"),
    [
        ("node1", "relay", "ok", "admits this node", ""),
        (
            "stranger",
            "relay",
            "error",
            "does not admit",
            "stranger.key to node1.key in the folder security.no",
        ),
        (None, None, "error", "only one of the two ends has keys", "set security.key and relay.server"),
        ("node1", "stranger", "error", "has its public key", "copy the relay's own public key to"),
        ("none", "relay", "skipped", "needs its keys", ""),
    ],
)
def test_ppctl_check_finds_why_a_relay_does_not_admit_a_node(
    steady_relay, monkeypatch, key, server, level, text, action
):
    """The matrix again; a key that cannot be read is reported by another check."""
    monkeypatch.setattr(nodechecks, "CONNECT_S", TIMEOUT_S)
    nodes = len(steady_relay.events("node connected"))
    config = NodeConfig.model_construct(
        node=NodePart.model_construct(name="node1"),
        security=SecurityConfig(key=key and steady_relay.keys / f"{key}.key_secret"),
        relay=RelayLink(address=steady_relay.nodes, server=server and steady_relay.keys / f"{server}.key"),
    )
    (found,) = check_relay(config)
    assert (found.level, text in found.text, action in found.action) == (level, True, True), found
    assert len(steady_relay.events("node connected")) == nodes


@contextlib.asynccontextmanager
async def publishing(relay):
    """Publish notices as a site's storage would, to the nodes that the relay admits."""
    context = zmq.asyncio.Context()
    allowed = read_allow_list(relay.folders["nodes"])
    pair = read_key_pair(relay.keys / "relay.key_secret")
    with Gatekeeper(context, pair, {"notices": allowed}) as gatekeeper:
        publisher = context.socket(zmq.XPUB)
        publisher.linger = 0
        gatekeeper.apply(publisher, "notices")
        publisher.bind("tcp://127.0.0.1:*")
        try:
            yield publisher, publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        finally:
            publisher.close()
    context.term()


@pytest.mark.parametrize("cell", CELLS)
async def test_notices(steady_relay, cell):
    """Faults 65 and 66."""
    context = zmq.asyncio.Context()
    async with publishing(steady_relay) as (publisher, address):
        keys = keys_of(steady_relay, cell, "node1")
        subscription = Subscription(context, address, time.monotonic, keys)
        receiving = asyncio.create_task(subscription.receive(lambda problem, sample: None))
        try:
            if cell == "known key":
                assert await asyncio.wait_for(publisher.recv(), TIMEOUT_S) == b"\x01"
                await publisher.send(b"{}")
                assert await asyncio.wait_for(receiving, TIMEOUT_S) == [b"{}"]
            else:
                await until(lambda: subscription.refusal)
                assert not await publisher.poll(0)
                await publisher.send(b"{}")
                assert not subscription.connected
                assert not receiving.done()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            subscription.close()
    context.term()


# --- lists that change -------------------------------------------------------------


async def test_a_key_that_is_added_may_connect_after_a_reload(relay):
    async with connecting(relay, relay.client_keys("stranger"), "stranger") as client:
        await until(lambda: "does not admit" in client.text)
        relay.admit(relay.folders["nodes"], "stranger")
        await asyncio.to_thread(relay.reload)
        await until(lambda: client.connected)


def test_a_node_whose_key_is_revoked_has_no_effect_any_more(relay, wires, submitter):
    """Fault 66: although its connection is still open."""
    node, other = a_node(wires, relay), a_node(wires, relay, "node2")
    for each in (node, other):
        each.wait_for("welcome")
    assert announce(submitter, "g") == "accepted"
    order = node.wait_for("visit")[0]
    node.ack(order)
    (relay.folders["nodes"] / "node1.key").unlink()
    relay.reload()
    assert relay.events("keys were revoked")
    node.finish(order)
    wait_until(lambda: relay.events("no longer in the folder security.nodes"), TIMEOUT_S, relay.log.read_text)
    assert outcomes(submitter, "g") == {None}

    assert announce(submitter, "next") == "accepted"
    wait_until(lambda: "next" in {message.visit.group for message in other.wait_for("visit")}, TIMEOUT_S)
    node.listen()
    # It is not told anything either.
    assert {message.visit.group for message in node.received if message.type == "visit"} == {"g"}


def test_a_client_whose_key_is_revoked_gets_no_answer(relay, submitter):
    assert announce(submitter, "first") == "accepted"
    (relay.folders["submit"] / "client.key").unlink()
    relay.reload()
    with (
        VisitSubmitter(relay.submit, REFUSED_S, relay.client_keys("client")) as later,
        pytest.raises(Unavailable),
    ):
        announce(later, "second")
    submitter._socket.rcvtimeo = round(REFUSED_S * 1000)  # of a connection from before the reload
    with pytest.raises(Unavailable):
        announce(submitter, "second")
    relay.admit(relay.folders["submit"], "client")
    relay.reload()
    with VisitSubmitter(relay.submit, TIMEOUT_S, relay.client_keys("client")) as again:
        assert again.ask({"type": "visit_status", "groupId": "second"}).reason == "no such group"
        assert outcomes(again, "first") == {None}


def test_a_folder_with_an_error_changes_nothing(relay, submitter):
    (relay.folders["submit"] / "client.key").unlink()
    (relay.folders["nodes"] / "bad.key").write_text("no key")
    relay.reload()
    assert relay.events("reload refused, the old configuration stays")
    assert announce(submitter, "g") == "accepted"


def test_a_node_cannot_use_the_name_of_another(relay, wires, submitter):
    """Fault 65: a known key is that of one node only."""
    liar, honest = a_node(wires, relay, "node2", key="node1"), a_node(wires, relay, "node2")
    assert "the key is that of node node1, not of node2" in liar.wait_for("sorry")[0].reason
    honest.wait_for("welcome")
    assert announce(submitter, "g") == "accepted"
    order = honest.wait_for("visit")[0]
    honest.ack(order)
    liar.finish(order)
    wait_until(lambda: relay.events("ignored an invalid message"), TIMEOUT_S, relay.log.read_text)
    assert outcomes(submitter, "g") == {None}


@pytest.mark.slow
async def test_an_error_of_the_handler_refuses_one_connection_and_not_all(steady_relay, monkeypatch):
    context = zmq.asyncio.Context()
    async with publishing(steady_relay) as (publisher, address):
        failures = iter([True])
        callback = Gatekeeper.callback

        def failing(self, domain, key):
            if next(failures, False):
                raise RuntimeError("a fault")
            return callback(self, domain, key)

        monkeypatch.setattr(Gatekeeper, "callback", failing)
        subscription = Subscription(context, address, time.monotonic, steady_relay.client_keys("node1"))
        # It subscribes again while it receives.
        receiving = asyncio.create_task(subscription.receive(lambda problem, sample: None))
        assert await asyncio.wait_for(publisher.recv(), TIMEOUT_S) == b"\x01"
        assert next(failures, None) is None
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        subscription.close()
    context.term()


async def test_handshakes_leave_no_descriptor_behind(steady_relay):
    context = zmq.asyncio.Context()
    async with publishing(steady_relay) as (publisher, address):

        async def subscribe():
            subscription = Subscription(context, address, time.monotonic, steady_relay.client_keys("node1"))
            assert await asyncio.wait_for(publisher.recv(), TIMEOUT_S) == b"\x01"
            subscription.close()
            assert await asyncio.wait_for(publisher.recv(), TIMEOUT_S) == b"\x00"

        await subscribe()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(30):
            await subscribe()
        # The threads of the library close them a moment later.
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)
    context.term()


# --- silent clients, programs --------------------------------------------------------


@pytest.mark.slow
async def test_silent_clients_of_both_sockets_keep_nobody_out(relay):
    """Fault 67."""
    silent = []
    for address in (relay.submit, relay.nodes):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        silent += [socket.create_connection((host, int(port))) for _ in range(200)]
    before = time.monotonic()
    with VisitSubmitter(relay.submit, 5.0, relay.client_keys("client")) as client:
        assert client.ask(NO_SUCH_GROUP).reason == "no such group"
    async with connecting(relay, relay.client_keys("node1")) as node:
        await until(lambda: node.connected, 5.0)
    assert time.monotonic() - before < 5.0
    silent[0].settimeout(TIMEOUT_S)
    while silent[0].recv(1000):  # the greeting, then the end after the time of a handshake
        pass
    for each in silent:
        each.close()


def test_a_unix_socket_is_open_to_this_user_only(socket_dir):
    before = os.umask(0)
    try:
        relay = RelayProcess(socket_dir).start()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((socket_dir / name).stat().st_mode) for name in ("submit", "nodes")] == [0o600] * 2
    assert relay.stop() == 0


def test_a_client_that_floods_the_relay_keeps_nobody_out(relay):
    """Messages of all clients are read in turn."""
    flooding = """
import sys, zmq
from pathlib import Path
from ppdaemon.curve import ClientKeys
address, own, server = sys.argv[1:]
socket = zmq.Context().socket(zmq.DEALER)
ClientKeys.read(Path(own), Path(server)).apply(socket)
socket.connect(address)
while True:
    socket.send_multipart([b"", b"{}"])
    while socket.poll(0):
        socket.recv_multipart()
"""
    own, server = relay.keys / "client.key_secret", relay.keys / "relay.key"
    with subprocess.Popen([sys.executable, "-c", flooding, relay.submit, own, server]) as flood:
        try:
            wait_until(lambda: relay.events("refused"), TIMEOUT_S, relay.log.read_text)
            with VisitSubmitter(relay.submit, 5.0, relay.client_keys("client")) as client:
                for number in range(10):
                    # The same key, and with it the same rate: it may have to try again.
                    wait_until(
                        lambda group=f"g{number}": announce(client, group) in ("accepted", "duplicate")
                    )
        finally:
            flood.kill()


def test_send_visit_takes_its_keys_from_options_or_the_environment(relay):
    def send(*options, **environment):
        command = [sys.executable, ROOT / "tools" / "send_visit.py", "--relay", relay.submit, *options]
        command += ["--instrument", "DemoCam", "--timeout", "10"]
        env = os.environ | environment
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    own, server = str(relay.keys / "client.key_secret"), str(relay.keys / "relay.key")
    assert send("--key", own, "--server", server).returncode == 0
    assert send(PPDAEMON_KEY=own, PPDAEMON_SERVER=server).returncode == 0
    done = send("--key", own)
    assert (done.returncode, "--key and --server belong together" in done.stderr) == (64, True)
    Path(own).chmod(0o644)
    done = send("--key", own, "--server", server)
    assert (done.returncode, f"chmod 600 {own}" in done.stderr) == (64, True)


@pytest.mark.slow
def test_a_whole_node_with_keys_and_a_reload_of_them(relay, submitter, tmp_path, socket_dir):
    link = {"address": relay.nodes, "server": str(relay.keys / "relay.key"), "silence_s": 1.0}
    security = {"key": str(relay.keys / "stranger.key_secret")}
    (socket_dir / "node").mkdir()
    config = node_config(tmp_path, socket_dir / "node", relay=link, security=security)
    config["node"]["name"] = "node1"
    with NodeProcess(tmp_path, config).start() as node:
        node.wait(lambda: "does not admit this key" in node.status().relay)
        readers = {"users": ["nobody"]}
        node.rewrite(security={"key": str(relay.keys / "node1.key_secret"), "readers": readers})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.wait(lambda: node.status().relay.startswith("connected"))
        assert stat.S_IMODE(node.control.stat().st_mode) == 0o666
        settings = next((node.ramdisk / "ppdaemon-node1").glob("config-*.json"))
        assert settings.stat().st_mode & 0o077 == 0
        assert "secret-key" not in json.dumps(settings.read_text())
