# SPDX-License-Identifier: BSD-3-Clause
"""Takes notices by HTTP POST. The answer is 200 only when the notice is in the ring on the disk.

A body that is no notice gets a 4xx. Stores repeat what was not answered 2xx, some of them for ever and
before everything else: a body that comes again and again is taken off the store, and counted.
"""

import asyncio
import hashlib
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

from aiohttp import HttpVersion11, http_exceptions, web

from ppdaemon.bridge.config import HttpConfig
from ppdaemon.errors import BadMessage, ConfigError, PPDaemonError
from ppdaemon.throttle import Throttle, sample_of
from ppdaemon.tokenfile import is_token, read_token
from ppdaemon.wire import parse_json

__all__ = ("HttpSource", "Refusals")

_LOG = logging.getLogger(__name__)

BODY_MAX = 1_000_000
"""Bytes, as nodes accept them; some 1000 records."""
SMALL, MAX_LARGE = 100_000, 50
"""Bodies with more than these bytes, of which so many are taken at once: some 50 MB."""
MAX_CONNECTIONS = 1000
"""A gateway may have as many as threads, and an exposure of LSSTCam has some 400 notices. A further one
replaces the one that has had no request for longest, which its store uses least."""
IDLE_S = 180.0
"""A connection without a request is closed after this time. Stores keep theirs from one exposure to the next,
some 40 s later: opening all again costs more CPU time than all notices. They close idle ones themselves
after 90 s (Go) or 118 s (libcurl): a request that meets our closing could be lost to them."""
BODY_S = 10.0
"""A store sends a body at once."""
STORE_S = 10.0
"""A disk that does not answer: the store asks again, and this request must not wait for ever."""
LINGER_S = 2.0
"""After a refusal, time for the rest of a body: a store that still sends would not read the answer."""
STOP_S = 1.0
"""Time for the answers that are under way at a stop."""
MAX_REFUSED = 3
"""After so many refusals the same body is answered 200."""
MAX_REMEMBERED = 1000
"""Refused bodies."""


class Refusals:
    """Counts how often each bad body was refused. Pure."""

    def __init__(self) -> None:
        self._times: OrderedDict[bytes, int] = OrderedDict()

    def refuse(self, body: bytes) -> bool:
        """Record that a body is bad; return `False` if its sender must not send it once more."""
        key = hashlib.sha256(body).digest()
        times = self._times[key] = self._times.get(key, 0) + 1
        self._times.move_to_end(key)
        if len(self._times) > MAX_REMEMBERED:
            self._times.popitem(last=False)
        return times <= MAX_REFUSED


class _RequestLog(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs about requests that are no HTTP, or break off: strangers may send many."""

    def __init__(self, throttle: Throttle):
        super().__init__(_LOG)
        self._throttle = throttle

    def exception(self, msg: object, *args: object, exc_info: Any = None, **others: Any) -> None:
        """Count an error; log one of each kind in a while."""
        if isinstance(exc_info, http_exceptions.HttpProcessingError | web.RequestPayloadError):
            if self._throttle.passes("http request"):
                # Its text has the first line, which may have the token.
                _LOG.warning("refused a request", extra={"reason": type(exc_info).__name__})
        elif self._throttle.passes("http internal"):
            _LOG.error(msg, *args, exc_info=exc_info, **others)


class _Server(web.Server):
    """Bounds the connections."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any):
        super().__init__(handler, **options)
        self.open: dict[object, bool] = {}
        """By connection, the one whose last request is oldest first: whether a request is under way."""

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.open[handler] = False
        if len(self.open) > MAX_CONNECTIONS:
            unused: Any = next((each for each, is_busy in self.open.items() if not is_busy), handler)
            del self.open[unused]
            unused.force_close()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.open.pop(handler, None)


def http_token(config: HttpConfig) -> str | None:
    """Return the token of the file; raises `~ppdaemon.errors.ConfigError`."""
    return None if config.token is None else read_token(config.token)


def http_certificate(config: HttpConfig) -> ssl.SSLContext | None:
    """Return the certificate of the files; raises `~ppdaemon.errors.ConfigError`."""
    if config.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, config)
    return context


def _load(context: ssl.SSLContext, config: HttpConfig) -> None:
    assert config.certificate is not None
    try:
        context.load_cert_chain(config.certificate, config.certificate_key)
    except OSError as error:
        raise ConfigError([f"http.certificate: {config.certificate}: {error}"]) from None


class HttpSource:
    """Serves one listening socket; `store` returns when a body is on the disk."""

    def __init__(
        self,
        store: Callable[[bytes], Awaitable[None]],
        throttle: Throttle,
        token: str | None,
        certificate: ssl.SSLContext | None,
    ):
        self._store = store
        self._throttle = throttle
        self._token = token
        self._certificate = certificate
        self._refusals = Refusals()
        self._large = asyncio.Semaphore(MAX_LARGE)
        self._server = _Server(
            self._serve,
            logger=_RequestLog(throttle),
            access_log=None,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            # No store packs its notices; a packed one could be a thousand times as large.
            auto_decompress=False,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=STOP_S)

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._server.open)

    def renew(self, config: HttpConfig) -> None:
        """Use the token and the certificate that are in the files now.

        Raises `~ppdaemon.errors.ConfigError` if one cannot be used; then nothing changes.
        """
        token = http_token(config)
        if self._certificate is not None:
            http_certificate(config)  # a certificate without its key would stay in the one that is in use
            _load(self._certificate, config)
        self._token = token

    async def start(self, listener: socket.socket) -> None:
        """Begin to serve; the listener is closed at the end."""
        await self._runner.setup()
        # Stores connect in bursts, and those that find no room wait a second and more.
        site = web.SockSite(self._runner, listener, ssl_context=self._certificate, backlog=1024)
        await site.start()

    async def stop(self) -> None:
        """Give the answers that are under way, and close all connections."""
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        self._server.open[request.protocol] = True
        try:
            return await self._answer(request)
        finally:
            if self._server.open.pop(request.protocol, None):  # not closed meanwhile
                self._server.open[request.protocol] = False  # as the last one

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.method != "POST":
            return self._refuse(405, "method", "send notices by POST")
        if not self._is_admitted(request):
            return self._refuse(401, "token", "the token is missing or wrong")
        is_small = (request.content_length or BODY_MAX) <= SMALL
        async with nullcontext() if is_small else self._large:
            return await self._take(request)

    async def _take(self, request: web.BaseRequest) -> web.Response:
        """Read and store a notice."""
        body = b""
        try:
            # Nearly all come with their head: a time limit for each costs as much as to parse it.
            async with nullcontext() if request.content.is_eof() else asyncio.timeout(BODY_S):
                body = await _read(request)
            if not isinstance(parse_json(body, limit=BODY_MAX), dict | list):
                raise BadMessage("neither a JSON object nor a list", "content")
        except TimeoutError:
            return self._refuse(408, "slow", f"the body did not arrive within {BODY_S:g} s")
        except (ConnectionError, web.RequestPayloadError):
            return self._refuse(400, "cut", "the body is not complete")
        except web.HTTPRequestEntityTooLarge:
            # The body is not read: its size and its sender stand for it.
            about = f"{request.remote} {request.headers.get('Content-Length')}".encode()
            return self._refuse_body(about, 413, "size", f"more than {BODY_MAX} bytes")
        except BadMessage as error:
            return self._refuse_body(body, 413 if error.kind == "size" else 400, error.kind, str(error))
        try:
            async with asyncio.timeout(STORE_S):
                await self._store(body)
        except TimeoutError:
            return self._refuse(503, "ring", f"the disk of the ring has not answered for {STORE_S:g} s")
        except PPDaemonError as error:
            return self._refuse(503, "ring", str(error))
        return web.Response(text="stored\n")

    def _is_admitted(self, request: web.BaseRequest) -> bool:
        if self._token is None:
            return True
        given = (
            request.headers.get("Authorization", "").removeprefix("Bearer "),
            request.path.rpartition("/")[2],
        )
        return any(is_token(each, self._token) for each in given)

    def _refuse_body(self, body: bytes, status: int, kind: str, reason: str) -> web.Response:
        if self._refusals.refuse(body):
            return self._refuse(status, kind, reason, body)
        if self._throttle.passes("http given_up"):
            _LOG.warning(
                "answered 200 to a bad notice that came again and again",
                extra={"reason": reason, "sample": sample_of(body)},
            )
        return web.Response(text="not stored\n")

    def _refuse(self, status: int, kind: str, reason: str, body: bytes | None = None) -> web.Response:
        if self._throttle.passes(f"http {kind}"):
            context: dict[str, Any] = {"status": status, "reason": reason}
            if body is not None:
                context["sample"] = sample_of(body)
            _LOG.warning("refused a request", extra=context)
        return web.Response(status=status, text=f"{reason}\n")


async def _read(request: web.BaseRequest) -> bytes:
    """Return the body of a request; ask for it where a client waits for that."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # so that an error can still be answered
    return await request.read()
