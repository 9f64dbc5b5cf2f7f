# SPDX-License-Identifier: BSD-3-Clause
"""What no fan-out on this machine can be faster than: Python processes that read an order and note
the time, and do nothing else.
"""

import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from ppdaemon.config import WorkersConfig
from ppdaemon.messages import PACKET_LIMIT, Pipelines, Prepare
from ppdaemon.visit import NextVisit
from ppdaemon.wire import encode

TIME = struct.Struct("d")


class BareWorkers:
    """Has an order sent to all processes at the other end of `connection`."""

    def __init__(self, connection: "Connection[None, float]"):
        self._connection = connection
        self.samples_ms: list[float] = []

    def sample(self) -> None:
        """Measure the time from the first order that is sent to the last one that is received."""
        self._connection.send(None)
        self.samples_ms.append(self._connection.recv())


@contextmanager
def bare_workers(number: int) -> Iterator[BareWorkers]:
    """Start the processes, and end them."""
    here, there = multiprocessing.Pipe()
    # A new process, because this one has threads and cannot fork.
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, number))
    server.start()
    try:
        bare = BareWorkers(here)
        bare.sample()  # the start of the processes
        bare.samples_ms.clear()
        yield bare
    finally:
        server.kill()  # the others read the end of their channels
        server.join()


def _serve(connection: "Connection[float, None]", number: int) -> None:
    visit = NextVisit.model_validate(
        {"groupId": "bare", "instrument": "LSSTCam", "survey": "idle", "nimages": 1}
    )
    order = encode(Prepare(visit=visit, detector=0, pipelines=Pipelines(main=("pipeline.yaml",))))
    ends = [_forked() for _ in range(number)]
    while True:
        connection.recv()
        began = time.monotonic()
        for end in ends:
            end.send(order)
        last = max(TIME.unpack(end.recv(TIME.size))[0] for end in ends)
        connection.send((last - began) * 1e3)


def _forked() -> socket.socket:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        near.close()
        os.nice(WorkersConfig().nice)
        packet = bytearray(PACKET_LIMIT)
        while far.recv_into(packet):
            far.send(TIME.pack(time.monotonic()))
        os._exit(0)
    far.close()
    return near
