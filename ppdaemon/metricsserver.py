# SPDX-License-Identifier: BSD-3-Clause
"""Serves ``/metrics`` over HTTP in the event loop.

prometheus_client writes the text. Its own server starts a thread for each connection, without a limit
and without a time-out: 300 silent clients were 300 threads. Here a connection costs a task and ends
after `CLIENT_S`.
"""

import asyncio
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppdaemon.backoff import Backoff
from ppdaemon.metrics import Histogram, Metric
from ppdaemon.peers import Connections, Role

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

__all__ = ("MetricsServer", "families", "text_of")

_LOG = logging.getLogger(__name__)

MAX_CLIENTS = 16
"""A site has one or two Prometheus servers; a further client replaces the one that has sent no request
for longest."""
CLIENT_S = 5.0
"""A connection that is not served in this time is closed: Prometheus gives up after 10 s, and a client
that does not read must not keep the text in memory."""
REQUEST_MAX = 8192
"""Bytes of a request with its header; Prometheus sends some 300."""
CACHE_S = 1.0
"""Requests within this time get the same text, so that no client can keep the daemon busy."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Pauses after the address could not be used."""


@dataclass(eq=False)
class MetricsServer:
    """Serves what `source` returns, as a table of metrics reads it."""

    listen: str | None
    table: Sequence[Metric[Any]]
    source: Callable[[], object]

    problem: str = field(default="", init=False)
    """Why the address cannot be used; blank if it can."""

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._clients = Connections(MAX_CLIENTS, 0)
        self._reconfigured = asyncio.Event()
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._text, self._made_at = b"", float("-inf")
        self._making = asyncio.Lock()

    def reconfigure(self, listen: str | None) -> None:
        """Serve at another address from now on, or not at all."""
        if listen != self.listen:
            self.listen = listen
            self._reconfigured.set()

    async def run(self) -> None:
        """Serve until canceled. An address that cannot be used is tried again after a pause."""
        while True:
            self._reconfigured.clear()
            if self.listen is None:
                self.problem = ""
                await self._reconfigured.wait()
                continue
            pause_s = await self._serve_at(self.listen)
            try:
                async with asyncio.timeout(pause_s):
                    await self._reconfigured.wait()
                self._backoff.succeeded()
            except TimeoutError:
                pass

    async def _serve_at(self, listen: str) -> float:
        """Serve until another address is configured, or return the pause until the next attempt."""
        host, _, port = listen.rpartition(":")
        try:
            # In a thread: some 50 modules, which an installation without metrics does not need.
            await asyncio.to_thread(importlib.import_module, "prometheus_client.exposition")
            server = await asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=REQUEST_MAX)
        except (OSError, ImportError, UnicodeError) as error:  # UnicodeError: as a host's name
            pause_s = self._backoff.failed(self._loop.time())
            # asyncio's text has the address once more, and the number of the error twice.
            why = os.strerror(number) if (number := getattr(error, "errno", None) or 0) > 0 else error
            if not self.problem:
                _LOG.error("metrics cannot be served at %s: %s; trying again", listen, why)
            self.problem = f"metrics cannot be served at {listen}: {why}; tried again"
            return pause_s
        self.problem = ""
        self._backoff.succeeded()
        _LOG.info("metrics are served at http://%s/metrics", listen)
        try:
            await self._reconfigured.wait()
        finally:
            server.close()
            clients = self._clients.tasks
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        return 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        task = asyncio.current_task()
        assert task is not None
        writer.transport.set_write_buffer_limits(high=0)  # so that drain() waits until all is sent
        try:
            if self._clients.admit(task, Role.READER):
                async with asyncio.timeout(CLIENT_S):
                    request = await reader.readuntil(b"\r\n\r\n")
                    self._clients.set_busy(task)
                    writer.write(await self._answer(request))
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the client has disconnected, is too slow or had to make room, or the daemon is stopping
        finally:
            self._clients.remove(task)
            # Not close(): that waits for a client that does not read.
            writer.transport.abort()

    async def _answer(self, request: bytes) -> bytes:
        method, path, *_ = [*request.partition(b"\r\n")[0].split(b" "), b"", b""]
        if method != b"GET":
            return _reply("405 Method Not Allowed", b"only GET\n")
        if path.partition(b"?")[0] != b"/metrics":
            return _reply("404 Not Found", b"see /metrics\n")
        try:
            return _reply("200 OK", await self._current_text())
        except Exception:  # costs this request, not the daemon
            _LOG.exception("cannot make the metrics; the client gets an error")
            return _reply("500 Internal Server Error", b"see the log of the daemon\n")

    async def _current_text(self) -> bytes:
        # One at a time: the next request finds the text of this one.
        async with self._making:
            if self._loop.time() - self._made_at >= CACHE_S:
                # All values are read in one step of the event loop, so that they belong together. They
                # are written in several, because the whole text takes longer than other work may wait.
                found = families(self.table, self.source())
                self._made_at = self._loop.time()
                parts = []
                for family in found:
                    parts.append(text_of(family))
                    await asyncio.sleep(0)
                self._text = b"".join(parts)
            return self._text


def _reply(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def families(table: Sequence[Metric[Any]], source: object) -> "list[Family]":
    """Read all metrics of a table; those without a value are left out."""
    from prometheus_client import metrics_core

    kinds: dict[str, Any] = {
        "gauge": metrics_core.GaugeMetricFamily,
        "counter": metrics_core.CounterMetricFamily,
        "histogram": metrics_core.HistogramMetricFamily,
    }
    found = []
    for metric in table:
        family = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
        for labels, value in metric.samples(source):
            if isinstance(value, Histogram):
                family.add_metric(labels, value.buckets(), value.sum)
            else:
                family.add_metric(labels, value)
        if family.samples:
            found.append(family)
    return found


def text_of(family: "Family") -> bytes:
    """Return one metric in the text format of Prometheus."""
    from prometheus_client import CollectorRegistry, exposition

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(family))
    return exposition.generate_latest(registry)


@dataclass(eq=False)  # the registry needs its identity only
class _Collected:
    """A collector of one metric."""

    family: "Family"

    def collect(self) -> "list[Family]":
        """Return the metric."""
        return [self.family]
