# SPDX-License-Identifier: BSD-3-Clause
"""The server of ``/metrics`` with real connections: good, wrong, silent and slow clients."""

import asyncio
import socket
import time
from contextlib import asynccontextmanager

import pytest

from ppdaemon import metricsserver
from ppdaemon.metrics import Metric
from ppdaemon.metricsserver import MAX_CLIENTS, MetricsServer
from ppdaemon.testing.telescope import free_port

LIMIT_S = 40.0
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def connect(server):
    host, _, port = server.listen.rpartition(":")
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)


async def exchange(server, request=GET):
    """Send a request; return status, header and body."""
    reader, writer = await connect(server)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)
    finally:
        writer.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head.partition("\r\n")[0].partition(" ")[2], head, body


@asynccontextmanager
async def serving(source=lambda: 7, listen=""):
    table = (Metric("ppdaemon_x", "gauge", "A value.", lambda source: source),)
    server = MetricsServer(listen or f"127.0.0.1:{free_port()}", table, source)
    running = asyncio.create_task(server.run())
    try:
        yield server
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_the_metrics_are_served():
    async with serving() as server:
        status, head, body = await exchange(server)
        assert status == "200 OK"
        assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert f"Content-Length: {len(body)}" in head
        assert body == "# HELP ppdaemon_x A value.\n# TYPE ppdaemon_x gauge\nppdaemon_x 7.0\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", "200 OK"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", "405 Method Not Allowed"),
        (b"\r\n\r\n", "405 Method Not Allowed"),
        (b"\xff\x00 \xfe\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /" + 9000 * b"x" + b"\r\n\r\n", ""),
        (4 * b"GET /metrics HTTP/1.1\r\n", ""),
    ],
)
async def test_other_requests_get_an_error_and_the_next_one_is_served(request_, status, monkeypatch):
    async with serving() as server:
        if not status:  # it is disconnected; the others are answered however slow this machine is
            monkeypatch.setattr(metricsserver, "CLIENT_S", 0.3)
        try:
            assert (await exchange(server, request_))[0] == status
        except ConnectionResetError:  # the rest of its request was not read
            assert not status
        monkeypatch.setattr(metricsserver, "CLIENT_S", LIMIT_S)
        assert (await exchange(server))[0] == "200 OK"


async def test_requests_within_a_second_get_the_same_text(monkeypatch):
    monkeypatch.setattr(metricsserver, "CACHE_S", 1000.0)
    calls = iter(range(100))
    async with serving(lambda: next(calls)) as server:
        bodies = {body for _, _, body in await asyncio.gather(*[exchange(server) for _ in range(8)])}
        assert len(bodies) == 1
        server._made_at -= metricsserver.CACHE_S
        assert (await exchange(server))[2] not in bodies


async def test_silent_clients_do_not_keep_others_out():
    """Fault 67."""
    async with serving() as server:
        silent = [await connect(server) for _ in range(3 * MAX_CLIENTS)]
        assert (await exchange(server))[0] == "200 OK"
        assert len(server._clients.tasks) <= MAX_CLIENTS
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /met", GET])
async def test_a_client_that_does_not_send_or_read_is_disconnected(sent, monkeypatch):
    monkeypatch.setattr(metricsserver, "CLIENT_S", 0.2)
    async with serving() as server:
        # More than the kernel takes for a client that does not read.
        server._text, server._made_at = 30_000_000 * b"#", float("inf")
        _, writer = await connect(server)
        writer.write(sent)
        await until(lambda: server._clients.tasks)
        await until(lambda: not server._clients.tasks)
        writer.close()


async def test_an_error_costs_one_request(caplog):
    answers = iter([None, 3])

    def source():
        if (answer := next(answers)) is None:
            raise RuntimeError("broken")
        return answer

    async with serving(source) as server:
        assert (await exchange(server))[0] == "500 Internal Server Error"
        assert (await exchange(server))[2].endswith("ppdaemon_x 3.0\n")
    assert "cannot make the metrics" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "a..b"])
async def test_an_address_that_cannot_be_used_is_a_problem_and_is_tried_again(host, monkeypatch):
    monkeypatch.setattr(metricsserver, "FIRST_PAUSE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        async with serving(listen=f"{host}:{occupied.getsockname()[1]}") as server:
            await until(lambda: server.problem)
            assert server.problem.startswith(f"metrics cannot be served at {server.listen}: ")
            if host != "127.0.0.1":
                return
            assert server.problem.endswith(": Address already in use; tried again")
            occupied.close()
            await until(lambda: not server.problem)
            assert (await exchange(server))[0] == "200 OK"


async def test_a_reload_changes_the_address():
    async with serving() as server:
        assert (await exchange(server))[0] == "200 OK"
        reader, writer = await connect(server)
        before = server.listen
        server.reconfigure(f"127.0.0.1:{free_port()}")
        assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""  # a client of the old one
        writer.close()
        assert (await exchange(server))[0] == "200 OK"
        server.reconfigure(None)
        await until(lambda: not server._clients.tasks)
        server.reconfigure(before)
        assert (await exchange(server))[0] == "200 OK"


async def test_nothing_is_served_without_an_address():
    server = MetricsServer(None, (), lambda: None)
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    assert not server.problem
    server.reconfigure(f"127.0.0.1:{free_port()}")
    assert (await exchange(server, GET))[0] == "200 OK"
    running.cancel()
    await asyncio.wait([running])
