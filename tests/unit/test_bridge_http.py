# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge answers to clients that are slow, and while its ring cannot be written."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ppdaemon.bridge import http
from ppdaemon.bridge.http import HttpSource
from ppdaemon.errors import Refused
from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.throttle import Throttle

HEAD = b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n"


class Stored:
    """A ring that keeps what it gets, or cannot be written."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.problem = ""

    async def store(self, body: bytes) -> None:
        if self.problem:
            raise Refused(self.problem)
        self.bodies.append(body)


@asynccontextmanager
async def serving(stored: Stored) -> AsyncIterator[tuple[int, Throttle]]:
    """Serve on a port."""
    throttle = Throttle(10.0, asyncio.get_running_loop().time)
    source = HttpSource(stored.store, throttle, None, None)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    await source.start(listener)
    try:
        yield port, throttle
    finally:
        await source.stop()


async def said(port: int, sent: bytes) -> bytes:
    """Send some bytes and no more; return all that is answered until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "BODY_S", 0.05)
    monkeypatch.setattr(http, "LINGER_S", 0.05)
    stored = Stored()

    async def play() -> None:
        async with serving(stored) as (port, throttle):
            answer = await said(port, HEAD + b"\r\n{")
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert throttle.by_kind == {"http slow": 1}

    asyncio.run(play())
    assert stored.bodies == []


@pytest.mark.parametrize("sent", [b"", b"POST", HEAD])
def test_a_client_that_sends_no_whole_request_is_disconnected(monkeypatch, sent):
    monkeypatch.setattr(http, "IDLE_S", 0.05)

    async def play() -> None:
        async with serving(Stored()) as (port, _):
            assert await said(port, sent) == b""

    asyncio.run(play())


def test_a_notice_that_cannot_be_written_is_refused_for_now():
    stored = Stored()
    request = HEAD + b'Connection: close\r\n\r\n{"a":"bc"}'

    async def play() -> None:
        async with serving(stored) as (port, _):
            stored.problem = "the ring cannot be written: disk full"
            answer = await said(port, request)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert answer.endswith(b"the ring cannot be written: disk full\n")
            stored.problem = ""
            assert (await said(port, request)).startswith(b"HTTP/1.1 200 ")

    asyncio.run(play())
    assert stored.bodies == [b'{"a":"bc"}']
