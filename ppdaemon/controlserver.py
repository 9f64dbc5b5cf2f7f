# SPDX-License-Identifier: BSD-3-Clause
"""The control socket of a daemon: one JSON object per line in, one per line out.

A client that sends invalid requests, sends nothing or does not read its
replies affects no other client; the number of clients is bounded.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon.errors import BadMessage, PPDaemonError
from ppdaemon.reports import CONTROL_LIMIT, Ok, RequestFailed, Watch
from ppdaemon.wire import Model, decode, encode

__all__ = ("ControlServer", "not_found", "rows_reply")

_LOG = logging.getLogger(__name__)

MAX_CLIENTS = 64
"""More would use up the descriptors that the daemon needs for its workers."""
WRITE_S = 5.0
"""A client that does not read a reply for this long is disconnected."""
SILENCE_S = 300.0
"""A client that sends no request for this long is disconnected."""

type Handle = Callable[[pydantic.BaseModel], Awaitable[Ok | RequestFailed]]


@dataclass(eq=False)
class ControlServer:
    """Serves the control socket.

    ``requests`` are those that this daemon knows; ``handle`` gets a request and
    returns its reply; ``status`` returns the current status for clients that watch it.
    """

    path: Path
    requests: pydantic.TypeAdapter[Any]
    handle: Handle
    status: Callable[[], Model]

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Create the socket, with mode 0660, and listen."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()  # left by the previous run, which has ended: this one holds the state lock
        # The socket must not be open to all users, not even until a later chmod.
        before = os.umask(0o117)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=CONTROL_LIMIT)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Disconnect all clients and remove the socket."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def changed(self) -> None:
        """Send the status to the clients that watch it."""
        self._changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # so that drain() waits until all is sent
        try:
            if len(self._clients) > MAX_CLIENTS:
                await self._reply(writer, RequestFailed(code="refused", text="too many clients"))
            else:
                await self._exchange(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client has disconnected, or the daemon is stopping
        finally:
            self._clients.discard(task)
            # Not close(): that waits for a client that does not read.
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), SILENCE_S)
            except ValueError:
                text = f"a request of more than {CONTROL_LIMIT} bytes"
                await self._reply(writer, RequestFailed(code="bad_request", text=text))
                return
            if not line:
                return
            try:
                request = decode(line, self.requests, limit=CONTROL_LIMIT)
            except BadMessage as error:
                await self._reply(writer, RequestFailed(code="bad_request", text=str(error)))
                continue
            if isinstance(request, Watch):
                await self._stream(writer)
                return
            await self._reply(writer, await self._try(request))

    async def _try(self, request: pydantic.BaseModel) -> Ok | RequestFailed:
        try:
            return await self.handle(request)
        except PPDaemonError as error:
            return RequestFailed(code="refused", text=str(error))
        except Exception as error:  # one client's request must not end the daemon
            _LOG.exception("cannot handle the control request %r; the client gets an error", request)
            return RequestFailed(code="internal", text=f"{type(error).__name__}: {error}")

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        """Send the status now and after changes, at least once and at most 5 times a second."""
        while True:
            await self._reply(writer, Ok(data=self.status().model_dump(mode="json")))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)
            # Before the pause: changes during it are sent right after it.
            self._changed.clear()
            await asyncio.sleep(0.2)

    @staticmethod
    async def _reply(writer: asyncio.StreamWriter, reply: Ok | RequestFailed) -> None:
        writer.write(encode(reply) + b"\n")
        await asyncio.wait_for(writer.drain(), WRITE_S)


def rows_reply(rows: Sequence[Model]) -> Ok:
    """Return the reply to a request for a list."""
    return Ok(data=[row.model_dump(mode="json") for row in rows])


def not_found(text: str) -> RequestFailed:
    """Return the reply to a request that names something unknown."""
    return RequestFailed(code="not_found", text=text)
