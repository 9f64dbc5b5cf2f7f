# SPDX-License-Identifier: BSD-3-Clause
"""Visits from a stream of Redis, beside visits over the relay's submit socket to another node."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from benching.cli import progress
from benching.folders import BenchFolders
from benching.orders import Samples
from benching.results import Scalar
from poolbench.node import BenchFailed

from ppdaemon.clock import Clock
from ppdaemon.config import WorkersConfig
from ppdaemon.states import SlotState
from ppdaemon.testing.node import NodeProcess, node_config
from sourcesbench.results import beside
from sourcesbench.site import CAMERA, START_S, Site, Workload, groups, record_in_memory, running
from sourcesbench.zeromq import pace

UNPACKED = Path(__file__).parents[2] / "build/debian/redis-server/usr"
"""Where the tests unpack it, if the host has none."""
STREAM = "instrument:lsstcam"
SETTLED_S = 0.2
"""Then what the journal of the node notes about a visit is written, and does not delay the next one."""


class _StreamSite(Site):
    """A node that takes visits from a stream."""

    def __init__(self, node: NodeProcess, server: redis.Redis, workload: Workload):
        super().__init__(node, None, workload)  # type: ignore[arg-type]  # there is no relay
        self.server = server

    def write_at_once(self, group: str) -> float:
        """Add an entry for each detector, in one request; return the monotonic time before."""
        with self.server.pipeline(transaction=False) as pipe:
            for entry in _entries(group, self.detectors).values():
                pipe.xadd(STREAM, entry)
            began = time.monotonic()
            pipe.execute()
        return began

    def write(self, group: str, within_s: float, samples: Samples) -> None:
        """Add the entries one after another; add the times to each worker's order to prepare."""
        sent, entries = {}, _entries(group, self.detectors)
        for detector in pace(dict.fromkeys(entries, b""), within_s):
            sent[detector] = time.monotonic()
            self.server.xadd(STREAM, entries[detector])
        self._wait(lambda: len(self._orders("prepared", group)) >= len(sent))
        samples.add(sent, self._orders("prepared", group))

    def end(self, group: str) -> None:
        """Write the raws of a visit, which ends with them; wait until the server knows that."""
        self._raws.land(group, self.detectors)
        idle = {SlotState.IDLE: len(self.detectors)}
        self._wait(lambda: self.node.status().slots == idle, START_S)
        self._wait(lambda: not self.server.xpending(STREAM, "ppdaemon")["pending"], START_S)
        time.sleep(SETTLED_S)


def measure_redis(folders: BenchFolders, workload: Workload) -> dict[str, Scalar]:
    """Send visits in turn: over the submit socket; as entries at once; as entries one after another."""
    unpacked = UNPACKED / "bin" / "redis-server"
    program = shutil.which("redis-server") or (str(unpacked) if unpacked.exists() else None)
    if program is None:
        progress("redis: left out, redis-server is missing (Debian: apt install redis-server)")
        return {}
    progress(f"redis: starting 2 x {workload.detectors} workers")
    zeromq, burst, redis_ = Samples(), Samples(), Samples()
    with (
        _server(program, folders.ramdisk / "s") as server,
        running(folders, workload, {}) as relayed,
        _running_node(folders, workload, server) as streamed,
    ):
        for number, suffix in enumerate(groups("-", workload.exposures)):
            progress(f"redis: visit {number} of {workload.exposures}; the first one is not counted")
            name = f"zeromq{suffix}"
            relayed.visit(name, lambda: relayed.announce(name), zeromq if number else Samples())  # noqa: B023
            relayed.end(name)
            name = f"burst{suffix}"
            streamed.visit(name, lambda: streamed.write_at_once(name), burst if number else Samples())  # noqa: B023
            streamed.end(name)
            streamed.write(f"redis{suffix}", workload.within_s, redis_ if number else Samples())
            streamed.end(f"redis{suffix}")
    all_ = (zeromq, burst, redis_)
    return {
        "sent": burst.sent + redis_.sent,
        "lost": sum(each.lost for each in all_),
        "doubled": sum(each.doubled for each in all_),
        **redis_.results("entry"),
        **burst.results("burst"),
        **zeromq.results("zeromq"),
        **beside(burst, zeromq),
    }


def _entries(group: str, detectors: Iterable[int]) -> dict[int, dict[Any, Any]]:
    """Return entries as the observatory's fan-out writes them, by detector; each visit-detector ends when its
    raw has arrived.
    """
    visit = {
        "groupId": group,
        "instrument": CAMERA,
        "survey": "idle",
        "nimages": 1,
        "position": "[150.1, 2.2]",
        "coordinateSystem": 2,
        "rotationSystem": 2,
        "cameraAngle": 25.0,
        "filters": "r_57",
        "duration": 35.0,
        "private_sndStamp": Clock().tai(),
    }
    return {detector: visit | {"detector": detector} for detector in detectors}


@contextmanager
def _server(program: str, folder: Path) -> Iterator[redis.Redis]:
    folder.mkdir()
    path = folder / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    libraries = {str(path.parent) for path in UNPACKED.glob("lib/**/*.so*")}
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}
    process = subprocess.Popen([*command, "--appendonly", "yes"], env=environment, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=str(path), protocol=2) as server:
            until = time.monotonic() + START_S
            while True:
                try:
                    server.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > until or process.poll() is not None:
                        raise BenchFailed("redis-server does not answer") from None
                    time.sleep(0.05)
            yield server
    finally:
        process.kill()
        process.wait()


@contextmanager
def _running_node(folders: BenchFolders, workload: Workload, server: redis.Redis) -> Iterator[_StreamSite]:
    folder, sockets = folders.scratch / "streamed", folders.ramdisk / "n"
    folder.mkdir()
    sockets.mkdir()
    slots = workload.detectors
    path = server.connection_pool.connection_kwargs["path"]
    config = node_config(
        folder,
        sockets,
        redis={"url": f"unix://{path}", "streams": [STREAM]},
        workers={
            **{"min": slots, "max": slots, "spare": 0, "nice": WorkersConfig().nice},
            "times": {"boot_s": START_S, "prepare_s": 3600},
        },
    )
    config["node"] |= {"name": "streamed", "instruments": {CAMERA: f"0-{slots - 1}"}}
    node = NodeProcess(folder, config)
    node.launch()
    try:
        node.wait(lambda: node.status().slots == {SlotState.IDLE: slots}, START_S)
        node.wait(lambda: node.status().redis.connected)
        record_in_memory(node.state, sockets)
        yield _StreamSite(node, server, workload)
    except AssertionError as error:
        raise BenchFailed(str(error)) from None
    finally:
        node.stop()
