# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge answers to clients that are slow, and while its ring cannot be written."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from ppdaemon.bridge import http
from ppdaemon.bridge.http import HttpSource
from ppdaemon.errors import Refused
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until
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
async def serving(
    stored: Stored, token: str | None = None, made: list[HttpSource] | None = None
) -> AsyncIterator[tuple[int, Throttle]]:
    """Serve on a port; add what serves to a list."""
    throttle = Throttle(10.0, asyncio.get_running_loop().time)
    source = HttpSource(stored.store, throttle, token, None)
    if made is not None:
        made.append(source)
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


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "BODY_S", 0.05)
    monkeypatch.setattr(http, "LINGER_S", 0.05)
    stored = Stored()
    async with serving(stored) as (port, throttle):
        answer = await said(port, HEAD + b"\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert throttle.by_kind == {"http slow": 1}
    assert stored.bodies == []


def test_a_store_closes_its_idle_connections_before_the_bridge_does():
    libcurl_s, go_s = 118, 90
    assert max(libcurl_s, go_s) < http.IDLE_S


@pytest.mark.parametrize("sent", [b"", b"POST", HEAD])
async def test_a_client_that_sends_no_whole_request_is_disconnected(monkeypatch, sent):
    monkeypatch.setattr(http, "IDLE_S", 0.05)
    async with serving(Stored()) as (port, _):
        assert await said(port, sent) == b""


async def test_a_notice_that_cannot_be_written_is_refused_for_now():
    stored = Stored()
    request = HEAD + b'Connection: close\r\n\r\n{"a":"bc"}'
    async with serving(stored) as (port, _):
        stored.problem = "the ring cannot be written: disk full"
        answer = await said(port, request)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"the ring cannot be written: disk full\n")
        stored.problem = ""
        assert (await said(port, request)).startswith(b"HTTP/1.1 200 ")
    assert stored.bodies == [b'{"a":"bc"}']


async def test_a_client_that_waits_for_a_word_before_the_body_gets_it():
    """As libcurl does: without that word it waits a second, other clients for ever."""
    stored = Stored()
    async with serving(stored) as (port, _), asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'{"a":"bc"}')
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert stored.bodies == [b'{"a":"bc"}']


async def test_silent_clients_make_room_for_others(monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 5)
    made: list[HttpSource] = []
    async with serving(Stored(), made=made) as (port, _), asyncio.timeout(TIMEOUT_S):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        for _, writer in silent[::2]:
            writer.write(HEAD)
        whole = HEAD + b'Connection: close\r\n\r\n{"a":"bc"}'
        assert (await said(port, whole)).startswith(b"HTTP/1.1 200 ")
        assert made[0].connections <= 5
        for _, writer in silent:
            writer.close()


async def test_a_connection_in_use_is_not_the_one_that_makes_room(monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    async with serving(Stored()) as (port, _), asyncio.timeout(TIMEOUT_S):
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in (*kept[1:], kept[0]):
            writer.write(HEAD + b'\r\n{"a":"bc"}')
            await reader.readuntil(b"stored\n")
        further = await asyncio.open_connection("127.0.0.1", port)
        assert await kept[1][0].read() == b"", "closed, as the one without a request for longest"
        for reader, writer in (kept[0], kept[2], further):
            writer.write(HEAD + b'\r\n{"a":"bc"}')
            await reader.readuntil(b"stored\n")
            writer.close()
        kept[1][1].close()


async def test_as_many_connections_as_an_exposure_has_notices_are_served_together():
    stored, count = Stored(), 450
    async with serving(stored) as (port, _), asyncio.timeout(TIMEOUT_S):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        for _, writer in opened:
            writer.write(HEAD + b'\r\n{"a":"bc"}')
        for reader, writer in opened:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()
    assert len(stored.bodies) == count


PACKED = gzip.compress(b'{"a":"bc"}')


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b"GET nonsense\r\n\r\n", b"400", {"http request": 1}),
        (b"POST /very%20secret/\xe9 HTTP/1.1\r\n\r\n", b"400", {"http request": 1}),
        (
            b"POST / HTTP/1.1\r\nHost: b\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(PACKED), PACKED),
            b"400",
            {"http encoding": 1},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"5\r\n[1234\r\nnonsense\r\n",
            b"400",
            {"http request": 1},
        ),
    ],
)
def test_a_request_that_is_none_is_counted_and_logged_without_its_text(caplog, sent, status, kind):
    async def play() -> None:
        async with serving(Stored()) as (port, throttle):
            assert (await said(port, sent)).split()[1] == status
            assert throttle.by_kind == kind

    asyncio.run(play())
    assert [each.exc_info for each in caplog.records] == [None]
    assert "secret" not in caplog.text


def test_a_body_that_breaks_off_is_no_error_of_this_program(caplog):
    async def play() -> None:
        async with serving(Stored()) as (port, throttle), asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"\r\n{")
            writer.close()
            await until(lambda: "http cut" in throttle.by_kind)

    asyncio.run(play())
    assert [each.exc_info for each in caplog.records] == [None]


TOKEN = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        (b"/", b"", b"401"),
        (b"/", b"Authorization: Bearer \xff\xfe\r\n", b"401"),
        (b"/%ed%a0%80%ff", b"", b"401"),
        (b"/", b"Authorization: Bearer " + TOKEN.encode() + b"\r\n", b"200"),
        (b"/" + TOKEN.encode(), b"", b"200"),
    ],
)
async def test_a_token_that_is_no_text_is_a_wrong_one(path, header, status):
    head = b"POST %s HTTP/1.1\r\nHost: b\r\nConnection: close\r\nContent-Length: 2\r\n%s\r\n[]" % (
        path,
        header,
    )
    async with serving(Stored(), TOKEN) as (port, _):
        assert (await said(port, head)).split()[1] == status


def test_the_token_of_an_endpoint_is_not_logged(caplog):
    head = (
        b"POST /%s HTTP/1.1\r\nHost: b\r\nConnection: close\r\nContent-Length: 2000000\r\n\r\n"
        % TOKEN.encode()
    )

    async def play() -> None:
        async with serving(Stored(), TOKEN) as (port, _):
            assert (await said(port, head + b" " * 2_000_000)).split()[1] == b"413"

    asyncio.run(play())
    (record,) = caplog.records
    assert TOKEN not in str(vars(record))


async def test_a_disk_that_does_not_answer_keeps_no_request_for_ever(monkeypatch):
    monkeypatch.setattr(http, "STORE_S", 0.05)

    class Hanging(Stored):
        async def store(self, body: bytes) -> None:
            await asyncio.Event().wait()

    async with serving(Hanging()) as (port, throttle):
        answer = await said(port, HEAD + b'Connection: close\r\n\r\n{"a":"bc"}')
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert throttle.by_kind == {"http ring": 1}


async def test_large_bodies_are_taken_by_turns_and_small_ones_at_once(monkeypatch):
    monkeypatch.setattr(http, "SMALL", 2)
    monkeypatch.setattr(http, "MAX_LARGE", 1)

    class Slow(Stored):
        """Stores large bodies when the small one is stored."""

        def __init__(self) -> None:
            super().__init__()
            self.under_way = self.most = 0
            self.small = asyncio.Event()

        async def store(self, body: bytes) -> None:
            if body == b"[]":
                self.small.set()
                return
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await self.small.wait()
            self.bodies.append(body)
            self.under_way -= 1

    stored = Slow()
    async with serving(stored) as (port, _), asyncio.timeout(TIMEOUT_S):
        whole = HEAD + b'Connection: close\r\n\r\n{"a":"bc"}'
        large = [asyncio.create_task(said(port, whole)) for _ in range(3)]
        await until(lambda: stored.under_way)
        small = b"POST / HTTP/1.1\r\nHost: b\r\nConnection: close\r\nContent-Length: 2\r\n\r\n[]"
        assert (await said(port, small)).startswith(b"HTTP/1.1 200 ")
        for answer in await asyncio.gather(*large):
            assert answer.startswith(b"HTTP/1.1 200 ")
    assert (len(stored.bodies), stored.most) == (3, 1)
