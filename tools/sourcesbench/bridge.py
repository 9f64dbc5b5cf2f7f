# SPDX-License-Identifier: BSD-3-Clause
"""A bridge of object stores: notices by HTTP, and the memory of a bridge whose ring is full."""

import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import zmq
from benching.cli import progress
from benching.folders import BenchFolders
from benching.processes import cpu_s, pss_mb
from benching.results import Scalar
from poolbench.node import BenchFailed

from ppdaemon.bridge.config import RingConfig
from ppdaemon.bridge.ring import Ring
from ppdaemon.messages import NOTICES, NOTICES_LIMIT, AskNotices
from ppdaemon.testing.bridge import BridgeProcess
from ppdaemon.wire import decode, encode
from sourcesbench.site import Send, Workload
from sourcesbench.zeromq import pace

ANSWER_S = 30.0
AT_ONCE = 1000
NOTICE_BYTES = 1000
"""As a record of Ceph has."""

type _Connections = Mapping[int, socket.socket]
"""By detector."""


@contextmanager
def bridging(folders: BenchFolders) -> Iterator[BridgeProcess]:
    """Run a bridge, its ring on the disk."""
    folder = folders.ramdisk / "b"
    folder.mkdir()
    bridge = BridgeProcess(folder, state_dir=str(folders.scratch / "bridge"))
    try:
        yield bridge.start()
    finally:
        bridge.close()


def posting(bridge: BridgeProcess) -> Send:
    """Return a function that sends notices as the threads of a gateway do: each on a connection of its own,
    without a wait for the answers to others. All connections are new.
    """

    def send(notices: Mapping[int, bytes], within_s: float) -> Mapping[int, float]:
        with _connections(bridge, notices) as connections:
            return _post(connections, notices, within_s)

    return send


@contextmanager
def posting_again(bridge: BridgeProcess, detectors: Collection[int]) -> Iterator[Send]:
    """Give a function that sends notices in the same way, on connections that stay open from one exposure to
    the next, as those of libcurl and of Go do.
    """
    with _connections(bridge, detectors) as connections:
        yield partial(_post, connections)


@contextmanager
def _connections(bridge: BridgeProcess, detectors: Collection[int]) -> Iterator[_Connections]:
    address = ("127.0.0.1", bridge.port)
    with ExitStack() as stack:
        yield {
            detector: stack.enter_context(socket.create_connection(address, timeout=ANSWER_S))
            for detector in detectors
        }


def _post(connections: _Connections, notices: Mapping[int, bytes], within_s: float) -> Mapping[int, float]:
    sent = {}
    requests = {detector: _request(body) for detector, body in notices.items()}
    for detector in pace(notices, within_s):
        sent[detector] = time.monotonic()
        connections[detector].sendall(requests[detector])
    for detector in notices:
        if not (answer := connections[detector].recv(4096)).startswith(b"HTTP/1.1 200 "):
            raise BenchFailed(f"the bridge has answered {answer!r}")
    return sent


def measure_ring(folders: BenchFolders, workload: Workload) -> dict[str, Scalar]:
    """Fill a ring, start its bridge, add some notices, and replay all to a node; return its memory."""
    progress(f"ring: {workload.ring} notices")
    folder, state = folders.ramdisk / "b", folders.scratch / "bridge"
    folder.mkdir()
    state.mkdir(mode=0o700)
    limits = RingConfig(max_notices=workload.ring)
    body = b'{"path": "' + b"x" * NOTICE_BYTES + b'"}'
    with closing(Ring(state, limits)) as ring:
        for first in range(0, workload.ring, AT_ONCE):
            with ring.transaction():
                ring.add([body] * min(AT_ONCE, workload.ring - first), time.time())
    bridge = BridgeProcess(folder, state_dir=str(state), ring=limits.model_dump())
    try:
        bridge.start()
        for _ in range(5):
            posting(bridge)(dict.fromkeys(range(200), body), 0.0)
        began, used_s = time.monotonic(), cpu_s(bridge.process.pid)
        taken = _replay(bridge)
        return {
            "notices": taken,
            "memory_mb": pss_mb(bridge.process.pid),
            "peak_mb": _peak_mb(bridge.process.pid),
            "disk_mb": sum(path.stat().st_size for path in state.glob("ring.sqlite*")) / 1e6,
            "replay_s": time.monotonic() - began,
            "replay_cpu_s": cpu_s(bridge.process.pid) - used_s,
        }
    finally:
        bridge.close()


def _replay(bridge: BridgeProcess) -> int:
    """Take all notices as a node does; return their number."""
    last, taken, position = bridge.daemon.status().last, 0, {"epoch": "other", "number": 0}
    with zmq.Context() as context, context.socket(zmq.DEALER) as asker:
        asker.connect(bridge.nodes)
        while position["number"] != last:
            asker.send(encode(AskNotices(node="bench", request=taken, **position)))
            head, *bodies = asker.recv_multipart()
            answer = decode(head, NOTICES, limit=NOTICES_LIMIT)
            taken += len(bodies)
            position = {"epoch": answer.epoch, "number": answer.first + len(bodies) - 1}
    return taken


def _request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: bridge\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _peak_mb(pid: int) -> float:
    """Return the largest resident memory of a process since its start, shared pages included."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("VmHWM")).split()[1]) * 1024 / 1e6
