# SPDX-License-Identifier: BSD-3-Clause
"""The control socket of a daemon: one JSON object per line in, one per line out.

A client that sends invalid requests, sends nothing or does not read its
replies affects no other client; the number of clients is bounded. What a client
may do depends on its user, which the kernel reports.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon.changefeed import ChangeFeed
from ppdaemon.commonconfig import SecurityConfig
from ppdaemon.errors import BadMessage, PPDaemonError, StateUnusable
from ppdaemon.peers import Connections, PeerCredentials, Role, access_error, role_of
from ppdaemon.privatefiles import check_socket_folder
from ppdaemon.ratelimit import RateLimit
from ppdaemon.reports import CONTROL_LIMIT, READING, Ok, RequestFailed, Watch, WatchVisits
from ppdaemon.throttle import Throttle
from ppdaemon.wire import Model, decode, encode

__all__ = ("ControlServer", "Reply", "Rows", "not_found")

_LOG = logging.getLogger(__name__)

MAX_CLIENTS = 64
"""More would use up the descriptors that the daemon needs for its workers."""
RESERVED_CLIENTS = 8
"""More clients that operators may open when the others are all busy, or watch the status."""
FIRST_REQUEST_S = 2.0
"""A client that does not send its first request in this time is disconnected: programs send it
at once."""
WRITE_S = 5.0
"""A client that does not read a reply for this long is disconnected."""
SILENCE_S = 300.0
"""A client that sends no request for this long is disconnected."""
LOG_INTERVAL_S = 10.0
"""A client that sends without pause is logged once in this time."""

ROWS_AT_ONCE = 100
"""Rows of a list that are encoded before other tasks run: some 1 ms. A list may have 10,000."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The reply to a request for a list; in JSON an `~ppdaemon.reports.Ok` with the rows as data."""

    rows: Iterable[Model]

    async def encoded(self) -> bytes:
        """Return the reply in JSON; other tasks run in between."""
        portions = []
        for portion in itertools.batched(self.rows, ROWS_AT_ONCE):
            portions.append(b",".join(encode(row, nulls=True) for row in portion))
            await asyncio.sleep(0)
        return b'{"type":"ok","data":[' + b",".join(portions) + b"]}"


type Reply = Ok | RequestFailed | Rows
type Handle = Callable[[pydantic.BaseModel], Awaitable[Reply]]


@dataclass(eq=False)
class ControlServer:
    """Serves the control socket.

    ``requests`` are those that this daemon knows; ``handle`` gets a request and
    returns its reply; ``status`` returns the current status for clients that watch
    it; ``access`` has the users that may do something; requests that were slowed are counted
    in ``counters``; ``changes`` has the changes of visits for clients that watch them.
    """

    path: Path
    requests: pydantic.TypeAdapter[Any]
    handle: Handle
    status: Callable[[], Model]
    access: SecurityConfig = field(default_factory=SecurityConfig)
    counters: Counter[str] = field(default_factory=Counter)
    changes: ChangeFeed = field(default_factory=ChangeFeed)

    def __post_init__(self) -> None:
        self._rate = RateLimit(self.access.control_per_s, time.monotonic)
        self._throttle = Throttle(LOG_INTERVAL_S, time.monotonic)
        self._server: asyncio.Server | None = None
        self._clients = Connections(MAX_CLIENTS, RESERVED_CLIENTS)
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Create the socket and listen. Raises `~ppdaemon.errors.StateUnusable` if there is another
        file, or if other users could replace the socket.
        """
        check_socket_folder(self.path.parent)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise StateUnusable(f"{self.path} exists and is not a socket; move it away")
            self.path.unlink()  # left by the previous run, which has ended: this one holds the state lock
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The kernel gives the mode of the descriptor to the file: it is never open to more users.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self.path))
            listener.listen()  # at once: a client that sees the file may connect
            self.set_access(self.access)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=CONTROL_LIMIT)
        except BaseException:
            listener.close()
            raise

    def set_access(self, access: SecurityConfig) -> None:
        """Use other lists of users, also for clients that are connected."""
        self.access = access
        self._rate.per_s = access.control_per_s
        with contextlib.suppress(FileNotFoundError):  # somebody has deleted it
            self.path.chmod(access.socket_mode)

    async def stop(self) -> None:
        """Disconnect all clients and remove the socket."""
        if self._server is not None:
            self._server.close()
        clients = self._clients.tasks
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def changed(self) -> None:
        """Send the status to the clients that watch it."""
        self._changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writer.transport.set_write_buffer_limits(high=0)  # so that drain() waits until all is sent
        try:
            peer = PeerCredentials.of(writer.get_extra_info("socket"))
            if self._clients.admit(task, role_of(peer, self.access)):
                await self._exchange(reader, writer, peer, task)
            else:
                await self._reply(writer, RequestFailed(code="refused", text="too many clients"))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client has disconnected or had to make room, or the daemon is stopping
        finally:
            self._clients.remove(task)
            # Not close(): that waits for a client that does not read.
            writer.transport.abort()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: PeerCredentials,
        task: asyncio.Task[None],
    ) -> None:
        limit_s = FIRST_REQUEST_S
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), limit_s)
            except ValueError:
                text = f"a request of more than {CONTROL_LIMIT} bytes"
                await self._reply(writer, RequestFailed(code="bad_request", text=text))
                return
            if not line:
                return
            limit_s = SILENCE_S
            # Still idle: it makes room for others.
            await self._wait_for_rate(peer)
            self._clients.set_busy(task)
            # With each request: a reload may have changed it.
            role = role_of(peer, self.access)
            try:
                request = decode(line, self.requests, limit=CONTROL_LIMIT)
            except BadMessage as error:
                await self._reply(writer, RequestFailed(code="bad_request", text=str(error)))
                if role is Role.STRANGER:
                    return
                self._clients.set_idle(task, role)
                continue
            if role < (Role.READER if type(request) in READING else Role.OPERATOR):
                # In a thread: the user database may be on another host.
                text = await asyncio.to_thread(access_error, peer, role, request.type)
                if self._throttle.passes(f"denied {peer.uid}"):
                    _LOG.info("refused a control request: %s", text)
                await self._reply(writer, RequestFailed(code="denied", text=text))
                return
            if isinstance(request, Watch):
                await self._stream(writer)
                return
            if isinstance(request, WatchVisits):
                await self._stream_visits(writer)
                return
            await self._send(writer, await self._answer(request))
            self._clients.set_idle(task, role)

    async def _wait_for_rate(self, peer: PeerCredentials) -> None:
        """Wait until a user may send one more request."""
        slowed = False
        while wait_s := self._rate.take(peer.uid):
            if not slowed:
                slowed = True
                self.counters["control rate"] += 1
                if self._throttle.passes("rate"):
                    text = "control requests of user %d are slowed: more than %g/s"
                    _LOG.warning(text, peer.uid, self.access.control_per_s)
            await asyncio.sleep(wait_s)

    async def _answer(self, request: pydantic.BaseModel) -> bytes:
        """Return the reply to a request in JSON."""
        try:
            reply = await self.handle(request)
            return await reply.encoded() if isinstance(reply, Rows) else encode(reply)
        except PPDaemonError as error:
            return encode(RequestFailed(code="refused", text=str(error)))
        except Exception as error:  # one client's request must not end the daemon
            _LOG.exception("cannot handle the control request %r; the client gets an error", request)
            return encode(RequestFailed(code="internal", text=f"{type(error).__name__}: {error}"))

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        """Send the status now and after changes, at least once and at most 5 times a second."""
        while True:
            await self._reply(writer, Ok(data=self.status().model_dump(mode="json")))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)
            # Before the pause: changes during it are sent right after it.
            self._changed.clear()
            await asyncio.sleep(0.2)

    async def _stream_visits(self, writer: asyncio.StreamWriter) -> None:
        """Send the changes of visits, at least once and at most 10 times a second."""
        with self.changes.watched() as watcher:
            while True:
                await self._send(writer, await Rows(watcher.take()).encoded())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(watcher.filled.wait(), 1.0)
                # The changes of many detectors come in bursts: one list for all of them.
                await asyncio.sleep(0.1 if watcher.filled.is_set() else 0.0)

    async def _reply(self, writer: asyncio.StreamWriter, reply: Ok | RequestFailed) -> None:
        await self._send(writer, encode(reply))

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, reply: bytes) -> None:
        writer.write(reply + b"\n")
        await asyncio.wait_for(writer.drain(), WRITE_S)


def not_found(text: str) -> RequestFailed:
    """Return the reply to a request that names something unknown."""
    return RequestFailed(code="not_found", text=text)
