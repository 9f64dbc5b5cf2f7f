# SPDX-License-Identifier: BSD-3-Clause
"""Changed, cut and mixed messages on the sockets of a real pprelay: it answers or ignores them, and
its memory stays flat.
"""

import json
import random

import psutil
import pytest
import zmq
from securekit import SecureRelay

from ppdaemon.clock import Clock
from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.messages import (
    DetectorsOfVisit,
    Heartbeat,
    Hello,
    PermitRequest,
    ResultEntry,
    Results,
    VisitAccepted,
    VisitRefused,
)
from ppdaemon.states import Outcome
from ppdaemon.testing.played import PlayedNode
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

NUMBERS = (3_000, pytest.param(100_000, marks=(pytest.mark.slow, pytest.mark.timeout(900))))
WINDOW = 200
"""Messages without an answer; the relay's queue for a peer has 500."""
MEMORY_BYTES = 10_000_000
"""Growth that is allowed after the first tenth: mutations that are valid visits are accepted, each of
which the relay keeps with its detector."""
VALUES = (b"null", b"true", b"-1", b"0.5", b"1e30", b"1e999", b"NaN", b'""', b"[]", b"{}", b'[["a", 1], {}]')
VALUES += (b'"' + b"x" * 5000 + b'"', b"9" * 30, "'ñ \u2028'".encode(), b"\xff\xfe", b"[" * 40 + b"]" * 40)


def mutate(draw, message):
    """Return a message with one to three changes."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(message) + 1)
        to = min(len(message), at + draw.randint(1, 40))
        match draw.randrange(6):
            case 0:
                message = message[:at] + bytes([draw.randrange(256)]) + message[at + 1 :]
            case 1:
                message = message[:at]
            case 2:
                message = message[:at] + message[to:]
            case 3:
                message = message[:to] + message[at:]
            case 4:
                message = message[:at] + draw.choice(VALUES) + message[at:]
            case 5:
                start, colon, rest = message.partition(b": " if b": " in message else b":")
                message = start + colon + draw.choice(VALUES) + rest[rest.find(b",") :]
    return message


def frames_of(draw, message):
    """Return the frames of a message, rarely more or fewer than one."""
    return draw.choice([[message, b""], [b"", b"", message], [b""]]) if draw.random() < 0.01 else [message]


UNLIMITED = {"submit_per_s": 1e9, "nodes_per_s": 1e9}


@pytest.fixture(params=["plain", "with keys"])
def relay(request, socket_dir):
    kind = SecureRelay if request.param == "with keys" else RelayProcess
    # All are to be parsed, however fast they come.
    made = kind(socket_dir, instruments={"DemoCam": {"detectors": "0"}}, security=UNLIMITED)
    yield made.start()
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait(TIMEOUT_S)


def keys_of(relay, name):
    """Return the keys of a peer that the relay admits."""
    return relay.client_keys(name) if isinstance(relay, SecureRelay) else None


def flood(relay, number, send, answered):
    """Send messages, at most `WINDOW` before the relay has caught up; check its memory."""
    process = psutil.Process(relay.process.pid)
    before = 0
    for count in range(number):
        send()
        if count % WINDOW == 0:
            answered()
        if count == number // 10:
            before = process.memory_info().rss
    answered()
    assert relay.process.poll() is None
    growth = process.memory_info().rss - before
    print(f"{number} messages: memory {growth / 1e6:+.1f} MB")
    assert growth < MEMORY_BYTES, f"{growth / 1e6:.1f} MB"


def announce_afterwards(relay):
    """Check that a visit is accepted."""
    fields = {"groupId": "afterwards", "instrument": "DemoCam", "private_sndStamp": Clock().tai()}
    with VisitSubmitter(relay.submit, TIMEOUT_S, keys_of(relay, "client")) as client:
        assert client.ask(fields).status == "accepted"


@pytest.mark.parametrize("number", NUMBERS)
def test_submit(relay, wires, number):
    draw = random.Random(7)
    tai = Clock().tai()
    visit = {"groupId": "g", "instrument": "DemoCam", "private_sndStamp": tai, "nimages": 1, "filters": "r"}
    visit |= {"position": [10.0, -20.0], "coordinateSystem": 2, "duration": 30.0, "survey": "BLOCK-365"}
    seeds = [visit, {"groupId": "g", "scriptSalIndex": 1}, {"type": "visit_status", "groupId": "g"}]
    texts = [json.dumps(seed).encode() for seed in seeds]
    dealer = wires.connect(zmq.DEALER, relay.submit, keys_of(relay, "client"))

    def answered():
        # Messages of one connection are handled in order.
        marker = f"marker {draw.random()}"
        dealer.send(json.dumps({"type": "visit_status", "groupId": marker}).encode())
        while json.loads(dealer.recv_multipart()[-1]).get("groupId") != marker:
            pass

    def send():
        dealer.send_multipart(frames_of(draw, mutate(draw, draw.choice(texts))))

    flood(relay, number, send, answered)
    announce_afterwards(relay)


@pytest.mark.parametrize("number", NUMBERS)
def test_nodes(relay, wires, number):
    draw = random.Random(8)
    node = PlayedNode(wires, relay.nodes, "node1", keys=keys_of(relay, "node1"))
    names = {"instrument": "DemoCam", "group": "g"}
    entry = ResultEntry(**names, detector=0, attempt=1, outcome=Outcome.SUCCEEDED)
    texts = [
        node.message(Hello, incarnation="run1", instruments={"DemoCam": (0,)}, capacity=1),
        node.message(VisitAccepted, **names, detectors=(0,), attempt=1),
        node.message(VisitRefused, **names, detectors=(0,), attempt=1, reason="full", final=False),
        node.message(Results, entries=(entry,)),
        node.message(PermitRequest, visits=(DetectorsOfVisit(**names, detectors=(0,), attempt=1),)),
        node.message(Heartbeat),
    ]

    def answered():
        # Messages of one connection are handled in order; answers that do not fit into the queue are lost.
        marked = ResultEntry(
            **names | {"group": f"marker {draw.random()}"}, detector=0, outcome=Outcome.FAILED
        )
        node.received.clear()

        def confirmed():
            assert relay.process.poll() is None, relay.log.read_text()[-3000:]
            node.hello()
            node.send(Results, entries=(marked,))
            node.listen()
            return any(each.type == "results_seen" and marked.group in repr(each) for each in node.received)

        wait_until(confirmed, TIMEOUT_S)

    flood(relay, number, lambda: node.send_raw(*frames_of(draw, mutate(draw, draw.choice(texts)))), answered)
    announce_afterwards(relay)
    order = node.wait_for("visit")[0]
    node.ack(order)
    node.finish(order)
    node.wait_for("results_seen")
