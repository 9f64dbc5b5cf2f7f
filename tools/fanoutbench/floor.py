# SPDX-License-Identifier: BSD-3-Clause
"""What no fan-out can be faster than: a ZeroMQ round trip between two processes, with a commit."""

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import zmq

LIMIT_MS = 10_000


class Floor:
    """Sends requests to a process that commits each before it answers."""

    def __init__(self, socket: "zmq.Socket[bytes]"):
        self._socket = socket
        self.samples_ms: list[float] = []

    def sample(self, number: int = 1) -> None:
        """Take samples."""
        for _ in range(number):
            began = time.monotonic()
            self._socket.send(b"request")
            self._socket.recv()
            self.samples_ms.append((time.monotonic() - began) * 1e3)


@contextmanager
def measured_floor(folder: Path) -> Iterator[Floor]:
    """Start the other process, and end it."""
    address = f"ipc://{folder}/floor"
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(address, folder / "floor.db"))
    server.start()
    try:
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.rcvtimeo = LIMIT_MS
            socket.connect(address)
            floor = Floor(socket)
            floor.sample()  # the connection
            floor.samples_ms.clear()
            yield floor
    finally:
        server.kill()
        server.join()


def _serve(address: str, path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as socket, closing(_database(path)) as database:
        socket.bind(address)
        while True:
            request = socket.recv()
            database.execute("INSERT INTO requests VALUES (?)", (request,))
            socket.send(request)


def _database(path: Path) -> sqlite3.Connection:
    """Return a database with the settings of journal and ledger; each statement is committed."""
    database = sqlite3.connect(path, autocommit=True)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE requests (content BLOB)")
    return database
